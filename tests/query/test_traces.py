from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from tests.query.samples import full_span, write_table
from tests.spans.samples import TRACE_ID, span
from tracelake.destinations.targets import parse_target
from tracelake.errors import QueryError, TraceNotFoundError
from tracelake.query.traces import Trace, get_trace, parse_trace_id
from tracelake.spans.line import resource_of


@pytest.mark.parametrize("version", [1, 2])
def test_get_trace_returns_the_spans_of_one_trace_by_start(tmp_path: Path, version: int) -> None:
    """Spans of other traces in the same file are left out."""
    records = [span(2, parent_span_id=f"{1:016x}"), full_span(1), span(3, trace_id="f" * 32)]
    trace = get_trace(TRACE_ID, write_table(tmp_path / "table", records, version))
    assert [item.span_id for item in trace.spans] == [f"{1:016x}", f"{2:016x}"]
    assert trace.roots == (trace.spans[0],)
    assert trace.children(trace.spans[0]) == (trace.spans[1],)
    assert resource_of(trace.spans[0]).attributes == {"service.name": "search"}


def test_get_trace_gathers_a_trace_from_several_commits_and_leaves_out_repeated_spans(tmp_path: Path) -> None:
    """A span that was delivered twice is there once, and the trace says so."""
    write_table(tmp_path / "table", [span(1), span(2)])
    trace = get_trace(TRACE_ID, write_table(tmp_path / "table", [span(2), span(3)], number=2))
    assert [int(item.span_id) for item in trace.spans] == [1, 2, 3]
    assert trace.duplicates == 1


@pytest.mark.parametrize(
    "text",
    [
        TRACE_ID,
        TRACE_ID.upper(),
        f"tr-{TRACE_ID}",
        f"trace:/main.obs/{TRACE_ID}",
        f"trace:/a/b/{TRACE_ID}",
        f" {TRACE_ID}\n",
        "0af76519-16cd-43dd-8448-eb211c80319c",
    ],
)
def test_a_trace_id_is_known_in_all_its_spellings(text: str) -> None:
    """MLflow, OpenTelemetry and people write it differently."""
    assert parse_trace_id(text) == TRACE_ID


@pytest.mark.parametrize("text", ["", "x", TRACE_ID[:-1], TRACE_ID + "0", f"{TRACE_ID}' OR ''='", "tr-", "-" * 32])
def test_what_is_no_trace_id_is_refused(text: str) -> None:
    """Nothing but hexadecimal digits gets into a query."""
    with pytest.raises(QueryError, match=r"is not a trace id\. Give its 32 hex digits"):
        parse_trace_id(text)


def test_a_trace_that_is_not_there_is_answered_with_what_to_do(tmp_path: Path) -> None:
    """The spans may still be on their way, or elsewhere."""
    destination = write_table(tmp_path / "table", [span(1)])
    with pytest.raises(TraceNotFoundError, match=r"no span of trace e{32}\. .*flush.*tracelake status.*--target"):
        get_trace("e" * 32, destination)


def test_a_missing_table_is_answered_with_what_to_do(tmp_path: Path) -> None:
    """Reading makes no table."""
    with pytest.raises(QueryError, match=r"There is no table at .*/none\. Look with `tracelake status`"):
        get_trace(TRACE_ID, parse_target(str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()


def test_a_table_of_something_else_is_not_read(tmp_path: Path) -> None:
    """The message says which columns a span table has."""
    write_deltalake(str(tmp_path / "other"), pa.table({"x": [1]}))
    with pytest.raises(QueryError, match=r"cannot be read as spans\. .*columns x.*trace_id"):
        get_trace(TRACE_ID, parse_target(str(tmp_path / "other")))


def test_a_table_with_a_lost_file_is_a_query_error(tmp_path: Path) -> None:
    """What delta-rs says is in the message."""
    destination = write_table(tmp_path / "table", [span(1)])
    for file in (tmp_path / "table").glob("*.parquet"):
        file.unlink()
    with pytest.raises(QueryError, match=r"cannot be read: .*Check the path"):
        get_trace(TRACE_ID, destination)


def test_a_trace_knows_its_orphans_and_its_time() -> None:
    """A parent that is not there is named."""
    records = [span(1), span(2, parent_span_id="9" * 16, end_time_unix_nano=span(1).start_time_unix_nano + 5_000)]
    trace = Trace.of(TRACE_ID, records)
    assert trace.orphans == {"9" * 16: (trace.spans[1],)}
    assert trace.start_time_unix_nano == trace.spans[0].start_time_unix_nano
    assert trace.duration_ns == 5_000
