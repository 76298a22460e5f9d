"""MLflow programs whose spans go by the spool to the MLflow server of their tracking URI."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lake import Lake, wait_until
from tests.mlflow_server import QUIET, MlflowServer, ServedTrace, run_mlflow_server

pytestmark = pytest.mark.slow  # each waits for a real server

pytest.importorskip("mlflow")

HEAD = """
import json, os, sys
import mlflow

def span(name, **options):
    with mlflow.start_span(name, **options) as made:
        return made.trace_id

def result(value):
    print("result", json.dumps(value), flush=True)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with run_mlflow_server(tmp_path_factory.mktemp("server")) as started:
        yield started


def run(lake: Lake, source: str, **environ: str) -> dict[str, str]:
    """Run a program that leaves its destination to the rest of its environment; return the trace ids it tells."""
    output = lake.run(HEAD + source, **{**QUIET, "TRACELAKE_DESTINATION": "auto", **environ})
    (line,) = [line for line in output.splitlines() if line.startswith("result ")]
    told: dict[str, str] = json.loads(line.removeprefix("result "))
    return told


def served(server: MlflowServer, trace_id: str) -> ServedTrace:
    trace = server.trace(trace_id)
    assert trace is not None, f"{trace_id} is not there"
    return trace


def experiment(server: MlflowServer, name: str) -> str:
    return str(server.get("experiments/get-by-name", experiment_name=name)["experiment"]["experiment_id"])


def test_experiment_is_the_one_that_mlflow_would_use(lake: Lake, server: MlflowServer) -> None:
    """Set and set again, by a run, by the span itself; MLflow's own client flushes, and finds the traces."""
    told = run(
        lake,
        """
mlflow.set_tracking_uri(os.environ["SERVER"])
found = {"default": span("default")}
first = mlflow.set_experiment("first").experiment_id
found["first"] = span("first")
mlflow.set_experiment("second")
with mlflow.start_span("second", span_type="AGENT") as root:
    root.set_inputs({"question": "why?"})
    with mlflow.start_span("model", span_type="LLM") as model:
        model.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7})
    mlflow.update_current_trace(tags={"env": "prod"}, metadata={"mlflow.trace.session": "s-1"})
    root.set_outputs("because")
found["second"] = root.trace_id
with mlflow.start_run():
    found["run"] = span("run")
made = mlflow.start_span_no_context("explicit", experiment_id=first)
made.end()
found["explicit"] = made.trace_id
from mlflow.entities.trace_location import MlflowExperimentLocation
mlflow.tracing.set_destination(MlflowExperimentLocation(first))
found["destination"] = span("destination")
mlflow.flush_trace_async_logging()
(trace,) = mlflow.search_traces(
    locations=[mlflow.get_experiment_by_name("second").experiment_id],
    filter_string="tag.env = 'prod'", return_type="list")
assert trace.info.trace_id == root.trace_id
assert trace.data.spans[0].inputs == {"question": "why?"} and trace.data.spans[0].outputs == "because"
assert mlflow.get_trace(root.trace_id).info.token_usage["total_tokens"] == 7
assert trace.info.trace_metadata["mlflow.trace.session"] == "s-1"
result(found)
""",
        SERVER=server.url,
    )
    first, second = experiment(server, "first"), experiment(server, "second")
    wanted = {"default": "0", "first": first, "second": second, "run": second, "explicit": first, "destination": first}
    assert {name: served(server, trace_id).experiment_id for name, trace_id in told.items()} == wanted


def test_experiment_named_by_the_environment_is_made(lake: Lake, server: MlflowServer) -> None:
    """By the shipper: the app asks the server for nothing."""
    environ = {"MLFLOW_TRACKING_URI": server.url, "MLFLOW_EXPERIMENT_NAME": "made by name"}
    told = run(lake, 'result({"one": span("one")})', **environ)
    lake.settle()
    assert served(server, told["one"]).experiment_id == experiment(server, "made by name")


def test_set_destination_without_a_target(lake: Lake, server: MlflowServer) -> None:
    """Means the server of the tracking URI, also one that is set later."""
    told = run(
        lake,
        """
import tracelake
tracelake.set_destination()
mlflow.set_tracking_uri(os.environ["SERVER"])
result({"one": span("one")})
""",
        SERVER=server.url,
        TRACELAKE_DESTINATION="",
    )
    lake.settle()
    assert [span.name for span in served(server, told["one"]).spans] == ["one"]


@pytest.mark.slow
def test_root_that_never_ends(lake: Lake, server: MlflowServer) -> None:
    """Its children are there, under a trace that is in progress."""
    told = run(
        lake,
        """
with mlflow.start_span("root") as root:
    span("child")
    result({"one": root.trace_id})
    os._exit(0)
""",
        MLFLOW_TRACKING_URI=server.url,
    )
    lake.settle()
    trace = served(server, told["one"])
    assert [span.name for span in trace.spans] == ["child"]
    assert trace.info["state"] == "IN_PROGRESS"


@pytest.mark.slow
def test_server_that_is_down_when_spans_are_made(lake: Lake, tmp_path: Path) -> None:
    """The app ends without it, `tracelake status` says why spans wait, and they are there once it runs."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environ = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", "TRACELAKE_EXIT_TIMEOUT": "0.1"}
    lake.environ["TRACELAKE_SHIPPER_IDLE"] = "60"
    told = run(lake, 'result({str(number): span("one") for number in range(20)})', **environ)
    wait_until(lambda: "is not reached" in lake.log(), "a delivery fails")
    with run_mlflow_server(tmp_path, port=port) as server:
        wait_until(lambda: len(server.traces("0")) == 20, "the spans are delivered", 90)
        assert sorted(server.traces("0")) == sorted(told.values())
