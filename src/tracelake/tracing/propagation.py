"""Carry a trace from one service to the next in HTTP headers.

Sent and read are the W3C headers ``traceparent``, ``tracestate`` and ``baggage`` of the current OpenTelemetry context
(https://www.w3.org/TR/trace-context/, https://www.w3.org/TR/baggage/). One entry of the baggage is ours:
``tracelake.destination`` has the digests of the destinations this service records to, so that a callee that records
elsewhere is told once that the trace will be split. A digest is 16 hex digits; several are sorted and joined by ``.``.
No name of a destination is ever sent, since headers reach third parties.

Headers are read by ``tracelake.tracing.w3c``, which says where OpenTelemetry's own propagators are wrong.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Protocol

from opentelemetry import baggage, context, trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, SpanContext, SpanKind

from tracelake.errors import PropagationError
from tracelake.tracing import mlflow_hook
from tracelake.tracing.w3c import (
    BAGGAGE,
    TRACEPARENT,
    TRACESTATE,
    Headers,
    format_baggage,
    format_traceparent,
    malformed,
    parse_baggage,
    parse_traceparent,
    parse_tracestate,
    read_headers,
)

DESTINATION_KEY = "tracelake.destination"
"""Key of our entry in the baggage."""

_DIGEST = re.compile(r"[0-9a-f]{16}")
_DIGESTS = re.compile(r"[0-9a-f]{16}(?:\.[0-9a-f]{16}){0,31}")
_MAX_WARNINGS = 1000  # digests come from strangers: neither memory nor log may grow with them

_logger = logging.getLogger("tracelake")


class DestinationGuard(Protocol):
    """What propagation has to know of destinations, none of them by name."""

    def check(self) -> None:
        """See that traces of several services can meet where spans go.

        Raises:
            TargetError: the program, not only its environment, has set what cannot be.
        """

    def digests(self) -> frozenset[str]:
        """Return the digests, 16 hex digits each, of the destinations active here; empty when there is none."""

    def adopt(self, digests: frozenset[str]) -> contextlib.AbstractContextManager[None] | None:
        """Return a context manager that records to the caller's destinations, or None if they are not all allowed.

        It is entered and left in the same ``contextvars`` context.
        """


def set_destination_guard(guard: DestinationGuard | None) -> None:
    """Wire the destinations of this process into propagation; None sends and compares no digests.

    For the package itself: applications have no use for it.
    """
    global _guard
    _guard = guard


def get_tracing_context_headers_for_http_request() -> dict[str, str]:
    """Return the headers that make the callee's spans children of the current span, MLflow's or OpenTelemetry's.

    The keys are ``traceparent``, ``tracestate`` if there is one, and ``baggage`` if there is any or a destination is
    active. Empty if there is no valid current span.

    Raises:
        TargetError: the program has set a tracking URI or a destination so that spans of a Databricks workspace go to
            no Unity Catalog table.
    """
    if _guard is not None:
        _guard.check()
    return current_headers()


def current_headers() -> dict[str, str]:
    """Return what ``get_tracing_context_headers_for_http_request`` does, and never raise."""
    headers: dict[str, str] = {}
    try:
        current = _current_span().get_span_context()
        if current.is_valid:
            headers[TRACEPARENT] = format_traceparent(current)
            if current.trace_state:
                headers[TRACESTATE] = current.trace_state.to_header()
            if value := format_baggage(_baggage_to_send()):
                headers[BAGGAGE] = value
    except Exception as error:  # noqa: BLE001 - spans and baggage are the application's, and its request has to go out
        warn_once(
            ("send", type(error)),
            "The trace context could not be put into the headers of a request. "
            "The callee's spans may start a trace of their own; look at the traceback.",
            traceback=True,
        )
    return headers


@contextlib.contextmanager
def set_tracing_context_from_http_request_headers(headers: Headers, *, strict: bool = False) -> Iterator[None]:
    """Make spans of the with-body children of the caller's span, and give the body the caller's baggage.

    Without a ``traceparent`` the current span stays what it is; a broken one starts a new trace, whatever span is
    current. A broken ``tracestate`` or ``baggage`` is left out. Names may be in any case; ``Headers`` says which
    types fit. Where the caller records elsewhere, the body records there too if that is allowed here; if not, one
    warning says that the trace will be split.

    Raises:
        PropagationError: only if ``strict``, on entering, for the first header that is malformed.
        TargetError: as of ``get_tracing_context_headers_for_http_request``.
    """
    if _guard is not None:
        _guard.check()
    with contextlib.ExitStack() as stack:
        enter_remote_context(stack, headers, strict=strict)
        yield


def enter_remote_context(
    stack: contextlib.ExitStack, headers: Headers, *, strict: bool = False, keep_server_span: bool = False
) -> None:
    """Attach the caller's context, and push onto ``stack`` what undoes it.

    With ``keep_server_span`` a span that was made for this request already, by OpenTelemetry's instrumentation,
    stays the current one.

    Raises:
        PropagationError: only if ``strict``.
    """
    received = _receive(headers, strict=strict)
    current = context.get_current()
    attached = _with_baggage(current, received.baggage)
    if not (keep_server_span and _has_server_span(received.parent)):
        attached = _with_parent(attached, received)
    if attached is not current:
        stack.callback(context.detach, context.attach(attached))
    _enter_mlflow_context(stack, received)
    if received.digests and received.parent is not None:
        _settle_destination(stack, received.digests)


def warn_once(key: Hashable, message: str, *args: object, traceback: bool = False) -> None:
    """Log a warning, unless one with this key was logged before or 1,000 others were. Thread-safe, also over a fork."""
    # setdefault is one step: of many threads one logs, and there is no lock that a fork could leave locked.
    mine = object()
    if len(_warned) < _MAX_WARNINGS and _warned.setdefault(key, mine) is mine:
        _logger.warning(message, *args, exc_info=traceback)


@dataclass(frozen=True)
class _Received:
    """What the headers of a request say; ``parent`` is None if ``traceparent`` is missing or ``broken``."""

    parent: SpanContext | None
    broken: bool
    baggage: dict[str, str]
    digests: frozenset[str]


_guard: DestinationGuard | None = None
_warned: dict[Hashable, object] = {}


def _receive(headers: Headers, *, strict: bool) -> _Received:
    tolerated = contextlib.suppress(*(() if strict else (PropagationError,)))
    values = None
    parent = None
    entries: dict[str, str] = {}
    with tolerated:
        values = read_headers(headers)
    if values is None:
        return _Received(parent=None, broken=True, baggage={}, digests=frozenset())
    with tolerated:
        if values[TRACEPARENT]:
            parent = parse_traceparent(values[TRACEPARENT])
        elif values[TRACESTATE]:
            raise malformed(TRACESTATE, ",".join(values[TRACESTATE]), "comes with a traceparent")
    with tolerated:
        if parent is not None:
            state = parse_tracestate(values[TRACESTATE])
            parent = SpanContext(parent.trace_id, parent.span_id, True, parent.trace_flags, state)
    with tolerated:
        entries = parse_baggage(values[BAGGAGE], strict=strict)
    sent = entries.pop(DESTINATION_KEY, "")
    digests = frozenset(sent.split(".")) if _DIGESTS.fullmatch(sent) else frozenset()
    return _Received(parent, parent is None and bool(values[TRACEPARENT]), entries, digests)


def _with_baggage(base: Context, entries: dict[str, str]) -> Context:
    # An instrumentation that read the headers before us has left our entry in its baggage.
    if baggage.get_baggage(DESTINATION_KEY, base) is not None:
        base = baggage.remove_baggage(DESTINATION_KEY, base)
    for key, value in entries.items():
        base = baggage.set_baggage(key, value, base)
    return base


def _with_parent(base: Context, received: _Received) -> Context:
    if received.parent is not None:
        return trace.set_span_in_context(NonRecordingSpan(received.parent), base)
    if received.broken:
        return trace.set_span_in_context(INVALID_SPAN, base)
    return base


def _enter_mlflow_context(stack: contextlib.ExitStack, received: _Received) -> None:
    """Make MLflow's spans, too, children of what is now the current span: they have a context of their own."""
    current = trace.get_current_span().get_span_context()
    if received.parent is None or not current.is_valid:
        return
    try:
        stack.enter_context(mlflow_hook.remote_context(current))
    except Exception as error:  # noqa: BLE001 - a request never fails for its trace
        warn_once(
            ("mlflow", type(error)),
            "MLflow did not take the caller's trace context, so its spans start traces of their own. "
            "Look at the traceback.",
            traceback=True,
        )


