"""MLflow's spans, and what MLflow knows of their traces, to our recorder.

With `mlflow_provider`, the one module that knows private parts of MLflow, 3.9 and later, which has no public way to
read a trace under way. A test fails if one of them moves.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mlflow.entities.trace_info import TraceInfo
from mlflow.entities.trace_location import TraceLocation
from mlflow.entities.trace_state import TraceState
from mlflow.tracing import fluent as mlflow_fluent
from mlflow.tracing import provider as mlflow_provider
from mlflow.tracing.constant import SpanAttributeKey, TraceMetadataKey
from mlflow.tracing.processor.base_mlflow import BaseMlflowSpanProcessor
from mlflow.tracing.trace_manager import InMemoryTraceManager
from mlflow.tracing.utils import (
    generate_mlflow_trace_id_from_otel_trace_id,
    generate_trace_id_v3,
    get_otel_attribute,
)
from mlflow.tracking import fluent as mlflow_tracking
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from tracelake.destinations.mlflow_trace import (
    CLIENT_REQUEST_ID,
    EXPERIMENT,
    METADATA_PREFIX,
    PREVIEWS,
    STATE,
    TAG_PREFIX,
)
from tracelake.recorder.recorder import Route, current_recorder
from tracelake.redaction import one_line
from tracelake.tracing import mlflow_hook
from tracelake.tracing.otel_span import kept_part
from tracelake.tracing.processor import SpanRecorder, claimed, context_route

_TRACE_FIELDS = {CLIENT_REQUEST_ID: "client_request_id", **PREVIEWS}

# Traces whose root has ended before others of their spans. MLflow gives up the oldest of those that never end, and of
# these nothing is to be kept.
_MAX_LATE = 2_000

_marks_experiments = False

Processors = list[SpanProcessor]


class _Choice(NamedTuple):
    """Where the spans of a trace go: to a route of ours, to MLflow, or to both."""

    route: Route | None
    mlflow: bool


class _Started(NamedTuple):
    """A span under way; `kept` sees to it that nothing else is taken for it once it is gone."""

    span_id: int
    choice: _Choice
    kept: weakref.ref[object]


class _Exporter(SpanExporter):
    """What MLflow finds behind its processors: it exports nothing, and can be asked to flush, as `_async_queue`."""

    def __init__(self, others: Callable[[], Processors] = list) -> None:
        self._others = others
        self._async_queue = self

    def export(self, _: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def flush(self, terminate: bool = False) -> None:
        """Wait until spans are delivered, ours and those that MLflow has; `mlflow.flush_trace_async_logging` does."""
        for processor in self._others():
            queue = getattr(getattr(processor, "span_exporter", None), "_async_queue", None)
            if queue is not None:
                queue.flush(terminate=terminate)
        recorder = current_recorder()
        recorder.flush(recorder.settings.exit_timeout_s)


class _Books(BaseMlflowSpanProcessor):  # type: ignore[misc]
    """MLflow's own bookkeeping of traces under way, with no exporter behind it, and no request to a server."""

    def __init__(self) -> None:
        super().__init__(span_exporter=_Exporter(), export_metrics=False)

    def _start_trace(self, root_span: Span) -> TraceInfo:
        info = TraceInfo(
            trace_id=generate_trace_id_v3(root_span),
            trace_location=TraceLocation.from_experiment_id(_experiment_id(root_span) or "0"),
            request_time=(root_span.start_time or 0) // 1_000_000,
            execution_duration=None,
            state=TraceState.IN_PROGRESS,
            trace_metadata=self._get_basic_trace_metadata(),
            tags=self._get_basic_trace_tags(root_span),
        )
        self._trace_manager.register_trace(root_span.context.trace_id, info)
        return info

    def finish(self, root_span: ReadableSpan) -> dict[str, str]:
        """Complete MLflow's account of a trace whose root span has ended, and return the attributes that carry it."""
        trace_id = _trace_id_of(root_span)
        with self._trace_manager.get_trace(trace_id) as trace:
            if trace is None:
                return {}
            try:
                self._update_trace_info(trace, root_span)
            except Exception as error:  # noqa: BLE001 - MLflow adds up tokens of spans that hold what the app put there
                current_recorder().say("MLflow could not complete trace %s: %s", trace_id, one_line(repr(error)))
            mlflow_fluent._set_last_active_trace_id(trace_id)
            return _carried(trace.info, root_span)


