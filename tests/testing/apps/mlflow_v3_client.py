"""A program of MLflow's own, with its traces in an experiment; prints what it found as one JSON object."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Any

import mlflow
from mlflow.entities import AssessmentSource, SpanType
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.databricks_utils import get_databricks_host_creds

try:
    from mlflow.tracing.attachments import Attachment
except ImportError:  # of early versions
    Attachment = None

NAME = "/Shared/agent"


@mlflow.trace(name="look up", span_type=SpanType.RETRIEVER)
def look_up(word: str) -> dict[str, Any]:
    """A child span."""
    return {"hits": [word, 2, 0.5, None]}


@mlflow.trace(name="ask", span_type=SpanType.AGENT)
def ask(question: str) -> str:
    """A root span with what belongs to its trace."""
    with mlflow.start_span("think", span_type=SpanType.LLM) as span:
        span.set_inputs({"question": question})
        span.set_attribute("temperature", 0.5)
        span.set_outputs("yes")
    mlflow.update_current_trace(
        tags={"env": question},
        metadata={"mlflow.trace.session": "s-1", "mlflow.trace.user": "kim"},
        client_request_id=f"request of {question}",
    )
    look_up(question)
    if question == "fail":
        raise ValueError("no answer")
    return question.upper()


def run(question: str) -> str:
    """Ask, and return the id of the trace."""
    # MLflow orders by milliseconds.
    time.sleep(0.002)
    with contextlib.suppress(ValueError):
        ask(question)
    trace_id = mlflow.get_last_active_trace_id()
    assert trace_id is not None
    return trace_id


def names(**search: Any) -> list[str]:
    """Return the questions of the traces that a search finds."""
    found = mlflow.search_traces(return_type="list", include_spans=False, **search)
    return [json.loads(trace.info.request_preview)["question"] for trace in found]


def refusal(call: Any, *args: Any, **named: Any) -> str:
    """Return the error code of a call that fails."""
    try:
        call(*args, **named)
    except MlflowException as error:
        return f"{error.error_code}: {error.message}"
    return "none"


def main() -> dict[str, Any]:
    """Run it all."""
    seen: dict[str, Any] = {"before": refusal(mlflow.set_experiment, "agent")}
    experiment = mlflow.set_experiment(NAME)
    seen["experiment"] = experiment.experiment_id
    ids = {question: run(question) for question in ("one", "two", "fail")}
    mlflow.flush_trace_async_logging()
    seen["ids"] = ids

    trace = mlflow.get_trace(ids["one"])
    seen["trace"] = json.loads(trace.to_json())
    seen["spans"] = [
        [span.name, span.span_type, span.inputs, span.outputs, span.status.status_code.value, span.parent_id is None]
        for span in trace.data.spans
    ]
    seen["temperature"] = trace.search_spans(name="think")[0].get_attribute("temperature")
    failed = mlflow.get_trace(ids["fail"])
    seen["failed"] = [failed.info.state.value, [event.name for event in failed.data.spans[0].events]]

    mlflow.set_trace_tag(ids["one"], "a key / of many", "ü")
    mlflow.set_trace_tag(ids["one"], "gone", "soon")
    mlflow.delete_trace_tag(ids["one"], "gone")
    seen["tag twice"] = refusal(mlflow.delete_trace_tag, ids["one"], "gone")
    source = AssessmentSource(source_type="HUMAN", source_id="kim")
    feedback = mlflow.log_feedback(
        trace_id=ids["one"], name="good", value=True, rationale="is so", source=source, metadata={"m": "1"}
    )
    mlflow.log_feedback(trace_id=ids["two"], name="good", value=False, source=source)
    mlflow.log_feedback(trace_id=ids["two"], name="broken", error=ValueError("no judge"))
    expectation = mlflow.log_expectation(trace_id=ids["two"], name="facts", value=["a", {"b": 1}], source=source)
    short_lived = mlflow.log_feedback(trace_id=ids["two"], name="short", value=3)
    mlflow.delete_assessment(ids["two"], short_lived.assessment_id)
    seen["assessment"] = mlflow.get_assessment(ids["one"], feedback.assessment_id).to_dictionary()
    seen["expectation"] = mlflow.get_assessment(ids["two"], expectation.assessment_id).to_dictionary()
    feedback.feedback.value = False
    feedback.rationale = None
    feedback.metadata = None
    mlflow.update_assessment(ids["one"], feedback.assessment_id, feedback)
    overriding = mlflow.override_feedback(
        trace_id=ids["two"], assessment_id=mlflow.get_trace(ids["two"]).info.assessments[0].assessment_id, value=True
    )
    info = mlflow.get_trace(ids["one"]).info
    seen["info"] = [info.tags, [each.to_dictionary() for each in info.assessments]]
    seen["overridden"] = [
        [each.name, each.value if each.feedback else None, each.valid, each.overrides == overriding.overrides]
        for each in mlflow.get_trace(ids["two"]).info.assessments
    ]
    seen["gone"] = refusal(mlflow.get_assessment, ids["two"], short_lived.assessment_id)

    client = mlflow.MlflowClient()
    client.link_traces_to_run([ids["one"], ids["two"]], "a-run")

    seen["all"] = names(order_by=["timestamp_ms DESC"])
    seen["searches"] = {
        search: sorted(names(filter_string=search))
        for search in (
            "status = 'ERROR'",
            "tags.`a key / of many` = 'ü'",
            "timestamp_ms > 0 AND tags.env != 'two'",
            "span.name = 'look up' AND trace.status = 'OK'",
            "span.attributes.temperature = '0.5' AND tags.env = 'two'",
            "feedback.good = 'true'",
            "request_id = '{one}'".format(**ids),
        )
    }
    seen["spans of found"] = sorted(
        len(trace.data.spans) for trace in mlflow.search_traces(return_type="list", filter_string="tags.env = 'one'")
    )
    seen["no spans"] = [
        len(trace.data.spans) for trace in mlflow.search_traces(return_type="list", include_spans=False, max_results=1)
    ]
    first = client.search_traces(locations=[experiment.experiment_id], max_results=2, order_by=["timestamp_ms"])
    rest = client.search_traces(
        locations=[experiment.experiment_id], max_results=2, order_by=["timestamp_ms"], page_token=first.token
    )
    seen["pages"] = [[trace.info.tags["env"] for trace in page] for page in (first, rest)]
    older = RestStore(lambda: get_databricks_host_creds("databricks"))
    infos, _ = older.search_traces([experiment.experiment_id], filter_string="status = 'OK'")
    seen["older search"] = [info.tags["env"] for info in infos]
    seen["bad search"] = refusal(
        client.search_traces, locations=[experiment.experiment_id], filter_string="nothing = 1"
    )
    seen["nowhere"] = refusal(client.search_traces, locations=["12345"])

    with mlflow.start_span("with a file") as span:
        if Attachment is not None:
            span.set_inputs(Attachment(content_type="text/plain", content_bytes=b"content of a file"))
    mlflow.flush_trace_async_logging()
    seen["attachments"] = 0 if Attachment is None else 1

    seen["deleted"] = client.delete_traces(experiment.experiment_id, trace_ids=[ids["two"]])
    seen["deleted trace"] = refusal(client.get_trace, ids["two"])
    started = mlflow.get_trace(ids["fail"]).info.timestamp_ms
    seen["deleted by time"] = client.delete_traces(experiment.experiment_id, max_timestamp_millis=started, max_traces=1)
    seen["left"] = sorted(
        trace.info.tags["mlflow.traceName"] for trace in mlflow.search_traces(return_type="list", include_spans=False)
    )
    return seen


if __name__ == "__main__":
    os.environ.setdefault("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "true")
    json.dump(main(), sys.stdout)
