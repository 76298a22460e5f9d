"""Span records to and from the OTLP protobuf that OpenTelemetry collectors and services speak.

Records are written as bytes directly: protobuf's message classes take four times as long, and the shipper writes every
span. Messages: https://github.com/open-telemetry/opentelemetry-proto/tree/v1.5.0/opentelemetry/proto, how fields are
written: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from tracelake.spans import line, values
from tracelake.spans.record import Attributes, Resource, Scope, SpanEvent, SpanLink, SpanRecord

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, TracesData


class EncodedSpan(NamedTuple):
    """A span in OTLP, beside the resource and the scope that it shares with others: fields of their messages."""

    resource: bytes
    scope: bytes
    span: bytes


def encode(record: SpanRecord) -> EncodedSpan:
    """Return a record in OTLP; one with a value that protobuf cannot hold is degraded first (`line.degraded`).

    Raises:
        LineError: its resource or scope is not JSON of one.
        ValueError, TypeError, struct.error: an id is not hexadecimal, or a number is out of its field's range.
    """
    try:
        span = _span(record)
    except (ValueError, TypeError):
        span = _span(line.degraded(record))
    resource, scope = bytes(record.resource), bytes(record.scope)
    is_short = len(resource) + len(scope) <= line.MAX_SHARED_BYTES
    resource, scope = (_cached_shared if is_short else _shared)(resource, scope)
    return EncodedSpan(resource, scope, _field(b"\x12", span))


def export_request(spans: Iterable[EncodedSpan]) -> bytes:
    """Return the ExportTraceServiceRequest of some spans, by resource and scope in the order in which these come."""
    resources: dict[bytes, dict[bytes, list[bytes]]] = {}
    for resource, scope, span in spans:
        resources.setdefault(resource, {}).setdefault(scope, []).append(span)
    request = []
    for resource, scopes in resources.items():
        groups = [_field(b"\x12", b"".join((scope, *group))) for scope, group in scopes.items()]
        request.append(_field(b"\x0a", b"".join((resource, *groups))))
    return b"".join(request)


def to_otlp(records: Iterable[SpanRecord]) -> bytes:
    """Return the ExportTraceServiceRequest of these records; raises as `encode`."""
    return export_request(map(encode, records))


def from_otlp(request: ExportTraceServiceRequest | TracesData) -> list[SpanRecord]:
    """Return the records of all spans of a request, in its order.

    An empty `parent_span_id` is that of a root span; of two attributes with the same key the later counts.
    """
    records: list[SpanRecord] = []
    for resource_spans in request.resource_spans:
        resource = line.pack(_read_resource(resource_spans))
        for scope_spans in resource_spans.scope_spans:
            scope = line.pack(_read_scope(scope_spans))
            for span in scope_spans.spans:
                record = _read_span(span)
                record.resource, record.scope = resource, scope
                records.append(record)
    return records


def _varint(value: int) -> bytes:
    """Return a whole number of 64 bits, the lower seven bits first; a negative one has ten bytes."""
    if 128 <= value < 2**14:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"an integer of {value.bit_length()} bits does not fit into 64")
    value &= 2**64 - 1
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


# Looked up, a number takes a fifth of the time; most lengths and counts are small.
_VARINTS = [_varint(number) for number in range(512)]
_SMALL = len(_VARINTS)
# What stands before an attribute's text of so many bytes: KeyValue.value and, in it, AnyValue.string_value.
_BEFORE_TEXT = [b"\x12" + _varint(1 + len(_VARINTS[size]) + size) + b"\x0a" + _VARINTS[size] for size in range(_SMALL)]

_TIMES = Struct("<cQcQ").pack
_EVENT_TIME = Struct("<cQ").pack
_DOUBLE = Struct("<cd").pack
_FLAGS = Struct("<2sI").pack
_LINK_FLAGS = Struct("<cI").pack


def _number(value: int) -> bytes:
    return _VARINTS[value] if 0 <= value < _SMALL else _varint(value)


# A tag is eight times the number of its field, and how that is written: 0 a varint, 1 eight bytes, 2 the size and that
# many bytes, 5 four bytes. Fields come in the order of their numbers; those of the default value are left out.
def _field(tag: bytes, content: bytes) -> bytes:
    size = len(content)
    return tag + (_VARINTS[size] if size < _SMALL else _varint(size)) + content


def _text(tag: bytes, text: str) -> bytes:
    return _field(tag, text.encode()) if text else b""


def _count(tag: bytes, value: int) -> bytes:
    return tag + _number(value) if value else b""


def _shared(resource: bytes, scope: bytes) -> tuple[bytes, bytes]:
    """Return all of ResourceSpans and all of ScopeSpans but the spans, for the JSON that records have of the two."""
    record = line.repacked(SpanRecord("", "", "", 0, 0, resource=msgspec.Raw(resource), scope=msgspec.Raw(scope)))
    return _resource(line.resource_of(record)), _scope(line.scope_of(record))


_cached_shared = lru_cache(maxsize=1024)(_shared)


def _resource(resource: Resource) -> bytes:
    out: list[bytes] = []
    _attributes(resource.attributes, b"\x0a", out)
    out.append(_count(b"\x10", resource.dropped_attributes_count))
    return _field(b"\x0a", b"".join(out)) + _text(b"\x1a", resource.schema_url)


def _scope(scope: Scope) -> bytes:
    out = [_text(b"\x0a", scope.name), _text(b"\x12", scope.version)]
    _attributes(scope.attributes, b"\x1a", out)
    out.append(_count(b"\x20", scope.dropped_attributes_count))
    return _field(b"\x0a", b"".join(out)) + _text(b"\x1a", scope.schema_url)


def _span(record: SpanRecord) -> bytes:
    out = [
        _field(b"\x0a", bytes.fromhex(record.trace_id)),
        _field(b"\x12", bytes.fromhex(record.span_id)),
        _text(b"\x1a", record.trace_state),
    ]
    if record.parent_span_id:
        out.append(_field(b"\x22", bytes.fromhex(record.parent_span_id)))
    out.append(_text(b"\x2a", record.name))
    out.append(_count(b"\x30", record.kind))
    out.append(_TIMES(b"\x39", record.start_time_unix_nano, b"\x41", record.end_time_unix_nano))
    _attributes(record.attributes, b"\x4a", out)
    out.append(_count(b"\x50", record.dropped_attributes_count))
    out += [_field(b"\x5a", _event(event)) for event in record.events]
    out.append(_count(b"\x60", record.dropped_events_count))
    out += [_field(b"\x6a", _link(link)) for link in record.links]
    out.append(_count(b"\x70", record.dropped_links_count))
    # A status that is set to nothing and one that is not set are different messages; most spans have none.
    if record.status_code or record.status_message:
        out.append(_field(b"\x7a", _text(b"\x12", record.status_message) + _count(b"\x18", record.status_code)))
    if record.flags:
        out.append(_FLAGS(b"\x85\x01", record.flags))
    return b"".join(out)


def _event(event: SpanEvent) -> bytes:
    out = [_EVENT_TIME(b"\x09", event.time_unix_nano), _text(b"\x12", event.name)]
    _attributes(event.attributes, b"\x1a", out)
    out.append(_count(b"\x20", event.dropped_attributes_count))
    return b"".join(out)


def _link(link: SpanLink) -> bytes:
    out = [
        _field(b"\x0a", bytes.fromhex(link.trace_id)),
        _field(b"\x12", bytes.fromhex(link.span_id)),
        _text(b"\x1a", link.trace_state),
    ]
    _attributes(link.attributes, b"\x22", out)
    out.append(_count(b"\x28", link.dropped_attributes_count))
    out.append(_LINK_FLAGS(b"\x35", link.flags & 0xFFFFFFFF))
    return b"".join(out)


class _Keys(dict[str, bytes]):
    """KeyValue.key of the keys that came so far, if they are no data: there are few of those, and they are short."""

    def __missing__(self, key: str) -> bytes:
        written = _field(b"\x0a", str.encode(key))
        if len(self) < 4096 and len(written) < 128:
            self[key] = written
        return written


_KEYS = _Keys()


def _attributes(attributes: Mapping[str, Any], tag: bytes, out: list[bytes], depth: int = 1) -> None:
    """Append each attribute as a field of the type KeyValue."""
    # Written out for text: this runs for every attribute of every span.
    for key, value in attributes.items():
        name = _KEYS[key]
        if type(value) is str:
            text = value.encode()
            size = len(text)
            pair = name + (_BEFORE_TEXT[size] + text if size < _SMALL else _field(b"\x12", _field(b"\x0a", text)))
        elif value is None:
            pair = name
        else:
            pair = name + _field(b"\x12", _value(value, depth))
        size = len(pair)
        out += (tag, _VARINTS[size] if size < _SMALL else _varint(size), pair)


def _value(value: Any, depth: int) -> bytes:
    """Return an AnyValue."""
    kind = type(value)
    if kind is str:
        return _field(b"\x0a", value.encode())
    if kind is bool:
        return b"\x10\x01" if value else b"\x10\x00"
    if kind is int:
        return b"\x18" + (_VARINTS[value] if 0 <= value < _SMALL else _varint(value))
    if kind is float:
        return _DOUBLE(b"\x21", value)
    if kind is bytes:
        return _field(b"\x3a", value)
    if value is None:
        return b""
    if depth >= values.MAX_DEPTH:
        raise ValueError(f"an attribute is nested deeper than {values.MAX_DEPTH} levels")
    if kind is list:
        return _field(b"\x2a", b"".join([_field(b"\x0a", _value(item, depth + 1)) for item in value]))
    if kind is dict:
        out: list[bytes] = []
        _attributes(value, b"\x0a", out, depth + 1)
        return _field(b"\x32", b"".join(out))
    raise TypeError(f"an OTLP attribute does not hold {kind.__qualname__} values")


def _read_resource(group: ResourceSpans) -> Resource:
    return Resource(
        attributes=_read_attributes(group.resource.attributes),
        dropped_attributes_count=group.resource.dropped_attributes_count,
        schema_url=group.schema_url,
    )


def _read_scope(group: ScopeSpans) -> Scope:
    return Scope(
        name=group.scope.name,
        version=group.scope.version,
        attributes=_read_attributes(group.scope.attributes),
        dropped_attributes_count=group.scope.dropped_attributes_count,
        schema_url=group.schema_url,
    )


def _read_span(span: Span) -> SpanRecord:
    return SpanRecord(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        name=span.name,
        start_time_unix_nano=span.start_time_unix_nano,
        end_time_unix_nano=span.end_time_unix_nano,
        kind=int(span.kind),
        flags=span.flags,
        parent_span_id=span.parent_span_id.hex() or None,
        trace_state=span.trace_state,
        attributes=_read_attributes(span.attributes),
        dropped_attributes_count=span.dropped_attributes_count,
        events=[
            SpanEvent(
                name=event.name,
                time_unix_nano=event.time_unix_nano,
                attributes=_read_attributes(event.attributes),
                dropped_attributes_count=event.dropped_attributes_count,
            )
            for event in span.events
        ],
        dropped_events_count=span.dropped_events_count,
        links=[
            SpanLink(
                trace_id=link.trace_id.hex(),
                span_id=link.span_id.hex(),
                trace_state=link.trace_state,
                attributes=_read_attributes(link.attributes),
                dropped_attributes_count=link.dropped_attributes_count,
                flags=link.flags,
            )
            for link in span.links
        ],
        dropped_links_count=span.dropped_links_count,
        status_code=int(span.status.code),
        status_message=span.status.message,
    )


def _read_attributes(pairs: Sequence[KeyValue] | Any) -> Attributes:
    return {pair.key: _read_value(pair.value) for pair in pairs}


def _read_value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    found = getattr(value, kind)
    if kind == "array_value":
        return [_read_value(item) for item in found.values]
    if kind == "kvlist_value":
        return _read_attributes(found.values)
    return found
