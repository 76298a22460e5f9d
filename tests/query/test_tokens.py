"""What a trace says of tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tracelake
from tests.query.samples import write_table
from tests.spans.samples import TRACE_ID, span
from tracelake.query.tokens import tokens_of
from tracelake.query.traces import Trace
from tracelake.spans.record import SpanRecord

USAGE = {"input_tokens": 30, "output_tokens": 12, "total_tokens": 42}


def of(*spans: SpanRecord) -> tuple[int, int] | None:
    tokens = tokens_of(Trace.of(TRACE_ID, spans))
    return tokens and tokens[:2]


def using(number: int, usage: Any, parent: int | None = 1) -> SpanRecord:
    attributes = {"mlflow.chat.tokenUsage": usage}
    return span(number, attributes=attributes, parent_span_id=None if parent is None else f"{parent:016x}")


@pytest.mark.parametrize("version", [1, 2])
def test_calls_of_a_trace_are_summed_up(tmp_path: Path, version: int) -> None:
    """By either convention, from tables of both versions."""
    otel = {"gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 1}
    records = [span(1), using(2, USAGE), span(3, parent_span_id=f"{1:016x}", attributes=otel)]
    trace = tracelake.get_trace(TRACE_ID, target=write_table(tmp_path / "table", records, version))
    assert tokens_of(trace) == (37, 13, None)
    assert "37 tokens in and 13 out" in trace._repr_html_()


def test_sum_of_an_agent_is_not_added_to_its_calls() -> None:
    """Nor is a call below a span that says nothing; what is beside it counts."""
    agent, between, call, beside = (
        using(2, USAGE),
        span(3, parent_span_id=f"{2:016x}"),
        using(4, USAGE, 3),
        using(5, USAGE),
    )
    assert of(span(1), agent, between, call, beside) == (60, 24)
    assert of(using(1, USAGE, None), *(using(number, USAGE) for number in range(2, 9))) == (30, 12)


def test_orphans_count() -> None:
    """Their parents may not have come yet."""
    assert of(span(1), using(2, USAGE, 14), using(3, USAGE, 14)) == (60, 24)


def test_trace_that_says_nothing() -> None:
    """Has no tokens, which is not the same as none used."""
    assert of(span(1)) is None
    assert of(using(1, {"input_tokens": 0, "output_tokens": 0}, None)) == (0, 0)


@pytest.mark.parametrize(
    "usage",
    [
        "{",
        "[" * 100_000,
        '{"input_tokens": ' + "9" * 5_000 + "}",
        None,
        [1],
        {"input_tokens": -1},
        {"input_tokens": True},
        {"input_tokens": "9" * 5_000},
        {"input_tokens": 0.5},
        {"output_tokens": "²"},
        json.dumps({"output_tokens": None}),
    ],
    ids=range(11),
)
def test_nonsense_counts_for_nothing(usage: Any) -> None:
    """As foreign spans may have it."""
    assert of(using(1, usage, None)) == (0, 0)
