"""Tests of rows: through real Delta tables of both versions and back, and in tables of other shapes."""

from __future__ import annotations

import datetime
import json
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from deltalake import DeltaTable, Schema, write_deltalake
from hypothesis import given

from tracelake.errors import PermanentDeliveryError, QueryError
from tracelake.spans import line, rows, tables, values
from tracelake.spans.columns import record_id
from tracelake.spans.record import Resource, Scope, SpanEvent, SpanLink, SpanRecord

from .samples import (
    SPANS,
    START,
    TRACE_ID,
    create_table,
    exact_record,
    land,
    nested,
    records,
    span,
    table_schema,
)


def as_text(record: SpanRecord) -> SpanRecord:
    """Return the record that a version 1 row gives back: every attribute value is text."""

    def texts(part: Any) -> Any:
        changed = {key: values.json_text(value) for key, value in part.attributes.items()}
        return msgspec.structs.replace(part, attributes=changed)

    return msgspec.structs.replace(
        texts(record),
        events=[texts(event) for event in record.events],
        links=[texts(link) for link in record.links],
        resource=line.pack(texts(line.resource_of(record))),
        scope=line.pack(texts(line.scope_of(record))),
    )


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, SpanRecord]]:
    """All samples, read back from a Delta table of each version, by span id."""
    found: dict[int, dict[str, SpanRecord]] = {}
    for version in (1, 2):
        table = land(tmp_path_factory.mktemp("table"), list(SPANS.values()), version)
        read = rows.from_arrow(table.to_pyarrow_table())
        assert len(read) == len(SPANS)
        found[version] = {record.span_id: record for record in read}
    return found


@pytest.mark.parametrize("name", list(SPANS))
def test_sample_is_the_same_in_a_version_2_table(landed: dict[int, dict[str, SpanRecord]], name: str) -> None:
    """Every field and every kind of value comes back from Delta with its type."""
    assert exact_record(landed[2][SPANS[name].span_id]) == exact_record(SPANS[name])


@pytest.mark.parametrize("name", list(SPANS))
def test_sample_is_text_in_a_version_1_table(landed: dict[int, dict[str, SpanRecord]], name: str) -> None:
    """Every field comes back from Delta, attribute values as their text."""
    assert exact_record(landed[1][SPANS[name].span_id]) == exact_record(as_text(SPANS[name]))


@pytest.mark.parametrize("version", [1, 2])
def test_degraded_value_is_in_the_table_with_its_note(tmp_path: Path, version: tables.Version) -> None:
    """What no table holds is there as text, and the row says so."""
    record = span(attributes={"big": 2**64, "text\ud800": "\udc00", "deep": nested(40)})
    (found,) = rows.from_arrow(land(tmp_path, [record], version).to_pyarrow_table())
    notes = found.attributes[values.DEGRADED_KEY]
    assert [note.rsplit(": ", 1)[1] for note in (json.loads(notes) if version == 1 else notes)] == [
        "integer of 65 bits written as text",
        "lone surrogates escaped",
        "lone surrogates escaped",
        "nested deeper than 30 levels, written as JSON text",
    ]
    assert found.attributes["big"] == str(2**64)
    assert found.attributes["text\\ud800"] == "\\udc00"
    assert "bottom" in str(found.attributes["deep"])


@given(records)
def test_record_comes_back_from_its_row(record: SpanRecord) -> None:
    """Any plain record is the same after a version 2 row, and its text after a version 1 row."""
    (typed,) = rows.from_arrow(rows.to_arrow([record], tables.span_schema(2)))
    assert exact_record(typed) == exact_record(record)
    (texts,) = rows.from_arrow(rows.to_arrow([record], tables.span_schema(1)))
    assert exact_record(texts) == exact_record(as_text(record))


