"""The OpenTelemetry front end: a span processor that records every span as it ends."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence

from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanContext

from tracelake.recorder.recorder import Recorder, Route, current_recorder
from tracelake.recorder.redact import Redact
from tracelake.spool.writer import LaneWriter
from tracelake.tracing.otel_span import Origins, kept_part, to_record

# Where a context-local destination travels: the OpenTelemetry context goes wherever the current span does.
_ROUTE_KEY = otel_context.create_key("tracelake-route")
_routing = False  # whether any context was ever given one

_SAMPLED = 1

# Spans that another front end's recorder sees to, by the id() of their kept part: in MLflow's global mode they come by
# every processor of the provider.
claimed: set[int] = set()


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


def context_route() -> Route | None:
    """Return the context-local route of a span started here and now, if there is one."""
    route = otel_context.get_value(_ROUTE_KEY) if _routing else None
    return route if isinstance(route, Route) else None


def active_route() -> Route:
    """Return the route that a span started here and now would take."""
    return context_route() or current_recorder().default_route()


class SpanRecorder(SpanProcessor):
    """Records each sampled span when it ends: one line in the spool, no queue, no thread, no network.

    `provider.add_span_processor(SpanRecorder())` records to the destination in force when the span started: that of
    `with tracelake.destination(...)`, else of `set_destination`, else of the environment. A span that several span
    recorders see is recorded once for each destination. `redact` is that of `set_destination`, and holds for the whole
    process, too.

    Raises:
        ConfigurationError: `redact` is neither patterns nor a callable.
    """

    def __init__(self, recorder: Recorder | None = None, *, redact: str | Sequence[str] | Redact | None = None) -> None:
        global _several_recorders
        if redact is not None:
            (recorder or current_recorder()).use_redaction(redact)
        _several_recorders = bool(_recorders)
        _recorders.add(self)
        self._recorder = recorder
        self._routed: dict[int, Route] = {}
        self._origins = Origins()

    def use_service_name(self, service_name: str | None) -> None:
        """Write this `service.name` in place of that of the spans' resources; None leaves theirs."""
        self._origins = Origins(service_name)

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
            if context is None or (claimed and id(kept_part(span)) in claimed):
                return
            route = self._routed.pop(context.span_id, None) if self._routed else None
            if not context[3] & _SAMPLED:
                return
            writers = (route or recorder.default or recorder.default_route()).writers
            if _several_recorders:
                writers = _unseen(context, writers)
            if writers:
                recorder.record(to_record(span, context, self._origins), writers)
        except Exception as error:  # noqa: BLE001 - nothing of ours may escape into the app
            if recorder is not None:
                recorder.refuse(writers, error)

    def record(self, span: ReadableSpan, route: Route, attributes: Mapping[str, str]) -> None:
        """Append a claimed span, with attributes added to its own, and no other recorder does. Never raises."""
        recorder = self._recorder or current_recorder()
        try:
            context = span.context
            if context is None or not context[3] & _SAMPLED:
                return
            _seen.context, _seen.writers = context, None
            record = to_record(span, context, self._origins)
            record.attributes.update(attributes)
            recorder.record(record, route.writers)
        except Exception as error:  # noqa: BLE001 - as in on_end
            recorder.refuse(route.writers, error)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until every span of this process is delivered; False if that takes longer, or cannot be."""
        return (self._recorder or current_recorder()).flush(timeout_millis / 1000).pending == 0

    def shutdown(self) -> None:
        """Wait as at interpreter exit. Spans that end later are still recorded."""
        (self._recorder or current_recorder()).at_exit()


# Looking for spans that another span recorder has seen is only worth its time where there is another.
_recorders: weakref.WeakSet[SpanRecorder] = weakref.WeakSet()
_several_recorders = False


class _Seen(threading.local):
    context: SpanContext | None = None
    writers: tuple[LaneWriter, ...] | None = ()  # None: of a claimed span, which is nobody else's


_seen = _Seen()


def _unseen(context: SpanContext, writers: tuple[LaneWriter, ...]) -> tuple[LaneWriter, ...]:
    """Return the writers that do not have this span yet: another span recorder of the provider may have come first."""
    if _seen.context is not context:
        _seen.context = context
        _seen.writers = writers
        return writers
    if _seen.writers is None:
        return ()
    writers = tuple(writer for writer in writers if writer not in _seen.writers)
    _seen.writers += writers
    return writers
