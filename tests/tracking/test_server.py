"""MLflow's server on the lake, with MLflow's own client and one of OpenTelemetry's protocol."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import tracelake
from tests.lake import FOREIGN
from tests.mlflow_server import QUIET, MlflowServer, run_mlflow_server

pytestmark = pytest.mark.slow

CLIENT = """
import mlflow
from mlflow.entities import AssessmentSource

mlflow.set_experiment("agents")
with mlflow.start_span("answer", span_type="AGENT") as root:
    root.set_inputs({"question": "why?"})
    with mlflow.start_span("search"):
        pass
    root.set_outputs("because")
    mlflow.update_current_trace(metadata={"mlflow.trace.session": "s1"}, tags={"team": "blue"})
mlflow.flush_trace_async_logging()
trace_id = root.trace_id
mlflow.log_feedback(trace_id=trace_id, name="good", value=True, source=AssessmentSource("HUMAN", "ann"))
mlflow.log_expectation(trace_id=trace_id, name="wanted", value="because")
mlflow.set_trace_tag(trace_id, "colour", "red")
mlflow.delete_trace_tag(trace_id, "team")
trace = mlflow.get_trace(trace_id)
assert sorted(span.name for span in trace.data.spans) == ["answer", "search"], trace
assert trace.info.tags["colour"] == "red" and "team" not in trace.info.tags, trace.info
assert {each.name: each.value for each in trace.info.assessments} == {"good": True, "wanted": "because"}
(found,) = mlflow.search_traces(filter_string="name = 'answer' AND tags.colour = 'red'", return_type="list")
assert found.info.trace_id == trace_id and len(found.data.spans) == 2, found
assert found.data.spans[0].inputs == {"question": "why?"}
assert mlflow.get_experiment(trace.info.experiment_id).name == "agents"
print(trace_id)
"""

DELETE = """
import sys, mlflow
experiment = mlflow.get_experiment_by_name("agents").experiment_id
(trace,) = mlflow.search_traces(locations=[experiment], return_type="list")
assert {each.name for each in trace.info.assessments} == {"good", "wanted"}
assert mlflow.MlflowClient().delete_traces(experiment, trace_ids=[trace.info.trace_id]) == 1
assert mlflow.search_traces(locations=[experiment], return_type="list") == []
"""


def run_client(code: str, url: str, home: Path) -> str:
    environ = {key: value for key, value in os.environ.items() if not FOREIGN.match(key)}
    environ |= QUIET | {
        "HOME": str(home),
        "MLFLOW_TRACKING_URI": url,
        "TRACELAKE_SPOOL_DIR": str(home / "client-spool"),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environ)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def send(url: str, trace_id: str, span_id: int, parent_id: int, service: str) -> None:
    """Send one span of a service as its exporter does."""
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    group.resource.attributes.add(key="service.name").value.string_value = service
    span = group.scope_spans.add().spans.add(name=service, start_time_unix_nano=10**18, end_time_unix_nano=2 * 10**18)
    span.trace_id, span.span_id = bytes.fromhex(trace_id), span_id.to_bytes(8, "big")
    if parent_id:
        span.parent_span_id = parent_id.to_bytes(8, "big")
    headers = {"Content-Type": "application/x-protobuf", "x-mlflow-experiment-id": "0"}
    posted = urllib.request.Request(f"{url}/v1/traces", request.SerializeToString(), headers)
    with urllib.request.urlopen(posted, timeout=30) as answer:
        assert answer.status == 200


def spans_by_name(server: MlflowServer, experiment: str) -> dict[str, float]:
    """Ask as MLflow's overview tab does."""
    found = server.post(
        "traces/metrics",
        experiment_ids=[experiment],
        view_type="SPANS",
        metric_name="span_count",
        aggregations=[{"aggregation_type": "COUNT"}],
        dimensions=["span_name"],
        time_interval_seconds=3600,
        start_time_ms=10**12,
        end_time_ms=10**12,
    )
    points = found["data_points"]
    assert {point["dimensions"]["time_bucket"] for point in points} == {"2001-09-09T01:00:00+00:00"}
    return {point["dimensions"]["span_name"]: point["values"]["COUNT"] for point in points}


def run_on_lake(root: Path) -> AbstractContextManager[MlflowServer]:
    lake, spool = str(root / "lake"), str(root / "spool")
    return run_mlflow_server(root, store="tracelake://", TRACELAKE_DESTINATION=lake, TRACELAKE_SPOOL_DIR=spool)


def test_server(tmp_path: Path) -> None:
    """What clients log is in the table, and is read, tagged, judged and deleted, also after the server came again."""
    lake, of_two = tmp_path / "lake", "4bf92f3577b34da6a3ce929d0e0e4736"
    with run_on_lake(tmp_path) as server:
        trace_id = run_client(CLIENT, server.url, tmp_path)
        send(server.url, of_two, 2, 1, "tools")
        for _ in range(2):
            send(server.url, of_two, 1, 0, "front")
        served = server.trace(f"tr-{of_two}")
        assert served is not None
        assert [span.name for span in served.spans] == ["front", "tools"]
        assert served.experiment_id == "0"
        assert server.traces("0") == [f"tr-{of_two}"]
        assert spans_by_name(server, "0") == {"front": 1, "tools": 1}
    assert {span.name for span in tracelake.get_trace(trace_id, target=str(lake)).spans} == {"answer", "search"}
    with run_on_lake(tmp_path) as server:
        run_client(DELETE, server.url, tmp_path)
        assert server.traces("0") == [f"tr-{of_two}"]
