"""Figures of spans and traces, without MLflow; `tests/tracking/test_metrics.py` compares them with MLflow's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.destinations.unity.conftest import AGENT, prepare
from tests.query.samples import service_span, write_table
from tests.query.test_warehouse import NAME, READS_NESTED_WITH, close_files
from tests.spans.samples import START
from tracelake.destinations.base import Batch, Destination
from tracelake.destinations.targets import parse_target
from tracelake.errors import QueryError
from tracelake.query import annotate, metrics
from tracelake.query.filter import Clause
from tracelake.query.infos import Assessment
from tracelake.query.metrics import Aggregation, Metric, Row, View, measure
from tracelake.spans.record import SpanRecord
from tracelake.testing import MockWorkspace

VERSIONS = pytest.mark.parametrize("version", [1, 2])
MS = 10**6
COUNT = (Aggregation("count"),)
HALF = (Aggregation("percentile", 0.5),)


def took(trace: int, number: int, parent: int | None, milliseconds: int, **fields: Any) -> SpanRecord:
    return service_span(
        number,
        "agent",
        trace_id=f"{trace:032x}",
        parent_span_id=None if parent is None else f"{parent:016x}",
        start_time_unix_nano=START,
        end_time_unix_nano=START + milliseconds * MS,
        **fields,
    )


def using(count: int) -> dict[str, Any]:
    return {
        "mlflow.chat.tokenUsage": {"input_tokens": count, "output_tokens": 1, "total_tokens": count + 1},
        "mlflow.llm.cost": {"total_cost": count / 4},
        "gen_ai.request.model": "small",
    }


# Two traces; the agent of the second sums up a call that is two spans below it, beside another that is not.
RECORDS = [
    took(1, 1, None, 10, name="ask", status_code=2),
    took(1, 2, 1, 4, name="call", attributes=using(7)),
    took(1, 3, 1, 4, name="call", attributes=using(8)),
    took(2, 1, None, 30, name="ask", status_code=1),
    took(2, 2, 1, 20, name="agent", attributes=using(100)),
    took(2, 3, 2, 10, name="step"),
    took(2, 4, 3, 5, name="call", attributes=using(90)),
    took(2, 5, 1, 5, name="call", attributes=using(5)),
]


def ask(destination: Destination, view: View, name: str, how: tuple[Aggregation, ...], **asked: Any) -> list[Row]:
    return measure(destination, Metric(view, name, how, experiment_ids=("0",), **asked))


def check(destination: Destination) -> None:
    """See that a table of `RECORDS`, and an assessment of each trace, have their figures."""
    for trace, value in ((1, True), (2, 0.5)):
        annotate.log_assessment(destination, f"{trace:032x}", Assessment("", "feedback", "good", value))
    assert ask(destination, "traces", "trace_count", COUNT, by=("name", "status")) == [
        Row(None, ("ask", "ERROR"), (1.0,)),
        Row(None, ("ask", "OK"), (1.0,)),
    ]
    assert ask(destination, "traces", "latency", HALF) == [Row(None, (), (20.0,))]
    start_ms = START // MS
    day = {"start_ms": start_ms, "end_ms": start_ms, "interval_ms": 86_400_000}
    (row,) = ask(destination, "spans", "latency", HALF, of=[("name", "call")], **day)
    assert row == Row(start_ms - start_ms % 86_400_000, (), (4.5,))
    assert ask(destination, "traces", "trace_count", COUNT, **{**day, "start_ms": start_ms + 1}) == []
    assert ask(destination, "spans", "total_cost", (Aggregation("sum"),), by=("model_name",)) == [
        Row(None, ("small",), (52.5,))
    ]
    failed = Clause("attribute", "state", "=", "ERROR")
    assert ask(destination, "assessments", "assessment_value", (Aggregation("avg"),), by=("name",)) == [
        Row(None, ("good",), (0.75,))
    ]
    assert ask(destination, "assessments", "assessment_count", COUNT, by=("value",), traces=[failed]) == [
        Row(None, ("true",), (1.0,))
    ]


@VERSIONS
def test_figures(tmp_path: Path, version: int) -> None:
    """Whichever version the table has."""
    check(write_table(tmp_path / "table", RECORDS, version))


@READS_NESTED_WITH
@VERSIONS
@pytest.mark.slow
def test_figures_by_a_warehouse(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, but for the tokens, and that is said."""
    with MockWorkspace() as workspace:
        prepare(workspace, monkeypatch)
        workspace.create_table(NAME, schema_version=1 if version == 1 else 2)
        assert not parse_target(NAME).open().write(Batch("tests", 1, 1_000, lambda: iter([RECORDS])))
        workspace.grant("CREATE TABLE", on="main.obs", to=AGENT)
        close_files(workspace)
        destination = parse_target(NAME)
        check(destination)
        with pytest.raises(QueryError, match=r"(?s)cannot be summed up in .*tracelake stats --by model"):
            ask(destination, "traces", "total_tokens", COUNT)


@VERSIONS
def test_tokens_of_a_span_are_those_of_all_below_it(tmp_path: Path, version: int) -> None:
    """However many spans that say nothing are between them."""
    destination = write_table(tmp_path / "table", RECORDS, version)
    how = tuple(map(Aggregation, ("sum", "min", "max")))
    assert ask(destination, "traces", "total_tokens", how) == [Row(None, (), (124.0, 17.0, 107.0))]
    assert ask(destination, "traces", "output_tokens", how) == [Row(None, (), (4.0, 2.0, 2.0))]
    assert ask(destination, "traces", "cache_read_input_tokens", how) == [Row(None, (), (None, None, None))]


def test_parents_in_a_circle_end(tmp_path: Path) -> None:
    """As they do in a tree."""
    records = [took(1, 1, None, 9), took(1, 2, 3, 5, attributes=using(1)), took(1, 3, 2, 5), took(1, 4, 1, 5)]
    destination = write_table(tmp_path / "table", [*records, took(1, 5, 4, 1, attributes=using(2))])
    assert ask(destination, "traces", "input_tokens", (Aggregation("sum"),)) == [Row(None, (), (3.0,))]


def test_rows_of_a_large_table_are_counted_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A span that is there twice counts once, unless there are very many."""
    destination = write_table(tmp_path / "table", [*RECORDS, RECORDS[1]])
    assert ask(destination, "spans", "span_count", COUNT) == [Row(None, (), (8.0,))]
    monkeypatch.setattr(metrics, "MAX_DISTINCT", 8)
    assert ask(destination, "spans", "span_count", COUNT) == [Row(None, (), (9.0,))]
    assert ask(destination, "traces", "trace_count", COUNT) == [Row(None, (), (2.0,))]
