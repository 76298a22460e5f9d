"""Statements on a SQL warehouse: which one runs them, how long that may take, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tracelake import ConfigurationError, QueryError, RefusedError
from tracelake.databricks import sql
from tracelake.databricks.sql import Warehouse
from tracelake.databricks.workspace import Workspace, connect
from tracelake.testing import MockWorkspace


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch) -> Iterator[MockWorkspace]:
    with MockWorkspace() as made:
        made.create_schema("main.obs")
        for name, value in made.environment().items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
def connected(workspace: MockWorkspace) -> Workspace:
    assert workspace.url
    return connect()


def sent(workspace: MockWorkspace) -> list[str]:
    """Return the warehouses that statements were sent to."""
    asked = [item.request for item in workspace.requests("/api/2.0/sql/statements") if item.request.method == "POST"]
    return [str(request.json()["warehouse_id"]) for request in asked]


@pytest.mark.parametrize("variable", ["DATABRICKS_WAREHOUSE_ID", "MLFLOW_TRACING_SQL_WAREHOUSE_ID"])
def test_warehouse_of_the_environment(workspace: MockWorkspace, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Without asking which there are, for that may not be allowed."""
    monkeypatch.setenv(variable, workspace.create_warehouse("own", id="own", state="STOPPED"))
    assert Warehouse.find(connect()).run("SELECT 1") == [["1"]]
    assert sent(workspace) == ["own"]
    assert workspace.requests("/api/2.0/sql/warehouses") == []


def test_running_warehouse_goes_first(workspace: MockWorkspace, connected: Workspace) -> None:
    """A stopped one takes minutes to start."""
    (first,) = connected.get("/api/2.0/sql/warehouses")["warehouses"]
    connected.post(f"/api/2.0/sql/warehouses/{first['id']}/stop")
    stopped = workspace.create_warehouse("stopped", state="STOPPED")
    running = workspace.create_warehouse("running")
    Warehouse.find(connected).run("SELECT 1")
    assert sent(workspace) == [running]
    assert stopped != running


def test_stopped_warehouse_starts(connected: Workspace) -> None:
    """By itself, with the statement."""
    (first,) = connected.get("/api/2.0/sql/warehouses")["warehouses"]
    connected.post(f"/api/2.0/sql/warehouses/{first['id']}/stop")
    assert Warehouse.find(connected).run("SELECT 1") == [["1"]]
    assert connected.get(f"/api/2.0/sql/warehouses/{first['id']}")["state"] == "RUNNING"


def test_no_warehouse(workspace: MockWorkspace, connected: Workspace) -> None:
    """The message says what to ask for, and how to do without."""
    (first,) = connected.get("/api/2.0/sql/warehouses")["warehouses"]
    connected.call("DELETE", f"/api/2.0/sql/warehouses/{first['id']}")
    with pytest.raises(ConfigurationError, match=r"has no SQL warehouse.*DATABRICKS_WAREHOUSE_ID.*--print-sql"):
        Warehouse.find(connected)
    assert sent(workspace) == []


def test_warehouse_that_is_not_there(connected: Workspace) -> None:
    """What the workspace says."""
    with pytest.raises(RefusedError, match="nowhere"):
        Warehouse(connected, "nowhere").run("SELECT 1")


def test_parameters_are_values_and_no_sql(connected: Workspace) -> None:
    """Whatever they hold."""
    text = "'; DROP SCHEMA main.obs; --"
    assert Warehouse.find(connected).run("SELECT :text, NULL", {"text": text}) == [[text, None]]


def test_statement_that_fails_says_why(connected: Workspace) -> None:
    """With the warehouse, on one line."""
    with pytest.raises(
        QueryError, match=r"The warehouse \w+ of .* does not run the statement \(FAILED\): .*nowhere"
    ) as raised:
        Warehouse.find(connected).run("SELECT *\nFROM main.obs.nowhere")
    assert str(raised.value).isprintable()


def test_slow_statement_is_waited_for(
    workspace: MockWorkspace, connected: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By asking how far it is, after the first answer says that it goes on."""
    monkeypatch.setattr(sql, "_WAIT", "0s")
    monkeypatch.setattr(sql, "_POLL_S", 0.01)
    assert Warehouse.find(connected).run("SELECT count(*) FROM range(1000000)") == [["1000000"]]
    polls = [item.request for item in workspace.requests("/api/2.0/sql/statements/")]
    assert {request.method for request in polls} == {"GET"}


def test_statement_that_never_ends_is_given_up(connected: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a time, with where to look."""
    monkeypatch.setattr(sql, "_WAIT", "0s")
    monkeypatch.setattr(sql, "_TIMEOUT_S", -1.0)
    with pytest.raises(QueryError, match=r"A statement goes on after .* on the warehouse \w+ of http.*See there"):
        Warehouse.find(connected).run("SELECT count(*) FROM range(1000000)")


def test_result_in_several_chunks_is_put_together(connected: Workspace) -> None:
    """In its order, with the kind of each column."""
    found = Warehouse.find(connected).query("SELECT id, CAST(id AS STRING) AS text FROM range(20000)")
    assert found.columns == [("id", "LONG"), ("text", "STRING")]
    assert found.rows == [[str(number)] * 2 for number in range(20000)]


def test_result_that_is_cut_is_no_result(connected: Workspace) -> None:
    """A part of it would be taken for all."""
    with pytest.raises(QueryError, match=r"Ask for fewer rows"):
        Warehouse.find(connected).run("SELECT repeat('x', 1000000) AS text FROM range(40)")


def test_parameters_have_types(connected: Workspace) -> None:
    """So that a number is compared as one."""
    parameters = {"text": "a'b", "whole": 9, "real": 1.5, "yes": True, "none": None}
    columns = ", ".join(f":{name} AS {name}" for name in parameters)
    found = Warehouse.find(connected).query(f"SELECT {columns}, :whole < 10 AS less", parameters)
    assert found.rows == [["a'b", "9", "1.5", "true", None, "true"]]


def test_statement_without_a_result(connected: Workspace) -> None:
    """As those that make something."""
    assert Warehouse.find(connected).run("CREATE SCHEMA main.more") == []
