"""The Statement Execution API, by databricks-sdk."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from databricks.sdk import errors
from databricks.sdk.errors import BadRequest, NotFound, PermissionDenied
from databricks.sdk.service.sql import (
    Disposition,
    ExecuteStatementRequestOnWaitTimeout,
    Format,
    StatementResponse,
    StatementState,
)

from tests.testing.sql import Sql
from tracelake.testing import MockWorkspace

_PATH = "/api/2.0/sql/statements"


@pytest.fixture
def sql(workspace: MockWorkspace) -> Sql:
    return Sql(workspace)


def ended(sql: Sql, statement_id: str) -> StatementResponse:
    """Return a statement once it has ended."""
    while True:
        answer = sql.client.statement_execution.get_statement(statement_id)
        assert answer.status is not None
        if answer.status.state not in {StatementState.PENDING, StatementState.RUNNING}:
            return answer


def test_a_result_comes_with_its_manifest(sql: Sql) -> None:
    """As JSON_ARRAY, inline, in one chunk."""
    answer = sql.send("SELECT 42 AS c, CAST(NULL AS DECIMAL(10,2)) AS d")
    assert answer.as_dict() | {"statement_id": ""} == {
        "statement_id": "",
        "status": {"state": "SUCCEEDED"},
        "manifest": {
            "format": "JSON_ARRAY",
            "schema": {
                "column_count": 2,
                "columns": [
                    {"name": "c", "type_text": "INT", "type_name": "INT", "position": 0},
                    {
                        "name": "d",
                        "type_text": "DECIMAL(10,2)",
                        "type_name": "DECIMAL",
                        "type_precision": 10,
                        "type_scale": 2,
                        "position": 1,
                    },
                ],
            },
            "total_row_count": 1,
            "total_byte_count": 12,
            "total_chunk_count": 1,
            "truncated": False,
            "chunks": [{"chunk_index": 0, "row_offset": 0, "row_count": 1, "byte_count": 12}],
        },
        "result": {"chunk_index": 0, "row_offset": 0, "row_count": 1, "byte_count": 12, "data_array": [["42", None]]},
    }


def test_a_large_result_comes_in_chunks(sql: Sql) -> None:
    """Each tells of the next; together they are all rows, in order."""
    answer = sql.send("SELECT id FROM range(23000)")
    assert answer.manifest is not None
    assert answer.statement_id is not None
    assert (answer.manifest.total_row_count, answer.manifest.total_chunk_count) == (23_000, 5)
    chunk, found = answer.result, []
    while chunk is not None:
        assert chunk.row_offset == len(found)
        found += [row[0] for row in chunk.data_array or []]
        following = chunk.next_chunk_index
        assert (following is None) == (chunk.next_chunk_internal_link is None)
        if following is None:
            break
        assert chunk.next_chunk_internal_link == f"{_PATH}/{answer.statement_id}/result/chunks/{following}"
        chunk = sql.client.statement_execution.get_statement_result_chunk_n(answer.statement_id, following)
    assert found == [str(number) for number in range(23_000)]
    with pytest.raises(NotFound, match="no chunk 5"):
        sql.client.statement_execution.get_statement_result_chunk_n(answer.statement_id, 5)


def test_limits_cut_a_result_and_say_so(sql: Sql) -> None:
    for limits, count in (({"row_limit": 3}, 3), ({"byte_limit": 13}, 2), ({"row_limit": 10}, 10)):
        answer = sql.send("SELECT id FROM range(10)", **limits)
        assert answer.manifest is not None
        assert answer.manifest.total_row_count == count
        assert answer.manifest.truncated is (count < 10)
    assert "Inline byte limit exceeded" in sql.fault("SELECT repeat('x', 1000000) FROM range(30)")


def test_a_statement_without_a_result_succeeds_with_none(sql: Sql) -> None:
    answer = sql.send("CREATE SCHEMA main.other")
    assert answer.status is not None
    assert answer.status.state is StatementState.SUCCEEDED
    assert answer.result is not None
    assert answer.result.data_array is None


def test_a_statement_that_fails_is_answered_with_200(sql: Sql) -> None:
    """The SDK raises nothing."""
    answer = sql.send("SELECT * FROM nope")
    assert answer.as_dict()["status"]["state"] == "FAILED"
    assert answer.as_dict()["status"].get("sql_state", "42P01") == "42P01"  # early versions of the SDK leave it out


@pytest.mark.slow
def test_one_that_is_not_waited_for_runs_on(sql: Sql) -> None:
    """Its state is asked for, and then its result."""
    answer = sql.send("SELECT count(*) FROM range(30000) a JOIN range(30000) b ON a.id <> b.id", wait_timeout="0s")
    assert answer.status is not None
    assert answer.statement_id is not None
    assert answer.status.state in {StatementState.PENDING, StatementState.RUNNING}
    with pytest.raises(BadRequest, match="has no result"):
        sql.client.statement_execution.get_statement_result_chunk_n(answer.statement_id, 0)
    result = ended(sql, answer.statement_id).result
    assert result is not None
    assert result.data_array == [[str(30_000 * 29_999)]]


def test_one_that_runs_is_canceled(sql: Sql) -> None:
    """DuckDB stops; the state stays CANCELED."""
    answer = sql.send(
        "SELECT count(*) FROM range(10000000) a JOIN range(10000000) b ON a.id <> b.id", wait_timeout="0s"
    )
    assert answer.statement_id is not None
    sql.client.statement_execution.cancel_execution(answer.statement_id)
    status = ended(sql, answer.statement_id).status
    assert status is not None
    assert status.state is StatementState.CANCELED
    for thread in threading.enumerate():
        if thread.name == f"statement-{answer.statement_id}":
            thread.join(30)
            assert not thread.is_alive()


def test_many_run_at_once(sql: Sql) -> None:
    """32 clients write and read; nothing is lost."""
    sql.rows("CREATE TABLE t (id INT)")
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda number: sql.rows(f"INSERT INTO t VALUES ({number})"), range(32)))
    assert sql.row("SELECT count(*), count(DISTINCT id) FROM t") == ["32", "32"]


def test_nobody_else_sees_a_statement(workspace: MockWorkspace, sql: Sql) -> None:
    workspace.add_user("ann@example.com")
    answer = sql.send("SELECT 1")
    assert answer.statement_id is not None
    with pytest.raises(PermissionDenied):
        Sql(workspace, "ann@example.com").client.statement_execution.get_statement(answer.statement_id)
    with pytest.raises(NotFound, match="was not found"):
        sql.client.statement_execution.get_statement("nope")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"wait_timeout": "3s"}, "between 5s and 50s"),
        ({"wait_timeout": "51s"}, "between 5s and 50s"),
        ({"wait_timeout": "soon"}, "wait_timeout"),
        ({"wait_timeout": "0s", "on_wait_timeout": ExecuteStatementRequestOnWaitTimeout.CANCEL}, "CANCEL"),
        ({"row_limit": -1}, "row_limit"),
    ],
)
def test_a_request_that_is_wrong_is_400(sql: Sql, fields: dict[str, object], text: str) -> None:
    with pytest.raises(BadRequest, match=text):
        sql.send("SELECT 1", **fields)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"format": Format.ARROW_STREAM, "disposition": Disposition.EXTERNAL_LINKS}, "ARROW_STREAM"),
        ({"disposition": Disposition.EXTERNAL_LINKS}, "EXTERNAL_LINKS"),
    ],
)
def test_other_formats_are_501_by_name(sql: Sql, fields: dict[str, object], name: str) -> None:
    with pytest.raises(errors.NotImplemented, match=name):
        sql.send("SELECT 1", **fields)


def test_a_body_that_lacks_something_or_has_nonsense_is_400(workspace: MockWorkspace) -> None:
    """What the SDK would not send."""
    environment = workspace.environment()
    headers = {"Authorization": f"Bearer {environment['DATABRICKS_TOKEN']}"}
    good = {"statement": "SELECT 1", "warehouse_id": "x"}
    for body, status in (
        ({"statement": "SELECT 1"}, 400),
        ({"warehouse_id": "x"}, 400),
        ({**good, "format": "XML"}, 400),
        ({**good, "on_wait_timeout": "PANIC"}, 400),
        ({**good, "parameters": ["x"]}, 400),
        (good, 404),
    ):
        answer = requests.post(f"{workspace.url}{_PATH}", json=body, headers=headers, timeout=10)
        assert answer.status_code == status, body
        assert answer.json()["error_code"]
