"""What was found, as other libraries have it: plain values, pandas, MLflow."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from tracelake.destinations.mlflow_trace import (
    COST,
    MAX_PREVIEW,
    TOKEN_USAGE,
    mlflow_trace_id,
    rfc3339,
    span_only,
    trace_info,
)
from tracelake.errors import MissingDependencyError, QueryError
from tracelake.query.infos import Assessment, TraceInfo
from tracelake.query.tree import service_name
from tracelake.redaction import one_line
from tracelake.spans import line, tables
from tracelake.spans.record import SpanRecord
from tracelake.spans.values import json_text

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from mlflow.entities import Trace as MlflowTrace
    from mlflow.entities import TraceInfo as MlflowTraceInfo

    from tracelake.query.traces import Trace

# MLflow keeps its own values as JSON; in a version 1 table, where all is text, this text is JSON then.
_MLFLOWS = "mlflow."
_PREVIEWED = {"request_preview": "mlflow.spanInputs", "response_preview": "mlflow.spanOutputs"}
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
        QueryError: the trace has no root span, of which MLflow makes the trace's info, or an id that is none.
    """
    with _mlflow("A trace"):
        from mlflow.entities import Trace as MlflowTrace
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
            info.setdefault(field, json_text(root.attributes[key])[:MAX_PREVIEW])
    del info["execution_duration"]
    info["execution_duration_ms"] = max(0, root.end_time_unix_nano - root.start_time_unix_nano) // 1_000_000
    found: MlflowTrace = MlflowTrace.from_dict({"info": info, "data": {"spans": mlflow_spans(trace)}})
    return found


def whole_trace(info: MlflowTraceInfo, trace: Trace | None) -> MlflowTrace:
    """Return MLflow's `Trace` of an info and its spans; None has no spans yet.

    Raises:
        QueryError: a span has an id that MLflow does not take.
    """
    from mlflow.entities import Span, TraceData
    from mlflow.entities import Trace as MlflowTrace

    spans = [] if trace is None else [Span.from_dict(span) for span in mlflow_spans(trace)]
    return MlflowTrace(info, TraceData(spans))


def mlflow_spans(trace: Trace) -> list[dict[str, Any]]:
    """Return the spans of a trace, each as `mlflow.entities.Span.from_dict` takes it."""
    return [_mlflow_span(span_only(span)) for span in trace.spans]


def info_fields(info: TraceInfo) -> dict[str, Any]:
    """Return the info of a trace as plain values, with the fields that docs/cli.md lists."""
    return {
        **{field.name: getattr(info, field.name) for field in fields(info)},
        "tokens": info.tokens._asdict(),
        "tags": dict(info.tags),
        "metadata": dict(info.metadata),
        "assessments": [asdict(assessment) for assessment in info.assessments],
        "run_ids": list(info.run_ids),
    }


def infos_to_arrow(infos: Sequence[TraceInfo]) -> pa.Table:
    """Return infos as Arrow, a row each, whatever there are of them."""
    import pyarrow as pa

    texts = pa.map_(pa.string(), pa.string())
    tokens = pa.struct([("input", pa.int64()), ("output", pa.int64()), ("cost_usd", pa.float64())])
    error = pa.field("error", texts)
    kinds = {"metadata": texts, "error": error.type, "valid": pa.bool_()}
    kinds |= dict.fromkeys(("create_time_us", "update_time_us"), pa.int64())
    assessment = pa.struct([(field.name, kinds.get(field.name, pa.string())) for field in fields(Assessment)])
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("trace_id", "name", "service_name")),
            *((name, pa.int64()) for name in ("start_time_unix_nano", "duration_ns")),
            *((name, pa.string()) for name in ("state", "request_preview", "response_preview")),
            *((name, pa.int64()) for name in ("span_count", "error_count")),
            ("tokens", tokens),
            ("client_request_id", pa.string()),
            ("tags", texts),
            ("metadata", texts),
            ("assessments", pa.list_(assessment)),
            ("run_ids", pa.list_(pa.string())),
            ("experiment_id", pa.string()),
        ]
    )
    rows = [info_fields(info) for info in infos]
    for row in rows:
        row["tags"], row["metadata"] = list(row["tags"].items()), list(row["metadata"].items())
        for each in row["assessments"]:
            each |= {"value": json_text(each["value"]), "metadata": list(each["metadata"].items())}
            each["error"] = None if each["error"] is None else list(each["error"].items())
    return pa.Table.from_pylist(rows, schema)


