"""Name a destination, and have the spans of OpenTelemetry's global provider recorded to it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from tracelake.destinations.base import Destination, digest
from tracelake.destinations.resolve import (
    AUTO,
    is_databricks,
    read_environment,
    require_unity_catalog,
    resolve_environment,
    resolve_named,
)
from tracelake.destinations.targets import Target, parse_target
from tracelake.errors import ConfigurationError, TargetError
from tracelake.recorder.recorder import current_recorder
from tracelake.recorder.redact import Redact
from tracelake.tracing import mlflow_hook
from tracelake.tracing.otel_span import is_mlflows
from tracelake.tracing.processor import SpanRecorder, active_route, use_route
from tracelake.tracing.propagation import set_destination_guard, warn_once

_lock = threading.Lock()
_installed: tuple[trace.TracerProvider, SpanRecorder] | None = None


def set_destination(
    target: Target | Sequence[Target] | None = AUTO,
    *,
    service_name: str | None = None,
    also_mlflow: bool = False,
    redact: str | Sequence[str] | Redact | None = None,
) -> tuple[Destination, ...]:
    """Record the spans of this process to a destination, or to several, from now on.

    Installs a `SpanRecorder` in OpenTelemetry's global tracer provider, and makes a provider where there is none.
    MLflow's spans are recorded, too, and go nowhere else unless `also_mlflow`.

    Args:
        target: a target or a list of them (see docs/destinations.md). By default, "auto", what the environment names:
            MLflow's variables, its tracking URI, or else the embedded table. None undoes this function: MLflow's spans
            are MLflow's again, and those of others go where the environment says.
        service_name: `service.name` of the spans; None leaves that of their resource.
        also_mlflow: have MLflow send its spans where it would without tracelake, as well.
        redact: what must not be recorded, see docs/security.md: patterns such as "*.password", or a callable that
            takes an attribute's key and value and returns what to record in its place. Holds for every span of this
            process, whichever recorder and destination it has, until another is given; () ends it.

    Returns:
        The destinations, parsed.

    Raises:
        TargetError: a target is not understood, or breaks the rule that traces of a Databricks workspace go to a Unity
            Catalog table; the message says what to write instead. Nothing changed.
        ConfigurationError: the global tracer provider takes no span processors, or `redact` is neither patterns nor a
            callable. The destination is as it was.
    """
    recorder = current_recorder()
    if target is None:
        destinations = None
    elif target == AUTO:
        destinations = None
        resolve_environment()
    else:
        destinations = resolve_named(target)
    if redact is not None:
        recorder.use_redaction(redact)
    install(service_name)
    recorder.set_default(destinations)
    mlflow_hook.use_globally(named=target is not None, also_mlflow=also_mlflow, service_name=service_name)
    return destinations or recorder.default_route().destinations


@contextlib.contextmanager
def destination(target: Target | Sequence[Target]) -> Iterator[tuple[Destination, ...]]:
    """Record the spans that start in the with-body to a destination of its own, whatever is set elsewhere.

    It travels with OpenTelemetry's context: through `await`, and to threads that are given the context. For a service
    that keeps the traces of each customer apart.

    Raises:
        TargetError: a target is not understood, or breaks the rule on Databricks workspaces.
        ConfigurationError: the global tracer provider takes no span processors.
    """
    destinations = resolve_named(target)
    install()
    with mlflow_hook.used_locally(), use_route(current_recorder().route(destinations)):
        yield destinations


def install(service_name: str | None = None) -> None:
    """Put a `SpanRecorder` into the global tracer provider, once; make the provider if there is none.

    Raises:
        ConfigurationError: the provider is of another make and takes no span processors.
    """
    global _installed
    provider = trace.get_tracer_provider()
    if service_name is None and _installed is not None and _installed[0] is provider:
        return
    with _lock:
        provider = trace.get_tracer_provider()  # again: another thread may have made it
        if mlflow_hook.has_put_away(provider, was_set=_installed is not None):
            return  # the provider that MLflow makes next has our processor
        if isinstance(provider, trace.ProxyTracerProvider):
            resource = Resource.create({SERVICE_NAME: service_name} if service_name else {})
            trace.set_tracer_provider(TracerProvider(resource=resource))
            provider = trace.get_tracer_provider()
        if _installed is None or _installed[0] is not provider:
            add = getattr(provider, "add_span_processor", None)
            if add is None:
                raise ConfigurationError(
                    f"The global tracer provider is a {type(provider).__module__}.{type(provider).__qualname__}, which "
                    "takes no span processors. Call tracelake.set_destination before it is set, or use OpenTelemetry's."
                )
            processor = _GlobalRecorder()
            add(processor)
            _installed = (provider, processor)
        if service_name is not None:
            _installed[1].use_service_name(service_name)


class _GlobalRecorder(SpanRecorder):
    """Leaves MLflow's spans, which come by the global provider in MLflow's global mode, to MLflow's own and to ours."""

    def on_end(self, span: ReadableSpan) -> None:
        if not is_mlflows(span.instrumentation_scope) or mlflow_hook.is_broken():
            super().on_end(span)


class _Guard:
    """Tells propagation which destinations are active here, and which of a caller's this service would record to."""

    def __init__(self) -> None:
        self._allowed: dict[str, Destination] | None = None

    def check(self) -> None:
        uri = read_environment()["MLFLOW_TRACKING_URI"]
        if not is_databricks(uri):
            return
        try:
            require_unity_catalog(active_route().destinations, uri)
        except TargetError as error:
            if mlflow_hook.is_named_in_code() or mlflow_hook.tracking_uri_is_set_in_code():
                raise
            warn_once("databricks", "%s", error)

    def digests(self) -> frozenset[str]:
        if _installed is None and not mlflow_hook.is_active():
            return frozenset()  # nothing is recorded here, so far
        return frozenset(digest(item) for item in active_route().destinations)

    def adopt(self, digests: frozenset[str]) -> contextlib.AbstractContextManager[None] | None:
        allowed = self._allow_list()
        if not digests <= allowed.keys():
            return None
        return use_route(current_recorder().route(tuple(allowed[item] for item in sorted(digests))))

    def _allow_list(self) -> dict[str, Destination]:
        if self._allowed is None:
            self._allowed = {}
            for text in current_recorder().settings.accept_destinations:
                try:
                    item = parse_target(text)
                except TargetError as error:  # noqa: PERF203
                    current_recorder().say("TRACELAKE_ACCEPT_DESTINATIONS: %s", error)
                else:
                    self._allowed[digest(item)] = item
        return self._allowed


# From the start: a service compares its first caller's destination with its own before it makes its first span.
set_destination_guard(_Guard())
