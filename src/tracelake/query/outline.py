"""The spans of a trace in the order in which a tree shows them, whatever their parents are."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from tracelake.query.text import clean, counted
from tracelake.query.traces import Trace
from tracelake.spans.record import SpanRecord

STATUS_ERROR = 2
_MAX_LABEL = 1_000


@dataclass(frozen=True)
class Node:
    """A span, or a line that says why the spans under it have no parent, or that some are left out.

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


def shortened(trace: Trace, limit: int) -> list[Node]:
    """Return the outline with at most `limit` spans: the first, and of the others those that failed or took longest.

    Where spans are left out, a line says how many.
    """
    nodes = list(outline(trace))
    if len(trace.spans) <= limit:
        return nodes
    kept = _chosen(nodes, limit)
    found: list[Node] = []
    skipped = 0
    note: Node | None = None  # the one that the next spans are under
    for place, node in enumerate(nodes):
        if node.depth == 0:
            note = node if node.span is None else None
        if place in kept:
            found += [_gap(skipped)] if skipped else []
            found += [note] if note is not None else []
            found.append(node)
            skipped, note = 0, None
        elif node.span is not None:
            skipped += 1
    return [*found, _gap(skipped)] if skipped else found


def label(text: str) -> str:
    """Return the name of something as a line of a tree has it; it may be huge, and lines are cut anyway."""
    return clean(text if len(text) <= _MAX_LABEL else text[:_MAX_LABEL] + "...")


def _chosen(nodes: list[Node], limit: int) -> set[int]:
    """Return the places of the spans that are kept; a quarter of them for failures, and a quarter for the longest."""
    spans = [(place, node.span) for place, node in enumerate(nodes) if node.span is not None]
    failed = (place for place, span in spans if span.status_code == STATUS_ERROR)
    longest = heapq.nlargest(limit // 4, spans, lambda each: each[1].end_time_unix_nano - each[1].start_time_unix_nano)
    kept = {*islice(failed, limit // 4), *(place for place, _ in longest)}
    kept.update(islice((place for place, _ in spans if place not in kept), limit - len(kept)))
    return kept


def _gap(spans: int) -> Node:
    return Node(None, f"({counted(spans, 'more span')})")


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
