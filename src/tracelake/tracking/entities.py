"""Between MLflow's entities and ours."""

from __future__ import annotations

from typing import Any

from mlflow.entities import Assessment as MlflowAssessment
from mlflow.entities import Expectation, Span
from mlflow.entities import TraceInfo as MlflowTraceInfo

from tracelake.destinations.mlflow_trace import EXPERIMENT
from tracelake.query.convert import assessment_json, mlflow_info
from tracelake.query.infos import Assessment, TraceInfo
from tracelake.spans.record import SpanRecord
from tracelake.tracing.otel_span import Origins, to_record

# Where MLflow's clients look for the spans of a trace: here, and not in an artifact.
_LOCATION, _HERE = "mlflow.trace.spansLocation", "TRACKING_STORE"
_DEFAULT_EXPERIMENT = "0"


def to_info(info: TraceInfo) -> MlflowTraceInfo:
    """Return MLflow's info of a trace."""
    return here(mlflow_info(info))


def here(info: MlflowTraceInfo) -> MlflowTraceInfo:
    """Have an info say that the spans of its trace are in this store; a client would upload them elsewhere."""
    info.tags[_LOCATION] = _HERE
    return info


def to_assessment(assessment: Assessment, trace_id: str) -> MlflowAssessment:
    """Return MLflow's assessment of the trace of this id of MLflow's."""
    return MlflowAssessment.from_dictionary(assessment_json(assessment, trace_id))


def from_assessment(assessment: MlflowAssessment) -> Assessment:
    """Return our assessment of MLflow's."""
    is_expectation = isinstance(assessment, Expectation) or assessment.expectation is not None
    error = None if is_expectation or assessment.feedback is None else assessment.feedback.error
    value = assessment.expectation.value if is_expectation else assessment.feedback.value
    return Assessment(
        assessment_id=assessment.assessment_id or "",
        kind="expectation" if is_expectation else "feedback",
        name=assessment.name,
        value=value,
        source_type=assessment.source.source_type if assessment.source else "CODE",
        source_id=(assessment.source.source_id or "") if assessment.source else "",
        rationale=assessment.rationale,
        metadata={str(key): str(text) for key, text in (assessment.metadata or {}).items()},
        span_id=assessment.span_id,
        error=error.to_dictionary() if error else None,
        overrides=assessment.overrides,
        valid=assessment.valid is not False,
        create_time_us=(assessment.create_time_ms or 0) * 1000,
    )


def from_info(info: MlflowTraceInfo) -> dict[str, Any]:
    """Return what the annotation of a trace's info holds."""
    value = {
        "client_request_id": info.client_request_id,
        "trace_metadata": dict(info.trace_metadata or {}),
        "request_preview": info.request_preview,
        "response_preview": info.response_preview,
        "state": str(info.state),
        "timestamp_us": None if info.request_time is None else info.request_time * 1000,
        "duration_ns": None if info.execution_duration is None else info.execution_duration * 1_000_000,
        "experiment_id": info.experiment_id or _DEFAULT_EXPERIMENT,
    }
    return {name: each for name, each in value.items() if each is not None}


def from_span(span: Span, experiment_id: str, origins: Origins) -> SpanRecord:
    """Return the record of a span that the server received for an experiment."""
    otel = span._span
    record = to_record(otel, otel.context, origins)
    # MLflow has each attribute as JSON, whatever its key.
    record.attributes = {**record.attributes, **span.attributes}
    if experiment_id != _DEFAULT_EXPERIMENT:
        record.attributes[EXPERIMENT] = experiment_id
    return record
