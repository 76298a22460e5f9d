"""The charts are images that any viewer shows, and say what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

from benchmarks.charts import Bar, Chart, shown

SVG = "{http://www.w3.org/2000/svg}"
BARS = [
    Bar("tracelake", 4.5, 4.1, 5.5, ours=True),
    Bar("a <b> & 'c'", 37, 33, 44),
    Bar("the same each time", 3600, 3600, 3600),
]
LINES = {"tracelake": {1e4: 12.0, 1e7: 44.0}, "a & b": {1e4: 120.0, 1e5: 400.0}}


def drawn(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    return root


def places(root: ElementTree.Element) -> Iterator[float]:
    """Yield all coordinates across, and those of lines."""
    for element in root.iter():
        yield from (float(element.get(name, "0")) for name in ("x", "x1", "x2", "cx"))
        yield from (float(point.split(",")[0]) for point in element.get("points", "").split())


@pytest.mark.parametrize("log", [False, True])
def test_bars_are_as_long_as_their_figures(log: bool) -> None:
    """A larger figure has a longer bar, ours stands out, and only what differed between rounds has a spread."""
    root = drawn(Chart("Title & more", "us", log=log).bars(BARS))
    bars = root.findall(f"{SVG}rect")
    lengths = [float(bar.get("width", "")) for bar in bars]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) == len(BARS)
    assert [bar.get("class") for bar in bars] == ["ours", "other", "other"]
    assert len([line for line in root.findall(f"{SVG}line") if line.get("class") == "spread"]) == 2
    texts = {element.text for element in root.iter(f"{SVG}text")}
    assert {"tracelake", "a <b> & 'c'", "4.5", "37", "3,600", "Title & more"} <= texts


def test_linear_bars_are_in_proportion() -> None:
    """Without a logarithm, twice the figure is twice the length."""
    root = drawn(Chart("t", "u").bars([Bar("one", 100, 100, 100), Bar("two", 200, 200, 200)]))
    one, two = (float(bar.get("width", "")) for bar in root.findall(f"{SVG}rect"))
    assert two == pytest.approx(2 * one, rel=0.01)


@pytest.mark.parametrize("values", [[0.0, 0.0], [-3.0, 5.0], [7.0, 7.0], [1e-3, 1e9], [1000.0, 10_000.0]])
@pytest.mark.parametrize("log", [False, True])
def test_any_figures_stay_in_the_picture(values: list[float], log: bool) -> None:
    """Nothing is drawn beside the picture, whatever was measured: noise may even be below nothing."""
    root = drawn(Chart("t", "u", log=log).bars([Bar(str(value), value, value, value) for value in values]))
    width = float(root.get("width", ""))
    assert all(0 <= place <= width for place in places(root))


def test_lines_have_a_point_for_each_size() -> None:
    """A contender that did not reach a size has no point there."""
    root = drawn(Chart("t", "ms", log=True).lines(LINES, "spans in the table"))
    assert len(root.findall(f"{SVG}polyline")) == 2
    assert len(root.findall(f"{SVG}circle")) == 4
    width = float(root.get("width", ""))
    assert all(0 <= place <= width for place in places(root))
    assert {"10,000", "10,000,000", "spans in the table", "a & b"} <= {text.text for text in root.iter(f"{SVG}text")}


@pytest.mark.parametrize("svg", [Chart("t", "u").bars(BARS), Chart("t", "u").lines(LINES, "x")], ids=["bars", "lines"])
def test_chart_brings_its_colours_and_nothing_else(svg: str) -> None:
    """It is readable on light and dark pages, and has no script, no font, and no link."""
    assert "prefers-color-scheme: dark" in svg
    assert not re.search(r"<script|@font-face|href|url\(|@import|\bon\w+=", svg)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (4.5678, "4.57"), (37, "37"), (99.96, "100"), (9.999, "10"), (-1.234, "-1.23"), (50_000, "50,000")],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    """More digits than three mean nothing on a noisy machine."""
    assert shown(value) == text
