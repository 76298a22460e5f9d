"""Traces that a search found as HTML for notebooks: a row each, which folds open; made as `html` makes a trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from html import escape

from tracelake.query.colours import COLOURS, ERROR
from tracelake.query.html import STYLE, block, pairs, text_html
from tracelake.query.infos import Assessment, TraceInfo
from tracelake.query.outline import label
from tracelake.query.text import counted, duration_text
from tracelake.spans.values import json_text

# More make a page that a browser is slow to open.
_MAX_TRACES = 1_000


def page_html(infos: Sequence[TraceInfo], *, more: bool) -> str:
    """Return traces as an element that stands alone; `more` says whether the search would find others, too."""
    return "".join(_parts(infos, more=more))


def _parts(infos: Sequence[TraceInfo], *, more: bool) -> Iterator[str]:
    yield f'<div class="tracelake"><style>{STYLE}</style><div class="tl-head">'
    yield f"<b>{counted(len(infos), 'trace')}</b>{', and there are more' if more else ''}"
    failed = sum(info.state == "ERROR" for info in infos)
    if failed:
        yield f' · <span class="tl-error">{failed:,} failed</span>'
    yield "</div>"
    longest = max((info.duration_ns for info in infos), default=0) or 1
    for info in infos[:_MAX_TRACES]:
        yield from _row(info, longest)
    if len(infos) > _MAX_TRACES:
        yield f'<div class="tl-note">The first {_MAX_TRACES:,} are shown.</div>'
    yield "</div>"


def _row(info: TraceInfo, longest: int) -> Iterator[str]:
    is_error = info.state == "ERROR"
    name = escape(label(info.name) or "(no name)")
    took = duration_text(info.duration_ns)
    width = 100 * max(0, info.duration_ns) / longest
    yield f'<details><summary><span class="tl-name" title="{name}">{_time(info.start_time_unix_nano)} '
    yield f'<span class="tl-error">✗ {name}</span>' if is_error else f"<b>{name}</b>"
    yield f'<span class="tl-dim"> {escape(" · ".join(_facts(info)))}</span></span>'
    colour = ERROR if is_error else COLOURS[0]
    bar = f'<span class="tl-bar" style="left:0%;width:{width:.2f}%;background:{colour}"></span>'
    yield f'<span class="tl-line" title="takes {took}">{bar}</span><span class="tl-took">{took}</span></summary>'
    yield '<div class="tl-more">'
    for title, text in (("asked", info.request_preview), ("answered", info.response_preview)):
        if text is not None:
            yield block(title, text_html(text))
    for title, values in (("tags", info.tags), ("metadata", info.metadata)):
        if values:
            yield block(title, pairs(values))
    if info.assessments:
        yield block("feedback and expectations", text_html("\n".join(map(_assessment, info.assessments))))
    yield f'<div class="tl-dim">trace {escape(info.trace_id)}</div></div></details>'


def _facts(info: TraceInfo) -> Iterator[str]:
    if info.service_name:
        yield label(info.service_name)
    yield counted(info.span_count, "span")
    if info.error_count:
        yield counted(info.error_count, "error")
    if info.tokens.total:
        yield f"{info.tokens.total:,} tokens"
    if info.state == "IN_PROGRESS":
        yield "has not ended yet"


def _assessment(assessment: Assessment) -> str:
    said = json_text(assessment.value) if assessment.error is None else f"failed: {json_text(dict(assessment.error))}"
    why = f" ({assessment.rationale})" if assessment.rationale else ""
    return f"{assessment.name}: {said}{why}, by {assessment.source_id or assessment.source_type}"


def _time(unix_nano: int) -> str:
    return f"{datetime.fromtimestamp(unix_nano // 10**9, timezone.utc):%Y-%m-%d %H:%M:%S}Z"
