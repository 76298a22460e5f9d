"""The order of a tree, and what of a huge one is kept."""

from __future__ import annotations

from tests.query.samples import service_span
from tests.spans.samples import START, TRACE_ID, span
from tracelake.query.colours import COLOURS, ERROR, service_colours
from tracelake.query.outline import Node, outline, shortened
from tracelake.query.traces import Trace
from tracelake.spans.record import SpanRecord


def root_and(*children: SpanRecord) -> Trace:
    root = span(1, end_time_unix_nano=START + 10_000_000)
    for child in children:
        child.parent_span_id = child.parent_span_id or root.span_id
    return Trace.of(TRACE_ID, [root, *children])


def shown(nodes: list[Node]) -> list[int | str]:
    return [node.note if node.span is None else int(node.span.span_id, 16) for node in nodes]


def test_small_trace_is_whole() -> None:
    """All nodes are those of the outline."""
    trace = root_and(span(2), span(3, parent_span_id="f" * 16))
    assert shortened(trace, 3) == list(outline(trace))


def test_failures_and_the_longest_are_kept() -> None:
    """Wherever they are; the others are the first, and it is said where how many are left out."""
    children = [span(number) for number in range(2, 101)]
    children[58].status_code = 2  # span 60
    children[78].end_time_unix_nano += 5_000  # span 80
    found = shown(shortened(root_and(*children), 8))
    assert found == [1, 2, 3, 4, 5, 6, "(53 more spans)", 60, "(19 more spans)", 80, "(20 more spans)"]


def test_failures_alone_do_not_fill_it() -> None:
    """A quarter is theirs, if others are there."""
    children = [span(number, status_code=2 * (number > 50)) for number in range(2, 101)]
    found = shown(shortened(root_and(*children), 8))
    assert found == [1, 2, 3, 4, 5, 6, "(44 more spans)", 51, 52, "(48 more spans)"]


def test_note_comes_with_what_is_under_it() -> None:
    """With the first span that is kept, and not if none is."""
    orphans = [span(number, parent_span_id=f"{number % 2}" * 16) for number in range(10, 90)]
    orphans[60].status_code = 2  # span 70, whose parent is "000..."
    found = shown(shortened(root_and(*orphans), 4))
    assert found == [1, f"(parent {'0' * 16} not in this table)", 10, 12, "(28 more spans)", 70, "(49 more spans)"]


def test_limit_holds() -> None:
    """Whatever the spans are like."""
    for limit in (1, 2, 5, 40):
        for status in (0, 2):
            nodes = shortened(root_and(*(span(number, status_code=status) for number in range(2, 200))), limit)
            assert sum(node.span is not None for node in nodes) == limit
            assert nodes[-1].note == f"({199 - limit} more spans)"


def test_services_have_colours_of_their_own() -> None:
    """As long as there are enough, and the same in another trace where no other service wants it."""
    names = [f"service {number}" for number in range(len(COLOURS))]
    colours = service_colours(Trace.of(TRACE_ID, [service_span(1 + i, name) for i, name in enumerate(names)]))
    assert set(colours.values()) == set(COLOURS)
    assert service_colours(Trace.of(TRACE_ID, [service_span(1, names[0])])) == {names[0]: colours[names[0]]}
    many = [service_span(number, f"service {number}") for number in range(1, 30)]
    assert set(service_colours(Trace.of(TRACE_ID, many)).values()) == set(COLOURS)
    assert set(service_colours(Trace.of(TRACE_ID, [span(1)]))) == {""}


def luminance(colour: str) -> float:
    """Return it as https://www.w3.org/TR/WCAG22/#dfn-relative-luminance defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colours_show_on_white_and_on_black() -> None:
    """By the contrast that is asked of pictures, and for the text of errors on white of text."""
    for colour in (*COLOURS, ERROR):
        assert 1.05 / (luminance(colour) + 0.05) >= 3
        assert (luminance(colour) + 0.05) / (luminance("#1f1f1f") + 0.05) >= 3
    assert 1.05 / (luminance(ERROR) + 0.05) >= 4.5
