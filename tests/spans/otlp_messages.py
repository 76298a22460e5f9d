"""Export requests made by protobuf's own classes, to compare ours with: slow, and plainly right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from tracelake.spans import line
from tracelake.spans.record import Resource, Scope, SpanLink, SpanRecord


def message_of(records: Iterable[SpanRecord]) -> ExportTraceServiceRequest:
    """Return the request of plain records, grouped by resource and scope in the order they first come."""
    request = ExportTraceServiceRequest()
    resources: dict[bytes, ResourceSpans] = {}
    scopes: dict[tuple[bytes, bytes], ScopeSpans] = {}
    for record in records:
        resource, scope = bytes(record.resource), bytes(record.scope)
        if resource not in resources:
            resources[resource] = request.resource_spans.add()
            _write_resource(line.resource_of(record), resources[resource])
        if (resource, scope) not in scopes:
            scopes[resource, scope] = resources[resource].scope_spans.add()
            _write_scope(line.scope_of(record), scopes[resource, scope])
        _write_span(record, scopes[resource, scope].spans.add())
    return request


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


def _write_attributes(attributes: Mapping[str, Any], written: Any) -> None:
    for key, value in attributes.items():
        _write_value(value, written.add(key=key).value)


def _write_value(value: Any, written: AnyValue) -> None:
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
    elif kind is list:
        # An empty list or map has to be told from no value.
        written.array_value.SetInParent()
        for item in value:
            _write_value(item, written.array_value.values.add())
    elif kind is dict:
        written.kvlist_value.SetInParent()
        _write_attributes(value, written.kvlist_value.values)
    else:
        assert value is None