def test_columns_hold_what_public_queries_test_for(tmp_path: Path) -> None:
    """Null parents, empty trace states, kinds, status codes and times are spelled as Databricks does."""
    start = 1_704_067_199_999_999_999
    resource = line.pack(Resource({"service.name": "shop"}))
    record = span(start_time_unix_nano=start, end_time_unix_nano=start, kind=2, status_code=2, resource=resource)
    (row,) = land(tmp_path, [record], 2).to_pyarrow_table().to_pylist()
    assert row["parent_span_id"] is None
    assert row["trace_state"] == ""
    assert row["kind"] == "SPAN_KIND_SERVER"
    assert row["status"] == {"message": "", "code": "STATUS_CODE_ERROR"}
    assert row["time"] == datetime.datetime(2023, 12, 31, 23, 59, 59, 999_999, tzinfo=datetime.timezone.utc)
    assert row["date"] == datetime.date(2023, 12, 31)
    assert row["service_name"] == "shop"
    assert row["events"] == row["links"] == []
    assert row["record_id"] == record_id(record)


def test_service_name_is_null_without_the_attribute() -> None:
    """A resource that does not say its service leaves the column null; one of another type is its text."""
    written = [span(), span(resource=line.pack(Resource({"service.name": 7})))]
    batch = rows.to_arrow(written, tables.span_schema(2))
    assert batch.column("service_name").to_pylist() == [None, "7"]


def test_record_id_is_a_version_7_uuid_that_sorts_by_start() -> None:
    """A record id is the same each time, sorts to the nanosecond, and differs for any two spans."""
    starts = [0, 1, 255, 256, 999_999, 1_000_000, START, START + 1, 2**63 - 1]
    ids = [record_id(span(start_time_unix_nano=start)) for start in starts]
    assert ids == sorted(ids)
    assert ids[0] == record_id(span(start_time_unix_nano=0))
    assert {(uuid.UUID(each).version, uuid.UUID(each).variant) for each in ids} == {(7, uuid.RFC_4122)}
    assert uuid.UUID(ids[6]).int >> 80 == START // 1_000_000
    same_time = {
        record_id(span(trace_id=f"{trace << shift:032x}", span_id=f"{number << shift:016x}", start_time_unix_nano=0))
        for shift in (0, 32)
        for trace in range(1, 101)
        for number in range(1, 101)
    }
    assert len(same_time) == 20_000


def _field_changed(schema: pa.Schema, name: str, field: pa.Field) -> pa.Schema:
    return schema.set(schema.get_field_index(name), field)


@pytest.mark.parametrize("version", [1, 2])
def test_columns_are_matched_by_name(version: tables.Version) -> None:
    """A table in another order, without some columns and with a few of its own gets the right values."""
    full = tables.span_schema(version)
    event = pa.struct([pa.field("mine", pa.int8()), pa.field("name", pa.string())])
    schema = pa.schema(
        [
            pa.field("ingested_by", pa.string()),
            pa.field("scope_schema_url", pa.string()),
            *(field for field in reversed(list(full)) if field.name not in ("links", "flags", "events")),
            pa.field("events", pa.list_(event)),
        ]
    )
    scope = line.pack(Scope("lib", schema_url="url"))
    record = span(attributes={"a": 1}, events=[SpanEvent("e", 5, {"b": 2})], scope=scope, flags=1)
    batch = rows.to_arrow([record], schema)
    assert batch.schema == schema
    (row,) = batch.to_pylist()
    assert row["ingested_by"] is None
    assert row["scope_schema_url"] == row["span_schema_url"] == "url"
    assert row["events"] == [{"mine": None, "name": "e"}]
    (found,) = rows.from_arrow(batch)
    expected = span(attributes={"a": 1 if version == 2 else "1"}, events=[SpanEvent("e", 0)], scope=scope)
    assert exact_record(found) == exact_record(expected)


def test_unknown_columns_are_null_in_the_table(tmp_path: Path) -> None:
    """Delta takes rows with null columns of any type, VARIANT and nested ones among them."""
    delta = tables.delta_schema(2)
    own = {"type": "struct", "fields": [{"name": "v", "type": "variant", "nullable": False, "metadata": {}}]}
    for name, kind in (("own_variant", "variant"), ("own_struct", own), ("own_decimal", "decimal(10,2)")):
        delta["fields"].insert(0, {"name": name, "type": kind, "nullable": True, "metadata": {}})
    table = DeltaTable.create(str(tmp_path), Schema.from_json(json.dumps(delta)))
    write_deltalake(table, rows.to_arrow([span(1), span(2)], table_schema(table)), mode="append")
    found = DeltaTable(str(tmp_path)).to_pyarrow_table()
    assert found.column("own_variant").null_count == found.column("own_struct").null_count == 2
    assert [record.name for record in rows.from_arrow(found)] == ["span 1", "span 2"]


