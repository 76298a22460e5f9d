"""A trace as HTML for notebooks: its tree beside a timeline, where each span folds open.

It is HTML and CSS alone: nothing is loaded, and nothing runs. Colours are the notebook's own, and tints that show on a
light page and on a dark one; all rules are for elements within ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from itertools import islice
from typing import Any

from tracelake.query.colours import ERROR, service_colours
from tracelake.query.outline import STATUS_ERROR, Node, label, shortened
from tracelake.query.text import clean, counted, duration_text
from tracelake.query.traces import Trace
from tracelake.query.tree import SPAN_INPUTS, SPAN_OUTPUTS, facts, labels, service_name, too_early
from tracelake.spans.record import SpanRecord
from tracelake.spans.values import json_text

# More make a page that a browser is slow to open.
_MAX_SPANS = 1_000
_MAX_TEXT = 5_000
_MAX_ATTRIBUTES = 100
_MAX_EVENTS = 50
_MAX_INDENTS = 20
_MAX_SERVICES = 20

STYLE = f"""
.tracelake{{font:13px/1.5 system-ui,sans-serif;color:inherit;max-width:1100px}}
.tracelake .tl-head b{{font-size:14px}}
.tracelake .tl-head,.tracelake .tl-note{{padding:2px 6px}}
.tracelake .tl-dim,.tracelake .tl-note{{opacity:.7}}
.tracelake .tl-error{{color:{ERROR};font-weight:600}}
:is([data-jp-theme-light="false"],.vscode-dark,.vscode-high-contrast,[theme="dark"]) .tracelake .tl-error{{
color:#ff7b72}}
.tracelake .tl-key{{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:4px}}
.tracelake .tl-service{{display:inline-block;margin-right:12px}}
.tracelake details{{border-top:1px solid rgba(128,128,128,.25)}}
.tracelake summary{{display:grid;grid-template-columns:minmax(150px,2fr) 3fr 80px;gap:8px;align-items:center;
cursor:pointer;padding:2px 6px;list-style:none}}
.tracelake .tl-name::before{{content:"▸";display:inline-block;width:14px;opacity:.7}}
.tracelake details[open]>summary>.tl-name::before{{content:"▾"}}
.tracelake summary::-webkit-details-marker{{display:none}}
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
    """Return a trace as an element that stands alone; of a trace of very many spans, some."""
    return "".join(_parts(trace))


def _parts(trace: Trace) -> Iterator[str]:
    yield f'<div class="tracelake"><style>{STYLE}</style><div class="tl-head">'
    yield f"<b>Trace {escape(trace.trace_id)}</b><br>"
    yield " · ".join(f"<span>{escape(fact)}</span>" for fact in facts(trace))
    errors = sum(span.status_code == STATUS_ERROR for span in trace.spans)
    if errors:
        yield f' · <span class="tl-error">{counted(errors, "error")}</span>'
    if trace.duplicates:
        yield f" · {counted(trace.duplicates, 'row')} that repeat a span left out"
    colours = service_colours(trace)
    yield f"{_legend(colours)}</div>"
    start, whole = trace.start_time_unix_nano, max(1, trace.duration_ns)
    for node in shortened(trace, _MAX_SPANS):
        if node.span is None:
            yield f'<div class="tl-note">{escape(node.note)}</div>'
        else:
            yield from _span(node.span, node, start, whole, colours[service_name(node.span)])
    if len(trace.spans) > _MAX_SPANS:
        yield (
            f'<div class="tl-note">{_MAX_SPANS:,} of {counted(len(trace.spans), "span")} are shown: the first, and of '
            "the others those that failed or took longest. <code>trace.spans</code> has all.</div>"
        )
    yield "</div>"


def _legend(colours: dict[str, str]) -> str:
    named = [(name, colour) for name, colour in colours.items() if name]
    keys = [
        f'<span class="tl-service"><span class="tl-key" style="background:{colour}"></span>{escape(label(name))}</span>'
        for name, colour in named[:_MAX_SERVICES]
    ]
    if len(named) > _MAX_SERVICES:
        keys.append(f'<span class="tl-service">{counted(len(named) - _MAX_SERVICES, "more service")}</span>')
    return f"<br>{''.join(keys)}" if keys else ""


def _span(span: SpanRecord, node: Node, start: int, whole: int, colour: str) -> Iterator[str]:
    failed = span.status_code == STATUS_ERROR
    level = f"(level {node.depth}) " if node.depth > _MAX_INDENTS else ""
    name = escape(label(span.name) or "(no name)")
    took = duration_text(span.end_time_unix_nano - span.start_time_unix_nano)
    at = duration_text(span.start_time_unix_nano - start)
    yield "<details><summary>"
    yield f'<span class="tl-name" style="padding-left:{12 * min(node.depth, _MAX_INDENTS)}px" title="{name}">'
    yield level + (f'<span class="tl-error">✗ {name}</span>' if failed else name)
    yield f'<span class="tl-dim">{escape(labels(span))}</span></span>'
    bar = _bar(span, start, whole, ERROR if failed else colour)
    yield f'<span class="tl-line" title="starts at {at}, takes {took}">{bar}</span>'
    yield f'<span class="tl-took">{took}</span></summary><div class="tl-more">'
    if failed:
        yield f'<div class="tl-error">ERROR: {text_html(span.status_message) or "(no message)"}</div>'
    early = too_early(span, node.parent)
    if early:
        yield f'<div class="tl-dim">{escape(early)}</div>'
    for title, key in (("inputs", SPAN_INPUTS), ("outputs", SPAN_OUTPUTS)):
        if key in span.attributes:
            yield block(title, text_html(json_text(span.attributes[key])))
    rest = {key: value for key, value in span.attributes.items() if key not in (SPAN_INPUTS, SPAN_OUTPUTS)}
    if rest:
        yield block("attributes", pairs(rest))
    for event in span.events[:_MAX_EVENTS]:
        at = duration_text(event.time_unix_nano - start)
        yield block(f"event {label(event.name)} at {at}", pairs(event.attributes))
    if len(span.events) > _MAX_EVENTS:
        yield f'<div class="tl-dim">{counted(len(span.events) - _MAX_EVENTS, "more event")}</div>'
    yield f'<div class="tl-dim">span {escape(label(span.span_id))}</div></div></details>'


def _bar(span: SpanRecord, start: int, whole: int, colour: str) -> str:
    left = 100 * (span.start_time_unix_nano - start) / whole
    width = 100 * max(0, span.end_time_unix_nano - span.start_time_unix_nano) / whole
    return f'<span class="tl-bar" style="left:{min(left, 99.8):.2f}%;width:{width:.2f}%;background:{colour}"></span>'


def block(title: str, content: str) -> str:
    """Return content, which is HTML, below a title, which is text."""
    return (
        f'<div class="tl-dim">{escape(title)}</div><pre>{content}</pre>' if content else f"<div>{escape(title)}</div>"
    )


def pairs(attributes: Mapping[str, Any]) -> str:
    """Return values by key as lines of HTML; of very many, some."""
    lines = [
        f"{escape(label(key))}: {text_html(json_text(value))}"
        for key, value in islice(attributes.items(), _MAX_ATTRIBUTES)
    ]
    if len(attributes) > _MAX_ATTRIBUTES:
        lines.append(f"... {counted(len(attributes) - _MAX_ATTRIBUTES, 'more attribute')}")
    return "\n".join(lines)


def text_html(text: str) -> str:
    """Return a value that may be huge as text of HTML; its lines stay."""
    lines = "\n".join(clean(each) for each in text[:_MAX_TEXT].split("\n"))
    more = len(text) - _MAX_TEXT
    return escape(lines) + (f"\n... {counted(more, 'more character')}" if more > 0 else "")
