from __future__ import annotations

import json

import pytest

from tests.cli.commands import Place
from tests.query.samples import full_span, write_table
from tests.spans.samples import TRACE_ID, span
from tracelake.cli.sql import table_lines


def test_sql_prints_an_aligned_table(place: Place) -> None:
    """Data on stdout, the count on stderr."""
    write_table(place.path / "table", [full_span(1), span(2)])
    result = place.run("sql", "SELECT name, flags FROM spans ORDER BY name", "--target", "./table")
    assert result.code == 0
    assert result.out == "name    flags\n------  -----\nspan 1      0\nspan 2      0\n"
    assert result.err.splitlines()[-1] == "(2 rows)"  # a slow machine is told before that the query goes on


def test_sql_prints_rows_as_blocks_when_there_are_too_many_columns(place: Place) -> None:
    """A line a value, none wider than the terminal."""
    write_table(place.path / "table", [full_span(1)], 2)
    lines = place.call("sql", "SELECT * FROM spans", "--target", "./table").out.splitlines()
    assert lines[0] == "-- row 1"
    assert any(line.startswith("trace_id ") and line.endswith(TRACE_ID) for line in lines)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("version", [1, 2])
def test_sql_json_prints_one_object_a_row(place: Place, version: int) -> None:
    """Times, bytes and decimals have a JSON form, too."""
    write_table(place.path / "table", [full_span(1)], version)
    query = (
        "SELECT name, attributes, 'nan'::DOUBLE AS nan, 'x'::BLOB AS bytes, sum(flags) OVER () AS total, "
        "TIMESTAMP '2026-01-02 03:04:05' AS at, INTERVAL 1 DAY AS day FROM spans"
    )
    found = json.loads(place.call("sql", query, "--target", "./table", "--json").out)
    assert found["attributes"]["count"] == (3 if version == 2 else "3")
    assert (found["nan"], found["bytes"], found["total"]) == (None, "eA==", 0)
    assert found["at"] == "2026-01-02T03:04:05"


def test_sql_explain_prints_the_plan(place: Place) -> None:
    """Lines and all."""
    write_table(place.path / "table", [span(1)])
    result = place.call("sql", "EXPLAIN SELECT name FROM spans", "--target", "./table")
    assert len(result.out.splitlines()) > 3


def test_a_wrong_query_fails_with_the_words_of_duckdb(place: Place) -> None:
    """Exit code 1, and nothing on stdout."""
    write_table(place.path / "table", [span(1)])
    result = place.call("sql", "SELECT nothing FROM spans", "--target", "./table")
    assert (result.code, result.out) == (1, "")
    assert "nothing" in result.err
    assert 'tracelake sql "DESCRIBE spans"' in result.err


def test_ids_are_cut_last() -> None:
    """They are there to be copied."""
    row = {"trace_id": TRACE_ID, "inputs": "x" * 300, "outputs": "y" * 300}
    lines = list(table_lines(iter([row]), list(row), 80))
    assert TRACE_ID in lines[2]
    assert max(map(len, lines)) == 80


def test_an_empty_result_has_its_columns() -> None:
    """So that one sees what was asked for."""
    assert list(table_lines(iter([]), ["name"], 80)) == ["name", "----"]
