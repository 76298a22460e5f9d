"""SQL warehouses, by databricks-sdk."""

from __future__ import annotations

from pathlib import Path

import pytest
from databricks.sdk.errors import NotFound, ResourceDoesNotExist
from databricks.sdk.service.sql import State

from tests.testing.sdk import client
from tracelake.errors import ConfigurationError
from tracelake.testing import MockWorkspace


def test_a_new_workspace_has_one_that_runs_and_it_survives(tmp_path: Path) -> None:
    """With the same id when the directory is opened again."""
    found = []
    for _ in range(2):
        with MockWorkspace(str(tmp_path)) as workspace:
            (warehouse,) = client(workspace).warehouses.list()
            assert warehouse.state is State.RUNNING
            found.append(warehouse.id)
    assert found[0] == found[1]


def test_one_is_made_started_stopped_and_deleted(workspace: MockWorkspace) -> None:
    """A start goes through STARTING, which the SDK waits for."""
    warehouses = client(workspace).warehouses
    assert workspace.create_warehouse("mine", id="abc", state="STOPPED") == "abc"
    assert warehouses.get("abc").state is State.STOPPED
    warehouses.start("abc")
    assert [warehouses.get("abc").state for _ in range(2)] == [State.STARTING, State.RUNNING]
    warehouses.stop("abc")
    assert warehouses.get("abc").state is State.STOPPED
    made = warehouses.create(name="other").response
    assert made.id
    assert {each.name for each in warehouses.list()} == {"Starter Warehouse", "mine", "other"}
    warehouses.delete(made.id)
    with pytest.raises(NotFound):
        warehouses.get(made.id)


def test_a_statement_starts_a_stopped_one(workspace: MockWorkspace) -> None:
    workspace.create_warehouse("mine", id="abc", state="STOPPED")
    user = client(workspace)
    answer = user.statement_execution.execute_statement("SELECT 1", "abc")
    assert answer.result is not None
    assert answer.result.data_array == [["1"]]
    assert user.warehouses.get("abc").state is State.RUNNING


def test_an_unknown_one_is_404_and_a_name_is_taken_once(workspace: MockWorkspace) -> None:
    user = client(workspace)
    for call in (user.warehouses.get, user.warehouses.start, user.warehouses.stop, user.warehouses.delete):
        with pytest.raises(ResourceDoesNotExist, match="The warehouse nope was not found"):
            call("nope")
    with pytest.raises(ResourceDoesNotExist, match="The warehouse nope was not found"):
        user.statement_execution.execute_statement("SELECT 1", "nope")
    workspace.create_warehouse("mine")
    with pytest.raises(ConfigurationError, match="already exists"):
        workspace.create_warehouse("mine")
