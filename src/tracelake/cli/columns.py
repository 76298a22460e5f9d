"""Aligned columns, of which the first is cut where the terminal is too narrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tracelake.query.text import display_width, fit

_GAP = "  "
_LEAST = 8


def aligned(rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Yield a line for each row, all with as many cells: the first to the left, the others to the right."""
    widths = [max(map(display_width, cells)) for cells in zip(*rows, strict=True)]
    widths[0] = min(widths[0], max(_LEAST, width - sum(widths[1:]) - len(_GAP) * (len(widths) - 1)))
    for first, *others in rows:
        shown = fit(first, widths[0])
        cells = [shown + " " * (widths[0] - display_width(shown))]
        cells += [f"{cell:>{room}}" for cell, room in zip(others, widths[1:], strict=True)]
        yield _GAP.join(cells).rstrip()
