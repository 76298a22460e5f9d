"""A trace as a picture."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

import tracelake
from tests.query.samples import service_span
from tests.spans.samples import START, TRACE_ID, span
from tracelake.query.colours import ERROR
from tracelake.query.traces import Trace
from tracelake.spans.record import SpanRecord

MS = 1_000_000


@pytest.fixture(scope="module", autouse=True)
def matplotlib() -> Any:
    return pytest.importorskip("matplotlib.figure")


@pytest.fixture
def drawn() -> Iterator[list[Any]]:
    """Axes that are drawn once more at the end of a test, by the fonts and all."""
    axes: list[Any] = []
    yield axes
    for each in axes:
        each.figure.canvas.print_figure(io.BytesIO(), format="png")


def at(number: int, service: str, start_ms: float, took_ms: float, parent: int | None = 1, **fields: Any) -> SpanRecord:
    return service_span(
        number,
        service,
        start_time_unix_nano=START + int(start_ms * MS),
        end_time_unix_nano=START + int((start_ms + took_ms) * MS),
        parent_span_id=None if parent is None else f"{parent:016x}",
        **fields,
    )


def bars(ax: Any) -> list[tuple[float, float]]:
    return [(round(bar.get_x(), 3), round(bar.get_width(), 3)) for bar in ax.patches]


def names(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_yticklabels()]


def legend(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


TRACE = Trace.of(
    TRACE_ID,
    [
        at(1, "agent", 0, 100, None, name="answer"),
        at(2, "search", 25, 50, name="look up"),
        at(3, "agent", 80, 0, 2, name="fail", status_code=2),
    ],
)


def test_bars_are_where_and_as_long_as_their_spans(drawn: list[Any]) -> None:
    """In milliseconds; one that takes no time can be seen all the same."""
    ax = TRACE.plot()
    drawn.append(ax)
    assert bars(ax) == [(0, 100), (25, 50), (80, 0.2)]
    assert [bar.get_y() + bar.get_height() / 2 for bar in ax.patches] == [0, 1, 2]
    assert names(ax) == ["answer", "   look up", "      fail"]
    assert [text.get_text() for text in ax.texts] == ["100 ms", "50.0 ms", "0 us"]
    assert ax.get_xlabel() == "ms"
    assert ax.get_xscale() == "linear"
    assert ax.get_ylim() == (2.5, -0.5)
    assert ax.get_title(loc="left").startswith(f"Trace {TRACE_ID}\n3 spans of 2 services, 100 ms, started 2025-")


def test_services_have_colours_and_errors_a_hatch(matplotlib: Any, drawn: list[Any]) -> None:
    """Both of which the legend explains."""
    from matplotlib.colors import to_hex

    ax = TRACE.plot()
    drawn.append(ax)
    agent, search, failed = ax.patches
    assert agent.get_facecolor() == failed.get_facecolor() != search.get_facecolor()
    assert [bar.get_hatch() for bar in ax.patches] == [None, None, "////"]
    assert to_hex(failed.get_edgecolor()) == ERROR
    assert legend(ax) == ["agent", "search", "error"]
    assert TRACE.plot(ax=matplotlib.Figure().add_subplot()).get_legend() is not None


@pytest.mark.parametrize(
    ("took_ms", "unit", "width"),
    [(0.05, "us", 50), (1.5, "ms", 1.5), (90_000, "s", 90), (600_000, "min", 10), (86_400_000, "h", 24)],
)
def test_axis_has_the_unit_that_suits(took_ms: float, unit: str, width: float) -> None:
    """From microseconds to hours."""
    ax = Trace.of(TRACE_ID, [at(1, "agent", 0, took_ms, None)]).plot()
    assert ax.get_xlabel() == unit
    assert bars(ax) == [(0, width)]


def test_it_is_drawn_into_axes_of_the_caller(matplotlib: Any, drawn: list[Any]) -> None:
    """Beside other pictures."""
    left, right = matplotlib.Figure(layout="constrained").subplots(1, 2)
    assert TRACE.plot(ax=right) is right
    drawn.append(right)
    assert (len(left.patches), len(right.patches)) == (0, 3)


def test_names_are_text_and_cut(drawn: list[Any]) -> None:
    """No formula, no control character, no name that matplotlib keeps for itself."""
    odd = at(1, "_hidden $x$", 0, 1, None, name="$\\frac{$ \x1b[31m" + "x" * 100)
    ax = Trace.of(TRACE_ID, [odd, at(2, "$", 0, 1, name="")]).plot()
    drawn.append(ax)
    first, second = names(ax)
    assert first.startswith("$\\frac{$ \\x1b[31mxxx")
    assert len(first) == 44
    assert first.endswith("...")
    assert second == "   (no name)"
    assert sorted(legend(ax)) == ["$", "_hidden $x$"]


@pytest.mark.slow
def test_huge_trace_is_cut(drawn: list[Any]) -> None:
    """The error among 20,000 spans is there, and what is left out is said."""
    spans = [at(number, "agent", 1, 2) for number in range(2, 20_001)]
    spans[10_000].status_code = 2
    ax = Trace.of(TRACE_ID, [at(1, "agent", 0, 1_000, None), *spans]).plot()
    drawn.append(ax)
    assert len(ax.patches) == 100
    assert [bar.get_hatch() for bar in ax.patches].count("////") == 1
    assert [name for name in names(ax) if "more spans" in name] == ["(9,902 more spans)", "(9,998 more spans)"]
    assert ax.get_title(loc="left").endswith("\n100 of the spans are shown")


def test_trace_that_is_not_whole(drawn: list[Any]) -> None:
    """Missing parents, circles, clocks that differ, ends before starts, nothing at all."""
    broken = [
        at(1, "agent", 0, 10, None),
        at(2, "tools", -4, 2),
        at(3, "tools", 1, 1, 0xE),
        at(4, "tools", 1, -5, 5),
        at(5, "tools", 1, 1, 4),
    ]
    ax = Trace.of(TRACE_ID, broken).plot()
    drawn += [ax, Trace.of(TRACE_ID, []).plot(), Trace.of(TRACE_ID, [span(1, end_time_unix_nano=0)]).plot()]
    assert len(ax.patches) == 5
    assert min(left for left, _ in bars(ax)) == 0
    assert min(width for _, width in bars(ax)) > 0
    assert "(parents in a circle)" in names(ax)
    assert f"(parent {0xE:016x} not in this table)" in names(ax)


def test_notebook_shows_it() -> None:
    """By IPython's own formatter; pyplot is not even loaded, or has no figure to close."""
    formatters = pytest.importorskip("IPython.core.formatters")
    data, _ = formatters.DisplayFormatter().format(TRACE.plot())
    assert data["image/png"].startswith(b"\x89PNG")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_parts_of_the_picture_do_not_overlap() -> None:
    """Names end before the axis begins, and the legend is below its label."""
    ax = TRACE.plot()
    figure = ax.figure
    figure.draw_without_rendering()
    frame = ax.get_window_extent()
    ends = [text.get_window_extent() for text in ax.get_yticklabels()]
    assert max(box.x1 for box in ends) <= frame.x0
    assert min(box.x0 for box in ends) >= 0
    assert [one.x0 == two.x0 for one, two in pairwise(ends)] == [True, True]
    assert ax.get_legend().get_window_extent().y1 <= ax.xaxis.label.get_window_extent().y0
    assert ax.get_legend().get_window_extent().y0 >= 0


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is named with the command that installs it."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(tracelake.MissingDependencyError, match=r"pip install 'tracelake\[notebook\]'"):
        TRACE.plot()
