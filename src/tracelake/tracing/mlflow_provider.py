"""Our processor in MLflow's tracer provider, in place of MLflow's own.

MLflow has no public way to put one there, and makes its provider anew whenever its settings change. So the function
that makes the processors of a provider is wrapped, and in a provider that exists already they are exchanged. A test
fails if one of the private parts used here moves.

Imported when MLflow is on its way in: of its modules, only this one is sure to be there.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.tracing import provider as mlflow_provider
from opentelemetry import trace as otel_trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext

from tracelake.redaction import one_line
from tracelake.tracing import mlflow_hook, propagation

if TYPE_CHECKING:
    from tracelake.tracing.mlflow_spans import MlflowSpanRecorder

_log = logging.getLogger("tracelake")

Processors = list[SpanProcessor]

_OWN_PROCESSORS = "mlflow.tracing.processor."


def attach() -> None:
    """Wrap what makes MLflow's processors, once, and exchange those of the provider that is there."""
    if not hasattr(mlflow_provider._get_span_processors, "__wrapped__"):
        mlflow_provider._get_span_processors = _wrap(mlflow_provider._get_span_processors)
    provider = mlflow_provider.provider.get()
    if isinstance(provider, TracerProvider):
        _exchange(provider._active_span_processor)


def current_span() -> otel_trace.Span | None:
    """Return the current span of MLflow's own context."""
    span: otel_trace.Span | None = mlflow_provider.get_current_otel_span()
    return span


class RemoteContext:
    """Makes the spans that MLflow starts in the with-body children of a caller's span.

    As MLflow's own context manager, which is a generator: one that is left to the garbage collector, in a context of
    another request, complains.
    """

    def __init__(self, parent: SpanContext) -> None:
        self._parent = parent
        self._token: Any = None
        self._is_registered = False

    def __enter__(self) -> None:
        # In the global mode MLflow's context is OpenTelemetry's, where the parent is already.
        if mlflow_provider.get_context_api() is mlflow_provider.mlflow_runtime_context:
            context = otel_trace.set_span_in_context(NonRecordingSpan(self._parent), Context())
            self._token = mlflow_provider.mlflow_runtime_context.attach(context)
        if not mlflow_hook.is_installed():
            from tracelake.tracing.mlflow_spans import register_remote_trace

            self._is_registered = register_remote_trace(self._parent.trace_id)

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            mlflow_provider.mlflow_runtime_context.detach(self._token)
        if self._is_registered:
            from mlflow.tracing.trace_manager import InMemoryTraceManager

            InMemoryTraceManager.get_instance().pop_trace(self._parent.trace_id)


def _wrap(make: Callable[..., Processors]) -> Callable[..., Processors]:
    @functools.wraps(make)
    def make_processors(disabled: bool = False) -> Processors:
        ours = mlflow_hook.guard(lambda: _ours(make)) if mlflow_hook.is_installed() and not disabled else None
        return make(disabled=disabled) if ours is None else ours

    return make_processors


def _ours(make: Callable[..., Processors]) -> Processors:
    from tracelake.tracing.mlflow_spans import MlflowSpanRecorder

    _settle_tracking_uri()
    _settle_gateway()
    return [MlflowSpanRecorder(make)]


def _settle_tracking_uri() -> None:
    """Give mlflow-tracing a tracking URI where it has none: it fails to make out its default, and then ends no span."""
    try:
        mlflow.get_tracking_uri()
    except ImportError:
        os.environ["MLFLOW_TRACKING_URI"] = Path("mlruns").absolute().as_uri()


def _settle_gateway() -> None:
    """Have MLflow's AI Gateway, where this is its server, record its part of a caller's trace where the caller does."""
    gateway = sys.modules.get("mlflow.gateway.tracing_utils")
    if gateway is not None:
        name = "set_tracing_context_from_http_request_headers"
        setattr(gateway, name, propagation.set_tracing_context_from_http_request_headers)


def _exchange(active: Any) -> None:
    """Put our processor in place of MLflow's, or theirs in place of ours; those of others stay where they are."""
    modules = (_OWN_PROCESSORS, f"{__package__}.mlflow_spans")
    if not any(type(item).__module__.startswith(modules) for item in active._span_processors):
        return  # as while MLflow is on its way in, when `mlflow_spans` cannot be imported
    from tracelake.tracing.mlflow_spans import MlflowSpanRecorder

    with active._lock:
        present = active._span_processors
        ours = [item for item in present if isinstance(item, MlflowSpanRecorder)]
        if mlflow_hook.is_installed():
            theirs = [item for item in present if type(item).__module__.startswith(_OWN_PROCESSORS)]
            if not ours and theirs:
                recorder = MlflowSpanRecorder(mlflow_provider._get_span_processors.__wrapped__, theirs)
                active._span_processors = (recorder, *(item for item in present if item not in theirs))
            for recorder in ours:
                recorder.use_service_name(mlflow_hook.service_name())
            return
        given_back: list[SpanProcessor] = []
        for recorder in ours:
            theirs = _others_of(recorder)
            # One with spans under way stays for these, and hands over all others.
            given_back += [recorder] if recorder.is_busy else theirs
        active._span_processors = (*given_back, *(item for item in present if item not in ours))


def _others_of(recorder: MlflowSpanRecorder) -> Processors:
    try:
        return recorder.others
    except Exception as error:  # noqa: BLE001 - whatever MLflow has against its own settings
        _log.error("MLflow refuses its own settings, and sends no spans: %s", one_line(repr(error)))
        return []
