"""Tables whose files are closed to us, read by a SQL warehouse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import sqlglot

from tests.destinations.unity.conftest import AGENT, prepare
from tests.query.samples import full_span
from tests.spans.samples import TRACE_ID, span
from tracelake.databricks.workspace import connect
from tracelake.destinations.base import Batch
from tracelake.destinations.targets import parse_target
from tracelake.errors import QueryError, TraceNotFoundError
from tracelake.query.reader import FilesReader, WarehouseReader, open_reader
from tracelake.query.sql import rows_of, sql
from tracelake.query.traces import get_trace
from tracelake.spans import line
from tracelake.spans.record import SpanRecord
from tracelake.testing import MockWorkspace

NAME = "main.obs.spans"
SPANS = [full_span(1), span(2, parent_span_id=f"{1:016x}", status_code=1)]
VERSIONS = pytest.mark.parametrize("version", [1, 2])


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch) -> Iterator[MockWorkspace]:
    with MockWorkspace() as made:
        prepare(made, monkeypatch)
        yield made


READS_NESTED_WITH = pytest.mark.skipif(
    tuple(map(int, sqlglot.__version__.split(".")[:2])) < (30, 12),
    reason="the mocked workspace reads WITH in parentheses by sqlglot 30.12 or later",
)


def filled(workspace: MockWorkspace, version: int, records: Sequence[SpanRecord] = SPANS, **how: Any) -> None:
    """Make the table, and write the records to it by the service of the workspace."""
    workspace.create_table(NAME, schema_version=1 if version == 1 else 2, **how)
    assert not parse_target(NAME).open().write(Batch("tests", 1, 1_000, lambda: iter([list(records)])))


def close_files(workspace: MockWorkspace) -> None:
    """Give nobody access to the files; the workspace has a warehouse."""
    workspace.revoke("EXTERNAL USE SCHEMA", on="main", from_=AGENT)


def statements(workspace: MockWorkspace) -> int:
    return len(workspace.requests("/api/2.0/sql/statements"))


@VERSIONS
def test_trace_of_a_table_whose_files_are_closed(workspace: MockWorkspace, version: int) -> None:
    """The same as by its files: every column comes back, by whichever way."""
    filled(workspace, version)
    by_files = get_trace(TRACE_ID, parse_target(NAME))
    assert statements(workspace) == 0
    close_files(workspace)
    by_warehouse = get_trace(TRACE_ID, parse_target(NAME))
    assert statements(workspace) > 0
    assert by_warehouse == by_files
    first = by_warehouse.spans[0]
    assert (first.name, first.events[0].name, first.links[0].flags) == ("span 1", "exception", 0)
    assert line.resource_of(first).attributes == {"service.name": "search"}
    assert first.attributes["mlflow.spanInputs"] == ({"q": [1, None]} if version == 2 else '{"q":[1,null]}')


@VERSIONS
def test_sql_of_a_table_whose_files_are_closed(workspace: MockWorkspace, version: int) -> None:
    """In Databricks' dialect, with the order and the types of the statement."""
    filled(workspace, version)
    close_files(workspace)
    query = """
        SELECT name, start_time_unix_nano AS start, status.code = 'STATUS_CODE_OK' AS ok, 0.5D AS half
        FROM spans ORDER BY name DESC
    """
    assert list(rows_of(sql(query, parse_target(NAME)))) == [
        {"name": f"span {number}", "start": SPANS[number - 1].start_time_unix_nano, "ok": number == 2, "half": 0.5}
        for number in (2, 1)
    ]


@READS_NESTED_WITH
def test_statement_may_have_relations_of_its_own(workspace: MockWorkspace) -> None:
    """Beside the two that are given."""
    filled(workspace, 1)
    close_files(workspace)
    query = "WITH named AS (SELECT name FROM spans) SELECT name FROM named ORDER BY name DESC"
    assert sql(query, parse_target(NAME)).column("name").to_pylist() == ["span 2", "span 1"]


