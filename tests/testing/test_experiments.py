"""MLflow's experiments, by databricks-sdk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.errors import InvalidParameterValue, NotFound, ResourceAlreadyExists, ResourceDoesNotExist
from databricks.sdk.service.ml import Experiment, ExperimentTag, ViewType

from tests.testing.sdk import client
from tracelake.errors import ConfigurationError
from tracelake.testing import MockWorkspace


@pytest.fixture
def sdk(workspace: MockWorkspace) -> Iterator[WorkspaceClient]:
    """A client of the workspace, within this process."""
    with workspace.in_process() as host:
        yield client(workspace, host=host)


def made(sdk: WorkspaceClient, name: str, **tags: str) -> str:
    """Make an experiment and return its id."""
    given = [ExperimentTag(key=key, value=value) for key, value in tags.items()]
    experiment_id = sdk.experiments.create_experiment(name, tags=given).experiment_id
    assert experiment_id is not None
    return experiment_id


def by_id(sdk: WorkspaceClient, experiment_id: str) -> Experiment:
    """Return an experiment."""
    experiment = sdk.experiments.get_experiment(experiment_id).experiment
    assert experiment is not None
    return experiment


def tags_of(experiment: Experiment) -> dict[str, str]:
    """Return the tags of an experiment."""
    return {tag.key or "": tag.value or "" for tag in experiment.tags or []}


def found(sdk: WorkspaceClient, search: str = "", *order_by: str) -> list[str]:
    """Return the names of the experiments that a search finds."""
    return [each.name or "" for each in sdk.experiments.search_experiments(filter=search, order_by=list(order_by))]


def test_a_new_experiment_is_found_by_id_and_by_name(sdk: WorkspaceClient, workspace: MockWorkspace) -> None:
    """With the tags that Databricks gives it, beside its own."""
    experiment_id = made(sdk, "/Shared/agent", team="search")
    experiment = by_id(sdk, experiment_id)
    assert sdk.experiments.get_by_name("/Shared/agent").experiment == experiment
    assert re.fullmatch(r"\d{15}", experiment_id)
    assert experiment.name == "/Shared/agent"
    assert experiment.lifecycle_stage == "active"
    assert experiment.artifact_location == f"dbfs:/databricks/mlflow-tracking/{experiment_id}"
    assert experiment.creation_time == experiment.last_update_time
    assert tags_of(experiment) == {
        "team": "search",
        "mlflow.experiment.sourceName": "/Shared/agent",
        "mlflow.experimentType": "MLFLOW_EXPERIMENT",
        "mlflow.ownerEmail": workspace.user,
        "mlflow.ownerId": "1",
    }


def test_a_new_workspace_has_no_experiment(sdk: WorkspaceClient) -> None:
    """None with the id 0 either, which MLflow's own servers have."""
    assert found(sdk) == []
    with pytest.raises(ResourceDoesNotExist, match="Node ID 0 does not exist"):
        sdk.experiments.get_experiment("0")
    with pytest.raises(ResourceDoesNotExist, match="/Shared/agent"):
        sdk.experiments.get_by_name("/Shared/agent")


@pytest.mark.parametrize("name", ["agent", "Shared/agent", "/", "/Shared/"])
def test_a_name_is_an_absolute_path(sdk: WorkspaceClient, name: str) -> None:
    """As an experiment is a file of the workspace."""
    with pytest.raises(InvalidParameterValue, match="must be an absolute path"):
        sdk.experiments.create_experiment(name)


def test_a_name_is_taken_once(sdk: WorkspaceClient) -> None:
    """Also by an experiment that was deleted, and with the root of the workspace before it."""
    experiment_id = made(sdk, "/Shared/agent")
    for name in ("/Shared/agent", "/Workspace/Shared/agent"):
        with pytest.raises(ResourceAlreadyExists, match="Node named '/Shared/agent' already exists"):
            sdk.experiments.create_experiment(name)
    sdk.experiments.delete_experiment(experiment_id)
    with pytest.raises(ResourceAlreadyExists):
        sdk.experiments.create_experiment("/Shared/agent")
    assert by_id(sdk, made(sdk, "/Workspaces/agent")).name == "/Workspaces/agent"


