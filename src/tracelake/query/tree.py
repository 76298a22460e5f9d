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
from tracelake.query.infos import SESSION, USER, TraceInfo
from tracelake.query.outline import STATUS_ERROR, Node, label, outline, shortened
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
# Tags of MLflow's own, which are for programs.
_MLFLOWS = "mlflow."
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

    def bold(self, text: str) -> str:
        """Return a text that stands out."""
        return self._painted("1", text)

    def dim(self, text: str) -> str:
        """Return a text that stands back."""
        return self._painted("2", text)

    def red(self, text: str) -> str:
        """Return a text that is of a failure."""
        return self._painted("31", text)

    def _painted(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text


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


def of_info(info: TraceInfo) -> Iterator[str]:
    """Yield what is known of a trace beside its spans: whose it is, its cost, tags, runs and feedback."""
    whose = {"session": info.metadata.get(SESSION), "user": info.metadata.get(USER)}
    if any(whose.values()):
        yield ", ".join(f"{name} {preview(text)}" for name, text in whose.items() if text)
    if info.tokens.cost_usd is not None:
        yield f"cost ${info.tokens.cost_usd:,.4g}"
    tags = [f"{label(key)}={preview(text)}" for key, text in info.tags.items() if not key.startswith(_MLFLOWS)]
    if tags:
        yield f"tags {', '.join(tags)}"
    if info.run_ids:
        yield f"runs {', '.join(map(label, info.run_ids))}"
    for each in info.assessments:
        if each.valid:
            value = "failed" if each.error else preview(json_text(each.value))
            source = f" ({label(each.source_type)}{' ' if each.source_id else ''}{label(each.source_id)})"
            why = f": {preview(each.rationale)}" if each.rationale else ""
            yield f"{each.kind} {label(each.name)} = {value}{source}{why}"


def too_early(span: SpanRecord, parent: SpanRecord | None) -> str:
    """Return by how much a span starts before its parent, and why if that shows; empty if it does not."""
    if parent is None or span.start_time_unix_nano >= parent.start_time_unix_nano:
        return ""
    why = ": the clocks differ" if span.resource != parent.resource else ""
    return f"starts {duration_text(parent.start_time_unix_nano - span.start_time_unix_nano)} before its parent{why}"


def render(
    trace: Trace, style: Style | None = None, *, info: TraceInfo | None = None, limit: int | None = None
) -> Iterator[str]:
    """Yield the lines of a trace, without newlines: a heading, and a few lines for each span.

    Args:
        info: whose session, tags and feedback are in the heading.
        limit: so many spans are drawn at most: the first, and those that failed or took longest. None draws all.
    """
    yield from _Tree(trace, style or Style()).lines(info, limit)


class _Tree:
    def __init__(self, trace: Trace, style: Style) -> None:
        self.trace = trace
        self.style = style
        self.width = max(_MIN_WIDTH, style.width)
        self.tee, self.last, self.bar = ("├─ ", "└─ ", "│  ") if style.unicode else ("|- ", "`- ", "|  ")

    def lines(self, info: TraceInfo | None, limit: int | None) -> Iterator[str]:
        yield from self._heading()
        if info is not None:
            for fact in of_info(info):
                yield fit(fact, self.width)
        yield ""
        yield self.style.dim(f"{'at':>9}{'took':>10}")
        rests: list[str] = []  # what stands before the lines below a node, of each node above the next
        for node in outline(self.trace) if limit is None else shortened(self.trace, limit):
            del rests[node.depth :]
            while len(rests) < node.depth:  # of lines that are left out
                rests.append(rests[-1] + "   " * (len(rests) <= _MAX_INDENTS) if rests else "")
            first, rest = self._prefixes(node, rests[-1] if rests else "")
            rests.append(rest)
            if node.span is None:
                yield self._row("", "", first, [(self.style.dim, node.note)])
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
        yield self.style.bold(f"Trace {trace.trace_id}")
        yield ", ".join(facts(trace)) + (self.style.red(f", {counted(errors, 'error')}") if errors else "")
        if not trace.roots:
            yield "No root span is in this table yet: the trace goes on, or its root went elsewhere."
        if trace.duplicates:
            yield f"{counted(trace.duplicates, 'row')} that repeat a span left out"

    def _span(self, span: SpanRecord, node: Node, first: str, rest: str) -> Iterator[str]:
        start = span.start_time_unix_nano
        title: list[tuple[_Paint, str]] = [(self.style.bold, label(span.name) or "(no name)"), (str, labels(span))]
        if node.depth > _MAX_INDENTS:
            title.insert(0, (self.style.dim, f"(level {node.depth}) "))
        yield self._row(
            duration_text(start - self.trace.start_time_unix_nano),
            duration_text(span.end_time_unix_nano - start),
            first,
            title,
        )
        below = rest + (self.bar if node.has_children and node.depth < _MAX_INDENTS else "   ")
        if span.status_code == STATUS_ERROR:
            yield self._row(
                "", "", below, [(self.style.red, f"ERROR: {preview(span.status_message) or '(no message)'}")]
            )
        early = too_early(span, node.parent)
        if early:
            yield self._row("", "", below, [(self.style.dim, early)])
        for side, key in (("in ", SPAN_INPUTS), ("out", SPAN_OUTPUTS)):
            if key in span.attributes:
                text = preview(json_text(span.attributes[key]))
                yield self._row("", "", below, [(self.style.dim, f"{side} {text}")])

    def _row(self, at: str, took: str, prefix: str, parts: list[tuple[_Paint, str]]) -> str:
        left = f"{at:>9}{took:>10} "
        room = self.width - _TIME_COLUMNS - len(prefix)
        painted = []
        for paint, text in parts:
            shown = fit(text, max(0, room))
            room -= display_width(shown)
            painted.append(paint(shown))
        return f"{self.style.dim(left) if at else left}{prefix}{''.join(painted)}".rstrip()

    def _plain(self, text: str) -> str:
        return text


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
