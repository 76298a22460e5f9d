"""The private attributes of OpenTelemetry's spans that recording reads."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider

from tracelake.tracing import otel_span
from tracelake.tracing.otel_span import Origins, to_record


class Kept(SpanProcessor):
    """Keeps what ended."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


@pytest.fixture
def ended() -> list[ReadableSpan]:
    """Two spans: one with everything, dropped parts and a parent among it, and one with nothing."""
    kept = Kept()
    provider = TracerProvider(span_limits=SpanLimits(max_attributes=2, max_events=1, max_links=1))
    provider.add_span_processor(kept)
    tracer = provider.get_tracer("scope", "1", attributes={"of": "scope"})
    other = trace.SpanContext(1, 2, True, trace.TraceFlags(1), trace.TraceState([("vendor", "x")]))
    parent = trace.set_span_in_context(trace.NonRecordingSpan(other))
    links = [trace.Link(other, {"n": index}) for index in range(2)]
    with tracer.start_as_current_span("full", parent, trace.SpanKind.CLIENT, {"a": 1, "b": 2, "c": 3}, links) as span:
        span.add_event("one")
        span.add_event("two", {"k": "v"})
        span.set_status(trace.StatusCode.ERROR, "bad")
    tracer.start_span("empty").end()
    return kept.spans


PRIVATE = (
    "_attributes",
    "_end_time",
    "_events",
    "_instrumentation_scope",
    "_kind",
    "_links",
    "_name",
    "_parent",
    "_resource",
    "_start_time",
    "_status",
)


@pytest.mark.parametrize("name", PRIVATE)
def test_private_attribute_is_where_it_was(ended: list[ReadableSpan], name: str) -> None:
    """If one of these moves, recording still works, by the public properties, and is a third slower."""
    assert all(name in vars(span) for span in ended)


def test_private_and_public_reads_agree(ended: list[ReadableSpan]) -> None:
    """A record is the same by either way, with dropped parts counted."""
    for span in ended:
        context = span.context
        assert context is not None
        quick = otel_span._to_record(span, context, Origins())
        public: Any = otel_span._PublicSpan(span)
        assert quick == otel_span._to_record(public, context, Origins())
        assert quick == to_record(span, context, Origins())
    full = to_record(ended[0], ended[0].context, Origins())  # type: ignore[arg-type]
    assert (full.dropped_attributes_count, full.dropped_events_count, full.dropped_links_count) == (1, 1, 1)


def test_span_of_another_make_is_read_by_its_public_properties() -> None:
    """A ReadableSpan made by hand has plain containers, which count nothing."""
    context = trace.SpanContext(1, 2, False, trace.TraceFlags(1))
    span = ReadableSpan("by hand", context, attributes={"a": 1}, start_time=1, end_time=2)
    record = to_record(span, context, Origins())
    assert (record.name, record.attributes, record.dropped_attributes_count) == ("by hand", {"a": 1}, 0)
