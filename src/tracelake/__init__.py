"""Distributed traces in a governed lakehouse table, with nothing lost.

    import tracelake

    tracelake.set_destination("./traces")

    with tracelake.start_span("answer", span_type="AGENT") as span:
        span.set_inputs({"question": "why?"})
        span.set_outputs("because")

What is not in this module, in `tracelake.testing` or in the command line is private.
"""

import importlib
import typing

from tracelake.destinations.base import Batch, Destination, Finding, Rejection, Sink
from tracelake.errors import (
    BatchExistsError,
    ConfigurationError,
    DamageError,
    DeliveryError,
    LedgerError,
    LineError,
    MissingDependencyError,
    MissingTableError,
    PermanentDeliveryError,
    PropagationError,
    QueryError,
    RefusedError,
    SettingError,
    SpoolError,
    TargetError,
    TracelakeError,
    TraceNotFoundError,
    TransientDeliveryError,
)
from tracelake.recorder.recorder import flush
from tracelake.recorder.report import FlushReport
from tracelake.spans.record import SpanEvent, SpanLink, SpanRecord
from tracelake.tracing.clients import propagate, propagate_all, stop_propagating_all
from tracelake.tracing.frontend import ActiveSpan, get_current_span, start_span, trace
from tracelake.tracing.install import destination, set_destination
from tracelake.tracing.middleware import TracingMiddleware, WsgiTracingMiddleware
from tracelake.tracing.processor import SpanRecorder
from tracelake.tracing.propagation import (
    get_tracing_context_headers_for_http_request,
    set_tracing_context_from_http_request_headers,
)

if typing.TYPE_CHECKING:
    from tracelake.query.infos import Assessment, Tokens, TraceInfo
    from tracelake.query.search import TracePage
    from tracelake.query.sql import Rows
    from tracelake.query.traces import Trace
    from tracelake.reading import get_trace, search_traces, sql

__version__ = "0.1.0"

__all__ = [
    "ActiveSpan",
    "Assessment",
    "Batch",
    "BatchExistsError",
    "ConfigurationError",
    "DamageError",
    "DeliveryError",
    "Destination",
    "Finding",
    "FlushReport",
    "LedgerError",
    "LineError",
    "MissingDependencyError",
    "MissingTableError",
    "PermanentDeliveryError",
    "PropagationError",
    "QueryError",
    "RefusedError",
    "Rejection",
    "Rows",
    "SettingError",
    "Sink",
    "SpanEvent",
    "SpanLink",
    "SpanRecord",
    "SpanRecorder",
    "SpoolError",
    "TargetError",
    "Tokens",
    "Trace",
    "TraceInfo",
    "TraceNotFoundError",
    "TracePage",
    "TracelakeError",
    "TracingMiddleware",
    "TransientDeliveryError",
    "WsgiTracingMiddleware",
    "destination",
    "flush",
    "get_current_span",
    "get_trace",
    "get_tracing_context_headers_for_http_request",
    "propagate",
    "propagate_all",
    "search_traces",
    "set_destination",
    "set_tracing_context_from_http_request_headers",
    "sql",
    "start_span",
    "stop_propagating_all",
    "trace",
]

# Loaded when first asked for: most programs that import this only record, and reading is half of it.
_READING = {
    "Assessment": "tracelake.query.infos",
    "Rows": "tracelake.query.sql",
    "Tokens": "tracelake.query.infos",
    "Trace": "tracelake.query.traces",
    "TraceInfo": "tracelake.query.infos",
    "TracePage": "tracelake.query.search",
    "get_trace": "tracelake.reading",
    "search_traces": "tracelake.reading",
    "sql": "tracelake.reading",
}


def __getattr__(name: str) -> typing.Any:
    if name not in _READING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_READING[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_READING})
