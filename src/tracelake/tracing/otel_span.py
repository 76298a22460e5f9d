"""An ended OpenTelemetry span to a span record.

The one place that reads private attributes of OpenTelemetry's spans. Recording a span costs some 4 us in all, and the
public properties would add 1.5 us: `attributes`, `events` and `links` copy under a lock each time, also when there are
none, and there are a dozen others. A test fails if the attributes read here move; a span that lacks them is read by the
public properties.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from typing import Any

import msgspec
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import DEFAULT_TRACE_STATE, SpanContext, SpanKind, StatusCode

from tracelake.spans.line import pack
from tracelake.spans.record import FLAG_HAS_IS_REMOTE, FLAG_IS_REMOTE, Scope, SpanEvent, SpanLink, SpanRecord
from tracelake.spans.record import Resource as SpanResource
from tracelake.spans.values import DEGRADED_KEY, repr_of, untag

# Lists the attributes of a span whose text is the JSON of a value, tagged as in the spool; left out of the row.
JSON_KEYS_ATTRIBUTE = "tracelake.json_keys"

# Every span that has come by a processor of MLflow has this attribute.
_MLFLOW_TRACE_ID = "mlflow.traceRequestId"
_ADDED_BY_MLFLOW = {_MLFLOW_TRACE_ID, "mlflow.spanType"}

# Looked up as a member of its class, an enum's value costs as much as formatting an id.
_INTERNAL = SpanKind.INTERNAL
_UNSET = StatusCode.UNSET

_END = 2**63  # of the nanoseconds a table can hold
# Resources and scopes are packed once; a program has a handful of each.
_MAX_PACKED = 256
_EMPTY = msgspec.Raw(b"{}")

Packed = tuple[Resource | None, InstrumentationScope | None, msgspec.Raw, msgspec.Raw]


class Origins:
    """The JSON of resources and scopes, by object: comparing them by value costs more than a span.

    Args:
        service_name: written as `service.name` in place of the resources' own; None leaves theirs.
    """

    def __init__(self, service_name: str | None = None) -> None:
        self._service_name = service_name
        self._known: dict[tuple[int, int], Packed] = {}
        self._last: Packed = (None, None, _EMPTY, _EMPTY)

    def get(self, resource: Resource | None, scope: InstrumentationScope | None) -> Packed:
        """Return the two objects and their JSON."""
        found = self._last
        if found[0] is resource and found[1] is scope:
            return found
        key = (id(resource), id(scope))
        if key not in self._known:
            if len(self._known) >= _MAX_PACKED:
                self._known = {}
            # The objects are kept, so that their ids stay their own.
            self._known[key] = (resource, scope, self._pack_resource(resource), _pack_scope(scope))
        found = self._last = self._known[key]
        return found

    def _pack_resource(self, resource: Resource | None) -> msgspec.Raw:
        if resource is None:
            return _EMPTY
        attributes = dict(resource.attributes)
        name = self._service_name
        if name is None and str(attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
            name = os.environ.get("OTEL_SERVICE_NAME")
        if name:
            attributes[SERVICE_NAME] = name
        return pack(SpanResource(attributes, schema_url=resource.schema_url or ""))


def kept_part(span: ReadableSpan) -> object:
    """Return what a span keeps to its end: it is another object then, and one of MLflow's may have another id."""
    return getattr(span, "_attributes", span)


def to_record(span: ReadableSpan, context: SpanContext, origins: Origins) -> SpanRecord:
    """Return the record of an ended span; `context` is the span's own."""
    try:
        return _to_record(span, context, origins)
    except AttributeError:
        return _to_record(_PublicSpan(span), context, origins)


def _to_record(span: Any, context: SpanContext, origins: Origins) -> SpanRecord:
    # The context is taken apart as the tuple it is, and the record is made by position: this runs for every span.
    trace_id, span_id, _, trace_flags, trace_state, _ = context
    flags = trace_flags | FLAG_HAS_IS_REMOTE
    parent = span._parent
    if parent is None:
        parent_span_id = None
    else:
        parent_span_id = "%016x" % parent[1]  # noqa: UP031 - half the time of an f-string
        if parent[2]:
            flags |= FLAG_IS_REMOTE
    attributes = span._attributes
    events = span._events
    links = span._links
    values = attributes.copy()
    if JSON_KEYS_ATTRIBUTE in values:
        _decode_json(values)
    if _MLFLOW_TRACE_ID in values or (attributes.dropped and is_mlflows(span._instrumentation_scope)):
        _decode_mlflow(values, span._instrumentation_scope)
    name, start_time, end_time = span._name, span._start_time, span._end_time
    # OpenTelemetry takes any name and any time without a look, and a line that holds them could not be read again.
    if not (type(name) is str and type(start_time) is int is type(end_time) and 0 < start_time <= end_time < _END):
        name = _text(name, "name", values)
        start_time = _nanoseconds(start_time, "start time", values)
        end_time = _nanoseconds(end_time, "end time", values)
    kind = span._kind
    status = span._status
    code = status.status_code
    _, _, resource, scope = origins.get(span._resource, span._instrumentation_scope)
    return SpanRecord(
        "%032x" % trace_id,  # noqa: UP031
        "%016x" % span_id,  # noqa: UP031
        name,
        start_time,
        end_time,
        1 if kind is _INTERNAL else kind.value + 1,
        flags,
        parent_span_id,
        "" if trace_state is DEFAULT_TRACE_STATE else trace_state.to_header(),
        values,
        attributes.dropped,
        [_to_event(event, values) for event in events] if events else [],
        events.dropped,
        [_to_link(link) for link in links] if links else [],
        links.dropped,
        0 if code is _UNSET else code.value,
        "" if code is _UNSET else status.description or "",
        resource,
        scope,
    )


