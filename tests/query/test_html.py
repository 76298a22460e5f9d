"""A trace in a notebook."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tracelake
from tests.query.samples import full_span, service_span, write_table
from tests.spans.samples import TRACE_ID, span
from tracelake.query.traces import Trace
from tracelake.spans.record import SpanEvent, SpanRecord

ELEMENTS = {"div", "style", "b", "br", "span", "code", "details", "summary", "pre"}
ATTRIBUTES = {"class", "style", "title"}
STYLE = re.compile(r"padding-left:\d+px|(?:left:-?[\d.]+%;width:[\d.]+%;)?background:#[0-9a-f]{6}")
ROOT = service_span(1, "agent", name="answer", start_time_unix_nano=1_000, end_time_unix_nano=2_000)


class Page(HTMLParser):
    """What HTML says: its texts and how many spans there are; fails at what is not ours and at loose tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.titles: list[str] = []
        self.spans = 0
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ELEMENTS
        assert {name for name, _ in attrs} <= ATTRIBUTES
        for name, value in attrs:
            assert value is not None
            assert name != "style" or STYLE.fullmatch(value), value
            if name == "title":
                self.titles.append(value)
        self.spans += tag == "details"
        if tag != "br":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1] != "style":
            self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        pytest.fail(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


def page(*spans: SpanRecord) -> Page:
    return Page(Trace.of(TRACE_ID, spans)._repr_html_())


def test_trace_says_what_there_is_to_know(tmp_path: Path) -> None:
    """Of the trace, and folded away of each span; as it comes from a table."""
    destination = write_table(
        tmp_path / "table", [full_span(1), service_span(2, "tools", parent_span_id=f"{1:016x}")], 2
    )
    shown = Page(tracelake.get_trace(TRACE_ID, target=destination)._repr_html_())
    assert shown.spans == 2
    for text in (TRACE_ID, "2 spans of 2 services", "1 error", "span 1", " (TOOL, search)", "ERROR: failed"):
        assert text in shown.text
    assert '{"q":[1,null]}' in shown.text
    assert 'it\'s: a "quote"' in shown.text
    assert re.search(r"event exception at .*\n.*exception.type: ValueError", shown.text)


def test_bars_are_where_and_as_long_as_their_spans() -> None:
    """In hundredths of the trace."""
    child = service_span(2, "tools", parent_span_id=ROOT.span_id, start_time_unix_nano=1_250, end_time_unix_nano=1_750)
    html = Trace.of(TRACE_ID, [ROOT, child])._repr_html_()
    assert re.findall(r"left:([\d.]+)%;width:([\d.]+)%", html) == [("0.00", "100.00"), ("25.00", "50.00")]
    one, two = re.findall(r"width:[\d.]+%;background:(#\w+)\"", html)
    assert one != two
    assert re.findall(r"tl-key\" style=\"background:(#\w+)\"></span>(\w+)<", html) == [(one, "agent"), (two, "tools")]
    assert re.findall(r"padding-left:(\d+)px", html) == ["0", "12"]


@given(
    st.text(max_size=40) | st.sampled_from(["</details>", '"><img src=x onerror=alert(1)>', "<!--", "</style>", "&lt;"])
)
@settings(max_examples=60, deadline=None)
def test_no_text_of_a_span_is_html(text: str) -> None:
    """Wherever it is: only our elements are there, and they match."""
    text = text.encode("utf-8", "replace").decode()
    odd = service_span(
        1,
        text,
        name=text,
        status_code=2,
        status_message=text,
        attributes={
            text: text,
            "mlflow.spanInputs": {text: [text]},
            "mlflow.spanOutputs": text,
            "mlflow.spanType": text,
        },
        events=[SpanEvent(text, 5, {text: text})],
    )
    shown = page(odd, span(2, parent_span_id=text[:16] or "x"))
    assert shown.spans == 2


def test_huge_trace_is_cut() -> None:
    """With the count of what is left out, of spans, events, attributes and characters."""
    many = [service_span(number, f"s{number % 30}", parent_span_id=ROOT.span_id) for number in range(2, 3_000)]
    many[-2].status_code = 2
    shown = page(ROOT, *many)
    assert shown.spans == 1_000
    for text in ("(1,998 more spans)", "✗ span 2998", "(1 more span)", "1,000 of 2,999 spans are shown", "1 error"):
        assert text in shown.text
    assert "11 more services" in shown.text
    large = service_span(
        1,
        "agent",
        attributes={"mlflow.spanInputs": "x" * 6_000, **{f"key {number}": number for number in range(150)}},
        events=[SpanEvent(f"event {number}", 1, {}) for number in range(70)],
    )
    text = page(large).text
    for left in ("1,000 more characters", "50 more attributes", "20 more events"):
        assert left in text


@pytest.mark.slow
def test_chain_that_is_deep() -> None:
    """Neither Python's stack nor the width of the page is what ends it."""
    chain = [span(number, parent_span_id=f"{number - 1:016x}" if number > 1 else None) for number in range(1, 100_001)]
    shown = page(*chain)
    assert shown.spans == 1_000
    assert "(level 999) " in shown.text


def test_trace_that_is_not_whole() -> None:
    """Parents that are missing, circles, clocks that differ, no root: each is said."""
    early = service_span(2, "tools", parent_span_id=ROOT.span_id, start_time_unix_nano=-4_000)
    orphan = span(3, parent_span_id="e" * 16)
    circle = [span(4, parent_span_id=f"{5:016x}"), span(5, parent_span_id=f"{4:016x}")]
    text = page(ROOT, early, orphan, *circle).text
    assert "starts 5 us before its parent: the clocks differ" in text
    assert f"(parent {'e' * 16} not in this table)" in text
    assert "(parents in a circle)" in text
    assert page(orphan).spans == 1


def test_nothing_is_loaded_and_nothing_runs() -> None:
    """Also in a page that is shown without a network."""
    html = Trace.of(TRACE_ID, [full_span(1)])._repr_html_()
    assert not re.search(r"https?:|url\(|@import|<script|javascript:| on\w+=", html)


def test_notebook_takes_it() -> None:
    """IPython's own formatter, if it is installed."""
    formatters = pytest.importorskip("IPython.core.formatters")
    data, _ = formatters.DisplayFormatter().format(Trace.of(TRACE_ID, [ROOT]))
    assert data["text/html"].startswith('<div class="tracelake">')
