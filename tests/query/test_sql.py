from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.query.samples import full_span, write_table
from tests.spans.samples import TRACE_ID, span
from tracelake.destinations.base import Destination
from tracelake.destinations.targets import parse_target
from tracelake.errors import QueryError
from tracelake.query.sql import rows_of, sql

VERSIONS = pytest.mark.parametrize("version", [1, 2])


def table(path: Path, version: int = 1) -> Destination:
    return write_table(path / "table", [full_span(1), span(2, parent_span_id=f"{1:016x}")], version)


def rows(query: str, destination: Destination) -> list[dict[str, Any]]:
    return list(rows_of(sql(query, destination)))


@VERSIONS
def test_attributes_are_read_by_key_in_both_versions_of_the_schema(tmp_path: Path, version: int) -> None:
    """MAP and VARIANT alike, also inside structs."""
    query = """
        SELECT attributes['mlflow.spanType']::VARCHAR AS type, attributes['count']::INT AS count,
               resource.attributes['service.name']::VARCHAR AS service, attributes['it''s']::VARCHAR AS quoted
        FROM spans WHERE parent_span_id IS NULL
    """
    assert rows(query, table(tmp_path, version)) == [
        {"type": "TOOL", "count": 3, "service": "search", "quoted": 'a "quote"'}
    ]


@VERSIONS
def test_events_and_links_are_read_with_their_attributes(tmp_path: Path, version: int) -> None:
    """VARIANTs inside lists of structs are real ones, too."""
    query = """
        SELECT events[1].attributes['exception.type']::VARCHAR AS type, links[1].attributes['linked']::BOOL AS linked,
               len(events) AS events
        FROM spans ORDER BY span_id
    """
    assert rows(query, table(tmp_path, version)) == [
        {"type": "ValueError", "linked": True, "events": 1},
        {"type": None, "linked": None, "events": 0},
    ]


def test_nested_values_of_a_variant_are_reached(tmp_path: Path) -> None:
    """As VARIANT, and as JSON."""
    query = """
        SELECT attributes['mlflow.spanInputs'].q[1]::INT AS first, attributes['mlflow.spanInputs']::JSON AS inputs
        FROM spans WHERE name = 'span 1'
    """
    assert rows(query, table(tmp_path, 2)) == [{"first": 1, "inputs": '{"q":[1,null]}'}]


@VERSIONS
def test_whole_rows_come_out_as_plain_values(tmp_path: Path, version: int) -> None:
    """Dicts for MAP and VARIANT, wherever they are."""
    first = rows("SELECT * FROM spans ORDER BY span_id", table(tmp_path, version))[0]
    assert first["attributes"]["mlflow.spanInputs"] == ({"q": [1, None]} if version == 2 else '{"q":[1,null]}')
    assert first["events"][0]["attributes"] == {"exception.type": "ValueError", "n": 1.5 if version == 2 else "1.5"}
    assert first["resource"]["attributes"] == {"service.name": "search"}
    assert first["trace_id"] == TRACE_ID


def test_variants_inside_lists_and_structs_of_a_result_are_decoded(tmp_path: Path) -> None:
    """Wherever a query puts them; a null is a null."""
    query = """
        SELECT [attributes['count'], NULL] AS list, {'a': attributes['mlflow.spanInputs']} AS struct,
               attributes['nothing'] AS nothing, events
        FROM spans ORDER BY span_id
    """
    first, second = rows(query, table(tmp_path, 2))
    assert (first["list"], first["struct"], first["nothing"]) == ([3, None], {"a": {"q": [1, None]}}, None)
    assert first["events"][0]["attributes"] == {"exception.type": "ValueError", "n": 1.5}
    assert (second["list"], second["struct"], second["events"]) == ([None, None], {"a": None}, [])


@VERSIONS
def test_a_filter_on_the_trace_id_reaches_the_scan(tmp_path: Path, version: int) -> None:
    """Or a lookup would read the whole table."""
    destination = table(tmp_path, version)
    write_table(tmp_path / "table", [span(number, trace_id=f"{number:032x}") for number in (3, 4)], version, number=2)
    plan = rows(f"EXPLAIN SELECT name FROM spans WHERE trace_id = '{TRACE_ID}'", destination)
    shown = re.sub(r'[\s│"]+', "", plan[0]["explain_value"])
    assert f"trace_id='{TRACE_ID}'" in shown
    assert "attributes" not in plan[0]["explain_value"]


@pytest.mark.parametrize(
    "query", ["DESCRIBE spans", "FROM spans", "WITH a AS (FROM spans) SELECT * FROM a", "VALUES (1)"]
)
def test_what_only_reads_is_run(tmp_path: Path, query: str) -> None:
    """Not only SELECT."""
    assert rows(query, table(tmp_path))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "0 statements"),
        ("-- nothing", "0 statements"),
        ("SELECT 1; SELECT 2", "2 statements"),
        ("DROP VIEW spans", "kind DROP"),
        ("CREATE TABLE x (i INT)", "kind CREATE"),
        ("COPY spans TO 'spans.csv'", "kind COPY"),
        ("ATTACH 'other.db'", "kind ATTACH"),
        ("SET threads = 1", "kind SET"),
        ("SELEC 1", "syntax error"),
        ("SELECT nothing FROM spans", "DuckDB refuses .*nothing"),
        ("SELECT * FROM elsewhere", "DuckDB refuses .*elsewhere"),
        ("SELECT name::INT FROM spans", "DuckDB refuses .*INT32"),
        ("EXPLAIN DROP VIEW spans; SELECT 1", "2 statements"),
    ],
)
def test_what_is_wrong_or_does_not_only_read_is_a_query_error(tmp_path: Path, query: str, message: str) -> None:
    """With DuckDB's own words, and something to try."""
    with pytest.raises(QueryError, match=rf"(?s){message}.*tracelake sql"):
        sql(query, table(tmp_path))


@pytest.mark.parametrize("source", ["read_text('{path}')", "'{path}'", "read_csv('{path}')", "glob('{path}')"])
def test_no_other_file_is_read(tmp_path: Path, source: str) -> None:
    """A query may come from somebody else."""
    secret = tmp_path / "secret.csv"
    secret.write_text("secret\n1\n")
    with pytest.raises(QueryError, match="DuckDB refuses"):
        sql(f"SELECT * FROM {source.format(path=secret)}", table(tmp_path))


def test_a_missing_table_is_a_query_error(tmp_path: Path) -> None:
    """Before DuckDB sees it."""
    with pytest.raises(QueryError, match="There is no table at"):
        sql("FROM spans", parse_target(str(tmp_path / "none")))
