"""The OpenTelemetry front end: a span processor that records every span as it ends."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from opentelemetry import context as otel_context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, StatusCode

from tracelake.recorder.recorder import Recorder, Route, current_recorder
from tracelake.spans import record as spans
from tracelake.spans.line import pack
from tracelake.spans.values import untag
from tracelake.spool.writer import LaneWriter
from tracelake.tracing.otel_span import read_parts

# Where a context-local destination travels: the OpenTelemetry context goes wherever the current span does.
_ROUTE_KEY = otel_context.create_key("tracelake-route")
_routing = False  # whether any context was ever given one

# Lists the attributes of a span whose text is the JSON of a value, tagged as in the spool; left out of the row.
JSON_KEYS_ATTRIBUTE = "tracelake.json_keys"

_SAMPLED = 1
_END = 2**63  # of times, in nanoseconds
# Resources and scopes are packed once; a program has a handful of each.
_MAX_PACKED = 256

_EMPTY = msgspec.Raw(b"{}")
_Origin = tuple[Resource | None, InstrumentationScope | None, msgspec.Raw, msgspec.Raw]


@contextlib.contextmanager
def use_route(route: Route) -> Iterator[None]:
    """Record the spans that start in the with-body, and in contexts derived from it, by this route."""
    global _routing
    _routing = True
    token = otel_context.attach(otel_context.set_value(_ROUTE_KEY, route))
    try:
        yield
    finally:
        otel_context.detach(token)


def active_route() -> Route:
    """Return the route that a span started here and now would take."""
    route = otel_context.get_value(_ROUTE_KEY)
    return route if isinstance(route, Route) else current_recorder().default_route()


class SpanRecorder(SpanProcessor):
    """Records each sampled span when it ends: one line in the spool, no queue, no thread, no network.

    `provider.add_span_processor(SpanRecorder())` records to the destination in force when the span started: that of
    `with tracelake.destination(...)`, else of `set_destination`, else of the environment. A span that several span
    recorders see is recorded once for each destination.
    """

    def __init__(self, recorder: Recorder | None = None) -> None:
        global _several_recorders
        _several_recorders = bool(_recorders)
        _recorders.add(self)
        self._recorder = recorder
        self._routed: dict[int, Route] = {}
        self._packed = _Packed(self._pack_resource)
        self._service_name: str | None = None

    def use_service_name(self, service_name: str | None) -> None:
        """Write this `service.name` in place of that of the spans' resources; None leaves theirs."""
        self._service_name = service_name
        self._packed = _Packed(self._pack_resource)

    def on_start(self, span: Span, parent_context: otel_context.Context | None = None) -> None:
        """Remember the context-local destination, if there is one: the span may end in another context."""
        if not _routing:
            return
        route = otel_context.get_value(_ROUTE_KEY, parent_context)
        if route is not None:
            self._routed[span.context.span_id] = route  # type: ignore[assignment]

    def on_end(self, span: ReadableSpan) -> None:
        """Append the span to the spool. Never raises; what goes wrong is counted, and logged once a minute."""
        recorder = self._recorder
        writers: tuple[LaneWriter, ...] = ()
        try:
            if recorder is None:
                recorder = self._recorder = current_recorder()
            context = span.context
            if context is None:
                return
            route = self._routed.pop(context.span_id, None) if self._routed else None
            if not context[3] & _SAMPLED:
                return
            writers = (route or recorder.default or recorder.default_route()).writers
            if _several_recorders:
                writers = _unseen(context, writers)
            if writers:
                recorder.record(self._to_record(span, context), writers)
        except Exception as error:  # noqa: BLE001 - nothing of ours may escape into the app
            if recorder is not None:
                recorder.refuse(writers, error)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until every span of this process is delivered; False if that takes longer, or cannot be."""
        return (self._recorder or current_recorder()).flush(timeout_millis / 1000).pending == 0

    def shutdown(self) -> None:
        """Wait as at interpreter exit. Spans that end later are still recorded."""
        (self._recorder or current_recorder()).at_exit()

    def _to_record(self, span: ReadableSpan, context: SpanContext) -> spans.SpanRecord:
        # The context is taken apart as the tuple it is, and the record is made by position: both run for every span.
        trace_id, span_id, _, trace_flags, trace_state, _ = context
        (
            name,
            parent,
            kind,
            start_time,
            end_time,
            status,
            resource,
            scope,
            attributes,
            dropped_attributes,
            events,
            dropped_events,
            links,
            dropped_links,
        ) = read_parts(span)
        # OpenTelemetry takes any name and any time without a look, and a line that holds them cannot be read again.
        if not (type(name) is str and type(start_time) is int is type(end_time) and 0 < start_time <= end_time < _END):
            name, start_time, end_time = _text(name), _nanoseconds(start_time), _nanoseconds(end_time)
        flags = trace_flags | spans.FLAG_HAS_IS_REMOTE
        if parent is None:
            parent_span_id = None
        else:
            parent_span_id = "%016x" % parent[1]  # noqa: UP031 - half the time of an f-string
            if parent[2]:
                flags |= spans.FLAG_IS_REMOTE
        code = status.status_code
        _, _, packed_resource, packed_scope = self._packed.get(resource, scope)
        if JSON_KEYS_ATTRIBUTE in attributes:
            _decode_json(attributes)
        return spans.SpanRecord(
            "%032x" % trace_id,  # noqa: UP031
            "%016x" % span_id,  # noqa: UP031
            name,
            start_time,
            end_time,
            1 if kind is SpanKind.INTERNAL else kind.value + 1,
            flags,
            parent_span_id,
            trace_state.to_header() if trace_state else "",
            attributes,
            dropped_attributes,
            [_to_event(event) for event in events] if events else [],
            dropped_events,
            [_to_link(link) for link in links] if links else [],
            dropped_links,
            0 if code is StatusCode.UNSET else code.value,
            "" if code is StatusCode.UNSET else status.description or "",
            packed_resource,
            packed_scope,
        )

    def _pack_resource(self, resource: Resource) -> msgspec.Raw:
        attributes = dict(resource.attributes)
        name = self._service_name
        if name is None and str(attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
            name = os.environ.get("OTEL_SERVICE_NAME")
        if name:
            attributes[SERVICE_NAME] = name
        return pack(spans.Resource(attributes, schema_url=resource.schema_url or ""))


class _Packed:
    """The JSON of resources and scopes, by object: comparing them by value costs more than a span."""

    def __init__(self, pack_resource: Callable[[Resource], msgspec.Raw]) -> None:
        self._pack_resource = pack_resource
        self._known: dict[tuple[int, int], _Origin] = {}
        self._last: _Origin = (None, None, _EMPTY, _EMPTY)

    def get(self, resource: Resource | None, scope: InstrumentationScope | None) -> _Origin:
        """Return the two objects and their JSON."""
        found = self._last
        if found[0] is resource and found[1] is scope:
            return found
        key = (id(resource), id(scope))
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _MAX_PACKED:
                self._known = {}
            # The objects are kept, so that their ids stay their own.
            known = self._known[key] = (
                resource,
                scope,
                _EMPTY if resource is None else self._pack_resource(resource),
                _EMPTY if scope is None else _pack_scope(scope),
            )
        self._last = known
        return known


def _pack_scope(scope: InstrumentationScope) -> msgspec.Raw:
    return pack(
        spans.Scope(scope.name, scope.version or "", dict(scope.attributes or {}), schema_url=scope.schema_url or "")
    )


def _to_event(event: Any) -> spans.SpanEvent:
    return spans.SpanEvent(
        _text(event.name),
        _nanoseconds(event.timestamp),
        dict(event.attributes or {}),
        getattr(event, "dropped_attributes", 0),
    )


def _to_link(link: Any) -> spans.SpanLink:
    trace_id, span_id, is_remote, trace_flags, trace_state, _ = link.context
    return spans.SpanLink(
        f"{trace_id:032x}",
        f"{span_id:016x}",
        trace_state.to_header() if trace_state else "",
        dict(link.attributes or {}),
        getattr(link, "dropped_attributes", 0),
        trace_flags | spans.FLAG_HAS_IS_REMOTE | (spans.FLAG_IS_REMOTE if is_remote else 0),
    )


def _text(name: Any) -> str:
    return name if isinstance(name, str) else str(name)


def _nanoseconds(time: float | None) -> int:
    return min(max(int(time or 0), 0), _END - 1)


def _decode_json(attributes: dict[str, Any]) -> None:
    for key in attributes.pop(JSON_KEYS_ATTRIBUTE):
        # A text that is no JSON was cut by OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT, and stays a text.
        with contextlib.suppress(msgspec.DecodeError, KeyError, TypeError):
            attributes[key] = untag(msgspec.json.decode(attributes[key]))


# Looking for spans that another span recorder has seen is only worth its time where there is another.
_recorders: weakref.WeakSet[SpanRecorder] = weakref.WeakSet()
_several_recorders = False


class _Seen(threading.local):
    context: SpanContext | None = None
    writers: tuple[LaneWriter, ...] = ()


_seen = _Seen()


def _unseen(context: SpanContext, writers: tuple[LaneWriter, ...]) -> tuple[LaneWriter, ...]:
    """Return the writers that do not have this span yet: another span recorder of the provider may have come first."""
    if _seen.context is not context:
        _seen.context = context
        _seen.writers = writers
        return writers
    writers = tuple(writer for writer in writers if writer not in _seen.writers)
    _seen.writers += writers
    return writers