def mlflow_info(info: TraceInfo) -> MlflowTraceInfo:
    """Return the info of a trace as MLflow's `TraceInfo`, by the dict that its `TraceInfo.from_dict` takes.

    Raises:
        MissingDependencyError: MLflow is not installed.
    """
    with _mlflow("An info"):
        from mlflow.entities import TraceInfo as MlflowTraceInfo
    found: MlflowTraceInfo = MlflowTraceInfo.from_dict(_info_json(info))
    return found


def _info_json(info: TraceInfo) -> dict[str, Any]:
    """Return the info of a trace as `mlflow.entities.TraceInfo.from_dict` takes it."""
    trace_id = mlflow_trace_id(info.trace_id)
    metadata = {"mlflow.trace_schema.version": "3", **info.metadata}
    if info.tokens.total:
        usage = {"input_tokens": info.tokens.input, "output_tokens": info.tokens.output}
        metadata.setdefault(TOKEN_USAGE, json.dumps({**usage, "total_tokens": info.tokens.total}))
    if info.tokens.cost_usd is not None:
        metadata.setdefault(COST, json.dumps({"total_cost": info.tokens.cost_usd}))
    return {
        "trace_id": trace_id,
        "client_request_id": info.client_request_id,
        "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": info.experiment_id}},
        "request_time": rfc3339(info.start_time_unix_nano),
        "execution_duration_ms": info.duration_ns // 1_000_000,
        "state": info.state,
        "request_preview": info.request_preview,
        "response_preview": info.response_preview,
        "trace_metadata": metadata,
        "tags": {"mlflow.traceName": info.name, **info.tags},
        "assessments": [assessment_json(each, trace_id) for each in info.assessments],
    }


def assessment_json(assessment: Assessment, trace_id: str) -> dict[str, Any]:
    """Return an assessment as `mlflow.entities.Assessment.from_dictionary` takes it."""
    held: dict[str, Any] = {"value": assessment.value}
    if assessment.serialization_format:
        serialized = {"serialization_format": assessment.serialization_format, "value": assessment.value}
        held = {"serialized_value": serialized}
    elif assessment.error:
        held["error"] = dict(assessment.error)
    found = {
        "assessment_id": assessment.assessment_id,
        "assessment_name": assessment.name,
        "trace_id": trace_id,
        "span_id": assessment.span_id,
        "source": {"source_type": assessment.source_type, "source_id": assessment.source_id},
        "create_time": rfc3339(assessment.create_time_us * 1000),
        "last_update_time": rfc3339(assessment.update_time_us * 1000),
        assessment.kind: held,
        "rationale": assessment.rationale,
        "metadata": dict(assessment.metadata),
        "overrides": assessment.overrides,
        "valid": assessment.valid,
    }
    return {name: value for name, value in found.items() if value is not None}


@contextmanager
def _mlflow(what: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(
            f"{what} of MLflow needs the package 'mlflow', which is not installed here. Run: pip install mlflow"
        ) from error


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
    try:
        return b64encode(bytes.fromhex(digits)).decode()
    except ValueError as error:
        raise QueryError(
            f"The span id {one_line(digits, 100)!r} is not 16 hex digits, and MLflow takes no other. Take the trace's "
            "`spans`, or see it with `tracelake show`."
        ) from error
