"""A trace as a text tree: what called what, in which service, when, for how long, and what went wrong.

       at     took
     0 us   118 ms  answer question (AGENT, agent)
                    in  {"question":"What is a lake?"}
  3.10 ms   110 ms  └─ search documents (RETRIEVER, search)
                       ERROR: TimeoutError: no answer

`at` counts from the trace's first span. Every line comes out cleaned, so a span's name can do a terminal no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

from tracelake.errors import LineError
from tracelake.query.text import clean, display_width, duration_text, fit, preview
from tracelake.query.traces import Trace
from tracelake.spans import line, tables
from tracelake.spans.record import SpanRecord
from tracelake.spans.values import json_text

# MLflow's keys: https://github.com/mlflow/mlflow/blob/v3.0.0/mlflow/tracing/constant.py
SPAN_TYPE = "mlflow.spanType"
SPAN_INPUTS = "mlflow.spanInputs"
SPAN_OUTPUTS = "mlflow.spanOutputs"

_Paint = Callable[[str], str]

_TIME_COLUMNS = 20
# Spans deeper than this are not moved further to the right, and say how deep they are: the names stay readable, and a
# chain of a hundred thousand spans does not make lines of as many columns.
_MAX_INDENTS = 8
_MIN_WIDTH = 50
_MAX_LABEL = 1_000
_KIND_PREFIX = "SPAN_KIND_"
_STATUS_ERROR = 2


@dataclass(frozen=True)
class Style:
    """How a tree is drawn.

    Attributes:
        width: columns that a line may take.
        unicode: draw with box characters; off for streams that cannot encode them.
        colour: use ANSI colours; only for a terminal.
    """

    width: int = 80
    unicode: bool = True
    colour: bool = False


def service_name(span: SpanRecord) -> str:
    """Return the `service.name` of a span's resource, or an empty text."""
    try:
        name = line.resource_of(span).attributes.get(tables.SERVICE_NAME_ATTRIBUTE)
    except LineError:
        return ""
    return "" if name is None else json_text(name)


def render(trace: Trace, style: Style | None = None) -> Iterator[str]:
    """Yield the lines of a trace, without newlines: a heading, and a few lines for each span."""
    yield from _Tree(trace, style or Style()).lines()


@dataclass(frozen=True)
class _Node:
    """A span to be drawn, or a line that says why the spans under it have no parent."""

    span: SpanRecord | None
    note: str
    parent: SpanRecord | None
    first_prefix: str
    rest_prefix: str
    depth: int