def _current_span() -> trace.Span:
    """Return the innermost current span: where MLflow has a context of its own, the one that started later."""
    span = trace.get_current_span()
    other = mlflow_hook.current_span()
    if other is None or other is span or not other.get_span_context().is_valid:
        return span
    if getattr(span, "start_time", 0) <= getattr(other, "start_time", 0) or not span.get_span_context().is_valid:
        return other
    return span


def _has_server_span(parent: SpanContext | None) -> bool:
    span = trace.get_current_span()
    current = span.get_span_context()
    if not current.is_valid or current.is_remote:
        return False
    # A span that is not sampled has no kind, but is in the caller's trace.
    same_trace = parent is not None and parent.trace_id == current.trace_id
    return same_trace or getattr(span, "kind", None) is SpanKind.SERVER


def _settle_destination(stack: contextlib.ExitStack, theirs: frozenset[str]) -> None:
    ours = _digests_here()
    if _guard is None or not ours or theirs == ours:
        return
    try:
        adopted = _guard.adopt(theirs)
        if adopted is not None:
            stack.enter_context(adopted)
            return
    except Exception as error:  # noqa: BLE001 - a request never fails for where its spans go
        warn_once(
            ("adopt", type(error)),
            "The destination of a caller could not be adopted, so its trace will be split. Look at the traceback.",
            traceback=True,
        )
        return
    warn_once(
        (theirs, ours),
        "A caller records its spans to the destination with digest %s, this service to %s: the trace will be split. "
        "Name the same destination in both services, or add the caller's to TRACELAKE_ACCEPT_DESTINATIONS here.",
        _joined(theirs),
        _joined(ours),
    )


def _baggage_to_send() -> dict[str, object]:
    entries = {key: value for key, value in baggage.get_all().items() if key != DESTINATION_KEY}
    if digests := _digests_here():
        entries[DESTINATION_KEY] = _joined(digests)
    return entries


def _digests_here() -> frozenset[str]:
    try:
        digests = _guard.digests() if _guard is not None else frozenset()
    except Exception as error:  # noqa: BLE001 - a request never fails for where its spans go
        warn_once(
            ("digests", type(error)),
            "The active destination could not be told, so services that record elsewhere go unnoticed. "
            "Look at the traceback.",
            traceback=True,
        )
        return frozenset()
    # What is no digest might be a name, and names do not travel.
    return frozenset(digest for digest in digests if _DIGEST.fullmatch(digest))


def _joined(digests: frozenset[str]) -> str:
    return ".".join(sorted(digests))
