"""MLflow's trace locations: their tables and views, who may make them, and experiments linked to them."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.testing.rest import Rest, located
from tracelake.errors import ConfigurationError
from tracelake.testing import MockWorkspace

LOCATIONS = "5.0/mlflow/tracing/locations"
AGENT = "main.obs.agent"


@pytest.fixture
def rest(workspace: MockWorkspace) -> Rest:
    return Rest(workspace)


def experiment(rest: Rest, name: str = "/Shared/x") -> str:
    return str(rest.ok("POST", "2.0/mlflow/experiments/create", {"name": name})["experiment_id"])


def tags(rest: Rest, experiment_id: str) -> dict[str, str]:
    found = rest.ok("GET", "2.0/mlflow/experiments/get", experiment_id=experiment_id)["experiment"]
    return {
        each["key"].removeprefix("mlflow.experiment.databricksTrace"): each["value"]
        for each in found.get("tags", ())
        if "databricksTrace" in each["key"]
    }


def tables(rest: Rest) -> dict[str, dict[str, object]]:
    listed = rest.ok("GET", "2.1/unity-catalog/tables", catalog_name="main", schema_name="obs")["tables"]
    return {table["name"]: table for table in listed}


def test_location_has_its_tables_and_views(rest: Rest, workspace: MockWorkspace) -> None:
    location = rest.locate(AGENT)["uc_table_prefix"]
    made = tables(rest)
    assert {name: table["table_type"] for name, table in made.items()} == {
        **dict.fromkeys(
            ("agent_otel_annotations", "agent_otel_logs", "agent_otel_metrics", "agent_otel_spans"), "MANAGED"
        ),
        **dict.fromkeys(("agent_trace_metadata", "agent_trace_unified"), "VIEW"),
    }
    assert {location[f"{signal}_table_name"] for signal in ("spans", "logs", "metrics", "annotations")} == {
        f"main.obs.agent_otel_{signal}" for signal in ("spans", "logs", "metrics", "annotations")
    }
    assert rest.locate(AGENT)["uc_table_prefix"] == location
    assert rest.ok("GET", f"{LOCATIONS}/{location['location_id']}") == {"uc_table_prefix": location}
    assert workspace.table("main.obs.agent_otel_metrics").rows() == []
    names = [column["name"] for column in made["agent_trace_unified"]["columns"]]  # type: ignore[attr-defined]
    assert names[:3] == ["trace_id", "client_request_id", "request_time"]


def test_older_location_has_tables_of_version_1(rest: Rest) -> None:
    path = "4.0/mlflow/traces/location"
    assert rest.ok("POST", path, located("main.obs"))["uc_schema"] == {
        "catalog_name": "main",
        "schema_name": "obs",
        "otel_spans_table_name": "mlflow_experiment_trace_otel_spans",
        "otel_logs_table_name": "mlflow_experiment_trace_otel_logs",
    }
    assert rest.refused("POST", path, located("main.obs"))[:2] == (409, "ALREADY_EXISTS")
    made = tables(rest)
    assert made.keys() == {
        "mlflow_experiment_trace_metadata",
        "mlflow_experiment_trace_otel_annotations",
        "mlflow_experiment_trace_otel_logs",
        "mlflow_experiment_trace_otel_spans",
        "mlflow_experiment_trace_unified",
    }
    columns = {each["name"]: each["type_text"] for each in made["mlflow_experiment_trace_otel_spans"]["columns"]}  # type: ignore[attr-defined]
    assert columns["attributes"] == "map<string,string>"
    experiment_id = experiment(rest)
    rest.ok("POST", f"4.0/mlflow/traces/{experiment_id}/link-location", located("main.obs"))
    assert tags(rest, experiment_id)["DestinationPath"] == "main.obs"
    rest.ok("POST", f"4.0/mlflow/traces/{experiment_id}/unlink-location", located("main.obs"))
    assert tags(rest, experiment_id) == {}
    assert rest.refused("POST", f"4.0/mlflow/traces/{experiment_id}/unlink-location", located("main.obs"))[0] == 404


def test_tables_that_fit_are_taken_over(rest: Rest, workspace: MockWorkspace) -> None:
    workspace.create_table("main.obs.agent_otel_spans", schema_version=2)
    before = tables(rest)["agent_otel_spans"]["table_id"]
    assert rest.locate(AGENT)["uc_table_prefix"]["location_id"] == before


@pytest.mark.parametrize("columns", [{"id": "long"}, None], ids=["other columns", "version 1"])
def test_table_that_does_not_fit_is_refused(
    rest: Rest, workspace: MockWorkspace, columns: dict[str, str] | None
) -> None:
    workspace.create_table("main.obs.agent_otel_spans", columns=columns, schema_version=1)
    status, code, message = rest.refused("POST", LOCATIONS, located(AGENT))
    assert (status, code) == (400, "INVALID_PARAMETER_VALUE")
    assert "main.obs.agent_otel_spans" in message
    assert tables(rest).keys() == {"agent_otel_spans"}
    with pytest.raises(ConfigurationError, match="agent_otel_spans"):
        workspace.create_trace_location(AGENT)


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("none.obs.agent", 404, "CATALOG_DOES_NOT_EXIST"),
        ("main.none.agent", 404, "SCHEMA_DOES_NOT_EXIST"),
        ("main.obs.a b", 400, "INVALID_PARAMETER_VALUE"),
        ("main.obs.", 400, "INVALID_PARAMETER_VALUE"),
    ],
)
def test_location_that_cannot_be(rest: Rest, name: str, status: int, code: str) -> None:
    assert rest.refused("POST", LOCATIONS, located(name))[:2] == (status, code)


def test_body_without_a_location_is_refused(rest: Rest) -> None:
    assert rest.refused("POST", LOCATIONS, {})[0] == 400
    assert rest.refused("GET", f"{LOCATIONS}/none")[:2] == (404, "RESOURCE_DOES_NOT_EXIST")
    body = {**located(AGENT), "sql_warehouse_id": "none"}
    assert rest.refused("POST", LOCATIONS, body)[:2] == (404, "RESOURCE_DOES_NOT_EXIST")


def test_making_one_needs_privileges(workspace: MockWorkspace) -> None:
    ada = workspace.add_user("ada@example.com").name
    rest = Rest(workspace, ada)
    for privilege, on in (("USE CATALOG", "main"), ("USE SCHEMA", "main.obs"), ("CREATE TABLE", "main.obs")):
        assert rest.refused("POST", LOCATIONS, located(AGENT))[:2] == (403, "PERMISSION_DENIED")
        workspace.grant(privilege, on=on, to=ada)
    rest.locate(AGENT)
    assert {table["owner"] for table in tables(rest).values()} == {ada}


def test_experiment_is_linked_to_one_location(rest: Rest) -> None:
    experiment_id = experiment(rest)
    link = f"5.0/mlflow/experiments/{experiment_id}/trace-location:link"
    assert rest.refused("POST", link, located(AGENT))[0] == 404
    for name in (AGENT, "main.obs.other"):
        rest.locate(name)
    rest.ok("POST", link, located(AGENT))
    rest.ok("POST", link, located(AGENT))
    assert tags(rest, experiment_id) == {
        "DestinationPath": AGENT,
        "SpanStorageTable": "main.obs.agent_otel_spans",
        "LogStorageTable": "main.obs.agent_otel_logs",
        "AnnotationsTable": "main.obs.agent_otel_annotations",
    }
    status, code, message = rest.refused("POST", link, located("main.obs.other"))
    assert (status, code) == (400, "INVALID_PARAMETER_VALUE")
    assert "already linked to a different trace location" in message
    assert rest.refused("POST", link.replace(experiment_id, "1"), located(AGENT))[:2] == (
        404,
        "RESOURCE_DOES_NOT_EXIST",
    )


def test_link_needs_privileges(workspace: MockWorkspace, rest: Rest) -> None:
    ada = workspace.add_user("ada@example.com").name
    rest.locate(AGENT)
    link = f"5.0/mlflow/experiments/{experiment(rest)}/trace-location:link"
    workspace.grant("USE CATALOG", on="main", to=ada)
    workspace.grant("USE SCHEMA", on="main.obs", to=ada)
    status, code, message = Rest(workspace, ada).refused("POST", link, located(AGENT))
    assert (status, code, "agent_otel_spans" in message) == (403, "PERMISSION_DENIED", True)


def test_location_survives_a_restart(tmp_path: Path) -> None:
    with MockWorkspace(str(tmp_path)) as workspace:
        workspace.create_schema("main.obs")
        before = Rest(workspace).locate(AGENT)
    with MockWorkspace(str(tmp_path)) as workspace:
        assert json.dumps(Rest(workspace).locate(AGENT)) == json.dumps(before)


def test_of_two_locations_at_once_an_experiment_is_linked_to_one(rest: Rest, workspace: MockWorkspace) -> None:
    """The other link is refused, whichever comes first."""
    names = [f"main.obs.agent{number}" for number in range(4)]
    for name in names:
        workspace.create_trace_location(name)
    experiment_id = experiment(rest)
    together = threading.Barrier(len(names))

    def link(name: str) -> int:
        together.wait(30)
        return rest.call("POST", f"5.0/mlflow/experiments/{experiment_id}/trace-location:link", located(name))[0]

    with ThreadPoolExecutor(len(names)) as pool:
        statuses = list(pool.map(link, names))
    assert sorted(statuses) == [200, 400, 400, 400]
    assert tags(rest, experiment_id)["DestinationPath"] == names[statuses.index(200)]