def test_an_experiment_is_deleted_and_restored(sdk: WorkspaceClient) -> None:
    """While it is deleted it is found as such, and cannot be changed."""
    experiment_id = made(sdk, "/Shared/agent")
    sdk.experiments.delete_experiment(experiment_id)
    assert by_id(sdk, experiment_id).lifecycle_stage == "deleted"
    assert found(sdk) == []
    listed = sdk.experiments.search_experiments(view_type=ViewType.DELETED_ONLY)
    assert [each.experiment_id for each in listed] == [experiment_id]
    for change in (
        lambda: sdk.experiments.set_experiment_tag(experiment_id, "team", "search"),
        lambda: sdk.experiments.update_experiment(experiment_id, new_name="/Shared/other"),
        lambda: sdk.experiments.delete_experiment(experiment_id),
    ):
        with pytest.raises(InvalidParameterValue, match="must be in the 'active' state"):
            change()
    sdk.experiments.restore_experiment(experiment_id)
    assert found(sdk) == ["/Shared/agent"]
    with pytest.raises(InvalidParameterValue, match="Cannot restore an active experiment"):
        sdk.experiments.restore_experiment(experiment_id)


def test_an_experiment_is_renamed(sdk: WorkspaceClient) -> None:
    """To a name that is free."""
    experiment_id = made(sdk, "/Shared/agent")
    made(sdk, "/Shared/taken")
    sdk.experiments.update_experiment(experiment_id, new_name="/Shared/other")
    renamed = sdk.experiments.get_by_name("/Shared/other").experiment
    assert renamed is not None
    assert renamed.experiment_id == experiment_id
    assert tags_of(renamed)["mlflow.experiment.sourceName"] == "/Shared/other"
    with pytest.raises(ResourceAlreadyExists):
        sdk.experiments.update_experiment(experiment_id, new_name="/Shared/taken")


def test_tags_are_set_replaced_and_deleted(sdk: WorkspaceClient, workspace: MockWorkspace) -> None:
    """With any key and value."""
    experiment_id = made(sdk, "/Shared/agent")
    sdk.experiments.set_experiment_tag(experiment_id, "a key / of many", "old")
    sdk.experiments.set_experiment_tag(experiment_id, "a key / of many", "neu ü")
    assert tags_of(by_id(sdk, experiment_id))["a key / of many"] == "neu ü"
    delete = {"experiment_id": experiment_id, "key": "a key / of many"}
    sdk.api_client.do("POST", "/api/2.0/mlflow/experiments/delete-experiment-tag", body=delete)
    assert "a key / of many" not in tags_of(by_id(sdk, experiment_id))
    with pytest.raises(ResourceDoesNotExist, match="No tag with key"):
        sdk.api_client.do("POST", "/api/2.0/mlflow/experiments/delete-experiment-tag", body=delete)
    assert [seen.status for seen in workspace.requests("/api/2.0/mlflow") if seen.status >= 400] == [404]


def test_experiments_are_kept(tmp_path: Path) -> None:
    """In the directory of the workspace."""
    with MockWorkspace(str(tmp_path)) as workspace:
        experiment_id = workspace.create_experiment("/Shared/agent")
    with MockWorkspace(str(tmp_path)) as workspace:
        with pytest.raises(ConfigurationError, match="RESOURCE_ALREADY_EXISTS"):
            workspace.create_experiment("/Shared/agent")
        assert workspace.create_experiment("/Shared/other") != experiment_id


@pytest.mark.parametrize(
    ("search", "names"),
    [
        ("name = '/Shared/b'", ["/Shared/b"]),
        ("attribute.name != '/Shared/b'", ["/Shared/c", "/Shared/a_1"]),
        ("name LIKE '/Shared/_'", ["/Shared/c", "/Shared/b"]),
        ("name LIKE '/shared/%'", []),
        ('name ilike "/shared/A%"', ["/Shared/a_1"]),
        ("name LIKE '%a.1'", []),
        ("tags.team = 'search'", ["/Shared/c", "/Shared/b"]),
        ("tag.`the.stage` = 'dev' AND tags.team LIKE 'sea%'", ["/Shared/b"]),
        ("tags.team != 'search'", ["/Shared/a_1"]),
        ('tags."the.stage" ILIKE \'DEV\' and name != "x AND y"', ["/Shared/b"]),
        ("creation_time > 0 AND last_update_time <= 0", []),
        ("creation_time >= 1", ["/Shared/c", "/Shared/b", "/Shared/a_1"]),
    ],
)
def test_searches_find(sdk: WorkspaceClient, search: str, names: list[str]) -> None:
    """By name, tags and times."""
    made(sdk, "/Shared/a_1", team="index")
    made(sdk, "/Shared/b", team="search", **{"the.stage": "dev"})
    made(sdk, "/Shared/c", team="search")
    assert found(sdk, search, "name DESC") == names


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("nam = 'x'", "Invalid attribute key 'nam'"),
        ("name", "Invalid clause"),
        ("name = 'x' OR name = 'y'", r"'OR name = 'y''\. AND joins"),
        ("name = 'x' AND", "Invalid clause"),
        ("name > 'x'", "Invalid comparator '>' of name"),
        ("creation_time LIKE '1%'", "Invalid comparator 'LIKE' of creation_time"),
        ("creation_time = 'x'", "must be a number"),
        ("name = 1", "must be a text"),
        ("tags.a = 1", "must be a text"),
    ],
)
def test_searches_in_no_language_are_refused(sdk: WorkspaceClient, search: str, message: str) -> None:
    """With what is wrong in them."""
    with pytest.raises(InvalidParameterValue, match=message):
        found(sdk, search)


