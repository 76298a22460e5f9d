"""Records to test with, ways to compare them, and a real table to put them in."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from deltalake import DeltaTable, Schema, write_deltalake
from hypothesis import strategies as st

from tracelake.spans import line, rows, tables
from tracelake.spans.record import (
    FLAG_HAS_IS_REMOTE,
    FLAG_IS_REMOTE,
    Resource,
    Scope,
    SpanEvent,
    SpanLink,
    SpanRecord,
)

START = 1_760_000_000_123_456_789
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
LONG_TEXT = "0123456789" * 1_000_000
STACK_TRACE = 'Traceback (most recent call last):\n  File "app.py", line 3, in <module>\nValueError: "bad" \u00e9\n'


def span(number: int = 1, **fields: Any) -> SpanRecord:
    """Return a span whose id is `number`, with other fields as given."""
    filled: dict[str, Any] = {
        "trace_id": TRACE_ID,
        "span_id": f"{number:016x}",
        "name": f"span {number}",
        "start_time_unix_nano": START + number,
        "end_time_unix_nano": START + number + 1_000,
        **fields,
    }
    return SpanRecord(**filled)


def nested(levels: int) -> Any:
    """Return a value of so many dicts and lists, one inside the other."""
    value: Any = "bottom"
    for level in range(levels):
        value = {"down": value} if level % 2 else [value]
    return value


# One attribute value of every kind that a row has to hold as it is.
VALUES: dict[str, Any] = {
    "string": "GET",
    "unicode": "gr\u00fc\u00dfe \u4f60\u597d \U0001f600",
    "empty_string": "",
    "nul_characters": "a\x00b\x00",
    "ten_megabytes": LONG_TEXT,
    "true": True,
    "false": False,
    "zero": 0,
    "int8": -128,
    "int16": 32_767,
    "int32": -(2**31),
    "int64_smallest": -(2**63),
    "int64_largest": 2**63 - 1,
    "float": 0.1,
    "negative_zero": -0.0,
    "float_smallest": 5e-324,
    "nan": float("nan"),
    "infinity": float("inf"),
    "minus_infinity": float("-inf"),
    "bytes": b"\x00\xff\x80",
    "empty_bytes": b"",
    "none": None,
    "empty_list": [],
    "empty_dict": {},
    "list": ["a", 1, 2.5, True, None, b"z", float("nan")],
    "dict": {"b": {"c": [1, {"d": "e"}]}, "a": 1},
    "like_a_tag": {"$bytes": "not base64"},
    "deep": nested(29),
    "wide": {f"key{number}": number for number in range(300)},
    "long_list": list(range(300)),
}

# Spans that use every other field, by what they are about.
SPANS: dict[str, SpanRecord] = {
    "plain": span(1),
    "no_text": span(2, name="", attributes={"": ""}),
    "equal_start_and_end": span(3, end_time_unix_nano=START + 3),
    "child": span(4, parent_span_id=f"{1:016x}", kind=3),
    "remote_parent": span(
        5, parent_span_id=f"{9:016x}", kind=2, flags=FLAG_HAS_IS_REMOTE | FLAG_IS_REMOTE | 1, trace_state="a=1,b=2"
    ),
    "all_flags": span(6, flags=2**32 - 1),
    "dropped": span(7, dropped_attributes_count=1, dropped_events_count=2, dropped_links_count=2**31 - 1),
    "ok": span(8, status_code=1),
    "error": span(
        9,
        status_code=2,
        status_message="boom",
        events=[
            SpanEvent(
                name="exception",
                time_unix_nano=START + 10,
                attributes={
                    "exception.type": "ValueError",
                    "exception.stacktrace": STACK_TRACE,
                    "exception.escaped": False,
                    "detail": {"codes": [1, 2]},
                },
                dropped_attributes_count=3,
            ),
            SpanEvent(name="", time_unix_nano=0),
        ],
    ),
    "links": span(
        10,
        links=[
            SpanLink(
                trace_id="f" * 32,
                span_id="e" * 16,
                trace_state="k=v",
                attributes={"why": "batch", "index": 3},
                dropped_attributes_count=1,
                flags=FLAG_HAS_IS_REMOTE | FLAG_IS_REMOTE,
            ),
            SpanLink(trace_id="1" * 32, span_id="2" * 16, flags=2**32 - 1),
        ],
    ),
    "resource_and_scope": span(
        11,
        resource=line.pack(
            Resource({"service.name": "shop", "process.pid": 7, "tags": ["a", 1]}, 4, "https://example.org/resource")
        ),
        scope=line.pack(Scope("library", "1.2", {"scoped": b"\x01"}, 5, "https://example.org/scope")),
    ),
    **{f"kind_{kind}": span(20 + kind, kind=kind) for kind in range(6)},
    **{name: span(100 + index, attributes={"value": value}) for index, (name, value) in enumerate(VALUES.items())},
}

keys = st.text(max_size=8)
integers = st.integers(min_value=-(2**63), max_value=2**63 - 1)
scalars = st.none() | st.booleans() | integers | st.floats() | st.text(max_size=80) | st.binary(max_size=20)
plain_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(keys | st.sampled_from(["$bytes", "$float", "$map", "$"]), inner, max_size=4)
    ),
    max_leaves=12,
)
attribute_maps = st.dictionaries(keys | st.sampled_from(["$map", "http.method"]), plain_values, max_size=5)
counts = st.integers(min_value=0, max_value=2**31 - 1)
times = st.integers(min_value=0, max_value=2**63 - 1)
flag_sets = st.integers(min_value=0, max_value=2**32 - 1)
trace_ids = st.binary(min_size=16, max_size=16).map(bytes.hex)
span_ids = st.binary(min_size=8, max_size=8).map(bytes.hex)
events = st.builds(SpanEvent, st.text(max_size=8), times, attribute_maps, counts)
links = st.builds(SpanLink, trace_ids, span_ids, st.text(max_size=8), attribute_maps, counts, flag_sets)
records = st.builds(
    SpanRecord,
    trace_id=trace_ids,
    span_id=span_ids,
    name=st.text(max_size=8),
    start_time_unix_nano=times,
    end_time_unix_nano=times,
    kind=st.integers(0, 5),
    flags=flag_sets,
    parent_span_id=st.none() | span_ids,
    trace_state=st.text(max_size=8),
    attributes=attribute_maps,
    dropped_attributes_count=counts,
    events=st.lists(events, max_size=2),
    dropped_events_count=counts,
    links=st.lists(links, max_size=2),
    dropped_links_count=counts,
    status_code=st.integers(0, 2),
    status_message=st.text(max_size=8),
    resource=st.builds(Resource, attribute_maps, counts, st.text(max_size=8)).map(line.pack),
    scope=st.builds(Scope, st.text(max_size=8), st.text(max_size=8), attribute_maps, counts, st.text(max_size=8)).map(
        line.pack
    ),
)


def exact(value: Any) -> Any:
    """Return `value` in a form that is equal only for the same types and bits; the order of keys does not count."""
    if isinstance(value, float):
        return ("nan",) if value != value else ("float", struct.pack("<d", value))
    if isinstance(value, list):
        return [exact(item) for item in value]
    if isinstance(value, dict):
        return {key: exact(item) for key, item in value.items()}
    if hasattr(value, "__struct_fields__"):
        return {field: exact(getattr(value, field)) for field in value.__struct_fields__}
    return (type(value).__name__, value)


def exact_record(record: SpanRecord) -> Any:
    """Return `exact` of a record, its resource and scope parsed."""
    fields = {field: exact(getattr(record, field)) for field in record.__struct_fields__}
    return {**fields, "resource": exact(line.resource_of(record)), "scope": exact(line.scope_of(record))}


def create_table(path: Any, version: tables.Version) -> DeltaTable:
    """Make an empty span table of a version."""
    return DeltaTable.create(
        str(path),
        Schema.from_json(tables.delta_schema_json(version)),
        configuration=tables.version_property(version),
        raise_if_key_not_exists=False,
    )


def table_schema(table: DeltaTable) -> Any:
    """Return the Arrow schema of a table, made from its own Delta schema."""
    return tables.arrow_schema(json.loads(table.schema().to_json()))


def land(path: Any, written: Sequence[SpanRecord], version: tables.Version) -> DeltaTable:
    """Make a span table of a version, append one row for each record as the shipper does, and open it anew."""
    table = create_table(path, version)
    lines = [line.encode_line(record) for record in written]
    batch, refused = rows.convert([line.decode_line(each) for each in lines], table_schema(table))
    assert refused == []
    write_deltalake(table, batch, mode="append")
    return DeltaTable(str(path))
