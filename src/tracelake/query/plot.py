"""A trace as a picture, by matplotlib: a waterfall, one bar a span from its start to its end."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from tracelake.errors import MissingDependencyError
from tracelake.query.colours import ERROR, service_colours
from tracelake.query.outline import STATUS_ERROR, Node, label, shortened
from tracelake.query.text import display_width, duration_text, fit
from tracelake.query.traces import Trace
from tracelake.query.tree import facts, service_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Patch

# More are no picture any more.
_MAX_SPANS = 100
_MAX_INDENTS = 8
_LABEL_COLUMNS = 44
_LABEL_POINTS = 9.0
_TITLE_POINTS = 10.0
_ROW_INCHES = 0.24
# Of title, axis and legend.
_OTHER_INCHES = 1.4
_WIDTH_INCHES = 10.0
# Where each unit of the time axis begins to be used, in its own measure.
_UNITS = ((3_600_000_000_000, "h", 2), (60_000_000_000, "min", 2), (1_000_000_000, "s", 1), (1_000_000, "ms", 1))
_SMALLEST_UNIT = (1_000, "us")
# A bar is at least so much of the axis, and to the right of the longest is room for its duration.
_MIN_BAR = 0.002
_MARGIN = 0.12
_HATCH = "////"
# Names are of others: a dollar sign in them begins no formula.
_LITERAL: dict[str, Any] = {"parse_math": False, "usetex": False}


def plot_trace(trace: Trace, ax: Axes | None = None) -> Axes:
    """Draw a trace into some axes, by default those of a figure of its own, and return them.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise MissingDependencyError(
            "A picture of a trace needs the package 'matplotlib', which is not installed here. "
            "Run: pip install 'tracelake[notebook]'"
        ) from error
    nodes = shortened(trace, _MAX_SPANS)
    if ax is None:
        # Not by pyplot, which keeps every figure until it is closed, and picks a window system.
        size = (_WIDTH_INCHES, _OTHER_INCHES + _ROW_INCHES * len(nodes))
        ax = matplotlib.figure.Figure(size, layout="constrained").add_subplot(axes_class=_shown_axes())
    _draw(trace, nodes, ax)
    return ax


@cache
def _shown_axes() -> type[Axes]:
    """Return a class of axes that a notebook shows as their figure."""
    from matplotlib.axes import Axes

    class ShownAxes(Axes):
        def _repr_png_(self) -> bytes:
            png = io.BytesIO()
            self.figure.canvas.print_figure(png, format="png")
            return png.getvalue()

    return ShownAxes


def _draw(trace: Trace, nodes: Sequence[Node], ax: Axes) -> None:
    start, whole = trace.start_time_unix_nano, max(1, trace.duration_ns)
    scale, unit = _unit(whole)
    colours = service_colours(trace)
    failed = False
    for row, node in enumerate(nodes):
        span = node.span
        if span is None:
            continue
        took = span.end_time_unix_nano - span.start_time_unix_nano
        error = span.status_code == STATUS_ERROR
        failed = failed or error
        bar = ax.barh(
            row,
            max(took, whole * _MIN_BAR) / scale,
            left=(span.start_time_unix_nano - start) / scale,
            height=0.7,
            color=colours[service_name(span)],
            **(_marks() if error else {}),
        )
        ax.bar_label(bar, [duration_text(took)], padding=3, fontsize=_LABEL_POINTS - 1)
    ax.set_xlim(0, whole * (1 + _MARGIN) / scale)
    ax.set_ylim(max(1, len(nodes)) - 0.5, -0.5)
    ax.set_xlabel(unit)
    ax.spines[["top", "right"]].set_visible(False)
    _set_names(ax, [_name(node) for node in nodes])
    ax.set_title(_title(trace, nodes), loc="left", fontsize=_TITLE_POINTS, **_LITERAL)
    shown = {service_name(node.span) for node in nodes if node.span is not None}
    _set_legend(ax, {name: colour for name, colour in colours.items() if name and name in shown}, failed)


def _set_names(ax: Axes, names: Sequence[str]) -> None:
    """Write the names beside the axis from the left, so that those of children stand to the right of their parents'."""
    ax.set_yticks(range(len(names)), names, ha="left", fontsize=_LABEL_POINTS, **_LITERAL)
    # How wide text is, is known when it is drawn; of most, a letter takes less than this.
    ax.tick_params(axis="y", length=0, pad=0.6 * _LABEL_POINTS * max(map(display_width, names), default=0))


def _set_legend(ax: Axes, colours: dict[str, str], failed: bool) -> None:
    from matplotlib.patches import Patch

    keys: list[tuple[str, Patch]] = [(name, Patch(facecolor=colour)) for name, colour in colours.items()]
    if failed:
        keys.append(("error", Patch(facecolor="none", **_marks())))
    if not keys:
        return
    # Below the axis, where no bar is. A name that begins with "_" would be left out if it were given here.
    legend = ax.legend(
        [patch for _, patch in keys],
        [" "] * len(keys),
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        borderaxespad=3.5,
        ncols=5,
        frameon=False,
        fontsize=_LABEL_POINTS,
    )
    for text, (name, _) in zip(legend.get_texts(), keys, strict=True):
        text.set(text=fit(label(name), _LABEL_COLUMNS), **_LITERAL)


def _marks() -> dict[str, Any]:
    return {"hatch": _HATCH, "edgecolor": ERROR, "linewidth": 1.2}


def _name(node: Node) -> str:
    name = node.note if node.span is None else label(node.span.name) or "(no name)"
    return "   " * min(node.depth, _MAX_INDENTS) + fit(name, _LABEL_COLUMNS)


def _title(trace: Trace, nodes: Sequence[Node]) -> str:
    shown = sum(node.span is not None for node in nodes)
    title = f"Trace {trace.trace_id}\n{', '.join(facts(trace))}"
    return title + (f"\n{shown:,} of the spans are shown" if shown < len(trace.spans) else "")


def _unit(duration_ns: int) -> tuple[int, str]:
    """Return the unit that suits a duration: its length in nanoseconds, and what it is called."""
    fitting = ((length, name) for length, name, least in _UNITS if duration_ns >= least * length)
    return next(fitting, _SMALLEST_UNIT)