@pytest.mark.parametrize(
    "statement", ["DELETE FROM spans", "INSERT INTO spans SELECT * FROM spans", "SELECT 1; SELECT 2"]
)
def test_warehouse_runs_what_reads(workspace: MockWorkspace, statement: str) -> None:
    """And nothing else, also where it might."""
    filled(workspace, 1)
    close_files(workspace)
    with pytest.raises(QueryError, match="does not run the statement"):
        sql(statement, parse_target(NAME))
    assert len(workspace.table(NAME).spans()) == 2


def test_view_is_read_by_the_warehouse(workspace: MockWorkspace) -> None:
    """It has no files, and shows a part of a table."""
    filled(workspace, 1)
    workspace.create_table(
        "main.obs.few", schema_version=1, view_definition=f"SELECT * FROM {NAME} WHERE parent_span_id IS NULL"
    )
    assert [span.name for span in get_trace(TRACE_ID, parse_target("main.obs.few")).spans] == ["span 1"]
    assert sql("SELECT * FROM spans", parse_target("main.obs.few")).num_rows == 1
    with pytest.raises(TraceNotFoundError):
        get_trace("f" * 32, parse_target("main.obs.few"))


def test_annotations_of_a_table_whose_files_are_closed(workspace: MockWorkspace) -> None:
    """Those of the table beside it, or none."""
    filled(workspace, 1)
    close_files(workspace)
    query = (
        "SELECT count(annotation_id) AS count FROM spans LEFT JOIN annotations ON annotations.trace_id = spans.trace_id"
    )
    assert sql(query, parse_target(NAME)).to_pylist() == [{"count": 0}]
    workspace.create_table("main.obs.annotations", columns={"annotation_id": "string", "trace_id": "string"})
    assert sql("SELECT annotation_id FROM annotations", parse_target(NAME)).num_rows == 0


def test_parameters_of_a_statement(workspace: MockWorkspace) -> None:
    """They are bound, by a colon there."""
    filled(workspace, 1)
    close_files(workspace)
    with open_reader(parse_target(NAME)) as reader:
        assert isinstance(reader, WarehouseReader)
        statement = "SELECT name FROM spans WHERE name = :name AND start_time_unix_nano >= :start"
        assert reader.run(statement, {"name": "span 2", "start": 0}).to_pylist() == [{"name": "span 2"}]
        assert reader.run(statement, {"name": "' OR true --", "start": 0}).num_rows == 0


def test_without_a_warehouse_the_error_says_both(workspace: MockWorkspace) -> None:
    """Why not the files, and what would help."""
    filled(workspace, 1)
    close_files(workspace)
    connected = connect()
    (first,) = connected.get("/api/2.0/sql/warehouses")["warehouses"]
    connected.call("DELETE", f"/api/2.0/sql/warehouses/{first['id']}")
    with pytest.raises(QueryError, match=r"cannot be read here: .*EXTERNAL USE SCHEMA.* DATABRICKS_WAREHOUSE_ID"):
        get_trace(TRACE_ID, parse_target(NAME))


def test_table_whose_commits_the_catalog_manages(workspace: MockWorkspace) -> None:
    """Its files lack the newest commits, so they are not read, even if they may be."""
    filled(workspace, 1)
    workspace._catalog.table(NAME).properties["delta.feature.catalogManaged"] = "supported"
    with open_reader(parse_target(NAME)) as reader:
        assert isinstance(reader, WarehouseReader)
        assert reader.run("SELECT span_id FROM spans").num_rows == 2


def test_open_files_need_no_warehouse(workspace: MockWorkspace) -> None:
    """Nor is there a statement."""
    filled(workspace, 1)
    with open_reader(parse_target(NAME)) as reader:
        assert isinstance(reader, FilesReader)
        assert reader.run("FROM spans").num_rows == 2
    assert statements(workspace) == 0
