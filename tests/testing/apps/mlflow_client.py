"""A program with MLflow alone, whose tracking URI is `databricks`: it traces, annotates, reads back and deletes.

Prints one JSON object, by step what came of it. What it is told: name of the experiment, and the trace location.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import AssessmentSource
from mlflow.entities.trace_location import UnityCatalog
from mlflow.exceptions import MlflowException

experiment_name, location = sys.argv[1:]
catalog, schema, prefix = location.split(".")
seen: dict[str, Any] = {}

mlflow.set_tracking_uri("databricks")
experiment = mlflow.set_experiment(
    experiment_name, trace_location=UnityCatalog(catalog_name=catalog, schema_name=schema, table_prefix=prefix)
)
seen["experiment_id"] = experiment.experiment_id


@mlflow.trace(span_type="RETRIEVER")
def retrieve(question: str, k: int) -> list[dict[str, Any]]:
    return [{"page": f"{question} {number}", "score": number / 2, "used": number == 0} for number in range(k)]


@mlflow.trace(
    name="answer", span_type="AGENT", attributes={"model": "small", "tries": 2, "ratio": 0.5, "deep": {"a": [1, None]}}
)
def answer(question: str) -> dict[str, Any]:
    mlflow.update_current_trace(
        tags={"env": "prod", "a b": "with blank"},
        metadata={"mlflow.trace.user": "ada", "mlflow.trace.session": "s-1", "release": "7"},
        client_request_id="request-1",
        request_preview="asked: " + question,
        response_preview="answered",
    )
    pages = retrieve(question, 2)
    with mlflow.start_span("llm", span_type="LLM") as span:
        span.set_inputs({"prompt": question})
        span.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7})
        span.set_outputs("plain text")
    return {"answer": 42, "pages": len(pages)}


@mlflow.trace(name="failing")
def fail() -> None:
    raise ValueError("bad")


# MLflow orders by milliseconds.
PAUSE_S = 0.002

answer("why")
answered = mlflow.get_last_active_trace_id()
time.sleep(PAUSE_S)
try:
    fail()
except ValueError:
    failed = mlflow.get_last_active_trace_id()
time.sleep(PAUSE_S)
with mlflow.start_span("slow", attributes={"kind": "third"}) as span:
    span.set_inputs(["a", "b"])
third = mlflow.get_last_active_trace_id()
mlflow.flush_trace_async_logging()
seen["ids"] = [answered, failed, third]

# --- one trace ---

trace = mlflow.get_trace(answered)
root = trace.data.spans[0]
seen["trace"] = {
    "state": str(trace.info.state),
    "client_request_id": trace.info.client_request_id,
    "request_preview": trace.info.request_preview,
    "response_preview": trace.info.response_preview,
    "tags": trace.info.tags,
    "metadata": trace.info.trace_metadata,
    "token_usage": trace.info.token_usage,
    "location": str(trace.info.trace_location.uc_table_prefix.full_table_prefix),
    "duration_ms": trace.info.execution_duration,
    "spans": [
        {
            "name": span.name,
            "type": span.span_type,
            "parent": span.parent_id is not None,
            "inputs": span.inputs,
            "outputs": span.outputs,
            "status": span.status.status_code.value,
        }
        for span in trace.data.spans
    ],
    "attributes": {key: root.get_attribute(key) for key in ("model", "tries", "ratio", "deep")},
}
wrong = mlflow.get_trace(failed)
seen["failed"] = {
    "state": str(wrong.info.state),
    "status": wrong.data.spans[0].status.description,
    "events": [[event.name, event.attributes["exception.type"]] for event in wrong.data.spans[0].events],
}

# --- tags and assessments ---

mlflow.set_trace_tag(answered, "reviewed/by", "grace")
mlflow.set_trace_tag(answered, "env", "staging")
mlflow.delete_trace_tag(answered, "a b")
seen["tags"] = {key: value for key, value in mlflow.get_trace(answered).info.tags.items() if "mlflow" not in key}

judge = AssessmentSource(source_type="LLM_JUDGE", source_id="judge-1")
feedback = mlflow.log_feedback(
    trace_id=answered, name="quality", value=0.8, rationale="good", source=judge, metadata={"m": "1"}
)
flag = mlflow.log_feedback(trace_id=answered, name="safe", value=True)
listed = mlflow.log_feedback(trace_id=answered, name="parts", value={"a": 1, "b": ["x"]})
broken = mlflow.log_feedback(trace_id=answered, name="broken", error=ValueError("no answer"))
expected = mlflow.log_expectation(trace_id=answered, name="answer", value={"answer": 42})
worded = mlflow.log_expectation(trace_id=answered, name="word", value="forty-two")
changed = mlflow.update_assessment(
    trace_id=answered,
    assessment_id=feedback.assessment_id,
    assessment=mlflow.entities.Feedback(name="quality", value=0.9),
)
read = mlflow.get_assessment(answered, feedback.assessment_id)
overriding = mlflow.override_feedback(trace_id=answered, assessment_id=flag.assessment_id, value=False)
mlflow.delete_assessment(trace_id=answered, assessment_id=worded.assessment_id)
seen["feedback"] = [
    read.name,
    read.value,
    read.rationale,
    read.metadata,
    read.source.source_type,
    read.source.source_id,
]
seen["assessments"] = sorted(
    [each.name, getattr(each, "value", None), each.valid is not False]
    for each in mlflow.get_trace(answered).info.assessments
    if each.name != "broken"
)
seen["error"] = mlflow.get_assessment(answered, broken.assessment_id).error.error_message
try:
    mlflow.get_assessment(answered, worded.assessment_id)
except MlflowException as error:
    seen["deleted_assessment"] = error.error_code

# --- search ---

names = {answered: "answer", failed: "failing", third: "slow"}


def found(text: str | None = None, **more: Any) -> list[str]:
    options = {"return_type": "list", "include_spans": False, "order_by": ["timestamp_ms ASC"], **more}
    return [names[trace.info.trace_id] for trace in mlflow.search_traces(filter_string=text, **options)]


client = MlflowClient()
client.link_traces_to_run([answered, third], "0123456789abcdef0123456789abcdef")
seen["searches"] = {
    text: found(text)
    for text in (
        "trace.status = 'ERROR'",
        "trace.name LIKE 'a%'",
        "tag.env = 'staging' AND feedback.quality > 0.8",
        "tags.`reviewed/by` IS NOT NULL",
        "metadata.`mlflow.trace.user` = 'ada'",
        "expectation.answer IS NOT NULL",
        "span.type = 'LLM' AND span.name = 'llm'",
        "span.attributes.kind = 'third'",
        "trace.text LIKE '%plain text%'",
        "attributes.run_id = '0123456789abcdef0123456789abcdef'",
        "client_request_id = 'request-1'",
    )
}
seen["all"] = found()
seen["newest_first"] = found(order_by=["timestamp_ms DESC"])
seen["located"] = found(locations=[location])
seen["limited"] = found(max_results=2)
first = client.search_traces(locations=[location], max_results=2, order_by=["timestamp_ms ASC"], include_spans=False)
second = client.search_traces(
    locations=[location], max_results=2, order_by=["timestamp_ms ASC"], include_spans=False, page_token=first.token
)
seen["pages"] = [[names[each.info.trace_id] for each in page] for page in (first, second)] + [[second.token]]
seen["with_spans"] = sorted(
    len(each.data.spans) for each in mlflow.search_traces(locations=[location], return_type="list")
)
try:
    found("trace.colour = 'red'")
except MlflowException as error:
    seen["refused"] = [error.error_code, "colour" in error.message]

# --- deletion ---

seen["deleted"] = client.delete_traces(experiment.experiment_id, trace_ids=[third])
seen["left"] = found()
print(json.dumps(seen, default=str))
