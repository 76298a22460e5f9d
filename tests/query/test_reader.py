"""Tables opened for SQL: what of their files is read, and what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, Field, write_deltalake
from deltalake.schema import ArrayType, PrimitiveType

from tests.query.deletion import delete_rows
from tests.query.samples import full_span, write_table
from tests.spans.samples import TRACE_ID, span
from tracelake.destinations.base import Destination
from tracelake.destinations.targets import parse_target
from tracelake.errors import QueryError
from tracelake.query.reader import FilesReader, open_reader
from tracelake.query.sql import rows_of, sql
from tracelake.query.traces import get_trace

VERSIONS = pytest.mark.parametrize("version", [1, 2])
SPANS = [full_span(1), span(2, parent_span_id=f"{1:016x}"), span(3, parent_span_id=f"{1:016x}")]


def ids(destination: Destination, query: str = "SELECT span_id FROM spans ORDER BY span_id") -> list[int]:
    """Return the numbers of the spans that a query finds."""
    return [int(row["span_id"], 16) for row in rows_of(sql(query, destination))]


def test_row_that_a_deletion_vector_marks_is_not_there(tmp_path: Path) -> None:
    """Neither by SQL nor by the trace id, whichever file it is in; the rows around it are."""
    destination = write_table(tmp_path / "table", SPANS)
    write_table(tmp_path / "table", [span(4), span(5)], number=2)
    delete_rows(tmp_path / "table", [0])
    assert ids(destination) == [1, 2, 3, 5]
    assert ids(destination, f"SELECT span_id FROM spans WHERE trace_id = '{TRACE_ID}' ORDER BY 1") == [1, 2, 3, 5]
    assert [int(each.span_id, 16) for each in get_trace(TRACE_ID, destination).spans] == [1, 2, 3, 5]
    assert rows_columns(destination) == rows_columns(write_table(tmp_path / "other", SPANS))


def rows_columns(destination: Destination) -> list[str]:
    return list(sql("SELECT * FROM spans", destination).column_names)


@pytest.mark.parametrize("positions", [[0, 2], [0, 1, 2]])
def test_table_whose_every_file_has_deletion_vectors(tmp_path: Path, positions: list[int]) -> None:
    """Also if nothing is left."""
    destination = write_table(tmp_path / "table", SPANS)
    delete_rows(tmp_path / "table", positions)
    assert ids(destination) == [each for each in (1, 2, 3) if each - 1 not in positions]


def add_file(table: Path, rows: pa.Table) -> None:
    """Commit a file with the columns that it has."""
    pq.write_table(rows, table / "few.parquet")
    log = table / "_delta_log"
    add = {"path": "few.parquet", "size": (table / "few.parquet").stat().st_size, "partitionValues": {}}
    action = {"add": {**add, "modificationTime": 1, "dataChange": True}}
    (log / f"{len(list(log.glob('*.json'))):020d}.json").write_text(json.dumps(action))


@VERSIONS
@pytest.mark.parametrize("is_last", [True, False], ids=["newer file", "older file"])
def test_file_with_fewer_columns_than_the_table_has(tmp_path: Path, version: int, is_last: bool) -> None:
    """As from before a column was added, or of a writer that leaves out what is null; the column is null there."""
    destination = write_table(tmp_path / "table", SPANS[:1], version)
    add_file(tmp_path / "table", pa.table({"trace_id": [TRACE_ID], "span_id": [f"{9:016x}"], "name": ["few"]}))
    if not is_last:
        write_table(tmp_path / "table", SPANS[1:2], version, number=3)
    expected = [1, 9] if is_last else [1, 2, 9]
    assert ids(destination) == expected
    found = list(rows_of(sql("SELECT name, kind FROM spans ORDER BY span_id", destination)))
    assert (found[-1], found[0]["kind"]) == ({"name": "few", "kind": None}, "SPAN_KIND_INTERNAL")
    with open_reader(destination) as reader:
        assert [reader.run("SELECT kind FROM spans").num_rows for _ in range(2)] == [len(expected)] * 2


@VERSIONS
def test_column_that_no_file_has(tmp_path: Path, version: int) -> None:
    """It was added to the table, and nothing has been written since."""
    destination = write_table(tmp_path / "table", SPANS[:1], version)
    kind = ArrayType(PrimitiveType("integer"), contains_null=True)
    DeltaTable(str(tmp_path / "table")).alter.add_columns(
        [Field("teams", kind), Field("team", PrimitiveType("string"))]
    )
    assert list(rows_of(sql("SELECT name, teams, team FROM spans", destination))) == [
        {"name": "span 1", "teams": None, "team": None}
    ]


@VERSIONS
def test_column_that_is_none_of_a_spans(tmp_path: Path, version: int) -> None:
    """A table may have more, which SQL shows, in old files and in new ones."""
    destination = write_table(tmp_path / "table", SPANS[:1], version)
    more = pa.table({"trace_id": [TRACE_ID], "span_id": [f"{9:016x}"], "team": ["search"]})
    write_deltalake(str(tmp_path / "table"), more, mode="append", schema_mode="merge")
    found = list(rows_of(sql("SELECT span_id, team FROM spans ORDER BY span_id", destination)))
    assert [row["team"] for row in found] == [None, "search"]


def test_partitioned_table(tmp_path: Path) -> None:
    """What is in the names of its directories is a column."""
    destination = write_table(tmp_path / "table", SPANS[:2])
    rows = DeltaTable(str(tmp_path / "table")).to_pyarrow_table()
    write_deltalake(str(tmp_path / "parts"), rows, partition_by=["name"])
    parts = parse_target(str(tmp_path / "parts"))
    assert ids(parts) == ids(destination)
    assert ids(parts, "SELECT span_id FROM spans WHERE name = 'span 2'") == [2]


@pytest.mark.parametrize("name", ['it\'s; a "table"', "ein Tisch für ☃", "t*"], ids=ascii)
def test_directory_whose_name_is_no_plain_one(tmp_path: Path, name: str) -> None:
    """It is a part of the SQL that reads the files, and a star there is no pattern."""
    write_table(tmp_path / "table", [span(9)])
    destination = write_table(tmp_path / name, SPANS)
    assert ids(destination) == [1, 2, 3]
    delete_rows(tmp_path / name, [1])
    assert "*" in name or ids(destination) == [1, 3]


def test_table_is_as_it_was_when_it_was_opened(tmp_path: Path) -> None:
    """So that the parts of an answer fit together."""
    destination = write_table(tmp_path / "table", SPANS[:1])
    with open_reader(destination) as reader:
        assert reader.run("FROM spans").num_rows == 1
        write_table(tmp_path / "table", SPANS[1:], number=2)
        assert reader.run("FROM spans").num_rows == 1
    assert ids(destination) == [1, 2, 3]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_text('{path}/secret')",
        "SELECT * FROM read_parquet('{path}/*.parquet')",
        "SELECT * FROM glob('{path}/*')",
        "SELECT * FROM read_csv('https://127.0.0.1:9/a.csv')",
    ],
)
def test_other_files_are_out_of_reach(tmp_path: Path, query: str) -> None:
    """Also those beside the table, and what is not the table's any more."""
    destination = write_table(tmp_path / "table", SPANS)
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(QueryError, match=r"disabled by configuration|Cannot access"):
        sql(query.format(path=tmp_path), destination)


