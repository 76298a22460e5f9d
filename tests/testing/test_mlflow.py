"""MLflow's own client, with the tracking URI `databricks` and no tracelake, against a workspace."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.lake import FOREIGN
from tests.mlflow_server import QUIET
from tests.testing.rest import Rest, located
from tracelake.testing import MockWorkspace

APPS = Path(__file__).parent / "apps"
EXPERIMENT, OTHER = "/Shared/agent", "/Shared/other"
LOCATION = "main.obs.agent"

try:
    VERSION = tuple(int(part) for part in importlib.metadata.version("mlflow").split(".")[:2])
except importlib.metadata.PackageNotFoundError:
    VERSION = (0, 0)
pytestmark = [
    pytest.mark.slow,  # several programs with MLflow
    pytest.mark.skipif(
        VERSION < (3, 11), reason="MLflow keeps traces in Unity Catalog under a table prefix from version 3.11 on"
    ),
]


class Run(NamedTuple):
    """A workspace after the programs, what they printed, and what they wrote to stderr."""

    workspace: MockWorkspace
    seen: dict[str, Any]
    errors: str


def ran(program: str, *arguments: str, **environ: str) -> tuple[dict[str, Any], str]:
    """Run a program to its good end, with nothing of this machine's settings."""
    own = {key: value for key, value in os.environ.items() if not FOREIGN.match(key)}
    done = subprocess.run(
        [sys.executable, str(APPS / program), *arguments],
        env={**own, **QUIET, **environ},
        capture_output=True,
        text=True,
        cwd=APPS,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def service_principal(workspace: MockWorkspace) -> str:
    """Make one that may do what a team's agent may, and return its name."""
    name = workspace.add_service_principal("agent").name
    workspace.grant("USE CATALOG", on="main", to=name)
    workspace.grant("USE SCHEMA", "CREATE TABLE", on="main.obs", to=name)
    return name


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("true", "user"), id="asynchronously"),
        pytest.param(("false", "service principal"), id="synchronously, by OAuth", marks=pytest.mark.slow),
    ],
)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    asynchronous, kind = request.param
    with MockWorkspace() as workspace:
        workspace.create_schema("main.obs")
        principal = workspace.user if kind == "user" else service_principal(workspace)
        environ = workspace.environment(principal)
        seen, errors = ran(
            "mlflow_client.py", EXPERIMENT, LOCATION, MLFLOW_ENABLE_ASYNC_TRACE_LOGGING=asynchronous, **environ
        )
        yield Run(workspace, seen, errors)


@pytest.fixture(scope="module")
def later() -> Iterator[Run]:
    """A process of a service principal, which may write to the tables of an experiment that somebody else linked."""
    with MockWorkspace() as workspace:
        workspace.create_schema("main.obs")
        name = service_principal(workspace)
        environ = workspace.environment(name)
        rest = Rest(workspace)
        rest.locate(LOCATION)
        experiment = rest.ok("POST", "2.0/mlflow/experiments/create", {"name": EXPERIMENT})["experiment_id"]
        rest.ok("POST", f"5.0/mlflow/experiments/{experiment}/trace-location:link", located(LOCATION))
        workspace.create_trace_location("main.obs")
        for prefix in (LOCATION, "main.obs.mlflow_experiment_trace"):
            for table in ("spans", "annotations", "logs"):
                workspace.grant("SELECT", "MODIFY", on=f"{prefix}_otel_{table}", to=name)
        seen, errors = ran("mlflow_older.py", EXPERIMENT, OTHER, "main", "obs", **environ)
        yield Run(workspace, seen, errors)


def refusals(workspace: MockWorkspace) -> list[tuple[int, str, str]]:
    """The requests that were not answered with success, without ids."""
    return sorted(
        (each.status, each.request.method, "/".join(each.request.path.split("/")[2:5]))
        for each in workspace.requests()
        if each.status != 200
    )


def test_every_call_was_answered(run: Run) -> None:
    assert refusals(run.workspace) == [
        # What is asked for on purpose: a field that there is not, a deleted assessment, an experiment to be made.
        (400, "POST", "4.0/mlflow/traces"),
        (404, "GET", "2.0/mlflow/experiments"),
        (404, "GET", "4.0/mlflow/traces"),
    ]
    assert "Failed" not in run.errors
    assert "WARNING" not in run.errors


