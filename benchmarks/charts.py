"""Charts as small SVG files: bars of one figure a contender, and lines of one figure a size.

A chart is shown as an image, so it brings its colours for light and dark pages, and neither fonts nor scripts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH = 760
_MARGIN = 16
_TITLE_HEIGHT = 50
_BAR_HEIGHT = 26
_LABEL_WIDTH = 300
_VALUE_WIDTH = 90
_PLOT_HEIGHT = 260

_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 14px; }
.quiet, .tick { fill: #59636e; }
.tick { font-size: 11px; }
.grid { stroke: #d1d9e0; }
.spread { stroke: #1f2328; stroke-width: 1.5; }
.ours { fill: #0969da; } .other { fill: #9aa4ae; }
.line { fill: none; stroke-width: 2; }
.c0 { stroke: #0969da; } .c1 { stroke: #1a7f37; } .c2 { stroke: #bc4c00; }
.c3 { stroke: #8250df; } .c4 { stroke: #9a6700; } .c5 { stroke: #59636e; }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc; }
.quiet, .tick { fill: #9198a1; }
.grid { stroke: #3d444d; }
.spread { stroke: #f0f6fc; }
.ours { fill: #4493f8; } .other { fill: #656c76; }
.c0 { stroke: #4493f8; } .c1 { stroke: #3fb950; } .c2 { stroke: #f0883e; }
.c3 { stroke: #ab7df8; } .c4 { stroke: #d29922; } .c5 { stroke: #9198a1; }
}
"""
_COLOURS = 6


@dataclass(frozen=True)
class Bar:
    """One figure, and the least and the most of it that was measured; `ours` is drawn so that it stands out."""

    label: str
    value: float
    low: float
    high: float
    ours: bool = False


class Chart:
    """A drawing with a title and a unit above it; with `log`, a step along its values is ten times the one before."""

    def __init__(self, title: str, unit: str, *, log: bool = False) -> None:
        self._title, self._unit, self._log = title, unit, log
        self._out: list[str] = []

    def bars(self, bars: list[Bar]) -> str:
        """Return the SVG of horizontal bars, in the order given."""
        height = _TITLE_HEIGHT + _BAR_HEIGHT * len(bars) + _MARGIN
        left, right = _MARGIN + _LABEL_WIDTH, _WIDTH - _MARGIN - _VALUE_WIDTH
        axis = _Axis([bar.value for bar in bars] + [bar.high for bar in bars], left, right, log=self._log)
        self._begin(height)
        for at in axis.ticks():
            x = axis.place(at)
            self._line(x, _TITLE_HEIGHT, x, height - _MARGIN, "grid")
            self._text(x, height - 3, shown(at), "tick", anchor="middle")
        for number, bar in enumerate(bars):
            top = _TITLE_HEIGHT + _BAR_HEIGHT * number
            middle = top + _BAR_HEIGHT / 2
            end = axis.place(bar.value)
            self._text(left - 8, middle + 4, bar.label, anchor="end")
            kind = "ours" if bar.ours else "other"
            self._out.append(
                f'<rect class="{kind}" x="{left}" y="{top + 4}" width="{max(1.0, end - left):.1f}" '
                f'height="{_BAR_HEIGHT - 8}"/>'
            )
            if bar.high > bar.low:
                self._line(axis.place(bar.low), middle, axis.place(bar.high), middle, "spread")
            self._text(max(end, axis.place(bar.high)) + 6, middle + 4, shown(bar.value), "quiet")
        return self._end()

    def lines(self, lines: Mapping[str, Mapping[float, float]], across: str) -> str:
        """Return the SVG of lines, each of figures by what is `across`, whose steps are ten times the one before."""
        legend = _TITLE_HEIGHT + _PLOT_HEIGHT + 40
        height = legend + 18 * len(lines) + _MARGIN
        left, right, bottom = _MARGIN + 60, _WIDTH - _MARGIN - 40, _TITLE_HEIGHT + _PLOT_HEIGHT
        x_axis = _Axis([at for line in lines.values() for at in line], left, right, log=True)
        values = [value for line in lines.values() for value in line.values()]
        y_axis = _Axis(values, bottom, _TITLE_HEIGHT + 8, log=self._log)
        self._begin(height)
        for value in y_axis.ticks():
            y = y_axis.place(value)
            self._line(left, y, right, y, "grid")
            self._text(left - 6, y + 4, shown(value), "tick", anchor="end")
        for at in x_axis.ticks():
            self._text(x_axis.place(at), bottom + 16, f"{at:,.0f}", "tick", anchor="middle")
        self._text((left + right) / 2, bottom + 32, across, "tick", anchor="middle")
        for number, (label, line) in enumerate(lines.items()):
            colour = f"c{number % _COLOURS}"
            points = [(x_axis.place(at), y_axis.place(value)) for at, value in sorted(line.items())]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            self._out.append(f'<polyline class="line {colour}" points="{path}"/>')
            self._out += [f'<circle class="line {colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points]
            y = legend + 18 * number + 10
            self._line(left, y - 4, left + 24, y - 4, f"line {colour}")
            self._text(left + 32, y, label)
        return self._end()

    def _begin(self, height: float) -> None:
        self._out = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" '
            f'height="{height:.0f}" role="img">',
            f"<title>{escape(self._title)}, {escape(self._unit)}</title>",
            f"<style>{_STYLE}</style>",
        ]
        unit = self._unit + (", each step ten times the one before" if self._log else "")
        self._text(_MARGIN, 20, self._title, "title")
        self._text(_MARGIN, 38, unit, "tick")

    def _text(self, x: float, y: float, text: str, kind: str = "", *, anchor: str = "start") -> None:
        attributes = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor != "start" else "")
        self._out.append(f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{escape(text)}</text>')

    def _line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self._out.append(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def _end(self) -> str:
        return "\n".join([*self._out, "</svg>", ""])


class _Axis:
    """Where values are between two places of the picture."""

    def __init__(self, values: list[float], first: float, last: float, *, log: bool) -> None:
        self._first, self._last, self._log = first, last, log
        positive = [value for value in values if value > 0] or [1.0]
        if log:
            # Values of one power of ten still need room to differ in.
            self._low = 10.0 ** math.floor(math.log10(min(positive)) + 1e-9)
            self._high = max(*positive, self._low * 10)
        else:
            self._low, self._high = 0.0, max(positive)

    def place(self, value: float) -> float:
        if self._log:
            value = max(value, self._low)
            part = math.log10(value / self._low) / math.log10(self._high / self._low)
        else:
            part = value / self._high
        return self._first + (self._last - self._first) * part

    def ticks(self) -> Iterator[float]:
        if self._log:
            value = self._low
            while value <= self._high * 1.001:
                yield value
                value *= 10
            return
        step = 10.0 ** math.floor(math.log10(self._high))
        step *= next(part for part in (0.1, 0.2, 0.25, 0.5, 1.0) if self._high / (step * part) <= 6 or part == 1.0)
        for number in range(int(self._high / step * 1.001) + 1):
            yield number * step


def shown(value: float) -> str:
    """Return a figure with the three digits that mean something; a count, which is an `int`, with all of them."""
    if isinstance(value, int) or not value:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value)) + 1e-12))
    rounded = round(value, 2 - math.floor(math.log10(abs(value)) + 1e-12))
    text = f"{rounded:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