STRING_MAP = pa.map_(pa.string(), pa.string())


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (pa.field("name", pa.int64()), r"Column name has the type int64, .+ \(STRING\)\. Name a table"),
        (pa.field("flags", pa.string()), r"Column flags has the type string, .+ \(INT\)"),
        (pa.field("flags", pa.int16()), r"Column flags has the type int16, .+ \(INT\)"),
        (pa.field("dropped_links_count", pa.int8()), r"\(INT\)"),
        (pa.field("start_time_unix_nano", pa.int32()), r"\(BIGINT\)"),
        (pa.field("end_time_unix_nano", pa.timestamp("us")), r"\(BIGINT\)"),
        (pa.field("time", pa.int64()), r"\(TIMESTAMP\)"),
        (pa.field("date", pa.string()), r"\(DATE\)"),
        (pa.field("attributes", pa.string()), r"Column attributes .+ \(VARIANT or MAP<STRING,STRING>\)"),
        (pa.field("attributes", pa.map_(pa.string(), pa.int64())), r"\(VARIANT or MAP<STRING,STRING>\)"),
        (pa.field("status", pa.string()), r"\(STRUCT<message, code>\)"),
        (pa.field("status", pa.struct([pa.field("code", pa.int32())])), r"Column status\.code .+ \(STRING\)"),
        (pa.field("events", STRING_MAP), r"Column events .+ \(ARRAY<STRUCT<time_unix_nano, name,"),
        (
            pa.field("events", pa.list_(pa.struct([pa.field("attributes", pa.binary())]))),
            r"Column events\.element\.attributes has the type binary",
        ),
        (
            pa.field("resource", pa.struct([pa.field("own", pa.string(), nullable=False)])),
            r"Column resource\.own of type string is NOT NULL, .+ DROP NOT NULL",
        ),
        (pa.field("tenant", pa.string(), nullable=False), r"Column tenant of type string is NOT NULL"),
    ],
)
def test_column_that_cannot_hold_a_span_is_named(field: pa.Field, message: str) -> None:
    """The error says which column, what it is, what it should be and what to do; it is not about any record."""
    schema = pa.schema([pa.field("trace_id", pa.string()), field])
    for write in (rows.to_arrow, rows.convert):
        with pytest.raises(PermanentDeliveryError, match=message):
            write([span()], schema)


def test_not_null_columns_of_a_span_are_filled() -> None:
    """A table that forbids nulls gets an empty parent and service, and reading makes the parent none again."""
    nullable = tables.span_schema(2)
    schema = pa.schema([pa.field(field.name, field.type, nullable=False) for field in nullable])
    batch = rows.to_arrow([span()], schema)
    batch.validate(full=True)
    assert batch.column("parent_span_id").to_pylist() == batch.column("service_name").to_pylist() == [""]
    assert rows.from_arrow(batch)[0].parent_span_id is None


def test_wider_types_are_filled() -> None:
    """Columns of a wider or other text, integer, list or time type hold the same."""
    schema = pa.schema(
        [
            pa.field("trace_id", pa.large_string()),
            pa.field("span_id", pa.string_view()),
            pa.field("flags", pa.int64()),
            pa.field("time", pa.timestamp("us")),
            pa.field("links", pa.large_list(pa.struct([pa.field("span_id", pa.string())]))),
            pa.field("attributes", pa.struct([pa.field("value", pa.binary()), pa.field("metadata", pa.binary())])),
        ]
    )
    record = span(flags=2**32 - 1, attributes={"a": 1}, links=[SpanLink("1" * 32, "2" * 16)])
    batch = rows.to_arrow([record], schema)
    batch.validate(full=True)
    (found,) = rows.from_arrow(batch)
    assert (found.trace_id, found.span_id) == (record.trace_id, record.span_id)
    assert (found.flags, found.attributes, found.links[0].span_id) == (2**32 - 1, {"a": 1}, "2" * 16)
    assert found.start_time_unix_nano == START // 1_000 * 1_000


