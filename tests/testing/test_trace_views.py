"""The views of a trace location, by SQL."""

from __future__ import annotations

from typing import Any

import pytest

from tests.testing.rest import START_NS, Rest, new_trace_id, record
from tests.testing.sdk import client
from tracelake.testing import MockWorkspace
from tracelake.testing.tracking.trace_tables import METADATA, UNIFIED, Location, view_schema
from tracelake.testing.unity.columns import type_text

AGENT, OLDER = "main.obs.agent", "main.obs"
LOCATIONS = [AGENT, OLDER]


@pytest.fixture(params=LOCATIONS)
def location(request: pytest.FixtureRequest, workspace: MockWorkspace) -> Location:
    workspace.create_trace_location(request.param)
    return Location(request.param)


def rows(workspace: MockWorkspace, statement: str, principal: str = "") -> list[list[Any]]:
    api = client(workspace, principal)
    warehouse = next(iter(api.warehouses.list())).id
    answer = api.statement_execution.execute_statement(statement, warehouse or "")
    assert answer.status and answer.status.error is None, answer.status  # noqa: PT018
    return (answer.result.data_array if answer.result else None) or []


def test_one_row_a_trace(workspace: MockWorkspace, location: Location) -> None:
    rest = Rest(workspace)
    made, plain, headless = (new_trace_id() for _ in range(3))
    root = record(
        made, 1, "answer", ms=25, attributes={"mlflow.spanInputs": {"q": "why"}, "mlflow.spanOutputs": "because"}
    )
    rest.send(location.spans, root, root, record(made, 2, "llm", parent=1, start_ms=5))
    rest.send(location.spans, record(plain, 1, "GET /", start_ms=1000, status_code=2))
    rest.send(location.spans, record(headless, 2, "child", parent=1))
    rest.put_info(
        location.name,
        made,
        request_time="2026-11-22T14:50:00Z",
        execution_duration="0.025s",
        client_request_id="request-1",
        tags={"env": "prod"},
        trace_metadata={"mlflow.trace.user": "ada"},
        request_preview="a preview",
    )
    feedback = {"assessment_name": "quality", "source": {"source_type": "HUMAN", "source_id": "ada"}}
    rest.ok(
        "POST",
        f"4.0/mlflow/traces/{location.name}/{made}/assessments",
        {**feedback, "feedback": {"value": "yes"}, "rationale": "good", "metadata": {"m": "1"}},
    )
    unified = location.view(UNIFIED)
    found = rows(
        workspace,
        "SELECT trace_id, client_request_id, state, execution_duration_ms, request, response, "
        "trace_metadata['mlflow.trace.user'], tags['env'], size(spans), spans[0].name, "
        "get(assessments, 0).assessment_name, get(assessments, 0).feedback.value, "
        "get(assessments, 0).source.source_id, "
        f"unix_micros(request_time) FROM {unified} ORDER BY request_time",
    )
    assert [row[0] for row in found] == [made, plain]
    assert float(found[0].pop(3)) == 25
    assert found[0][1:] == [
        *("request-1", "OK", '{"q":"why"}', "because", "ada", "prod", "2", "answer"),
        *("quality", "yes", "ada", str(START_NS // 1000)),
    ]
    assert found[1][2] == "ERROR"
    metadata = rows(
        workspace,
        f"SELECT client_request_id, tags['env'], assessments[0].rationale, assessments[0].metadata['m'] "
        f"FROM {location.view(METADATA)} WHERE trace_id = '{made}'",
    )
    assert metadata == [["request-1", "prod", "good", "1"]]


@pytest.mark.parametrize("kind", [UNIFIED, METADATA])
def test_columns_are_as_they_are_described(workspace: MockWorkspace, location: Location, kind: str) -> None:
    described = {field["name"]: type_text(field["type"]) for field in view_schema(kind, location.version)["fields"]}
    answer = client(workspace).statement_execution.execute_statement(
        f"SELECT * FROM {location.view(kind)}",
        next(iter(client(workspace).warehouses.list())).id or "",
    )
    assert answer.manifest, answer.status
    assert answer.manifest.schema
    found = {
        each.name: (each.type_text or "").lower().replace(" ", "") for each in answer.manifest.schema.columns or ()
    }
    assert found == {name: text.replace(" ", "") for name, text in described.items()}


def test_view_is_read_with_the_rights_of_its_owner(workspace: MockWorkspace, location: Location) -> None:
    ada = workspace.add_user("ada@example.com").name
    workspace.grant("USE CATALOG", on="main", to=ada)
    workspace.grant("USE SCHEMA", on="main.obs", to=ada)
    statement = f"SELECT count(*) FROM {location.view(UNIFIED)}"
    with pytest.raises(AssertionError, match="INSUFFICIENT_PERMISSIONS"):
        rows(workspace, statement, ada)
    workspace.grant("SELECT", on=location.view(UNIFIED), to=ada)
    assert rows(workspace, statement, ada) == [["0"]]
