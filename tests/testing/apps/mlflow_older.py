"""A program with MLflow alone: it goes on with an experiment that another process linked, then uses the older location.

Prints one JSON object. What it is told: name of the linked experiment, name of another one, catalog and schema.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

import mlflow
from mlflow.entities import UCSchemaLocation
from mlflow.tracing import set_destination, set_experiment_trace_location, unset_experiment_trace_location

linked_name, other_name, catalog, schema = sys.argv[1:]
SPANS = 2
seen: dict[str, Any] = {}
mlflow.set_tracking_uri("databricks")


@mlflow.trace(span_type="AGENT", attributes={"n": 1})
def answer(question: str) -> dict[str, Any]:
    with mlflow.start_span("inner"):
        mlflow.update_current_trace(tags={"question": question})
    return {"answer": [question, 42]}


def traced(question: str) -> str:
    answer(question)
    mlflow.flush_trace_async_logging()
    return str(mlflow.get_last_active_trace_id())


def described(trace_id: str) -> list[Any]:
    # MLflow before 3.17 flushes what it queued of spans no sooner than it likes.
    deadline_s = time.monotonic() + 20
    while len((trace := mlflow.get_trace(trace_id)).data.spans) < SPANS and time.monotonic() < deadline_s:
        time.sleep(0.1)
    root = trace.data.spans[0]
    return [root.inputs, root.outputs, root.span_type, len(trace.data.spans), trace.info.tags["question"]]


mlflow.set_experiment(linked_name)
trace_id = traced("again")
seen["linked"] = [trace_id.rpartition("/")[0], *described(trace_id)]
seen["linked_found"] = len(mlflow.search_traces(filter_string="tag.question = 'again'", return_type="list"))

other = mlflow.set_experiment(other_name)
location = UCSchemaLocation(catalog_name=catalog, schema_name=schema)
set_experiment_trace_location(location, experiment_id=other.experiment_id)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    set_destination(location)
trace_id = traced("older")
seen["older"] = [trace_id.rpartition("/")[0], *described(trace_id)]
mlflow.log_feedback(trace_id=trace_id, name="quality", value="fine")
found = mlflow.search_traces(
    locations=[f"{catalog}.{schema}"], filter_string="feedback.quality = 'fine'", return_type="list"
)
seen["older_found"] = [trace.info.trace_id == trace_id for trace in found]
unset_experiment_trace_location(location, experiment_id=other.experiment_id)
print(json.dumps(seen))
