"""A trace as HTML for notebooks: its tree beside a timeline, where each span folds open.

It is HTML and CSS alone: nothing is loaded, and nothing runs. Colours are the notebook's own, and tints that show on a
light page and on a dark one; all rules are for elements within ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import islice
from zlib import crc32

from tracelake.query.outline import Node, label, outline
from tracelake.query.text import clean, duration_text
from tracelake.query.traces import Trace
from tracelake.query.tree import (
    SPAN_INPUTS,
    SPAN_OUTPUTS,
    STATUS_ERROR,
    counted,
    facts,
    labels,
    service_name,
    too_early,
)
from tracelake.spans.record import Attributes, SpanRecord
from tracelake.spans.values import json_text

# More make a page that a browser is slow to open.
_MAX_SPANS = 1_000
_MAX_TEXT = 5_000
_MAX_ATTRIBUTES = 100
_MAX_EVENTS = 50
_MAX_INDENTS = 20
# Bars of one service have one colour.
_COLOURS = ("#4c8dd6", "#c9822b", "#4fa36c", "#a373c9", "#c95f8f", "#3aa3a8", "#96923a", "#8a7fdb")
_ERROR = "#e5484d"

_STYLE = f"""
.tracelake{{font:13px/1.5 system-ui,sans-serif;color:inherit;max-width:1100px}}
.tracelake .tl-head b{{font-size:14px}}
.tracelake .tl-head,.tracelake .tl-note{{padding:2px 6px}}
.tracelake .tl-dim,.tracelake .tl-note{{opacity:.7}}
.tracelake .tl-error{{color:{_ERROR};font-weight:600}}
.tracelake details{{border-top:1px solid rgba(128,128,128,.25)}}
.tracelake summary{{display:grid;grid-template-columns:minmax(150px,2fr) 3fr 80px;gap:8px;align-items:center;
cursor:pointer;padding:2px 6px;list-style:none}}
.tracelake summary:hover{{background:rgba(128,128,128,.12)}}
.tracelake .tl-name{{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}}
.tracelake .tl-line{{position:relative;height:12px;background:rgba(128,128,128,.12);border-radius:2px}}
.tracelake .tl-bar{{position:absolute;top:0;height:12px;min-width:2px;border-radius:2px}}
.tracelake .tl-took{{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}}
.tracelake .tl-more{{padding:2px 6px 8px 24px}}
.tracelake pre{{margin:2px 0 6px;padding:6px;background:rgba(128,128,128,.12);color:inherit;border-radius:3px;
white-space:pre-wrap;overflow-wrap:anywhere;max-height:300px;overflow:auto;font:12px/1.4 ui-monospace,monospace}}
""".strip()


def trace_html(trace: Trace) -> str:
    """Return a trace as an element that stands alone; of a trace of very many spans the first in the tree's order."""
    return "".join(_parts(trace))


def _parts(trace: Trace) -> Iterator[str]:
    yield f'<div class="tracelake"><style>{_STYLE}</style><div class="tl-head">'
    yield f"<b>Trace {escape(trace.trace_id)}</b><br>"
    yield " · ".join(f"<span>{escape(fact)}</span>" for fact in facts(trace))
    errors = sum(span.status_code == STATUS_ERROR for span in trace.spans)
    if errors:
        yield f' · <span class="tl-error">{counted(errors, "error")}</span>'
    yield "</div>"
    start, whole = trace.start_time_unix_nano, max(1, trace.duration_ns)
    shown = 0
    for node in islice(outline(trace), _MAX_SPANS):
        if node.span is None:
            yield f'<div class="tl-note">{escape(node.note)}</div>'
        else:
            shown += 1
            yield from _span(node.span, node, start, whole)
    if shown < len(trace.spans):
        left = counted(len(trace.spans) - shown, "more span")
        yield f'<div class="tl-note">{left} not shown here; <code>trace.spans</code> has all of them</div>'
    yield "</div>"


def _span(span: SpanRecord, node: Node, start: int, whole: int) -> Iterator[str]:
    failed = span.status_code == STATUS_ERROR
    level = f"(level {node.depth}) " if node.depth > _MAX_INDENTS else ""
    name = escape(label(span.name) or "(no name)")
    took = duration_text(span.end_time_unix_nano - span.start_time_unix_nano)
    at = duration_text(span.start_time_unix_nano - start)
    yield "<details><summary>"
    yield f'<span class="tl-name" style="padding-left:{12 * min(node.depth, _MAX_INDENTS)}px" title="{name}">'
    yield level + (f'<span class="tl-error">✗ {name}</span>' if failed else name)
    yield f'<span class="tl-dim">{escape(labels(span))}</span></span>'
    yield f'<span class="tl-line" title="starts at {at}, takes {took}">{_bar(span, start, whole, failed)}</span>'
    yield f'<span class="tl-took">{took}</span></summary><div class="tl-more">'
    if failed:
        yield f'<div class="tl-error">ERROR: {_text(span.status_message) or "(no message)"}</div>'
    early = too_early(span, node.parent)
    if early:
        yield f'<div class="tl-dim">{escape(early)}</div>'
    for title, key in (("inputs", SPAN_INPUTS), ("outputs", SPAN_OUTPUTS)):
        if key in span.attributes:
            yield _block(title, _text(json_text(span.attributes[key])))
    rest = {key: value for key, value in span.attributes.items() if key not in (SPAN_INPUTS, SPAN_OUTPUTS)}
    if rest:
        yield _block("attributes", _pairs(rest))
    for event in span.events[:_MAX_EVENTS]:
        at = duration_text(event.time_unix_nano - start)
        yield _block(f"event {label(event.name)} at {at}", _pairs(event.attributes))
    if len(span.events) > _MAX_EVENTS:
        yield f'<div class="tl-dim">{counted(len(span.events) - _MAX_EVENTS, "more event")}</div>'
    yield f'<div class="tl-dim">span {escape(label(span.span_id))}</div></div></details>'


def _bar(span: SpanRecord, start: int, whole: int, failed: bool) -> str:
    left = 100 * (span.start_time_unix_nano - start) / whole
    width = 100 * max(0, span.end_time_unix_nano - span.start_time_unix_nano) / whole
    # Which of the colours does not change from one run to the next.
    colour = _ERROR if failed else _COLOURS[crc32(service_name(span).encode("utf-8", "replace")) % len(_COLOURS)]
    return f'<span class="tl-bar" style="left:{min(left, 99.8):.2f}%;width:{width:.2f}%;background:{colour}"></span>'


def _block(title: str, content: str) -> str:
    return (
        f'<div class="tl-dim">{escape(title)}</div><pre>{content}</pre>' if content else f"<div>{escape(title)}</div>"
    )


def _pairs(attributes: Attributes) -> str:
    lines = [
        f"{escape(label(key))}: {_text(json_text(value))}" for key, value in islice(attributes.items(), _MAX_ATTRIBUTES)
    ]
    if len(attributes) > _MAX_ATTRIBUTES:
        lines.append(f"... {counted(len(attributes) - _MAX_ATTRIBUTES, 'more attribute')}")
    return "\n".join(lines)


def _text(text: str) -> str:
    """Return a value that may be huge as text of HTML; its lines stay."""
    lines = "\n".join(clean(each) for each in text[:_MAX_TEXT].split("\n"))
    more = len(text) - _MAX_TEXT
    return escape(lines) + (f"\n... {counted(more, 'more character')}" if more > 0 else "")
