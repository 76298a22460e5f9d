"""Records as the JSON rows that Zerobus takes: the very values of the rows that are written to the files of a table."""

from __future__ import annotations

import json
from datetime import date, datetime, timezone
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given

from tests.spans.samples import SPANS, records, span
from tracelake import PermanentDeliveryError
from tracelake.spans import rows, tables, values, variant
from tracelake.spans.json_rows import row_encoder
from tracelake.spans.record import SpanRecord

VERSIONS: list[tables.Version] = [1, 2]


def as_json(cell: Any, kind: pa.DataType) -> Any:
    """Return a cell of an Arrow row as JSON has it."""
    if cell is None:
        return None
    if tables.is_variant(kind):
        return values.json_text(variant.decode(cell["metadata"], cell["value"]))
    if pa.types.is_struct(kind):
        fields = {field.name: as_json(cell[field.name], field.type) for field in kind}
        return {name: value for name, value in fields.items() if value is not None}
    if pa.types.is_map(kind):
        return dict(cell)
    if pa.types.is_list(kind):
        return [as_json(item, kind.value_type) for item in cell]
    if isinstance(cell, datetime):
        return int((cell - datetime(1970, 1, 1, tzinfo=timezone.utc)).total_seconds() * 10**6)
    return (cell - date(1970, 1, 1)).days if isinstance(cell, date) else cell


def expected(record: SpanRecord, schema: pa.Schema) -> dict[str, Any]:
    """Return the row of a record as `rows` makes it, in JSON."""
    converted, refused = rows.convert([record], schema)
    assert refused == []
    without_time = [field for field in schema if field.name != tables.TIME]  # Python's has no room for all times
    found = as_json(converted.select([field.name for field in without_time]).to_pylist()[0], pa.struct(without_time))
    if tables.TIME in schema.names:
        found[tables.TIME] = converted.column(tables.TIME).cast(pa.int64())[0].as_py()
    return dict(found)


def unordered(row: dict[str, Any]) -> Any:
    """Return a row with its VARIANT texts parsed: the order of keys is theirs."""
    if isinstance(row, dict):
        return {
            key: json.loads(value) if key == tables.ATTRIBUTES and isinstance(value, str) else unordered(value)
            for key, value in row.items()
        }
    return [unordered(item) for item in row] if isinstance(row, list) else row


def check(record: SpanRecord, schema: pa.Schema) -> None:
    row = json.loads(row_encoder(schema)(record))
    assert repr(unordered(row)) == repr(sort_like(unordered(expected(record, schema)), unordered(row)))


def sort_like(value: Any, model: Any) -> Any:
    """Return `value` with its keys in the order of `model`, for texts that show 1 and 1.0 and True apart."""
    if isinstance(value, dict) and isinstance(model, dict) and value.keys() == model.keys():
        return {key: sort_like(value[key], model[key]) for key in model}
    if isinstance(value, list) and isinstance(model, list) and len(value) == len(model):
        return [sort_like(*pair) for pair in zip(value, model, strict=True)]
    return value


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SPANS)
def test_row_is_that_of_the_table(name: str, version: tables.Version) -> None:
    """Every kind of value, in every column."""
    check(SPANS[name], tables.span_schema(version))


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@given(record=records)
def test_any_row_is_that_of_the_table(record: SpanRecord, version: tables.Version) -> None:
    """Whatever a record holds."""
    check(record, tables.span_schema(version))


def test_shapes() -> None:
    """Those of https://docs.databricks.com/aws/en/ingestion/zerobus-ingest, spelled out."""
    record = SPANS["resource_and_scope"]
    row = json.loads(row_encoder(tables.span_schema(2))(record))
    assert row["time"] == record.start_time_unix_nano // 1000
    assert row["date"] == 20370
    assert row["service_name"] == "shop"
    assert json.loads(row["resource"]["attributes"]) == {"service.name": "shop", "process.pid": 7, "tags": ["a", 1]}
    assert "parent_span_id" not in row
    assert json.loads(row_encoder(tables.span_schema(1))(record))["resource"]["attributes"] == {
        "service.name": "shop",
        "process.pid": "7",
        "tags": '["a",1]',
    }


def test_columns_are_those_of_the_table() -> None:
    """Zerobus refuses a row with any other; a NOT NULL one is filled."""
    schema = pa.schema(
        [
            pa.field("parent_span_id", pa.string(), nullable=False),
            pa.field("trace_id", pa.string()),
            pa.field("ours", pa.string()),
            pa.field("flags", pa.int64()),
            pa.field("status", pa.struct([pa.field("code", pa.string()), pa.field("ours", pa.int64())])),
        ]
    )
    row = json.loads(row_encoder(schema)(span(1, flags=2**32 - 1)))
    assert row == {
        "parent_span_id": "",
        "trace_id": span(1).trace_id,
        "flags": 2**32 - 1,
        "status": {"code": "STATUS_CODE_UNSET"},
    }


def test_unfit_table_is_refused() -> None:
    """Before any row is made."""
    with pytest.raises(PermanentDeliveryError, match="Column trace_id has the type int64"):
        row_encoder(pa.schema([pa.field("trace_id", pa.int64())]))


def test_what_json_does_not_hold_is_degraded() -> None:
    """And says so, as in the other tables."""
    row = json.loads(row_encoder(tables.span_schema(1))(span(1, attributes={"a": "\ud800", "b": 2**70})))
    assert row["attributes"]["a"] == "\\ud800"
    assert "lone surrogates" in row["attributes"]["tracelake.degraded"]
    assert row["attributes"]["b"] == str(2**70)
