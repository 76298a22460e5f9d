"""Tests of a user, with the fixture `mock_workspace`; `tests/testing/test_plugin.py` runs them."""

from __future__ import annotations

import os
import subprocess
import sys

import mlflow
import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config
from databricks.sdk.errors import PermissionDenied, TooManyRequests
from mlflow.entities.trace_location import UnityCatalog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

SPANS = "main.obs.agent_otel_spans"
LOCATION = UnityCatalog("main", "obs", "agent")
BEFORE = dict(os.environ)


@mlflow.trace(span_type="AGENT")
def answer(question):  # noqa: ARG001 - its inputs are traced
    with mlflow.start_span("retrieve") as span:
        span.set_outputs(["a passage"])
    return "because"


def test_environment_names_the_workspace(mock_workspace):
    assert os.environ["DATABRICKS_HOST"].endswith(".test")
    assert os.environ["MLFLOW_TRACKING_URI"] == "databricks"
    assert not os.path.exists(os.environ["DATABRICKS_CONFIG_FILE"])
    assert "DATABRICKS_CONFIG_PROFILE" not in os.environ
    assert mock_workspace.environment()["DATABRICKS_HOST"] == mock_workspace.url


def test_sdk_is_answered(mock_workspace):
    client = WorkspaceClient()
    assert client.current_user.me().user_name == mock_workspace.user
    assert client.schemas.get("main.obs").full_name == "main.obs"
    mock_workspace.faults.rate_limit(times=1, retry_after_s=0)
    assert client.schemas.get("main.obs").full_name == "main.obs"
    mock_workspace.faults.rate_limit(None)
    with pytest.raises(TimeoutError) as raised:
        WorkspaceClient(config=Config(retry_timeout_seconds=1)).schemas.get("main.obs")
    assert isinstance(raised.value.__cause__, TooManyRequests)


@pytest.mark.parametrize("question", ["why?", "when?"])
def test_each_test_has_a_workspace_of_its_own(mock_workspace, question):
    mlflow.set_experiment("/Shared/agent", trace_location=LOCATION)
    answer(question)
    mlflow.flush_trace_async_logging()
    (trace,) = mock_workspace.table(SPANS).traces()
    assert [span.name for span in trace.spans] == ["answer", "retrieve"]
    assert trace.spans[0].attributes["mlflow.spanOutputs"] == "because"
    (found,) = mlflow.search_traces(return_type="list")
    assert found.data.spans[0].inputs == {"question": question}
    assert {each.status for each in mock_workspace.requests()} == {200, 404}


@pytest.mark.usefixtures("mock_workspace")
def test_spans_still_on_their_way_at_the_end_reach_this_workspace():
    mlflow.set_experiment("/Shared/agent", trace_location=LOCATION)
    answer("late")


@pytest.mark.usefixtures("mock_workspace")
def test_tracking_uri_and_experiment_are_those_of_one_test():
    mlflow.set_tracking_uri("databricks")
    mlflow.set_experiment("/Shared/agent", trace_location=LOCATION)


def test_other_tests_have_no_experiment_of_the_workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    answer("here?")
    mlflow.flush_trace_async_logging(terminate=True)
    assert len(mlflow.search_traces()) == 1
    mlflow.tracing.reset()


def test_privileges_are_those_of_the_user(mock_workspace):
    user = mock_workspace.add_user("agent@example.com")
    os.environ |= mock_workspace.environment(user.name, host=os.environ["DATABRICKS_HOST"])
    with pytest.raises(PermissionDenied):
        WorkspaceClient().schemas.get("main.obs")


def test_other_processes_reach_it(mock_workspace):
    program = "from databricks.sdk import WorkspaceClient; print(WorkspaceClient().current_user.me().user_name)"
    environ = {**os.environ, **mock_workspace.environment()}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True)
    assert done.stdout.strip() == mock_workspace.user, done.stderr


def test_opentelemetry_reaches_it(mock_workspace):
    table = mock_workspace.create_table("main.obs.spans")
    exporter = OTLPSpanExporter(
        f"{os.environ['DATABRICKS_HOST']}/api/2.0/otel/v1/traces",
        headers={
            "Authorization": f"Bearer {os.environ['DATABRICKS_TOKEN']}",
            "X-Databricks-UC-Table-Name": table.name,
        },
    )
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("test").start_as_current_span("one"):
        pass
    provider.shutdown()
    assert [span.name for span in table.spans()] == ["one"]
    assert [each.status for each in table.requests()] == [200]


def test_environment_is_as_before():
    assert {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"} == {
        name: value for name, value in BEFORE.items() if name != "PYTEST_CURRENT_TEST"
    }