def test_searches_are_ordered_and_come_in_pages(sdk: WorkspaceClient) -> None:
    """Also the list, which has no filter."""
    for name in ("/b", "/a", "/c"):
        made(sdk, name)
    assert found(sdk, "", "name") == ["/a", "/b", "/c"]
    assert found(sdk, "", "attribute.name DESC") == ["/c", "/b", "/a"]
    pages = sdk.experiments.search_experiments(max_results=2, order_by=["name ASC"])
    assert [each.name for each in pages] == ["/a", "/b", "/c"]
    assert len(list(sdk.experiments.list_experiments(max_results=1))) == 3
    for wrong in ("tags.x", "name UP"):
        with pytest.raises(InvalidParameterValue, match="Invalid order_by clause"):
            found(sdk, "", wrong)
    with pytest.raises(InvalidParameterValue, match="max_results"):
        list(sdk.experiments.search_experiments(max_results=-1))
    with pytest.raises(InvalidParameterValue, match="page_token"):
        list(sdk.experiments.search_experiments(page_token="x"))


def test_a_body_without_its_fields_is_refused(sdk: WorkspaceClient) -> None:
    """With the name of the field."""
    with pytest.raises(InvalidParameterValue, match="The field name of the body is missing"):
        sdk.api_client.do("POST", "/api/2.0/mlflow/experiments/create", body={"name": ""})
    with pytest.raises(InvalidParameterValue, match="experiment_id"):
        sdk.api_client.do("GET", "/api/2.0/mlflow/experiments/get")


def test_an_experiment_can_be_made_with_its_traces_in_unity_catalog(
    sdk: WorkspaceClient, workspace: MockWorkspace
) -> None:
    """With a table prefix, or one made of its id; what goes wrong there leaves no experiment."""
    path = "/api/2.0/mlflow/experiments"

    def create(**place: str) -> str:
        body = {"name": "/Shared/linked", "trace_location": {"uc_trace_location": {"catalog": "main", **place}}}
        told: Any = sdk.api_client.do("POST", f"{path}/create", body=body)
        return str(told["experiment_id"])

    def shown(experiment_id: str) -> Any:
        told: Any = sdk.api_client.do("GET", f"{path}/get", query={"experiment_id": experiment_id})
        return told["experiment"]["trace_location"]["uc_trace_location"]

    with pytest.raises(NotFound, match=r"main\.other"):
        create(schema="other", table_prefix="agent")
    with pytest.raises(InvalidParameterValue, match="table_prefix is 'a-b'"):
        create(schema="obs", table_prefix="a-b")
    assert found(sdk) == []
    experiment_id = create(schema="obs", table_prefix="agent")
    place = {"catalog": "main", "schema": "obs", "table_prefix": "agent", "effective_table_prefix": "agent"}
    assert shown(experiment_id) == place
    assert workspace.table("main.obs.agent_otel_spans").spans() == []
    tags = tags_of(by_id(sdk, experiment_id))
    assert tags["mlflow.experiment.databricksTraceSpanStorageTable"] == "main.obs.agent_otel_spans"
    sdk.experiments.update_experiment(experiment_id, new_name="/Shared/renamed")
    other = create(schema="obs")
    assert shown(other) == {"catalog": "main", "schema": "obs", "effective_table_prefix": other}
