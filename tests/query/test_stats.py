"""What the spans of a table come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.destinations.unity.conftest import prepare
from tests.query.samples import service_span, write_table
from tests.query.test_warehouse import NAME, close_files
from tests.spans.samples import START
from tracelake.destinations.base import Batch
from tracelake.destinations.targets import parse_target
from tracelake.query import stats as stats_module
from tracelake.query.infos import Tokens
from tracelake.query.stats import By, Group, Stats, stats
from tracelake.spans.record import SpanRecord
from tracelake.testing import MockWorkspace

VERSIONS = pytest.mark.parametrize("version", [1, 2])
ALL: tuple[By, ...] = ("service", "name", "model")
END = START + 10**12


def took(number: int, nanoseconds: int, service: str = "agent", **fields: Any) -> SpanRecord:
    start = START + number
    return service_span(number, service, start_time_unix_nano=start, end_time_unix_nano=start + nanoseconds, **fields)


def model(number: int, name: str, **attributes: Any) -> SpanRecord:
    return took(number, 10, name="chat", attributes={"gen_ai.request.model": name, **attributes})


USAGE = {"input_tokens": 5, "output_tokens": 2}
# A hundred calls, of which five failed; the calls of two models; one of them there twice; and one that is too late.
RECORDS = [
    *[took(number, number, "search", name="find", status_code=2 if number <= 5 else 1) for number in range(1, 101)],
    model(201, "small", **{"gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 20}),
    model(202, "asked", **{"mlflow.llm.model": "large", "mlflow.chat.tokenUsage": USAGE}),
    model(203, "large", **{"mlflow.chat.tokenUsage": USAGE, "mlflow.llm.cost": {"total_cost": 0.25}}),
    model(204, "odd", **{"mlflow.chat.tokenUsage": "no {JSON", "mlflow.llm.cost": "much"}),
    model(203, "large", **{"mlflow.chat.tokenUsage": USAGE, "mlflow.llm.cost": {"total_cost": 0.25}}),
    took(205, -5, "batch", name="going on"),
    service_span(206, "late", start_time_unix_nano=END, end_time_unix_nano=END),
]
EXPECTED: dict[By, list[Group]] = {
    "service": [
        Group("search", 100, 5, 50, 95, 99),
        Group("agent", 4, 0, 10, 10, 10),
        Group("batch", 1, 0, None, None, None),
    ],
    "name": [
        Group("find", 100, 5, 50, 95, 99),
        Group("chat", 4, 0, 10, 10, 10),
        Group("going on", 1, 0, None, None, None),
    ],
    "model": [
        Group("large", 2, 0, 10, 10, 10, Tokens(10, 4, 0.25)),
        Group("odd", 1, 0, 10, 10, 10, Tokens(0, 0, None)),
        Group("small", 1, 0, 10, 10, 10, Tokens(10, 20, None)),
    ],
}


@VERSIONS
def test_stats_by_service_name_and_model(tmp_path: Path, version: int) -> None:
    """Each span counts once, whichever version the table has; what nothing can be read of counts for nothing."""
    destination = write_table(tmp_path / "table", RECORDS, version)
    assert stats(destination, ALL, START, END) == Stats(106, True, EXPECTED)


@VERSIONS
def test_stats_by_a_warehouse(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same."""
    with MockWorkspace() as workspace:
        prepare(workspace, monkeypatch)
        workspace.create_table(NAME, schema_version=1 if version == 1 else 2)
        assert not parse_target(NAME).open().write(Batch("tests", 1, 1_000, lambda: iter([RECORDS])))
        close_files(workspace)
        assert stats(parse_target(NAME), ALL, START, END).groups == EXPECTED
        assert workspace.requests("/api/2.0/sql/statements")


def test_rows_of_a_large_table_are_counted_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the answer says so."""
    destination = write_table(tmp_path / "table", RECORDS)
    monkeypatch.setattr(stats_module, "MAX_DISTINCT", 105)
    found = stats(destination, ("model",), START, END)
    assert not found.distinct
    assert [(group.name, group.spans) for group in found.groups["model"]] == [("large", 3), ("odd", 1), ("small", 1)]


def test_no_spans_have_no_groups(tmp_path: Path) -> None:
    """Of no time at all."""
    destination = write_table(tmp_path / "table", RECORDS)
    assert stats(destination, ALL, 0, START) == Stats(0, True, {"service": [], "name": [], "model": []})
