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
from tracelake.query.outline import STATUS_ERROR, Node, label, outline
from tracelake.query.text import counted, display_width, duration_text, fit, preview
from tracelake.query.tokens import tokens_of
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
_KIND_PREFIX = "SPAN_KIND_"


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


def facts(trace: Trace) -> list[str]:
    """Return what there is to say of a trace as a whole: its size, how long it took, when it started, its tokens."""
    services = {service_name(span) for span in trace.spans} - {""}
    counts = counted(len(trace.spans), "span") + (f" of {counted(len(services), 'service')}" if services else "")
    tokens = tokens_of(trace)
    used = [] if tokens is None else [f"{counted(tokens.input, 'token')} in and {tokens.output:,} out"]
    return [counts, duration_text(trace.duration_ns), _moment(trace.start_time_unix_nano), *used]


def too_early(span: SpanRecord, parent: SpanRecord | None) -> str:
    """Return by how much a span starts before its parent, and why if that shows; empty if it does not."""
    if parent is None or span.start_time_unix_nano >= parent.start_time_unix_nano:
        return ""
    why = ": the clocks differ" if span.resource != parent.resource else ""
    return f"starts {duration_text(parent.start_time_unix_nano - span.start_time_unix_nano)} before its parent{why}"


def render(trace: Trace, style: Style | None = None) -> Iterator[str]:
    """Yield the lines of a trace, without newlines: a heading, and a few lines for each span."""
    yield from _Tree(trace, style or Style()).lines()


class _Tree:
    def __init__(self, trace: Trace, style: Style) -> None:
        self.trace = trace
        self.style = style
        self.width = max(_MIN_WIDTH, style.width)
        self.tee, self.last, self.bar = ("├─ ", "└─ ", "│  ") if style.unicode else ("|- ", "`- ", "|  ")

    def lines(self) -> Iterator[str]:
        yield from self._heading()
        yield ""
        yield self._dim(f"{'at':>9}{'took':>10}")
        rests: list[str] = []  # what stands before the lines below a node, of each node above the next
        for node in outline(self.trace):
            del rests[node.depth :]
            first, rest = self._prefixes(node, rests[-1] if rests else "")
            rests.append(rest)
            if node.span is None:
                yield self._row("", "", first, [(self._dim, node.note)])
            else:
                yield from self._span(node.span, node, first, rest)

    def _prefixes(self, node: Node, before: str) -> tuple[str, str]:
        if node.depth == 0:
            return "", ""
        if node.depth > _MAX_INDENTS:
            return before + self.last, before
        first, rest = (self.last, "   ") if node.is_last else (self.tee, self.bar)
        return before + first, before + rest

    def _heading(self) -> Iterator[str]:
        trace = self.trace
        errors = sum(span.status_code == STATUS_ERROR for span in trace.spans)
        yield self._bold(f"Trace {trace.trace_id}")
        yield ", ".join(facts(trace)) + (self._red(f", {counted(errors, 'error')}") if errors else "")
        if trace.duplicates:
            yield f"{counted(trace.duplicates, 'row')} that repeat a span left out"

    def _span(self, span: SpanRecord, node: Node, first: str, rest: str) -> Iterator[str]:
        start = span.start_time_unix_nano
        title: list[tuple[_Paint, str]] = [(self._bold, label(span.name) or "(no name)"), (self._plain, labels(span))]
        if node.depth > _MAX_INDENTS:
            title.insert(0, (self._dim, f"(level {node.depth}) "))
        yield self._row(
            duration_text(start - self.trace.start_time_unix_nano),
            duration_text(span.end_time_unix_nano - start),
            first,
            title,
        )
        below = rest + (self.bar if node.has_children and node.depth < _MAX_INDENTS else "   ")
        if span.status_code == STATUS_ERROR:
            yield self._row("", "", below, [(self._red, f"ERROR: {preview(span.status_message) or '(no message)'}")])
        early = too_early(span, node.parent)
        if early:
            yield self._row("", "", below, [(self._dim, early)])
        for side, key in (("in ", SPAN_INPUTS), ("out", SPAN_OUTPUTS)):
            if key in span.attributes:
                text = preview(json_text(span.attributes[key]))
                yield self._row("", "", below, [(self._dim, f"{side} {text}")])

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


def labels(span: SpanRecord) -> str:
    """Return what kind of span it is and its service, in parentheses after a space; empty if nothing says."""
    kind = tables.SPAN_KINDS[span.kind].removeprefix(_KIND_PREFIX)
    span_type = span.attributes.get(SPAN_TYPE)
    found = [
        span_type if isinstance(span_type, str) and span_type != "UNKNOWN" else "",
        kind if kind not in {"INTERNAL", "UNSPECIFIED"} else "",
        service_name(span),
    ]
    shown = ", ".join(label(each) for each in found if each)
    return f" ({shown})" if shown else ""


def _moment(unix_nano: int) -> str:
    seconds, nanos = divmod(unix_nano, 1_000_000_000)
    try:
        moment = datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, OSError, ValueError):
        return f"started {unix_nano} ns after 1970"
    return f"started {moment:%Y-%m-%d %H:%M:%S}.{nanos // 1_000_000:03d} UTC"
