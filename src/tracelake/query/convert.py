"""What was found, as other libraries have it: plain values, pandas, MLflow."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tracelake.destinations.mlflow_trace import span_only, trace_info
from tracelake.errors import MissingDependencyError, QueryError
from tracelake.query.tree import service_name
from tracelake.spans import line, tables
from tracelake.spans.record import SpanRecord
from tracelake.spans.values import json_text

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Trace as MlflowTrace

    from tracelake.query.traces import Trace

# MLflow keeps its own values as JSON; in a version 1 table, where all is text, this text is JSON then.
_MLFLOWS = "mlflow."
_PREVIEWED = {"request_preview": "mlflow.spanInputs", "response_preview": "mlflow.spanOutputs"}
_MAX_PREVIEW = 1000
# The experiment of a trace that is in none.
_EXPERIMENT = "0"


def span_fields(span: SpanRecord) -> dict[str, Any]:
    """Return a span as plain values, with the fields that docs/cli.md lists."""
    resource, scope = line.resource_of(span), line.scope_of(span)
    return {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_span_id": span.parent_span_id,
        "name": span.name,
        "kind": tables.SPAN_KINDS[span.kind],
        "service_name": service_name(span),
        "start_time_unix_nano": span.start_time_unix_nano,
        "end_time_unix_nano": span.end_time_unix_nano,
        "duration_ns": span.end_time_unix_nano - span.start_time_unix_nano,
        "status": {"code": tables.STATUS_CODES[span.status_code], "message": span.status_message},
        "attributes": span.attributes,
        "events": [
            {"name": event.name, "time_unix_nano": event.time_unix_nano, "attributes": event.attributes}
            for event in span.events
        ],
        "links": [
            {"trace_id": link.trace_id, "span_id": link.span_id, "attributes": link.attributes} for link in span.links
        ],
        "resource": {"attributes": resource.attributes},
        "scope": {"name": scope.name, "version": scope.version, "attributes": scope.attributes},
        "trace_state": span.trace_state,
        "flags": span.flags,
    }


def data_frame(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> pd.DataFrame:
    """Return rows as a DataFrame; dicts and lists stay what they are.

    Raises:
        MissingDependencyError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingDependencyError(
            "A DataFrame needs the package 'pandas', which is not installed here. Run: pip install pandas"
        ) from error
    return pd.DataFrame(list(rows), columns=list(columns))


def mlflow_trace(trace: Trace) -> MlflowTrace:
    """Return a trace as MLflow's `Trace`, by the dict that its `Trace.from_dict` takes.

    Raises:
        MissingDependencyError: MLflow is not installed.
        QueryError: the trace has no root span, of which MLflow makes the trace's info.
    """
    try:
        from mlflow.entities import Trace as MlflowTrace
    except ImportError as error:
        raise MissingDependencyError(
            "A trace of MLflow needs the package 'mlflow', which is not installed here. Run: pip install mlflow"
        ) from error
    if not trace.roots:
        raise QueryError(
            f"The trace {trace.trace_id} has no root span yet, and MLflow knows no such trace. Try again when it has "
            "ended, or take its `spans`."
        )
    root = trace.roots[0]
    info = trace_info(root, _EXPERIMENT)
    # A server makes the previews, and its dict has the duration as a number.
    for field, key in _PREVIEWED.items():
        if key in root.attributes:
            info.setdefault(field, json_text(root.attributes[key])[:_MAX_PREVIEW])
    del info["execution_duration"]
    info["execution_duration_ms"] = max(0, root.end_time_unix_nano - root.start_time_unix_nano) // 1_000_000
    spans = [_mlflow_span(span_only(span)) for span in trace.spans]
    found: MlflowTrace = MlflowTrace.from_dict({"info": info, "data": {"spans": spans}})
    return found


def _mlflow_span(span: SpanRecord) -> dict[str, Any]:
    attributes = {key: _json(_structured(key, value)) for key, value in span.attributes.items()}
    return {
        "trace_id": _base64(span.trace_id),
        "span_id": _base64(span.span_id),
        "parent_span_id": _base64(span.parent_span_id) if span.parent_span_id else None,
        "name": span.name,
        "start_time_unix_nano": span.start_time_unix_nano,
        "end_time_unix_nano": span.end_time_unix_nano,
        "events": [
            {"name": event.name, "time_unix_nano": event.time_unix_nano, "attributes": event.attributes}
            for event in span.events
        ],
        "status": {"code": tables.STATUS_CODES[span.status_code], "message": span.status_message},
        "attributes": {**attributes, "mlflow.traceRequestId": json.dumps(f"tr-{span.trace_id}")},
    }


def _json(value: Any) -> str:
    text = json_text(value)  # which leaves text as it is
    return json.dumps(text) if isinstance(value, (str, bytes)) else text


def _structured(key: str, value: Any) -> Any:
    if key.startswith(_MLFLOWS) and isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _base64(digits: str) -> str:
    return b64encode(bytes.fromhex(digits)).decode()
