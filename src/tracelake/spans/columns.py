"""Span records to the columns of one table, in the types that the table has.

A compiler takes a field of the table and checks, once a schema, that its type can hold what it is meant for; it gives
a function from items (records, events, links, resources or scopes) to the field's Arrow array. Each array is made in
one pass over the items, because the shipper has five microseconds a span.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate, chain
from operator import attrgetter
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Raw

from tracelake.errors import PermanentDeliveryError
from tracelake.spans import line, tables, values, variant
from tracelake.spans.record import Attributes, SpanRecord

Build = Callable[[Sequence[Any]], pa.Array]
Compiler = Callable[[pa.Field, str], Build]

# A record id has 54 bits for the ids of its span. The remainder by a prime takes part of every bit of them, and one far
# from a power of two keeps apart the small ids that tests are made of; a hash function takes three times as long.
_ID_PRIME = 16_641_701_343_059_431


class Shared(NamedTuple):
    """The distinct resources or scopes of some records, and for each record the position of its own."""

    parts: list[Any]
    positions: pa.Array


class Records(list[SpanRecord]):
    """Records with what several columns ask of them. Not changed after the first question."""

    @cached_property
    def resources(self) -> Shared:
        return self._shared([record.resource for record in self], line.resource_of)

    @cached_property
    def scopes(self) -> Shared:
        return self._shared([record.scope for record in self], line.scope_of)

    def _shared(self, raws: list[Raw], parse: Callable[[SpanRecord], Any]) -> Shared:
        if raws and raws.count(raws[0]) == len(raws):  # as they are when one process made them
            return Shared([parse(self[0])], pa.repeat(pa.scalar(0, pa.int32()), len(raws)))
        texts = list(map(bytes, raws))
        first: dict[bytes, SpanRecord] = dict(zip(texts, self, strict=True))
        positions = {text: position for position, text in enumerate(first)}
        codes = pa.array([positions[text] for text in texts], pa.int32())
        return Shared([parse(record) for record in first.values()], codes)


@lru_cache(maxsize=64)
def compiled(schema: pa.Schema) -> tuple[Build, ...]:
    """Return the functions that make the columns of a table, in its order.

    Raises:
        PermanentDeliveryError: a column cannot hold what it is meant for, or is unknown and NOT NULL.
    """
    return tuple(_compile_known(schema, _COLUMNS, "").values())


def record_id(record: SpanRecord) -> str:
    """Return the id of a span's row: a UUID of version 7 that is the same whenever it is made, and sorts by start time.

    It holds the start in milliseconds (48 bits), the nanoseconds in that millisecond (20 bits) and 54 bits of the trace
    id and span id. Layout: https://www.rfc-editor.org/rfc/rfc9562#section-5.7
    """
    milliseconds, nanoseconds = divmod(record.start_time_unix_nano, 1_000_000)
    ids = int(record.trace_id + record.span_id, 16) % _ID_PRIME
    return "%08x-%04x-%04x-%04x-%012x" % (  # noqa: UP031 - a quarter less time than an f-string
        milliseconds >> 16,
        milliseconds & 0xFFFF,
        0x7000 | nanoseconds >> 8,
        0x8000 | (nanoseconds & 0xFF) << 6 | ids >> 48,
        ids & 0xFFFFFFFFFFFF,
    )


def _compile_known(fields: Any, compilers: Mapping[str, Compiler], parent: str) -> dict[str, Build]:
    builds: dict[str, Build] = {}
    for field in fields:
        path = f"{parent}{field.name}"
        if field.name in compilers:
            builds[field.name] = compilers[field.name](field, path)
        elif field.nullable:
            builds[field.name] = _nulls(field.type)
        else:
            raise PermanentDeliveryError(
                f"Column {path} of type {field.type} is NOT NULL, and a span has nothing to put there. "
                f"Make it nullable (ALTER TABLE ... ALTER COLUMN {path} DROP NOT NULL), or drop it."
            )
    return builds


def _nulls(kind: pa.DataType) -> Build:
    return lambda items: pa.nulls(len(items), kind)


def _unfit(field: pa.Field, path: str, expected: str) -> PermanentDeliveryError:
    return PermanentDeliveryError(
        f"Column {path} has the type {field.type}, which cannot hold what a span has for it ({expected}). "
        f"Name a table whose column {path} is {expected}; `tracelake.spans.tables` has the schemas."
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    # Half of the columns hold one value for all spans of a program; these are made in no time.
    if values and values[0] == values[-1] and values.count(values[0]) == len(values):
        return pa.repeat(pa.scalar(values[0], kind), len(values))
    return pa.array(values, kind)


def _text(of: Callable[[Any], str | None]) -> Compiler:
    def compile_text(field: pa.Field, path: str) -> Build:
        if not _is_text(field.type):
            raise _unfit(field, path, "STRING")
        kind = field.type
        if field.nullable:
            return lambda items: _column(list(map(of, items)), kind)
        return lambda items: _column([of(item) or "" for item in items], kind)

    return compile_text


def _name_of(attribute: str, names: Sequence[str]) -> Compiler:
    number = attrgetter(attribute)
    return _text(lambda item: names[number(item)])


def _integer(attribute: str, bits: int) -> Compiler:
    of = attrgetter(attribute)

    def compile_integer(field: pa.Field, path: str) -> Build:
        if not pa.types.is_signed_integer(field.type) or field.type.bit_width < bits:
            raise _unfit(field, path, "INT" if bits == 32 else "BIGINT")
        kind = field.type
        return lambda items: _column(list(map(of, items)), kind)

    return compile_integer


def _flags(field: pa.Field, path: str) -> Build:
    if not pa.types.is_signed_integer(field.type) or field.type.bit_width < 32:
        raise _unfit(field, path, "INT")
    kind = field.type

    def build(items: Sequence[Any]) -> pa.Array:
        flags = [item.flags for item in items]
        if kind.bit_width == 32 and max(flags, default=0) >= 2**31:
            # OTLP has 32 bits without a sign, INT has one: the same bits are written.
            flags = [flag - 2**32 if flag >= 2**31 else flag for flag in flags]
        return _column(flags, kind)

    return build


def _time(field: pa.Field, path: str) -> Build:
    if not pa.types.is_timestamp(field.type):
        raise _unfit(field, path, "TIMESTAMP")
    kind = field.type

    def build(items: Sequence[SpanRecord]) -> pa.Array:
        starts = pa.array([record.start_time_unix_nano for record in items], pa.int64())
        return pc.divide(starts, 1_000).view(pa.timestamp("us", tz="UTC")).cast(kind, safe=False)

    return build


def _date(field: pa.Field, path: str) -> Build:
    if not pa.types.is_date32(field.type):
        raise _unfit(field, path, "DATE")

    def build(items: Sequence[SpanRecord]) -> pa.Array:
        starts = pa.array([record.start_time_unix_nano for record in items], pa.int64())
        return pc.divide(starts, 86_400_000_000_000).cast(pa.int32()).view(pa.date32())

    return build


def _attributes(field: pa.Field, path: str) -> Build:
    kind = field.type
    if pa.types.is_map(kind) and _is_text(kind.key_type) and _is_text(kind.item_type):
        return lambda items: _string_maps([item.attributes for item in items], kind)
    if tables.is_variant(kind):
        return lambda items: _variants([item.attributes for item in items], kind)
    raise _unfit(field, path, "VARIANT or MAP<STRING,STRING>")


def _string_maps(maps: list[Attributes], kind: pa.MapType) -> pa.Array:
    texts = [
        value if (kind_of := type(value)) is str else int.__repr__(value) if kind_of is int else values.json_text(value)
        for value in chain.from_iterable([attributes.values() for attributes in maps])
    ]
    return pa.MapArray.from_arrays(
        pa.array(list(accumulate(map(len, maps), initial=0)), pa.int32()),
        pa.array(list(chain.from_iterable(maps)), kind.key_type),
        pa.array(texts, kind.item_type),
        type=kind,
    )


def _variants(maps: list[Attributes], kind: pa.StructType) -> pa.Array:
    encoded = list(map(variant.encode, maps))
    binaries = {
        tables.VARIANT_METADATA: [each.metadata for each in encoded],
        tables.VARIANT_VALUE: [each.value for each in encoded],
    }
    return _struct_array([pa.array(binaries[child.name], child.type) for child in kind], kind)


def _struct_array(children: list[pa.Array], kind: pa.StructType) -> pa.Array:
    return pa.StructArray.from_arrays(children, fields=list(kind))


def _struct(compilers: Mapping[str, Compiler]) -> Compiler:
    def compile_struct(field: pa.Field, path: str) -> Build:
        kind = field.type
        if not pa.types.is_struct(kind):
            raise _unfit(field, path, f"STRUCT<{', '.join(compilers)}>")
        builds = _compile_known(kind, compilers, f"{path}.").values()
        return lambda items: _struct_array([build(items) for build in builds], kind)

    return compile_struct


def _array(attribute: str, compilers: Mapping[str, Compiler]) -> Compiler:
    of = attrgetter(attribute)
    compile_element = _struct(compilers)

    def compile_array(field: pa.Field, path: str) -> Build:
        kind = field.type
        if not pa.types.is_list(kind) and not pa.types.is_large_list(kind):
            raise _unfit(field, path, f"ARRAY<STRUCT<{', '.join(compilers)}>>")
        build_elements = compile_element(kind.value_field, f"{path}.element")
        arrays, offset = (pa.ListArray, pa.int32()) if pa.types.is_list(kind) else (pa.LargeListArray, pa.int64())
        no_elements = build_elements([])

        def build(items: Sequence[Any]) -> pa.Array:
            lists = list(map(of, items))
            if not any(lists):  # as most spans have neither events nor links
                offsets = pa.repeat(pa.scalar(0, offset), len(lists) + 1)
                return arrays.from_arrays(offsets, no_elements, type=kind)
            offsets = pa.array(list(accumulate(map(len, lists), initial=0)), offset)
            return arrays.from_arrays(offsets, build_elements(list(chain.from_iterable(lists))), type=kind)

        return build

    return compile_array


def _of_each(shared: str, compile_part: Compiler) -> Compiler:
    of = attrgetter(shared)

    def compile_shared(field: pa.Field, path: str) -> Build:
        build_parts = compile_part(field, path)

        def build(records: Sequence[Any]) -> pa.Array:
            found: Shared = of(records)
            return build_parts(found.parts).take(found.positions)

        return build

    return compile_shared


def service_name(resource: Any) -> str | None:
    """Return what the `service_name` column holds for a `Resource`."""
    name = resource.attributes.get(tables.SERVICE_NAME_ATTRIBUTE)
    return None if name is None else values.json_text(name)


_PART: dict[str, Compiler] = {
    tables.ATTRIBUTES: _attributes,
    tables.DROPPED_ATTRIBUTES: _integer("dropped_attributes_count", 32),
}
_EVENT: dict[str, Compiler] = {
    tables.EVENT_TIME: _integer("time_unix_nano", 64),
    tables.NAME: _text(attrgetter("name")),
    **_PART,
}
_LINK: dict[str, Compiler] = {
    tables.TRACE_ID: _text(attrgetter("trace_id")),
    tables.SPAN_ID: _text(attrgetter("span_id")),
    tables.TRACE_STATE: _text(attrgetter("trace_state")),
    tables.FLAGS: _flags,
    **_PART,
}
_STATUS: dict[str, Compiler] = {
    tables.STATUS_MESSAGE: _text(attrgetter("status_message")),
    tables.STATUS_CODE: _name_of("status_code", tables.STATUS_CODES),
}
_SCOPE: dict[str, Compiler] = {
    tables.NAME: _text(attrgetter("name")),
    tables.SCOPE_VERSION: _text(attrgetter("version")),
    **_PART,
}
_COLUMNS: dict[str, Compiler] = {
    tables.RECORD_ID: _text(record_id),
    tables.TIME: _time,
    tables.DATE: _date,
    tables.SERVICE_NAME: _of_each("resources", _text(service_name)),
    tables.TRACE_ID: _text(attrgetter("trace_id")),
    tables.SPAN_ID: _text(attrgetter("span_id")),
    tables.TRACE_STATE: _text(attrgetter("trace_state")),
    tables.PARENT_SPAN_ID: _text(attrgetter("parent_span_id")),
    tables.FLAGS: _flags,
    tables.NAME: _text(attrgetter("name")),
    tables.KIND: _name_of("kind", tables.SPAN_KINDS),
    tables.START_TIME: _integer("start_time_unix_nano", 64),
    tables.END_TIME: _integer("end_time_unix_nano", 64),
    tables.EVENTS: _array("events", _EVENT),
    tables.DROPPED_EVENTS: _integer("dropped_events_count", 32),
    tables.LINKS: _array("links", _LINK),
    tables.DROPPED_LINKS: _integer("dropped_links_count", 32),
    tables.STATUS: _struct(_STATUS),
    tables.RESOURCE: _of_each("resources", _struct(_PART)),
    tables.RESOURCE_SCHEMA_URL: _of_each("resources", _text(attrgetter("schema_url"))),
    tables.SCOPE: _of_each("scopes", _struct(_SCOPE)),
    tables.SPAN_SCHEMA_URL: _of_each("scopes", _text(attrgetter("schema_url"))),
    tables.SCOPE_SCHEMA_URL: _of_each("scopes", _text(attrgetter("schema_url"))),
    **_PART,
}