class _PublicSpan:
    """What the public properties of a span tell, under the names that the SDK's own spans have for it."""

    def __init__(self, span: ReadableSpan) -> None:
        self._name = span.name
        self._parent = span.parent
        self._kind = span.kind
        self._start_time = span.start_time
        self._end_time = span.end_time
        self._status = span.status
        self._resource = span.resource
        self._instrumentation_scope = span.instrumentation_scope
        self._attributes = _CountedDict(span.attributes or {})
        self._attributes.dropped = span.dropped_attributes
        self._events = _CountedList(span.events, span.dropped_events)
        self._links = _CountedList(span.links, span.dropped_links)


class _CountedDict(dict[str, Any]):
    dropped = 0


class _CountedList(list[Any]):
    def __init__(self, items: Iterable[Any], dropped: int) -> None:
        super().__init__(items)
        self.dropped = dropped


def _to_event(event: Any, notes: dict[str, Any]) -> SpanEvent:
    return SpanEvent(
        _text(event.name, "event name", notes),
        _nanoseconds(event.timestamp, "event time", notes),
        dict(event.attributes or {}),
        getattr(event, "dropped_attributes", 0),
    )


def _text(text: Any, path: str, attributes: dict[str, Any]) -> str:
    if type(text) is str:
        return text
    _degraded(attributes, f"{path}: a {type(text).__qualname__} written as text")
    try:
        return str(text)
    except Exception:  # noqa: BLE001 - the app's own code; the span is to be recorded all the same
        return f"<{type(text).__qualname__}>"


def _nanoseconds(time: Any, path: str, attributes: dict[str, Any]) -> int:
    if type(time) is int and 0 <= time < _END:
        return time
    _degraded(attributes, f"{path}: {repr_of(time):.100} is not a time in nanoseconds since 1970")
    return min(max(int(time or 0), 0), _END - 1)


def _degraded(attributes: dict[str, Any], note: str) -> None:
    notes = attributes.get(DEGRADED_KEY)
    # A list was made here: OpenTelemetry's are tuples. A new one for each of 100,000 events would take minutes.
    if type(notes) is list:
        notes.append(note)
    else:
        attributes[DEGRADED_KEY] = [*(notes or ()), note]


def _to_link(link: Any) -> SpanLink:
    trace_id, span_id, is_remote, trace_flags, trace_state, _ = link.context
    return SpanLink(
        f"{trace_id:032x}",
        f"{span_id:016x}",
        trace_state.to_header() if trace_state else "",
        dict(link.attributes or {}),
        getattr(link, "dropped_attributes", 0),
        trace_flags | FLAG_HAS_IS_REMOTE | (FLAG_IS_REMOTE if is_remote else 0),
    )


def _pack_scope(scope: InstrumentationScope | None) -> msgspec.Raw:
    if scope is None:
        return _EMPTY
    return pack(Scope(scope.name, scope.version or "", dict(scope.attributes or {}), schema_url=scope.schema_url or ""))


def _decode_json(attributes: dict[str, Any]) -> None:
    for key in attributes.pop(JSON_KEYS_ATTRIBUTE):
        # A text that is no JSON was cut by OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT, and stays a text.
        with contextlib.suppress(msgspec.DecodeError, KeyError, TypeError):
            attributes[key] = untag(msgspec.json.decode(attributes[key]))


def is_mlflows(scope: InstrumentationScope | None) -> bool:
    """Say whether spans of this scope are made by MLflow's SDK."""
    return scope is not None and scope.name.startswith("mlflow.")


def _decode_mlflow(attributes: dict[str, Any], scope: InstrumentationScope | None) -> None:
    """Undo MLflow's encoding: JSON in each attribute of its own spans, and in those that it adds to spans of others."""
    all_are_json = is_mlflows(scope)
    is_ours = scope is not None and scope.name == "tracelake"  # whose texts are texts, under MLflow's keys
    for key, value in attributes.items():
        if type(value) is str and (all_are_json or (key in _ADDED_BY_MLFLOW if is_ours else key.startswith("mlflow."))):
            attributes[key] = _json_value(value)


def _json_value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):  # the first was no ValueError in msgspec 0.19
        # NaN and lone surrogates, which only Python takes for JSON, or else a text that was set without MLflow.
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
