"""The figures of the comparisons in docs/: kept in one file, drawn as charts, and written into the page as tables.

Each part that is measured replaces its own figures in docs/charts/figures.json, and then all charts and tables are made
anew from that file; tests/benchmarks compares the three.
"""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from statistics import median, median_low
from typing import Any

from benchmarks.charts import Bar, Chart, shown
from benchmarks.compare.harness import Table, Values

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
PAGE = DOCS / "benchmarks.md"
CHARTS = DOCS / "charts"
FIGURES = CHARTS / "figures.json"

_BLOCK = "(<!-- compare: {} begin[^>]*-->\n).*?(<!-- compare: {} end -->)"
# More digits than mean anything, so that ratios of what is kept are those of what was measured.
_DIGITS = 4


def keep(part: str, tables: dict[str, Values], *, took_s: float, day: str) -> None:
    """Put the figures of a part in the place of its older ones."""
    figures = kept()
    figures[part] = {"day": day, "took_s": round(took_s), "machine": machine(), "tables": _rounded(tables)}
    CHARTS.mkdir(exist_ok=True)
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")


def kept() -> dict[str, Any]:
    """Return all figures, by part."""
    return json.loads(FIGURES.read_text()) if FIGURES.exists() else {}


def machine() -> str:
    """Return what it was measured on, in words."""
    processor = ""
    if os.path.exists("/proc/cpuinfo"):
        found = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        processor = f", {found[1].strip()}" if found else ""
    return f"{os.cpu_count()} cores{processor}, {platform.system()}, Python {platform.python_version()}"


def charts(tables: tuple[Table, ...], figures: dict[str, Any]) -> dict[str, str]:
    """Return the charts of a part by their file names."""
    drawn = {}
    for table in tables:
        values = figures["tables"][table.name]
        chart = Chart(table.title, table.unit, log=table.log)
        if table.chart:
            rounds = {label: row[table.chart] for label, row in values.items() if table.chart in row}
            bars = [
                Bar(label, _middle(each), min(each), max(each), label.startswith("tracelake"))
                for label, each in rounds.items()
            ]
            drawn[f"{table.name}.svg"] = chart.bars(bars)
        else:
            lines = {label: {float(size): median(each) for size, each in row.items()} for label, row in values.items()}
            drawn[f"{table.name}.svg"] = chart.lines(lines, "spans in the table")
    return drawn


def markdown(tables: tuple[Table, ...], figures: dict[str, Any]) -> str:
    """Return what the page has between the markers of a part."""
    text = []
    for table in tables:
        text += [f"![{table.title}](charts/{table.name}.svg)", "", *_lines(table, figures["tables"][table.name]), ""]
    text.append(f"Measured on {figures['day']}, in {figures['took_s']} s: {figures['machine']}.")
    return "\n".join(text) + "\n"


def filled(page: str, part: str, text: str) -> str:
    """Return a page with the text of a part between its markers.

    Raises:
        ValueError: the page has no such markers, or has them twice.
    """
    name = re.escape(part)
    made, count = re.subn(_BLOCK.format(name, name), lambda found: found[1] + text + found[2], page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{PAGE.name} has {count} places for {part!r}. It needs one: <!-- compare: {part} begin -->.")
    return made


def write(parts: dict[str, tuple[Table, ...]]) -> None:
    """Draw all charts and write all tables of these parts, as far as they were measured."""
    page, figures = PAGE.read_text(), kept()
    for part, tables in parts.items():
        if part in figures:
            page = filled(page, part, markdown(tables, figures[part]))
            for name, svg in charts(tables, figures[part]).items():
                (CHARTS / name).write_text(svg)
    PAGE.write_text(page)


def _lines(table: Table, values: Values) -> list[str]:
    columns = dict(table.columns)
    if not columns:
        sizes = sorted({size for row in values.values() for size in row}, key=int)
        columns = {size: f"{int(size):,} spans" for size in sizes}
    headings = ["", *columns.values(), *(["times " + table.reference] if table.reference else [])]
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    for label, row in values.items():
        cells = [_cell(row.get(column, [])) for column in columns]
        if table.reference:
            base = values[table.reference][table.chart]
            cells.append(_cell([each / one for each, one in zip(row.get(table.chart, []), base, strict=False)]))
        lines.append(f"| {' | '.join([label, *cells])} |")
    return lines


def _cell(rounds: list[float]) -> str:
    """Return the median of some rounds, with the least and the most where they differ."""
    if not rounds:
        return "-"
    low, middle, high = map(shown, (min(rounds), _middle(rounds), max(rounds)))
    return middle if low == high else f"{middle} ({low} to {high})"


def _middle(rounds: list[float]) -> float:
    """Return the median; of counts, which must not be rounded, a count."""
    return median_low(rounds) if all(isinstance(each, int) for each in rounds) else median(rounds)


def _rounded(item: Any) -> Any:
    if isinstance(item, dict):
        return {key: _rounded(each) for key, each in item.items()}
    if isinstance(item, list):
        return [_rounded(each) for each in item]
    return float(f"{item:.{_DIGITS}g}") if isinstance(item, float) else item
