from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from tests.query.samples import service_span
from tests.spans.samples import START, TRACE_ID, span
from tracelake.query.text import display_width, duration_text, fit
from tracelake.query.traces import Trace
from tracelake.query.tree import Style, render
from tracelake.spans.record import SpanRecord

MS = 1_000_000


def at(number: int, start_ms: float, took_ms: float, parent: int | None = None, **fields: Any) -> SpanRecord:
    start = START + int(start_ms * MS)
    return span(
        number,
        start_time_unix_nano=start,
        end_time_unix_nano=start + int(took_ms * MS),
        parent_span_id=None if parent is None else f"{parent:016x}",
        **fields,
    )


def tree(records: Iterable[SpanRecord], **style: Any) -> str:
    return "\n".join(render(Trace.of(TRACE_ID, records), Style(**style)))


def body(records: Iterable[SpanRecord], **style: Any) -> list[str]:
    return tree(records, **style).split("took\n", 1)[1].split("\n")


def test_a_tree_shows_times_services_types_values_and_errors() -> None:
    """The whole picture, in 80 columns."""
    records = [
        service_span(1, "agent", name="answer", attributes={"mlflow.spanType": "AGENT", "mlflow.spanInputs": {"q": 1}}),
        service_span(
            2, "search", name="GET", kind=2, parent_span_id=f"{1:016x}", status_code=2, status_message="no\nanswer"
        ),
    ]
    records[0].end_time_unix_nano = START + 118 * MS
    records[1].start_time_unix_nano, records[1].end_time_unix_nano = START + 3 * MS, START + 5 * MS
    assert tree(records).split("\n") == [
        f"Trace {TRACE_ID}",
        "2 spans of 2 services, 118 ms, started 2025-10-09 08:53:20.123 UTC, 1 error",
        "",
        "       at      took",
        "     0 us    118 ms answer (AGENT, agent)",
        '                    │  in  {"q":1}',
        "  3.00 ms   2.00 ms └─ GET (SERVER, search)",
        "                          ERROR: no answer",
    ]


def test_a_stream_without_box_characters_gets_ascii() -> None:
    """Nothing of the drawing is lost."""
    text = tree([at(1, 0, 9), at(2, 1, 1, 1), at(3, 2, 1, 1), at(4, 2, 1, 2)], unicode=False)
    assert text.isascii()
    assert "|- span 2" in text
    assert "|  `- span 4" in text
    assert "`- span 3" in text


def test_several_roots_are_all_drawn_by_start() -> None:
    """A trace whose first service did not record has more than one."""
    lines = body([at(2, 5, 1), at(1, 0, 1), at(3, 6, 1, 2)])
    assert [line[20:] for line in lines] == ["span 1", "span 2", "└─ span 3"]


def test_spans_of_a_missing_parent_are_drawn_under_a_line_that_names_it() -> None:
    """So that nobody takes them for roots."""
    lines = body([at(1, 0, 1), at(2, 1, 1, 9), at(3, 2, 1, 9), at(4, 2, 1, 3)])
    assert [line[20:] for line in lines] == [
        "span 1",
        "(parent 0000000000000009 not in this table)",
        "├─ span 2",
        "└─ span 3",
        "   └─ span 4",
    ]


def test_parents_in_a_circle_are_each_drawn_once() -> None:
    """Also a span that is its own parent."""
    lines = body([at(1, 0, 1), at(2, 1, 1, 3), at(3, 2, 1, 2), at(4, 3, 1, 4)])
    assert [line[20:] for line in lines] == [
        "span 1",
        "(parents in a circle)",
        "└─ span 2",
        "   └─ span 3",
        "(parents in a circle)",
        "└─ span 4",
    ]


def test_duplicate_spans_are_drawn_once_and_counted() -> None:
    """At-least-once delivery repeats rows."""
    text = tree([at(1, 0, 1), at(1, 0, 1), at(1, 0, 2)])
    assert text.count("span 1") == 1
    assert "2 rows that repeat a span left out" in text
    assert "2.00 ms span 1" in text