def test_trace_comes_back_as_it_was_made(run: Run) -> None:
    trace = run.seen["trace"]
    metadata = trace.pop("metadata")
    assert (metadata["mlflow.trace.user"], metadata["mlflow.trace.session"], metadata["release"]) == ("ada", "s-1", "7")
    assert trace.pop("duration_ms") > 0
    assert trace == {
        "state": "OK",
        "client_request_id": "request-1",
        "request_preview": "asked: why",
        "response_preview": "answered",
        "tags": {"env": "prod", "a b": "with blank", "mlflow.traceName": "answer"},
        "token_usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
        "location": LOCATION,
        "spans": [
            _span("answer", "AGENT", {"question": "why"}, {"answer": 42, "pages": 2}, parent=False),
            _span(
                "retrieve",
                "RETRIEVER",
                {"question": "why", "k": 2},
                [{"page": "why 0", "score": 0.0, "used": True}, {"page": "why 1", "score": 0.5, "used": False}],
            ),
            _span("llm", "LLM", {"prompt": "why"}, "plain text"),
        ],
        "attributes": {"model": "small", "tries": 2, "ratio": 0.5, "deep": {"a": [1, None]}},
    }


def _span(name: str, kind: str, inputs: Any, outputs: Any, *, parent: bool = True) -> dict[str, Any]:
    return {"name": name, "type": kind, "parent": parent, "inputs": inputs, "outputs": outputs, "status": "OK"}


def test_exception_is_an_event_of_a_trace_in_error(run: Run) -> None:
    assert run.seen["failed"] == {
        "state": "ERROR",
        "status": "ValueError: bad",
        "events": [["exception", "ValueError"]],
    }


def test_tags_and_assessments(run: Run) -> None:
    seen = run.seen
    assert seen["tags"] == {"env": "staging", "reviewed/by": "grace"}
    assert seen["feedback"] == ["quality", 0.9, "good", {"m": "1"}, "LLM_JUDGE", "judge-1"]
    assert seen["assessments"] == [
        ["answer", {"answer": 42}, True],
        ["parts", {"a": 1, "b": ["x"]}, True],
        ["quality", 0.9, True],
        ["safe", False, True],
        ["safe", True, False],
    ]
    assert seen["error"] == "no answer"
    assert seen["deleted_assessment"] == "RESOURCE_DOES_NOT_EXIST"


def test_searches(run: Run) -> None:
    seen = run.seen
    everything = ["answer", "failing", "slow"]
    assert seen["searches"] == {
        "trace.status = 'ERROR'": ["failing"],
        "trace.name LIKE 'a%'": ["answer"],
        "tag.env = 'staging' AND feedback.quality > 0.8": ["answer"],
        "tags.`reviewed/by` IS NOT NULL": ["answer"],
        "metadata.`mlflow.trace.user` = 'ada'": ["answer"],
        "expectation.answer IS NOT NULL": ["answer"],
        "span.type = 'LLM' AND span.name = 'llm'": ["answer"],
        "span.attributes.kind = 'third'": ["slow"],
        "trace.text LIKE '%plain text%'": ["answer"],
        "attributes.run_id = '0123456789abcdef0123456789abcdef'": ["answer", "slow"],
        "client_request_id = 'request-1'": ["answer"],
    }
    assert seen["all"] == seen["located"] == everything
    assert seen["newest_first"] == everything[::-1]
    assert seen["limited"] == everything[:2]
    assert seen["pages"] == [everything[:2], everything[2:], [None]]
    assert seen["with_spans"] == [1, 1, 3]
    assert seen["refused"] == ["INVALID_PARAMETER_VALUE", True]


def test_deleted_trace_is_gone(run: Run) -> None:
    assert run.seen["deleted"] == 1
    assert run.seen["left"] == ["answer", "failing"]


def test_tables_have_what_was_written(run: Run) -> None:
    records = run.workspace.table(f"{LOCATION}_otel_spans").spans()
    assert sorted(record.name for record in records) == ["answer", "failing", "llm", "retrieve", "slow"]
    rows = run.workspace.table(f"{LOCATION}_otel_annotations").rows()
    assert {row["annotation_type"] for row in rows} == {"METADATA", "TAG", "FEEDBACK", "EXPECTATION", "RUN_LINK"}


@pytest.mark.slow
def test_another_process_goes_on_where_the_experiment_is_linked(later: Run) -> None:
    seen = later.seen
    expected = [{"question": "again"}, {"answer": ["again", 42]}, "AGENT", 2, "again"]
    assert seen["linked"] == [f"trace:/{LOCATION}", *expected]
    assert seen["linked_found"] == 1


def test_older_location(later: Run) -> None:
    expected = [{"question": "older"}, {"answer": ["older", 42]}, "AGENT", 2, "older"]
    assert later.seen["older"] == ["trace:/main.obs", *expected]
    assert later.seen["older_found"] == [True]
    assert refusals(later.workspace) == [
        (404, "GET", "2.0/mlflow/experiments"),
        # The location is there already, which the client is content with.
        (409, "POST", "4.0/mlflow/traces"),
    ]
    assert "Failed" not in later.errors