class MlflowSpanRecorder(SpanProcessor):
    """Records MLflow's spans in place of MLflow's own processors, or beside them.

    Args:
        make_others: makes the processors that MLflow would have; called when the first span is for them.
        others: those that it has already.
    """

    def __init__(self, make_others: Callable[[], Processors], others: Processors | None = None) -> None:
        self._make_others = make_others
        self._others = others
        self._lock = threading.RLock()
        self._books = _Books()
        self.span_exporter = _Exporter(lambda: self._others or [])
        self._spans = SpanRecorder()
        self._spans.use_service_name(mlflow_hook.service_name())
        self._choices: dict[int, _Choice] = {}  # by span id, for the children of a span
        self._started: dict[int, _Started] = {}  # by the id() of a span's kept part
        self._late: set[int] = set()

    @property
    def others(self) -> Processors:
        """MLflow's own processors."""
        with self._lock:
            if self._others is None:
                self._others = self._make_others()
            return self._others

    @property
    def is_busy(self) -> bool:
        """Whether spans that it chose the way of are under way."""
        return bool(self._started)

    def use_service_name(self, service_name: str | None) -> None:
        """Write this `service.name` in place of that of the spans' resources; None leaves theirs."""
        self._spans.use_service_name(service_name)

    def on_start(self, span: Span, parent_context: otel_context.Context | None = None) -> None:
        """Choose where the span goes, and have MLflow take note of it."""
        kept, span_id = kept_part(span), span.context.span_id
        key = id(kept)
        choice = self._choices[span_id] = self._choose(span)
        self._started[key] = _Started(span_id, choice, weakref.ref(kept, lambda _: self._drop(key)))
        if choice.route is not None:
            claimed.add(key)
        if choice.mlflow:
            for processor in self.others:
                processor.on_start(span, parent_context)
            return
        try:
            # MLflow lets no span into a trace it does not know: one whose root is a span of OpenTelemetry's alone, here
            # or in another service, or ended before this span started. Nor may another thread end the last one now.
            with InMemoryTraceManager.get_instance()._lock:
                if span.parent is not None and register_remote_trace(span.context.trace_id):
                    self._late.add(span.context.trace_id)
                self._books.on_start(span, parent_context)
        except Exception as error:  # noqa: BLE001 - nothing of ours may escape into the app
            current_recorder().say("MLflow could not take note of a span: %s", one_line(repr(error)))

    def on_end(self, span: ReadableSpan) -> None:
        """Record the span, and whatever MLflow knows of its trace with the root span. Never raises for our part."""
        key = id(kept_part(span))
        started = self._started.get(key)
        choice = started.choice if started else None  # None: it started before we were here
        try:
            if choice is not None and choice.route is not None:
                self._record(span, choice.route)
        finally:
            self._drop(key)
            if choice is None or choice.mlflow:
                for processor in self._others or ():
                    processor.on_end(span)
            else:
                self._close(span)
            if not (self._started or mlflow_hook.is_installed()):
                mlflow_hook.attach()  # the last span of ours, after MLflow was given back

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until the spans of this process are delivered, and those that MLflow has."""
        done = [processor.force_flush(timeout_millis) for processor in self._others or ()]
        return self._spans.force_flush(timeout_millis) and all(done)

    def shutdown(self) -> None:
        """Wait as at interpreter exit."""
        for processor in self._others or ():
            processor.shutdown()
        self._spans.shutdown()

    def _drop(self, key: int) -> None:
        """Forget a span that has ended, or was dropped without an end."""
        claimed.discard(key)
        started = self._started.pop(key, None)
        if started is not None:
            self._choices.pop(started.span_id, None)

    def _choose(self, span: Span) -> _Choice:
        parent = span.parent
        if parent is not None and not parent.is_remote:
            choice = self._choices.get(parent.span_id)
            if choice is not None:
                return choice
        route = context_route()
        if route is None and mlflow_hook.is_active():
            route = current_recorder().environment_route(_experiment_id(span))
        return _Choice(route, mlflow=route is None or mlflow_hook.keeps_mlflow())

    def _record(self, span: ReadableSpan, route: Route) -> None:
        attributes: dict[str, str] = {}
        if span.parent is None:
            try:
                attributes = self._books.finish(span)
            except Exception as error:  # noqa: BLE001 - the span itself is there, and must be recorded
                current_recorder().say("MLflow's account of a trace could not be read: %s", one_line(repr(error)))
        self._spans.record(span, route, attributes)

    def _close(self, span: ReadableSpan) -> None:
        """Have MLflow forget a trace once its root, and every span that outlives the root, has ended."""
        trace_id = span.context.trace_id if span.context else 0
        if span.parent is not None and trace_id not in self._late:
            return
        try:
            if forget_trace(trace_id):
                self._late.discard(trace_id)
            else:
                self._late.add(trace_id)
                if len(self._late) > _MAX_LATE:
                    self._late = {late for late in self._late if not forget_trace(late)}
        except Exception as error:  # noqa: BLE001 - as in on_start
            current_recorder().say("MLflow could not forget a trace: %s", one_line(repr(error)))


def register_remote_trace(trace_id: int) -> bool:
    """Have MLflow take up a trace that began elsewhere, or that it gave up; say whether it did not know it."""
    manager = InMemoryTraceManager.get_instance()
    if manager._traces.get(manager.get_mlflow_trace_id_from_otel_id(trace_id)) is not None:
        return False
    info = TraceInfo(generate_mlflow_trace_id_from_otel_trace_id(trace_id), None, None, TraceState.IN_PROGRESS)
    manager.register_trace(trace_id, info, is_remote_trace=True)
    return True


def forget_trace(trace_id: int) -> bool:
    """Drop what MLflow holds of a trace, unless a span of it is under way; say whether that is done.

    Its own `pop_trace` would copy all spans, for an exporter.
    """
    manager = InMemoryTraceManager.get_instance()
    with manager._lock:
        known_as = manager.get_mlflow_trace_id_from_otel_id(trace_id)
        trace = manager._traces.get(known_as)
        if trace is not None:
            # Of a trace whose root has ended, only what is under way is asked for again.
            trace.span_dict = {key: span for key, span in trace.span_dict.items() if span.end_time_ns is None}
            if trace.span_dict:
                return False
        manager._traces.pop(known_as, None)
        manager._otel_id_to_mlflow_trace_id.pop(trace_id, None)
        return True


def mark_experiments() -> None:
    """Have root spans say of which experiment they are, because this process is the server that has the experiments."""
    global _marks_experiments
    _marks_experiments = True


def _experiment_id(span: ReadableSpan) -> str | None:
    """Return the experiment that the program has chosen for a trace; None if that is up to the environment."""
    if chosen := get_otel_attribute(span, SpanAttributeKey.EXPERIMENT_ID):
        return str(chosen)
    # Its own `get` looks at MLFLOW_TRACING_DESTINATION, and sets the tracking URI, or fails, for what it finds there.
    registry = mlflow_provider._MLFLOW_TRACE_USER_DESTINATION
    location = registry._context_local_value.get() or registry._global_value
    if chosen := getattr(location, "experiment_id", None):
        return str(chosen)
    run = mlflow_tracking._get_latest_active_run()
    return str(run.info.experiment_id) if run else None


def _trace_id_of(span: ReadableSpan) -> str | None:
    context = span.context
    return InMemoryTraceManager.get_instance().get_mlflow_trace_id_from_otel_id(context.trace_id) if context else None


def _carried(info: TraceInfo, root_span: ReadableSpan) -> dict[str, str]:
    carried = {TAG_PREFIX + _text(key): _text(value) for key, value in info.tags.items()}
    carried.update({METADATA_PREFIX + _text(key): _text(value) for key, value in info.trace_metadata.items()})
    for key, field in _TRACE_FIELDS.items():
        if value := getattr(info, field, None):
            carried[key] = _text(value)
    if _marks_experiments:
        carried[EXPERIMENT] = info.trace_location.mlflow_experiment.experiment_id
    if info.state not in (TraceState.OK, TraceState.from_otel_status(root_span.status)):
        carried[STATE] = _text(info.state)
    for key, attribute in ((TraceMetadataKey.TRACE_USER, "user.id"), (TraceMetadataKey.TRACE_SESSION, "session.id")):
        if value := info.trace_metadata.get(key):
            carried[attribute] = _text(value)
    return carried


def _text(value: object) -> str:
    try:
        # What str() makes of an enum whose members are texts is the member's name.
        return str.__str__(value) if isinstance(value, str) else str(value)
    except Exception:  # noqa: BLE001 - the app's own code; the other values are to be carried
        return f"<{type(value).__qualname__}>"