def test_a_child_that_starts_before_its_parent_says_so() -> None:
    """Times count from the first span of the trace, so none is negative. Two services may have two clocks."""
    parent, child = at(1, 5, 10), at(2, 0, 20, 1)
    lines = [
        "  5.00 ms   10.0 ms span 1",
        "     0 us   20.0 ms └─ span 2",
        "                          starts 5.00 ms before its parent",
    ]
    assert body([parent, child]) == lines
    elsewhere = msgspec.structs.replace(child, resource=msgspec.Raw(b'{"attributes":{"service.name":"other"}}'))
    assert body([parent, elsewhere])[2] == f"{lines[2]}: the clocks differ"


def test_a_span_that_outlives_its_root_counts_for_the_length_of_the_trace() -> None:
    """Work in the background ends after the answer."""
    assert "2 spans, 30.0 ms" in tree([at(1, 0, 10), at(2, 10, 20, 1)])


def test_a_span_that_ends_before_it_starts_is_drawn() -> None:
    """Clocks are set back."""
    assert body([at(1, 5, -2)]) == ["     0 us  -2.00 ms span 1"]


@pytest.mark.parametrize("name", ["\x1b[2Jgone", "a\nb", "a\rb", "\x9b31m", "a\u202eb", "\x00"])
def test_a_name_cannot_speak_to_the_terminal(name: str) -> None:
    """Names come from anywhere."""
    records = [
        at(1, 0, 1, name=name, status_code=2, status_message=name, attributes={"mlflow.spanInputs": name}),
        at(2, 0, 1, 1, attributes={"mlflow.spanType": name, "mlflow.spanOutputs": {name: name}}),
    ]
    assert all(line.isprintable() for line in render(Trace.of(TRACE_ID, records), Style()))


def test_an_empty_name_is_shown_as_such() -> None:
    """A line without a name would look like a mistake of ours."""
    assert body([at(1, 0, 1, name="")])[0].endswith("(no name)")


def test_no_line_is_wider_than_asked_for() -> None:
    """Long names, wide characters, huge values."""
    records = [
        at(1, 0, 1, name="n" * 500, attributes={"mlflow.spanInputs": "x" * 10_000_000}),
        at(2, 0, 1, 1, name="漢字" * 100, status_code=2, status_message="m" * 500),
    ]
    lines = tree(records).split("\n")
    assert max(map(display_width, lines)) <= 80
    assert any(display_width(line) >= 79 for line in lines)


def test_colours_are_only_used_when_asked_for() -> None:
    """And change nothing but the colours."""
    records = [at(1, 0, 1, status_code=2), at(2, 0, 1, 1)]
    coloured = tree(records, colour=True)
    assert "\x1b[31m" in coloured
    for code in ("0", "1", "2", "31"):
        coloured = coloured.replace(f"\x1b[{code}m", "")
    assert coloured == tree(records)


@pytest.mark.parametrize("shape", ["chain", "fan", "circle"])
@pytest.mark.slow
def test_a_hundred_thousand_spans_are_drawn_in_linear_time(shape: str) -> None:
    """However deep or wide, each takes a line of bounded length."""
    count = 100_000
    parents = {
        "chain": lambda number: number - 1 or None,
        "fan": lambda number: 1 if number > 1 else None,
        "circle": lambda number: number - 1 or count,
    }[shape]
    records = [at(number, number, 1, parents(number)) for number in range(1, count + 1)]
    started_s = time.monotonic()
    lines = body(records)
    assert time.monotonic() - started_s < 20
    assert sum(bool(line[:20].strip()) for line in lines) == count
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [
        (0, "0 us"),
        (999_999, "999 us"),
        (1_000_000, "1.00 ms"),
        (9_996_000, "10.0 ms"),
        (118_400_000, "118 ms"),
        (999_600_000, "1.00 s"),
        (59_960_000_000, "1 m 00 s"),
        (185_000_000_000, "3 m 05 s"),
        (7_800_000_000_000, "2 h 10 m"),
        (180_000_000_000_000, "2 d 02 h"),
        (-1_500_000, "-1.50 ms"),
    ],
)
def test_durations_have_three_digits_and_a_unit(duration_ns: int, text: str) -> None:
    """Also at the edges, where rounding would make 1000 ms."""
    assert duration_text(duration_ns) == text


def test_fit_cuts_to_columns() -> None:
    """Whatever the width."""
    assert [fit("abcdef", width) for width in (0, 2, 3, 5, 6)] == ["", "..", "...", "ab...", "abcdef"]
