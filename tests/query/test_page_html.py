"""Traces that a search found, in a notebook."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.query.test_html import Page
from tracelake.query.infos import Assessment, Tokens, TraceInfo
from tracelake.query.page_html import page_html
from tracelake.query.search import TracePage

S = 10**9
ANSWER = TraceInfo(
    trace_id="a" * 32,
    name="answer",
    service_name="agent",
    start_time_unix_nano=1_760_000_000 * S,
    duration_ns=2 * S,
    state="OK",
    request_preview="What is a <lakehouse>?",
    span_count=5,
    tokens=Tokens(1_000, 200),
    tags={"team": "blue"},
    assessments=(Assessment("a-1", "feedback", "quality", 0.5, source_id="ann", rationale="short"),),
)
FAILED = TraceInfo("b" * 32, "", "", 0, S, "ERROR", span_count=1, error_count=1)
BEGUN = TraceInfo("c" * 32, "begun", "", 0, 0, "IN_PROGRESS", span_count=1)


def test_page() -> None:
    """A row each: what it was, how long beside the others, and folded what was asked and said of it."""
    page = Page(TracePage((ANSWER, FAILED, BEGUN), "next")._repr_html_())
    assert page.spans == 3
    text = " ".join(page.texts)
    for said in (
        "3 traces", "and there are more", "1 failed", "2025-10-09 08:53:20Z", "answer",
        "agent · 5 spans · 1,200 tokens",
        "What is a <lakehouse>?", "team: blue", "quality: 0.5 (short), by ann", "✗ (no name)", "1 span · 1 error",
        "has not ended yet", ANSWER.trace_id,
    ):  # fmt: skip
        assert said in text
    assert "width:100.00%" in page_html([ANSWER, FAILED], more=False)
    assert "width:50.00%" in page_html([ANSWER, FAILED], more=False)


def test_no_traces() -> None:
    assert "0 traces" in " ".join(Page(page_html([], more=False)).texts)


def test_very_many_traces() -> None:
    page = Page(page_html([FAILED] * 1_001, more=False))
    assert page.spans == 1_000
    assert "The first 1,000 are shown." in page.texts


@settings(max_examples=50)
@given(st.text(), st.text(), st.text())
def test_nothing_in_a_trace_is_html(name: str, asked: str, said: str) -> None:
    info = TraceInfo(
        "a" * 32, name, name, 0, 1, "OK", asked, said, tags={name: said}, metadata={asked: said},
        assessments=(Assessment("a", "feedback", name, said, rationale=asked, error={"error_code": said}),),
    )  # fmt: skip
    assert Page(page_html([info], more=False)).spans == 1
