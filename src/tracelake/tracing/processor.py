"""The OpenTelemetry front end: a span processor that records every span as it ends."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any, Generic, TypeVar

import msgspec
from opentelemetry import context as otel_context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext

from tracelake.recorder.recorder import Recorder, Route, current_recorder
from tracelake.spans import record as spans
from tracelake.spans.line import pack
from tracelake.spans.values import untag
from tracelake.spool.writer import LaneWriter

# Where a context-local destination travels: the OpenTelemetry context goes wherever the current span does.
ROUTE_KEY = otel_context.create_key("tracelake-route")

# Lists the attributes of a span whose text is the JSON of a value, tagged as in the spool; left out of the row.
JSON_KEYS_ATTRIBUTE = "tracelake.json_keys"

_SAMPLED = 1
# Resources and scopes are packed once; a program has a handful of each.
_MAX_PACKED = 256
_INT64_END = 2**63

_Key = TypeVar("_Key")


class SpanRecorder(SpanProcessor):
    """Records each sampled span when it ends: one line in the spool, no queue, no thread, no network.

    `provider.add_span_processor(SpanRecorder())` records to the destination in force when the span started: that of
    `with tracelake.destination(...)`, else of `set_destination`, else of the environment. A span that several span
    recorders see is recorded once for each destination.
    """

    def __init__(self, recorder: Recorder | None = None) -> None:
        self._recorder = recorder
        self._routed: dict[int, Route] = {}
        self._resources = _Packed[Resource](self._pack_resource)
        self._scopes = _Packed[InstrumentationScope](_pack_scope)
        self._service_name: str | None = None

    def use_service_name(self, service_name: str | None) -> None:
        """Write this `service.name` in place of that of the spans' resources; None leaves theirs."""
        self._service_name = service_name
        self._resources = _Packed[Resource](self._pack_resource)

    def on_start(self, span: Span, parent_context: otel_context.Context | None = None) -> None:
        """Remember the context-local destination, if there is one: the span may end in another context."""
        route = otel_context.get_value(ROUTE_KEY, parent_context)
        if route is not None:
            self._routed[span.context.span_id] = route  # type: ignore[assignment]

    def on_end(self, span: ReadableSpan) -> None:
        """Append the span to the spool. Never raises; what goes wrong is counted, and logged once a minute."""
        context = span.context
        if context is None or not context.trace_flags & _SAMPLED:
            return
        try:
            recorder = self._recorder or current_recorder()
        except Exception:  # noqa: BLE001
            return
        writers: tuple[LaneWriter, ...] = ()
        try:
            route = self._routed.pop(context.span_id, None) if self._routed else None
            writers = _unseen(context, (route or recorder.default_route()).writers)
            if writers:
                recorder.record(self._to_record(span, context), writers)
        except Exception as error:  # noqa: BLE001 - nothing of ours may escape into the app
            recorder.refuse(writers, error)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until every span of this process is delivered; False if that takes longer, or cannot be."""
        return (self._recorder or current_recorder()).flush(timeout_millis / 1000).pending == 0

    def shutdown(self) -> None:
        """Wait as at interpreter exit. Spans that end later are still recorded."""
        (self._recorder or current_recorder()).at_exit()

    def _to_record(self, span: ReadableSpan, context: SpanContext) -> spans.SpanRecord:
        parent = span.parent
        flags = context.trace_flags | spans.FLAG_HAS_IS_REMOTE
        status = span.status
        attributes: Any = span.attributes
        attributes = attributes.copy() if attributes else {}
        if JSON_KEYS_ATTRIBUTE in attributes:
            _decode_json(attributes)
        return spans.SpanRecord(
            trace_id=f"{context.trace_id:032x}",
            span_id=f"{context.span_id:016x}",
            name=span.name,
            start_time_unix_nano=_nanoseconds(span.start_time),
            end_time_unix_nano=_nanoseconds(span.end_time),
            kind=span.kind.value + 1,
            flags=flags | spans.FLAG_IS_REMOTE if parent is not None and parent.is_remote else flags,
            parent_span_id=None if parent is None else f"{parent.span_id:016x}",
            trace_state=context.trace_state.to_header() if context.trace_state else "",
            attributes=attributes,
            dropped_attributes_count=span.dropped_attributes,
            events=[
                spans.SpanEvent(
                    event.name,
                    _nanoseconds(event.timestamp),
                    dict(event.attributes or {}),
                    getattr(event, "dropped_attributes", 0),
                )
                for event in span.events
            ],
            dropped_events_count=span.dropped_events,
            links=[_to_link(link) for link in span.links],
            dropped_links_count=span.dropped_links,
            status_code=status.status_code.value,
            status_message=status.description or "",
            resource=self._resources.get(span.resource),
            scope=self._scopes.get(span.instrumentation_scope),
        )

    def _pack_resource(self, resource: Resource) -> msgspec.Raw:
        attributes = dict(resource.attributes)
        name = self._service_name
        if name is None and str(attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
            name = os.environ.get("OTEL_SERVICE_NAME")
        if name:
            attributes[SERVICE_NAME] = name
        return pack(spans.Resource(attributes, schema_url=resource.schema_url or ""))


class _Packed(Generic[_Key]):
    """The JSON of objects that many spans share, by object: comparing them by value costs more than a span."""

    def __init__(self, pack: Any) -> None:
        self._pack = pack
        self._known: dict[int, tuple[_Key | None, msgspec.Raw]] = {}

    def get(self, item: _Key | None) -> msgspec.Raw:
        found = self._known.get(id(item))
        if found is None:
            if len(self._known) >= _MAX_PACKED:
                self._known = {}
            # The object is kept, so that its id stays its own.
            found = self._known[id(item)] = (item, msgspec.Raw(b"{}") if item is None else self._pack(item))
        return found[1]


def _pack_scope(scope: InstrumentationScope) -> msgspec.Raw:
    return pack(
        spans.Scope(scope.name, scope.version or "", dict(scope.attributes or {}), schema_url=scope.schema_url or "")
    )


def _to_link(link: Any) -> spans.SpanLink:
    context = link.context
    return spans.SpanLink(
        f"{context.trace_id:032x}",
        f"{context.span_id:016x}",
        context.trace_state.to_header() if context.trace_state else "",
        dict(link.attributes or {}),
        getattr(link, "dropped_attributes", 0),
        context.trace_flags | spans.FLAG_HAS_IS_REMOTE | (spans.FLAG_IS_REMOTE if context.is_remote else 0),
    )


def _decode_json(attributes: dict[str, Any]) -> None:
    for key in attributes.pop(JSON_KEYS_ATTRIBUTE):
        # A text that is no JSON was cut by OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT, and stays a text.
        with contextlib.suppress(msgspec.DecodeError, KeyError, TypeError):
            attributes[key] = untag(msgspec.json.decode(attributes[key]))


def _nanoseconds(time: int | None) -> int:
    return min(max(time or 0, 0), _INT64_END - 1)


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