def test_no_records_are_no_rows() -> None:
    """An empty batch has the schema all the same."""
    for version in (1, 2):
        batch, refused = rows.convert([], tables.span_schema(version))
        assert (batch.num_rows, batch.schema, refused) == (0, tables.span_schema(version), [])
        assert rows.from_arrow(batch) == []


@pytest.mark.parametrize("version", [1, 2])
def test_record_that_cannot_be_a_row_is_refused_alone(version: tables.Version) -> None:
    """The others are converted in their order, and each refused one has its index and the reason."""
    written = [span(number) for number in range(50)]
    written[7].kind = 9
    written[31].resource = msgspec.Raw(b"[]")
    written[49].start_time_unix_nano = 2**63
    batch, refused = rows.convert(written, tables.span_schema(version))
    assert [index for index, _ in refused] == [7, 31, 49]
    assert refused[0][1] == "IndexError: tuple index out of range"
    assert refused[1][1].startswith("LineError: Not a resource: ")
    kept = [record.name for index, record in enumerate(written) if index not in (7, 31, 49)]
    assert [record.name for record in rows.from_arrow(batch)] == kept


@pytest.mark.parametrize("version", [1, 2])
def test_record_that_was_not_degraded_is_degraded(version: tables.Version) -> None:
    """A value that no row holds is degraded here if it was not before, in the resource too."""
    big = msgspec.Raw(b'{"attributes":{"big":99999999999999999999}}')
    written = [span(1), span(2, attributes={"text": "\ud800", "pair": (1, 2)}, resource=big), span(3)]
    batch, refused = rows.convert(written, tables.span_schema(version))
    assert refused == []
    found = rows.from_arrow(batch)
    assert [record.name for record in found] == ["span 1", "span 2", "span 3"]
    assert found[1].attributes["text"] == "\\ud800"
    assert "lone surrogates escaped" in str(found[1].attributes[values.DEGRADED_KEY])
    assert line.resource_of(found[1]).attributes["big"] == "99999999999999999999"


def test_row_of_few_columns_is_read() -> None:
    """Missing and unknown columns, empty parents and nulls everywhere give a record with defaults."""
    batch = pa.RecordBatch.from_pylist(
        [
            {"trace_id": TRACE_ID, "span_id": "1" * 16, "parent_span_id": "", "extra": 1, "service_name": "shop"},
            {"trace_id": TRACE_ID, "span_id": "2" * 16, "parent_span_id": "1" * 16, "extra": 2, "kind": "ODD"},
        ]
    )
    first, second = rows.from_arrow(batch)
    bare = span(name="", start_time_unix_nano=0, end_time_unix_nano=0)
    resource = line.pack(Resource({"service.name": "shop"}))
    assert exact_record(first) == exact_record(msgspec.structs.replace(bare, span_id="1" * 16, resource=resource))
    assert (second.parent_span_id, second.kind) == ("1" * 16, 1)


def test_null_columns_are_read_as_defaults(tmp_path: Path) -> None:
    """A row with nothing but its ids comes back from a real table."""
    table = create_table(tmp_path, 2)
    ids = pa.schema([pa.field("trace_id", pa.string()), pa.field("span_id", pa.string())])
    write_deltalake(table, rows.to_arrow([span()], ids), mode="append", schema_mode="merge")
    (found,) = rows.from_arrow(DeltaTable(str(tmp_path)).to_pyarrow_table())
    assert exact_record(found) == exact_record(span(name="", start_time_unix_nano=0, end_time_unix_nano=0))


def test_rows_without_ids_cannot_be_spans() -> None:
    """The error names the columns that were there and the two that have to be."""
    batch = pa.RecordBatch.from_pylist([{"trace_id": TRACE_ID, "name": "n"}])
    with pytest.raises(QueryError, match=r"columns trace_id, name, .+ Select these two columns as well\."):
        rows.from_arrow(batch)


def test_shredded_variant_is_refused() -> None:
    """A VARIANT whose value is in columns that we do not read is an error, never an empty one."""
    cell = {"metadata": b"\x11\x00\x00", "value": None}
    batch = pa.RecordBatch.from_pylist([{"trace_id": TRACE_ID, "span_id": "1" * 16, "attributes": cell}])
    with pytest.raises(QueryError, match=r"is shredded.+ Read this table with Spark"):
        rows.from_arrow(batch)