class _Tree:
    def __init__(self, trace: Trace, style: Style) -> None:
        self.trace = trace
        self.style = style
        self.width = max(_MIN_WIDTH, style.width)
        self.tee, self.last, self.bar = ("├─ ", "└─ ", "│  ") if style.unicode else ("|- ", "`- ", "|  ")
        self.drawn: set[str] = set()

    def lines(self) -> Iterator[str]:
        yield from self._heading()
        yield ""
        yield self._dim(f"{'at':>9}{'took':>10}")
        yield from self._draw(self._tops())
        # What is left is reached from no root: its parents form a circle, which is entered at its earliest span.
        for span in self.trace.spans:
            if span.span_id not in self.drawn:
                note = _Node(None, "(parents in a circle)", None, "", "", 0)
                yield from self._draw([note, _Node(span, "", None, self.last, "   ", 1)])

    def _heading(self) -> Iterator[str]:
        trace = self.trace
        services = {service_name(span) for span in trace.spans} - {""}
        errors = sum(span.status_code == _STATUS_ERROR for span in trace.spans)
        yield self._bold(f"Trace {trace.trace_id}")
        counts = _counted(len(trace.spans), "span")
        if services:
            counts += f" of {_counted(len(services), 'service')}"
        facts = [counts, duration_text(trace.duration_ns), _moment(trace.start_time_unix_nano)]
        yield ", ".join(facts) + (self._red(f", {_counted(errors, 'error')}") if errors else "")
        if trace.duplicates:
            yield f"{_counted(trace.duplicates, 'row')} that repeat a span left out"

    def _tops(self) -> list[_Node]:
        nodes = [(span.start_time_unix_nano, _Node(span, "", None, "", "", 0)) for span in self.trace.roots]
        for parent, spans in self.trace.orphans.items():
            note = _Node(None, f"(parent {_label(parent)} not in this table)", None, "", "", 0)
            nodes.append((spans[0].start_time_unix_nano, note))
            nodes += [
                (spans[0].start_time_unix_nano, self._child(span, None, "", index == len(spans) - 1, 1))
                for index, span in enumerate(spans)
            ]
        return [node for _, node in sorted(nodes, key=lambda item: item[0])]

    def _draw(self, nodes: list[_Node]) -> Iterator[str]:
        """Draw nodes and all below them, with a stack of our own: traces are deeper than Python's."""
        stack = nodes[::-1]
        while stack:
            node = stack.pop()
            span = node.span
            if span is None:
                yield self._row("", "", node.first_prefix, [(self._dim, node.note)])
                continue
            if span.span_id in self.drawn:
                continue
            self.drawn.add(span.span_id)
            children = self.trace.children(span)
            yield from self._span(span, node, has_children=bool(children))
            stack += [
                self._child(child, span, node.rest_prefix, index == 0, node.depth + 1)
                for index, child in enumerate(reversed(children))
            ]

    def _child(self, span: SpanRecord, parent: SpanRecord | None, prefix: str, is_last: bool, depth: int) -> _Node:
        if depth > _MAX_INDENTS:
            return _Node(span, "", parent, prefix + self.last, prefix, depth)
        first, rest = (self.last, "   ") if is_last else (self.tee, self.bar)
        return _Node(span, "", parent, prefix + first, prefix + rest, depth)

    def _span(self, span: SpanRecord, node: _Node, *, has_children: bool) -> Iterator[str]:
        start = span.start_time_unix_nano
        title: list[tuple[_Paint, str]] = [(self._bold, _label(span.name) or "(no name)"), (self._plain, _labels(span))]
        if node.depth > _MAX_INDENTS:
            title.insert(0, (self._dim, f"(level {node.depth}) "))
        yield self._row(
            duration_text(start - self.trace.start_time_unix_nano),
            duration_text(span.end_time_unix_nano - start),
            node.first_prefix,
            title,
        )
        below = node.rest_prefix + (self.bar if has_children and node.depth < _MAX_INDENTS else "   ")
        if span.status_code == _STATUS_ERROR:
            yield self._row("", "", below, [(self._red, f"ERROR: {preview(span.status_message) or '(no message)'}")])
        if node.parent is not None and start < node.parent.start_time_unix_nano:
            early = duration_text(node.parent.start_time_unix_nano - start)
            why = ": the clocks differ" if span.resource != node.parent.resource else ""
            yield self._row("", "", below, [(self._dim, f"starts {early} before its parent{why}")])
        for label, key in (("in ", SPAN_INPUTS), ("out", SPAN_OUTPUTS)):
            if key in span.attributes:
                text = preview(json_text(span.attributes[key]))
                yield self._row("", "", below, [(self._dim, f"{label} {text}")])

    def _row(self, at: str, took: str, prefix: str, parts: list[tuple[_Paint, str]]) -> str:
        left = f"{at:>9}{took:>10} "
        room = self.width - _TIME_COLUMNS - len(prefix)
        painted = []
        for paint, text in parts:
            shown = fit(text, max(0, room))
            room -= display_width(shown)
            painted.append(paint(shown))
        return f"{self._dim(left) if at else left}{prefix}{''.join(painted)}".rstrip()

    def _plain(self, text: str) -> str:
        return text

    def _bold(self, text: str) -> str:
        return self._paint("1", text)

    def _dim(self, text: str) -> str:
        return self._paint("2", text)

    def _red(self, text: str) -> str:
        return self._paint("31", text)

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.style.colour and text else text


def _label(text: str) -> str:
    # It may be huge, and lines are cut to the width of the terminal anyway.
    return clean(text if len(text) <= _MAX_LABEL else text[:_MAX_LABEL] + "...")


def _labels(span: SpanRecord) -> str:
    kind = tables.SPAN_KINDS[span.kind].removeprefix(_KIND_PREFIX)
    span_type = span.attributes.get(SPAN_TYPE)
    labels = [
        span_type if isinstance(span_type, str) and span_type != "UNKNOWN" else "",
        kind if kind not in {"INTERNAL", "UNSPECIFIED"} else "",
        service_name(span),
    ]
    shown = ", ".join(_label(label) for label in labels if label)
    return f" ({shown})" if shown else ""


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _moment(unix_nano: int) -> str:
    seconds, nanos = divmod(unix_nano, 1_000_000_000)
    try:
        moment = datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, OSError, ValueError):
        return f"started {unix_nano} ns after 1970"
    return f"started {moment:%Y-%m-%d %H:%M:%S}.{nanos // 1_000_000:03d} UTC"
