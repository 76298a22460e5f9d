"""Span records to and from the OTLP protobuf that OpenTelemetry collectors and services speak.

Source: https://github.com/open-telemetry/opentelemetry-proto/tree/v1.5.0/opentelemetry/proto
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracelake.errors import MissingDependencyError
from tracelake.spans import line, values
from tracelake.spans.record import Attributes, Resource, Scope, SpanEvent, SpanLink, SpanRecord

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, TracesData


def to_otlp(records: Iterable[SpanRecord]) -> ExportTraceServiceRequest:
    """Return the export request of these records, grouped by resource and scope in the order they first come.

    A record with a value that protobuf cannot hold is degraded first (`line.degraded`).

    Raises:
        MissingDependencyError: the package `opentelemetry-proto` is not installed.
        LineError: the resource or scope of a record is not JSON of one.
        ValueError, TypeError: an id is not hexadecimal, or a number is out of its field's range.
    """
    request_class = _request_class()
    request = request_class()
    resources: dict[bytes, ResourceSpans] = {}
    scopes: dict[tuple[bytes, bytes], ScopeSpans] = {}
    for record in records:
        resource, scope = bytes(record.resource), bytes(record.scope)
        group = scopes.get((resource, scope))
        if group is None:
            parts = line.repacked(record)
            if resource not in resources:
                resources[resource] = request.resource_spans.add()
                _write_resource(line.resource_of(parts), resources[resource])
            group = scopes[resource, scope] = resources[resource].scope_spans.add()
            _write_scope(line.scope_of(parts), group)
        span = group.spans.add()
        try:
            _write_span(record, span)
        except (ValueError, TypeError):
            span.Clear()
            _write_span(line.degraded(record), span)
    return request


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


def _request_class() -> type[ExportTraceServiceRequest]:
    try:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    except ImportError as error:
        raise MissingDependencyError(
            "The OTLP format needs the package opentelemetry-proto, which is not installed. "
            "Run: pip install 'tracelake[otlp]'"
        ) from error
    return ExportTraceServiceRequest


def _write_resource(resource: Resource, group: ResourceSpans) -> None:
    group.schema_url = resource.schema_url
    group.resource.dropped_attributes_count = resource.dropped_attributes_count
    _write_attributes(resource.attributes, group.resource.attributes)


def _write_scope(scope: Scope, group: ScopeSpans) -> None:
    group.schema_url = scope.schema_url
    group.scope.name = scope.name
    group.scope.version = scope.version
    group.scope.dropped_attributes_count = scope.dropped_attributes_count
    _write_attributes(scope.attributes, group.scope.attributes)


def _write_span(record: SpanRecord, span: Span) -> None:
    span.trace_id = bytes.fromhex(record.trace_id)
    span.span_id = bytes.fromhex(record.span_id)
    span.parent_span_id = bytes.fromhex(record.parent_span_id or "")
    span.trace_state = record.trace_state
    span.flags = record.flags
    span.name = record.name
    span.kind = record.kind  # type: ignore[assignment]
    span.start_time_unix_nano = record.start_time_unix_nano
    span.end_time_unix_nano = record.end_time_unix_nano
    _write_attributes(record.attributes, span.attributes)
    span.dropped_attributes_count = record.dropped_attributes_count
    for event in record.events:
        written = span.events.add(
            name=event.name,
            time_unix_nano=event.time_unix_nano,
            dropped_attributes_count=event.dropped_attributes_count,
        )
        _write_attributes(event.attributes, written.attributes)
    span.dropped_events_count = record.dropped_events_count
    for link in record.links:
        _write_link(link, span.links.add())
    span.dropped_links_count = record.dropped_links_count
    # A status that is set to nothing and one that is not set are different messages; most spans have none.
    if record.status_code or record.status_message:
        span.status.code = record.status_code  # type: ignore[assignment]
        span.status.message = record.status_message


def _write_link(link: SpanLink, written: Span.Link) -> None:
    written.trace_id = bytes.fromhex(link.trace_id)
    written.span_id = bytes.fromhex(link.span_id)
    written.trace_state = link.trace_state
    written.dropped_attributes_count = link.dropped_attributes_count
    written.flags = link.flags & 0xFFFFFFFF
    _write_attributes(link.attributes, written.attributes)


def _write_attributes(attributes: Mapping[str, Any], written: Any, depth: int = 1) -> None:
    for key, value in attributes.items():
        _write_value(value, written.add(key=key).value, depth)


def _write_value(value: Any, written: AnyValue, depth: int) -> None:
    kind = type(value)
    if kind is str:
        written.string_value = value
    elif kind is bool:
        written.bool_value = value
    elif kind is int:
        written.int_value = value
    elif kind is float:
        written.double_value = value
    elif kind is bytes:
        written.bytes_value = value
    elif value is None:
        pass
    elif depth >= values.MAX_DEPTH:
        raise ValueError(f"an attribute is nested deeper than {values.MAX_DEPTH} levels")
    elif kind is list:
        # An empty list or map has to be told from no value.
        written.array_value.SetInParent()
        for item in value:
            _write_value(item, written.array_value.values.add(), depth + 1)
    elif kind is dict:
        written.kvlist_value.SetInParent()
        _write_attributes(value, written.kvlist_value.values, depth + 1)
    else:
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
