"""The spans of a trace in the order in which a tree shows them, whatever their parents are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tracelake.query.text import clean
from tracelake.query.traces import Trace
from tracelake.spans.record import SpanRecord

_MAX_LABEL = 1_000


@dataclass(frozen=True)
class Node:
    """A span, or a line that says why the spans under it have no parent.

    Attributes:
        span: None for such a line, which `note` has.
        parent: the span above; None at the top, and under such a line.
        depth: how many lines are above it in the tree.
        is_last: whether no other child of its parent comes after it.
        has_children: whether a span names it as its parent.
    """

    span: SpanRecord | None
    note: str = ""
    parent: SpanRecord | None = None
    depth: int = 0
    is_last: bool = True
    has_children: bool = False


def outline(trace: Trace) -> Iterator[Node]:
    """Yield the lines of a trace's tree, each span once: roots and orphans by time, and what is below each of them.

    Spans whose parents form a circle are reached from no root; they come at the end.
    """
    drawn: set[str] = set()
    yield from _below(trace, _tops(trace), drawn)
    for span in trace.spans:
        if span.span_id not in drawn:
            yield from _below(trace, [Node(None, "(parents in a circle)"), _node(trace, span, None, 1)], drawn)


def label(text: str) -> str:
    """Return the name of something as a line of a tree has it; it may be huge, and lines are cut anyway."""
    return clean(text if len(text) <= _MAX_LABEL else text[:_MAX_LABEL] + "...")


def _tops(trace: Trace) -> list[Node]:
    nodes = [(span.start_time_unix_nano, _node(trace, span, None, 0)) for span in trace.roots]
    for parent, spans in trace.orphans.items():
        start = spans[0].start_time_unix_nano
        nodes.append((start, Node(None, f"(parent {label(parent)} not in this table)")))
        nodes += [(start, _node(trace, span, None, 1, is_last=span is spans[-1])) for span in spans]
    return [node for _, node in sorted(nodes, key=lambda item: item[0])]


def _below(trace: Trace, nodes: list[Node], drawn: set[str]) -> Iterator[Node]:
    """Yield nodes and all below them, with a stack of our own: traces are deeper than Python's."""
    stack = nodes[::-1]
    while stack:
        node = stack.pop()
        span = node.span
        if span is None:
            yield node
            continue
        if span.span_id in drawn:
            continue
        drawn.add(span.span_id)
        yield node
        children = trace.children(span)
        stack += [
            _node(trace, child, span, node.depth + 1, is_last=child is children[-1]) for child in reversed(children)
        ]


def _node(trace: Trace, span: SpanRecord, parent: SpanRecord | None, depth: int, *, is_last: bool = True) -> Node:
    return Node(span, "", parent, depth, is_last, bool(trace.children(span)))
