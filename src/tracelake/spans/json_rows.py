"""Span records to JSON objects with the columns of one table, as Zerobus takes them.

A TIMESTAMP is the microseconds and a DATE the days since 1970, a MAP an object, a VARIANT the text of its JSON; a field
that is left out is null. https://docs.databricks.com/aws/en/ingestion/zerobus-ingest
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any

import msgspec
import pyarrow as pa

from tracelake.spans import columns, line, tables, values
from tracelake.spans.record import Attributes, SpanRecord

Value = Callable[[Any], Any]
Compiler = Callable[[pa.Field], Value]

_encode = msgspec.json.Encoder().encode


def row_encoder(schema: pa.Schema) -> Callable[[SpanRecord], str]:
    """Return the function that makes the row of a record, in the columns of `schema`, the table's own.

    As in `rows.to_arrow`, columns are matched by name, and what the table has no column for is left out. A record with
    a value that JSON does not hold is degraded (`line.degraded`); the function raises whatever it raises if that is not
    enough.

    Raises:
        PermanentDeliveryError: a column cannot hold what it is meant for, or is NOT NULL and not a span's.
    """
    columns.compiled(schema)
    row = _object(schema, _COLUMNS)

    def encode_row(record: SpanRecord) -> str:
        try:
            return _encode(row(record)).decode()
        except Exception:  # noqa: BLE001 - as in `rows.convert`: the table has been checked, so it is the record
            return _encode(row(line.degraded(line.repacked(record)))).decode()

    return encode_row


def _object(fields: Iterable[pa.Field], compilers: Mapping[str, Compiler]) -> Value:
    wanted = [(field.name, compilers[field.name](field)) for field in fields if field.name in compilers]

    def build(item: Any) -> dict[str, Any]:
        return {name: value for name, of in wanted if (value := of(item)) is not None}

    return build


def _plain(of: Value) -> Compiler:
    return lambda _: of


def _text(of: Callable[[Any], str | None]) -> Compiler:
    return lambda field: of if field.nullable else lambda item: of(item) or ""


def _flags(field: pa.Field) -> Value:
    if field.type.bit_width > 32:
        return attrgetter("flags")
    # OTLP has 32 bits without a sign, INT has one: the same bits are written.
    return lambda item: item.flags - 2**32 if item.flags >= 2**31 else item.flags


def _attributes(field: pa.Field) -> Value:
    if tables.is_variant(field.type):
        return lambda item: values.json_text(item.attributes)
    return lambda item: _string_map(item.attributes)


def _string_map(attributes: Attributes) -> dict[str, str]:
    return {key: value if type(value) is str else values.json_text(value) for key, value in attributes.items()}


def _struct(compilers: Mapping[str, Compiler]) -> Compiler:
    return lambda field: _object(field.type, compilers)


def _array(attribute: str, compilers: Mapping[str, Compiler]) -> Compiler:
    of = attrgetter(attribute)

    def compile_array(field: pa.Field) -> Value:
        build = _object(field.type.value_type, compilers)
        return lambda item: [build(element) for element in of(item)]

    return compile_array


def _of(part: Callable[[SpanRecord], Any], compile_part: Compiler) -> Compiler:
    def compile_shared(field: pa.Field) -> Value:
        build = compile_part(field)
        return lambda record: build(part(record))

    return compile_shared


_PART: dict[str, Compiler] = {
    tables.ATTRIBUTES: _attributes,
    tables.DROPPED_ATTRIBUTES: _plain(attrgetter("dropped_attributes_count")),
}
_EVENT: dict[str, Compiler] = {
    tables.EVENT_TIME: _plain(attrgetter("time_unix_nano")),
    tables.NAME: _plain(attrgetter("name")),
    **_PART,
}
_LINK: dict[str, Compiler] = {
    tables.TRACE_ID: _plain(attrgetter("trace_id")),
    tables.SPAN_ID: _plain(attrgetter("span_id")),
    tables.TRACE_STATE: _plain(attrgetter("trace_state")),
    tables.FLAGS: _flags,
    **_PART,
}
_STATUS: dict[str, Compiler] = {
    tables.STATUS_MESSAGE: _plain(attrgetter("status_message")),
    tables.STATUS_CODE: _plain(lambda record: tables.STATUS_CODES[record.status_code]),
}
_SCOPE: dict[str, Compiler] = {
    tables.NAME: _plain(attrgetter("name")),
    tables.SCOPE_VERSION: _plain(attrgetter("version")),
    **_PART,
}
_COLUMNS: dict[str, Compiler] = {
    tables.RECORD_ID: _plain(columns.record_id),
    tables.TIME: _plain(lambda record: record.start_time_unix_nano // 1_000),
    tables.DATE: _plain(lambda record: record.start_time_unix_nano // 86_400_000_000_000),
    tables.SERVICE_NAME: _of(line.resource_of, _text(columns.service_name)),
    tables.TRACE_ID: _plain(attrgetter("trace_id")),
    tables.SPAN_ID: _plain(attrgetter("span_id")),
    tables.TRACE_STATE: _plain(attrgetter("trace_state")),
    tables.PARENT_SPAN_ID: _text(attrgetter("parent_span_id")),
    tables.FLAGS: _flags,
    tables.NAME: _plain(attrgetter("name")),
    tables.KIND: _plain(lambda record: tables.SPAN_KINDS[record.kind]),
    tables.START_TIME: _plain(attrgetter("start_time_unix_nano")),
    tables.END_TIME: _plain(attrgetter("end_time_unix_nano")),
    tables.EVENTS: _array("events", _EVENT),
    tables.DROPPED_EVENTS: _plain(attrgetter("dropped_events_count")),
    tables.LINKS: _array("links", _LINK),
    tables.DROPPED_LINKS: _plain(attrgetter("dropped_links_count")),
    tables.STATUS: _struct(_STATUS),
    tables.RESOURCE: _of(line.resource_of, _struct(_PART)),
    tables.RESOURCE_SCHEMA_URL: _of(line.resource_of, _plain(attrgetter("schema_url"))),
    tables.SCOPE: _of(line.scope_of, _struct(_SCOPE)),
    tables.SPAN_SCHEMA_URL: _of(line.scope_of, _plain(attrgetter("schema_url"))),
    tables.SCOPE_SCHEMA_URL: _of(line.scope_of, _plain(attrgetter("schema_url"))),
    **_PART,
}
