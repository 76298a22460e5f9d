"""Rows of other writers that lack what a span has, through all that reads: each is shown, and none crashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.query.samples import write_table
from tests.spans.samples import START, TRACE_ID, span
from tracelake.destinations.base import Destination
from tracelake.errors import QueryError
from tracelake.query.search import Search, TracePage, get_info, get_infos, search_traces
from tracelake.query.stats import stats
from tracelake.query.table import reading
from tracelake.query.traces import Trace, get_trace
from tracelake.query.tree import Style, render

ROOT = span(1, attributes={"mlflow.spanInputs": "why?"})
ODD: dict[str, dict[str, Any]] = {
    "nothing but its trace": {"trace_id": TRACE_ID},
    "no span id": {"trace_id": TRACE_ID, "parent_span_id": ROOT.span_id, "start_time_unix_nano": START},
    "no start": {"trace_id": TRACE_ID, "span_id": f"{2:016x}", "end_time_unix_nano": START},
    "no end": {"trace_id": TRACE_ID, "span_id": f"{2:016x}", "start_time_unix_nano": START},
    "an id that is no hex": {"trace_id": TRACE_ID, "span_id": "<b>the second</b>", "start_time_unix_nano": START},
    "its own parent": {"trace_id": TRACE_ID, "span_id": f"{2:016x}", "parent_span_id": f"{2:016x}"},
    "an empty status": {"trace_id": TRACE_ID, "span_id": f"{2:016x}", "status": {}},
    "a status that nobody knows": {"trace_id": TRACE_ID, "span_id": f"{2:016x}", "status": {"code": "FINE"}},
    "a time before 1970": {"trace_id": TRACE_ID, "span_id": f"{2:016x}", "start_time_unix_nano": -1},
    "the last time": {"trace_id": TRACE_ID, "span_id": f"{2:016x}", "start_time_unix_nano": 2**63 - 1},
    "events and links that are none": {"trace_id": TRACE_ID, "span_id": f"{2:016x}", "events": [None], "links": [None]},
    "no trace": {"span_id": f"{2:016x}", "start_time_unix_nano": START + 9},
    "a trace id that is none": {"trace_id": "'); --", "span_id": f"{2:016x}", "start_time_unix_nano": START + 9},
}


def add_row(destination: Destination, row: dict[str, Any]) -> None:
    """Append a row in the columns that it has, with what is wrong in it."""
    schema = DeltaTable(destination.target).to_pyarrow_dataset().schema
    fields = [field.with_nullable(True) for field in schema if field.name in row]
    write_deltalake(
        destination.target, pa.Table.from_pylist([row], pa.schema(fields)), mode="append", schema_mode="merge"
    )


@pytest.mark.parametrize("version", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("row", ODD.values(), ids=ODD)
def test_row(tmp_path: Path, version: int, row: dict[str, Any]) -> None:
    """The span beside it is as it would be without; the odd one is drawn, and listed with its trace."""
    destination = write_table(tmp_path / "table", [ROOT], version)
    add_row(destination, row)
    trace = get_trace(TRACE_ID, destination)
    is_in_trace = row.get("trace_id") == TRACE_ID
    assert trace.span(ROOT.span_id) is not None
    assert len(trace.spans) == 1 + is_in_trace
    assert trace.to_arrow().num_rows == len(trace.to_pandas()) == len(trace.spans)
    drawn = "\n".join(render(trace, Style(80, unicode=True, colour=False)))
    assert "span 1" in drawn
    assert "<b>the second</b>" not in trace._repr_html_()
    (found,) = get_infos(destination, [TRACE_ID])
    assert (found.span_count, get_info(destination, trace)) == (len(trace.spans), found)
    page = search_traces(destination, Search(max_results=1))
    assert [info.trace_id for info in page] == [TRACE_ID]
    assert "1 trace" in page._repr_html_()
    assert page.to_arrow().num_rows == len(page.to_pandas()) == 1
    for asked in (Search(text="why"), Search(filter="span.name = 'span 1'"), Search(order_by=["execution_time DESC"])):
        assert [info.trace_id for info in search_traces(destination, asked)] == [TRACE_ID]
    assert stats(destination, ("service", "name", "model"), 0, 2**62).groups["name"][0].spans >= 1


def test_picture_of_odd_rows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib.figure")
    destination = write_table(tmp_path / "table", [ROOT])
    for row in ODD.values():
        add_row(destination, row)
    get_trace(TRACE_ID, destination).plot().figure.savefig(tmp_path / "trace.png")
    assert (tmp_path / "trace.png").stat().st_size > 0


def test_mlflow_takes_no_id_that_is_no_hex(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    destination = write_table(tmp_path / "table", [ROOT])
    add_row(destination, ODD["an id that is no hex"])
    with pytest.raises(QueryError, match=r"'<b>the second</b>' is not 16 hex digits.*tracelake show"):
        get_trace(TRACE_ID, destination).to_mlflow()


def test_nothing_found_is_shown() -> None:
    assert "0 traces" in TracePage(())._repr_html_()
    assert list(render(Trace(TRACE_ID, ()), Style(80, unicode=True, colour=False)))


@pytest.mark.parametrize(
    ("said", "advice"),
    [("Unsupported reader feature", "pip install -U deltalake"), ("permission denied", "Check the path")],
)
def test_what_cannot_be_read_says_what_to_do(said: str, advice: str) -> None:
    with pytest.raises(QueryError, match=f"table main.obs.x cannot be read: {said}.*{advice}"), reading("main.obs.x"):
        raise OSError(said)