@pytest.mark.parametrize(
    "statement", ["SET enable_external_access = true", "COPY spans TO '{path}/out'", "SELECT 1; SELECT 2"]
)
def test_what_does_more_than_read_is_refused(tmp_path: Path, statement: str) -> None:
    """Nothing is changed or written."""
    destination = write_table(tmp_path / "table", SPANS)
    with pytest.raises(QueryError, match=r"only what reads is run|one is run at a time"):
        sql(statement.format(path=tmp_path), destination)
    assert not (tmp_path / "out").exists()


def test_annotations_are_there_without_a_table_of_them(tmp_path: Path) -> None:
    """As a relation with no rows, so that a query may join it."""
    destination = write_table(tmp_path / "spans", SPANS)
    found = sql("SELECT spans.span_id, value FROM spans LEFT JOIN annotations USING (trace_id)", destination)
    assert found.num_rows == 3
    assert found["value"].null_count == 3


def test_parameters_are_bound(tmp_path: Path) -> None:
    """No text of theirs is SQL."""
    with open_reader(write_table(tmp_path / "table", SPANS)) as reader:
        assert isinstance(reader, FilesReader)
        assert reader.run("FROM spans WHERE name = $name", {"name": "' OR true --"}).num_rows == 0
        assert reader.run("FROM spans WHERE name = $name", {"name": "span 2"}).num_rows == 1
