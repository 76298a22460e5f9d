"""Which files are opened for a question, and what is kept for the next one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.query.samples import write_table
from tests.spans.samples import START, TRACE_ID, span
from tracelake.destinations.base import Destination
from tracelake.errors import QueryError
from tracelake.query import annotate, files_reader
from tracelake.query.files_reader import FilesReader
from tracelake.query.reader import open_reader, spans_of
from tracelake.query.relations import ALWAYS, Times
from tracelake.query.search import Search, search_traces
from tracelake.query.traces import get_trace

VERSIONS = pytest.mark.parametrize("version", [1, 2])
SPANS = [span(number, start_time_unix_nano=START + number, end_time_unix_nano=START + 99) for number in (1, 2, 3)]


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    files_reader._clean_up()


def of_three_files(path: Path, version: int = 1) -> Destination:
    for number, each in enumerate(SPANS, 1):
        destination = write_table(path, [each], version, number)
    return destination


def file_of(destination: Destination, number: int) -> Path:
    """Return the file that has one of the spans."""
    table = DeltaTable(destination.target)
    actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    (found,) = (each["path"] for each in actions if each["min.start_time_unix_nano"] == START + number)
    return Path(destination.target, found)


def count(destination: Destination) -> int:
    with open_reader(destination) as reader:
        found: int = reader.run("SELECT count(*) AS n FROM spans")["n"][0].as_py()
        return found


@VERSIONS
def test_files_of_other_times_are_not_opened(tmp_path: Path, version: int) -> None:
    destination = of_three_files(tmp_path / "table", version)
    file_of(destination, 1).unlink()
    times = Times(START + 2, START + 3)
    where = " AND ".join(times.conditions())
    with open_reader(destination) as reader:
        assert [each.span_id for each in reader.spans(["*"], where, times)] == [f"{2:016x}"]
        assert reader.run(f"FROM spans WHERE {where}", times=Times(START + 3)).num_rows == 0
        with pytest.raises(QueryError, match="is not there"):
            reader.run("FROM spans")


@VERSIONS
def test_time_without_a_file_has_nothing(tmp_path: Path, version: int) -> None:
    times = Times(START + 100)
    with open_reader(of_three_files(tmp_path / "table", version)) as reader:
        assert reader.spans(["*"], " AND ".join(times.conditions()), times) == []
        assert reader.run("FROM spans").num_rows == 3


def test_times_of_traces(tmp_path: Path) -> None:
    """From the first of their spans to the last, and all time as long as one does not say when it started."""
    other = "a" * 32
    destination = of_three_files(tmp_path / "table")
    write_table(tmp_path / "table", [span(4, trace_id=other, start_time_unix_nano=START + 50)], number=4)
    with open_reader(destination) as reader:
        assert reader.times_of([TRACE_ID]) == Times(START + 1, START + 4)
        assert reader.times_of([TRACE_ID, other]) == Times(START + 1, START + 51)
        assert reader.times_of(["b" * 32]) == Times(0, 1)
    more = pa.table({"trace_id": [TRACE_ID], "span_id": [f"{9:016x}"], "name": ["at no time"]})
    write_deltalake(str(tmp_path / "table"), more, mode="append", schema_mode="merge")
    with open_reader(destination) as reader:
        assert reader.times_of([TRACE_ID]) == ALWAYS
    assert get_trace(TRACE_ID, destination).spans[0].name == "at no time"
    assert len(spans_of(destination, [TRACE_ID, other])) == 5


def test_connection_is_kept_for_the_same_table(tmp_path: Path) -> None:
    """As long as nothing fails and no other table is asked."""
    one, two = of_three_files(tmp_path / "one"), of_three_files(tmp_path / "two")
    with open_reader(one) as first:
        first.run("FROM spans")
    with open_reader(one) as second:
        second.run("FROM spans")
    assert second is first
    with pytest.raises(QueryError), open_reader(one) as third:
        third.run("FROM nothing")
    assert third is first
    assert not files_reader._kept
    for destination in (one, two, one):
        with open_reader(destination) as other:
            assert other.run("FROM spans").num_rows == 3
        assert other is not first


@VERSIONS
def test_what_came_meanwhile_is_there(tmp_path: Path, version: int) -> None:
    """Spans, columns, rows that were deleted, annotations, another table in the place of the first."""
    table = tmp_path / "table"
    destination = of_three_files(table, version)
    assert count(destination) == 3
    assert search_traces(destination, Search())[0].tags == {}
    annotate.set_tags(destination, TRACE_ID, {"team": "blue"})
    assert search_traces(destination, Search())[0].tags == {"team": "blue"}
    annotate.set_tags(destination, TRACE_ID, {"team": "red"})
    assert search_traces(destination, Search())[0].tags == {"team": "red"}
    write_table(table, [span(4)], version, number=4)
    assert count(destination) == 4
    DeltaTable(str(table)).delete(f"span_id = '{1:016x}'")
    assert count(destination) == 3
    more = pa.table({"trace_id": [TRACE_ID], "span_id": [f"{9:016x}"], "team": ["search"]})
    write_deltalake(str(table), more, mode="append", schema_mode="merge")
    with open_reader(destination) as reader:
        assert sorted(reader.run("SELECT team FROM spans")["team"].to_pylist(), key=str) == [None, None, None, "search"]
    shutil.rmtree(table)
    write_table(table, [span(5)], version)
    assert [each.span_id for each in get_trace(TRACE_ID, destination).spans] == [f"{5:016x}"]
    assert count(destination) == 1
    assert len(files_reader._kept) == 1


def test_threads_do_not_share_a_connection(tmp_path: Path) -> None:
    destination = of_three_files(tmp_path / "table")
    found: list[int] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        found.extend(count(destination) for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [3] * 40
    assert len(files_reader._kept) <= 1


FORK = """
import os, sys
import tracelake
target = sys.argv[1]
print(len(tracelake.search_traces(target=target)), flush=True)
child = os.fork()
if not child:
    try:
        tracelake.search_traces(target=target)
    except tracelake.QueryError as error:
        print(error, flush=True)
    sys.exit(0)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), len(tracelake.search_traces(target=target)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="macOS' own libraries do not survive fork()")
@pytest.mark.slow
def test_child_of_a_fork_ends(tmp_path: Path) -> None:
    """It is told why it cannot read, and does not wait for threads of DuckDB that only its parent has."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, of_three_files(tmp_path / "table").target],
        capture_output=True,
        text=True,
        timeout=60,
        env={key: value for key, value in os.environ.items() if not key.startswith("TRACELAKE_")},
    )
    first, told, last = done.stdout.splitlines()
    assert (first, last) == ("1", "0 1")
    assert "start the child by spawn" in told


def test_reader_for_users_is_not_kept(tmp_path: Path) -> None:
    """What is kept may read files that are not the table's any more."""
    destination = of_three_files(tmp_path / "table")
    old = file_of(destination, 1)
    DeltaTable(destination.target).delete(f"span_id = '{1:016x}'")
    with open_reader(destination, for_users=True) as reader:
        assert isinstance(reader, FilesReader)
        assert reader.run("FROM spans").num_rows == 2
        with pytest.raises(QueryError, match=r"disabled by configuration|Cannot access"):
            reader.run(f"SELECT * FROM read_parquet('{old}')")
    assert not files_reader._kept
