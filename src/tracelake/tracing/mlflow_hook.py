"""When MLflow's spans are ours: while a destination is named, by code or by `TRACELAKE_DESTINATION`.

Knows nothing of MLflow but where it would be loaded, and loads none of it; `mlflow_provider` does the rest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from opentelemetry import trace

_log = logging.getLogger("tracelake")

_T = TypeVar("_T")


@dataclass
class _Hook:
    """What code has set: a destination, one for a part of the program, that MLflow keeps its spans; the name of spans.

    And whether MLflow turned out to be of a kind we do not know.
    """

    named: bool = False
    named_locally: bool = False
    bodies: int = 0  # of `destination`, that are open
    also_mlflow: bool = False
    service_name: str | None = None
    is_broken: bool = False


_hook = _Hook()
_lock = threading.RLock()


def is_active() -> bool:
    """Say whether spans that MLflow starts now are recorded, wherever they start."""
    return _hook.named or bool(os.environ.get("TRACELAKE_DESTINATION", "").strip())


def is_installed() -> bool:
    """Say whether MLflow's provider needs our processor: it is active, or was, for a part of the program."""
    return _hook.named_locally or is_active()


def is_named_in_code() -> bool:
    """Say whether `set_destination` has named a destination."""
    return _hook.named


def keeps_mlflow() -> bool:
    """Say whether MLflow sends the spans that are recorded where it would without us, as well."""
    return _hook.also_mlflow


def service_name() -> str | None:
    """Return the `service.name` of the spans that are recorded; None leaves that of their resource."""
    return _hook.service_name


def use_globally(*, named: bool, also_mlflow: bool, service_name: str | None) -> None:
    """Take note of what `set_destination` was given, and have MLflow's provider follow."""
    _hook.named = named
    _hook.named_locally = _hook.bodies > 0
    _hook.also_mlflow = also_mlflow
    _hook.service_name = service_name
    attach()


@contextlib.contextmanager
def used_locally() -> Iterator[None]:
    """Take note that the with-body has a destination of its own, and have MLflow's provider follow."""
    with _lock:
        _hook.bodies += 1
        is_first, _hook.named_locally = not _hook.named_locally, True
    if is_first:
        attach()
    try:
        yield
    finally:
        with _lock:
            _hook.bodies -= 1


def is_broken() -> bool:
    """Say whether this version of MLflow turned out to be unknown, so that its provider has no processor of ours."""
    return _hook.is_broken


def has_put_away(provider: trace.TracerProvider, *, was_set: bool) -> bool:
    """Say whether MLflow, in its global mode, has disabled tracing, or taken away a provider that was set before."""
    is_global = os.environ.get("MLFLOW_USE_DEFAULT_TRACER_PROVIDER", "").strip().lower() in {"false", "0"}
    is_gone = isinstance(provider, trace.NoOpTracerProvider) or (
        was_set and isinstance(provider, trace.ProxyTracerProvider)
    )
    return is_gone and is_global and "mlflow.tracing.provider" in sys.modules


def current_span() -> trace.Span | None:
    """Return the current span of MLflow's own context, or None if MLflow is not in use. Never raises."""
    return guard(_current_span) if "mlflow.tracing.provider" in sys.modules else None


def remote_context(parent: trace.SpanContext) -> contextlib.AbstractContextManager[None]:
    """Return what makes MLflow's spans children of the caller's, as OpenTelemetry's are."""
    if not hasattr(sys.modules.get("mlflow.tracing"), "set_tracing_context_from_http_request_headers"):
        return contextlib.nullcontext()  # not imported, or not yet
    from tracelake.tracing import mlflow_provider

    return mlflow_provider.RemoteContext(parent)


def tracking_uri_is_set_in_code() -> bool:
    """Say whether the program has called `mlflow.set_tracking_uri`."""
    return getattr(sys.modules.get("mlflow.tracking._tracking_service.utils"), "_tracking_uri", None) is not None


def attach() -> None:
    """Bring MLflow's tracer provider into line with what is set, once MLflow is imported. Never raises."""
    if "mlflow.tracing.provider" in sys.modules:
        guard(_attach)


def guard(function: Callable[[], _T]) -> _T | None:
    """Call what relies on private parts of MLflow; None if they are not what we know, now or at an earlier call."""
    if _hook.is_broken:
        return None
    try:
        return function()
    except Exception:  # noqa: BLE001 - a version of MLflow that we do not know must not take the app down
        _hook.is_broken = True
        _log.exception(
            "This version of MLflow is not supported: its spans go where MLflow sends them, and not to tracelake. "
            "Install one that docs/mlflow.md names."
        )
        return None


def _attach() -> None:
    from tracelake.tracing import mlflow_provider

    mlflow_provider.attach()


def _current_span() -> trace.Span | None:
    from tracelake.tracing import mlflow_provider

    return mlflow_provider.current_span()
