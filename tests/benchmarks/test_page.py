"""The page of benchmarks, its charts and the figures that are kept are one and the same."""

from __future__ import annotations

import re
from typing import Any

import pytest

from benchmarks.compare import page
from benchmarks.compare.__main__ import PARTS
from benchmarks.compare.harness import Table

KEPT = page.kept()
BARS = Table("bars", "Bars", "us", {"us": "CPU us", "mb": "MB"}, chart="us", reference="tracelake")
LINES = Table("lines", "Lines", "ms", {})
FIGURES: dict[str, Any] = {
    "day": "2026-01-02",
    "took_s": 3,
    "machine": "a machine",
    "tables": {
        "bars": {"tracelake": {"us": [2.0, 4.0, 3.0], "mb": [9.0]}, "other": {"us": [10.0, 10.0, 9.0]}, "bare": {}},
        "lines": {"tracelake": {"10000": [1.0], "100000": [5.0, 7.0]}, "other": {"10000": [2.0]}},
    },
}


def test_every_part_was_measured() -> None:
    """Nothing is kept of parts that are gone, and no part waits for its figures."""
    assert KEPT.keys() == PARTS.keys()
    for name, module in PARTS.items():
        assert KEPT[name]["tables"].keys() == {table.name for table in module.TABLES}


@pytest.mark.parametrize("part", PARTS)
def test_tables_are_those_of_the_figures(part: str) -> None:
    """The page has the tables that the kept figures make, and shows their charts."""
    text = page.PAGE.read_text()
    assert page.filled(text, part, page.markdown(PARTS[part].TABLES, KEPT[part])) == text, (
        "write it anew with: python -m benchmarks.compare --page"
    )
    for table in PARTS[part].TABLES:
        assert text.count(f"(charts/{table.name}.svg)") == 1


@pytest.mark.parametrize("part", PARTS)
def test_charts_are_those_of_the_figures(part: str) -> None:
    """The charts are those that the kept figures make."""
    for name, svg in page.charts(PARTS[part].TABLES, KEPT[part]).items():
        assert (page.CHARTS / name).read_text() == svg, "draw it anew with: python -m benchmarks.compare --page"


def test_no_chart_is_left_over() -> None:
    """Every file beside the charts is one of them."""
    expected = {f"{table.name}.svg" for module in PARTS.values() for table in module.TABLES}
    assert {path.name for path in page.CHARTS.iterdir()} == expected | {page.FIGURES.name}


def test_figures_were_measured_at_full_size() -> None:
    """What is published is of the spans that the page speaks of."""
    tables = {name: table for part in KEPT.values() for name, table in part["tables"].items()}
    assert max(max(row["arrived"]) for row in tables["burst"].values()) == PARTS["burst"].SPANS
    assert "10000000" in tables["shipped"]["tracelake"]


def test_cells_tell_the_median_and_the_spread() -> None:
    """A cell has what the rounds had; a ratio is taken round by round; what was not measured is a dash."""
    text = page.markdown((BARS,), FIGURES)
    assert "| tracelake | 3 (2 to 4) | 9 | 1 |" in text
    assert "| other | 10 (9 to 10) | - | 3 (2.5 to 5) |" in text
    assert "| bare | - | - | - |" in text
    assert "Measured on 2026-01-02, in 3 s: a machine." in text


def test_counts_are_not_rounded() -> None:
    """One span that is lost is seen, in the table and in the chart."""
    tables = {"bars": {"tracelake": {"us": [49_999, 49_999]}}, "lines": {"tracelake": {"10000": [1.0]}}}
    figures = FIGURES | {"tables": tables}
    assert "| tracelake | 49,999 | - | 1 |" in page.markdown((BARS,), figures)
    assert ">49,999<" in page.charts((BARS,), figures)["bars.svg"]


def test_sizes_are_columns() -> None:
    """A table of growth has a column a size, also where one contender did not reach it."""
    text = page.markdown((LINES,), FIGURES)
    assert "|  | 10,000 spans | 100,000 spans |" in text
    assert "| tracelake | 1 | 6 (5 to 7) |" in text
    assert "| other | 2 | - |" in text
    reached = {"tables": {"lines": {"other": {"10000": [2.0], "5000": [1.0]}}}}
    assert "|  | 5,000 spans | 10,000 spans |" in page.markdown((LINES,), FIGURES | reached)


def test_part_without_a_place_is_told() -> None:
    """A page that lacks the markers of a part is not written to."""
    with pytest.raises(ValueError, match=r"has 0 places for 'bars'.*<!-- compare: bars begin -->"):
        page.filled("a page", "bars", "text")


def test_text_between_markers_is_replaced() -> None:
    """Only what is between the markers of that part changes."""
    before = "a\n<!-- compare: bars begin -->\nold\n<!-- compare: bars end -->\nb\n"
    after = page.filled(before, "bars", "new \\1\n")
    assert after == before.replace("old", "new \\1")
    assert page.filled(after, "bars", "new \\1\n") == after
    assert not re.search("old", after)
