"""Contexts that leave in headers and come back from them, and the destination that travels along."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, TraceState

from tracelake.errors import PropagationError
from tracelake.tracing import propagation
from tracelake.tracing.propagation import (
    DESTINATION_KEY,
    enter_remote_context,
    get_tracing_context_headers_for_http_request,
    set_destination_guard,
    set_tracing_context_from_http_request_headers,
)

TRACE = "12345678901234567890123456789012"
SPAN = "1234567890123456"
VALID = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
BROKEN = {"traceparent": f"00-{TRACE}-{SPAN}-01-more", "tracestate": "foo=1"}

HERE = "aaaaaaaaaaaaaaaa"
THERE = "bbbbbbbbbbbbbbbb"
ALLOWED = "cccccccccccccccc"

exporter = InMemorySpanExporter()
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(exporter))
tracer = provider.get_tracer("tests")


class Guard:
    """Records to ``here``; adopts ``ALLOWED`` only, and keeps a diary."""

    def __init__(self, *here: str) -> None:
        self.here = frozenset(here)
        self.diary: list[str] = []

    def check(self) -> None:
        return

    def digests(self) -> frozenset[str]:
        return self.here

    def adopt(self, digests: frozenset[str]) -> contextlib.AbstractContextManager[None] | None:
        return self._adopted() if digests == {ALLOWED} else None

    @contextlib.contextmanager
    def _adopted(self) -> Iterator[None]:
        self.diary.append("entered")
        try:
            yield
        finally:
            self.diary.append("left")


class FailingGuard:
    def check(self) -> None:
        return

    def digests(self) -> frozenset[str]:
        raise RuntimeError("no digests today")

    def adopt(self, digests: frozenset[str]) -> None:
        raise AssertionError(f"asked to adopt {digests}")


class FailingAdoption(Guard):
    def adopt(self, digests: frozenset[str]) -> None:
        raise RuntimeError(f"no adoption of {digests} today")


@pytest.fixture(autouse=True)
def untouched(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Every test leaves the context as it was, and starts with no guard and no warning given."""
    before = context.get_current()
    set_destination_guard(None)
    propagation._warned.clear()
    exporter.clear()
    yield
    set_destination_guard(None)
    assert context.get_current() == before
    assert "Failed to detach context" not in [record.getMessage() for record in caplog.get_records("call")]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def span_inside(headers: object, **kwargs: bool) -> SpanContext | None:
    """The parent of a span that is started under these headers."""
    with (
        set_tracing_context_from_http_request_headers(headers, **kwargs),  # type: ignore[arg-type]
        tracer.start_as_current_span("inside") as span,
    ):
        pass
    return span.parent


def test_no_span_means_no_headers() -> None:
    """Baggage alone does not travel, nor does the destination."""
    set_destination_guard(Guard(HERE))
    token = context.attach(baggage.set_baggage("a", "1"))
    assert get_tracing_context_headers_for_http_request() == {}
    context.detach(token)


@pytest.mark.parametrize(("trace_id", "span_id"), [(0, 1), (1, 0), (2**128, 1)])
def test_invalid_span_means_no_headers(trace_id: int, span_id: int) -> None:
    """A callee could not use them."""
    span = NonRecordingSpan(SpanContext(trace_id, span_id, is_remote=False))
    with trace.use_span(span):
        assert get_tracing_context_headers_for_http_request() == {}


def test_current_span_becomes_headers() -> None:
    """The callee's parent is the current span, sampled or not."""
    with tracer.start_as_current_span("outside") as span:
        headers = get_tracing_context_headers_for_http_request()
    sent = span.get_span_context()
    assert list(headers) == ["traceparent"]
    assert headers["traceparent"].startswith(f"00-{sent.trace_id:032x}-{sent.span_id:016x}-")
    assert int(headers["traceparent"][-2:], 16) & TraceFlags.SAMPLED


def test_context_survives_the_way_through_headers() -> None:
    """Ids, flags, trace state and baggage are on the other side what they were on this one."""
    sent = SpanContext(7, 8, is_remote=False, trace_flags=TraceFlags(1), trace_state=TraceState([("foo", "1")]))
    token = context.attach(baggage.set_baggage("user", "Am\u00e9lie + 100%"))
    with trace.use_span(NonRecordingSpan(sent)):
        headers = get_tracing_context_headers_for_http_request()
    context.detach(token)
    assert headers["tracestate"] == "foo=1"
    with set_tracing_context_from_http_request_headers(headers, strict=True):
        received = trace.get_current_span().get_span_context()
        assert dict(baggage.get_all()) == {"user": "Am\u00e9lie + 100%"}
    assert (received.trace_id, received.span_id, received.trace_flags) == (7, 8, 1)
    assert received.trace_state == {"foo": "1"}
    assert received.is_remote


def test_spans_inside_are_children_of_the_caller() -> None:
    """And they hand on the caller's trace state, level 2 keys included."""
    headers = {**VALID, "tracestate": "foo@@bar=1,baz=2"}
    with set_tracing_context_from_http_request_headers(headers), tracer.start_as_current_span("inside") as span:
        onward = get_tracing_context_headers_for_http_request()
    assert span.parent is not None
    assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, SPAN)
    assert onward["traceparent"][3:35] == TRACE
    assert onward["traceparent"][36:52] != SPAN
    assert onward["tracestate"] == "foo@@bar=1,baz=2"


def test_random_flag_is_handed_on() -> None:
    """Level 2 wants it on every traceparent of the trace."""
    with set_tracing_context_from_http_request_headers({"traceparent": f"00-{TRACE}-{SPAN}-02"}):
        assert get_tracing_context_headers_for_http_request()["traceparent"].endswith("-02")


def test_missing_traceparent_leaves_the_current_span() -> None:
    """Its tracestate is discarded, its baggage counts."""
    with tracer.start_as_current_span("outside") as outside:
        assert span_inside({}) == outside.get_span_context()
        assert span_inside({"tracestate": "foo=1"}) == outside.get_span_context()
        with set_tracing_context_from_http_request_headers({"baggage": "a=1"}):
            assert baggage.get_baggage("a") == "1"
    assert span_inside({}) is None


@pytest.mark.parametrize(
    "headers",
    [BROKEN, {"traceparent": ""}, [("traceparent", VALID["traceparent"])] * 2, None, 5, [1], "traceparent"],
)
def test_broken_traceparent_starts_a_new_trace(headers: object) -> None:
    """Whatever span is current, one inside is a root; the current one is back afterwards."""
    with tracer.start_as_current_span("outside") as outside:
        assert span_inside(headers) is None
        assert trace.get_current_span() is outside


def test_broken_tracestate_does_not_touch_the_traceparent() -> None:
    """It is dropped whole."""
    parent = span_inside({**VALID, "tracestate": "FOO=1,bar=2"})
    assert parent is not None
    assert f"{parent.trace_id:032x}" == TRACE
    assert parent.trace_state == {}


def test_broken_baggage_does_not_touch_the_traceparent() -> None:
    """Good members are kept; too much of it is ignored."""
    with set_tracing_context_from_http_request_headers({**VALID, "baggage": "a=1,b"}):
        assert dict(baggage.get_all()) == {"a": "1"}
    with set_tracing_context_from_http_request_headers({**VALID, "baggage": "a=1,b=" + "x" * 8192}):
        assert dict(baggage.get_all()) == {}
        assert trace.get_current_span().get_span_context().is_valid


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        (BROKEN, "traceparent header has .* of version 00 ends after the flags"),
        ({"traceparent": [VALID["traceparent"]] * 2}, "traceparent is sent once, not 2 times"),
        ({**VALID, "tracestate": "FOO=1"}, "tracestate header has 'FOO=1', but a tracestate has keys"),
        ({"tracestate": "foo=1"}, "tracestate comes with a traceparent"),
        ({**VALID, "baggage": "b"}, "baggage header has 'b', but a baggage has members key=value"),
        (None, "a NoneType, cannot be read"),
    ],
)
def test_strict_names_header_value_and_rule(headers: object, message: str) -> None:
    """It raises on entering and leaves the context alone."""
    before = context.get_current()
    with pytest.raises(PropagationError, match=message):
        span_inside(headers, strict=True)
    assert context.get_current() == before
    assert exporter.get_finished_spans() == ()


def test_strict_message_cannot_forge_a_log_line() -> None:
    """Line breaks and escapes are shown as escapes, long values are cut."""
    with pytest.raises(PropagationError) as caught:
        span_inside({"traceparent": "00-\r\nERROR root: gone\x1b[31m\u202e" + "x" * 1000}, strict=True)
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 500


def test_context_is_left_when_the_body_raises() -> None:
    """The error comes through."""
    with pytest.raises(KeyError), set_tracing_context_from_http_request_headers(VALID):
        raise KeyError("body")
    assert not trace.get_current_span().get_span_context().is_valid


names = st.one_of(st.sampled_from(["traceparent", "tracestate", "baggage", "Baggage", b"traceparent"]), st.text())
texts = st.one_of(
    st.text(),
    st.text(alphabet="0123456789abcdef-,=;%@ \t\r\n"),
    st.sampled_from([VALID["traceparent"], f"{DESTINATION_KEY}={THERE}", "foo=1"]),
    st.binary(),
)
values = st.one_of(texts, st.lists(texts, max_size=3), st.none(), st.integers())


@given(st.one_of(st.dictionaries(names, values, max_size=5), st.lists(st.tuples(names, values), max_size=5), values))
def test_no_headers_ever_raise(headers: object) -> None:
    """And if they do because they should, it is with the one documented error."""
    set_destination_guard(Guard(HERE))
    with set_tracing_context_from_http_request_headers(headers):  # type: ignore[arg-type]
        assert baggage.get_baggage(DESTINATION_KEY) is None
        get_tracing_context_headers_for_http_request()
    with (
        contextlib.suppress(PropagationError),
        set_tracing_context_from_http_request_headers(headers, strict=True),  # type: ignore[arg-type]
    ):
        pass


class Unprintable:
    def __str__(self) -> str:
        raise ValueError("no text")


def test_baggage_that_cannot_be_sent_does_not_cost_the_trace(caplog: pytest.LogCaptureFixture) -> None:
    """The traceparent goes out, and the log says why the rest does not, once."""
    token = context.attach(baggage.set_baggage("a", Unprintable()))
    with tracer.start_as_current_span("outside"):
        assert list(get_tracing_context_headers_for_http_request()) == ["traceparent"]
        assert list(get_tracing_context_headers_for_http_request()) == ["traceparent"]
    context.detach(token)
    assert len(warnings_in(caplog)) == 1


def test_digest_travels_and_no_application_sees_it() -> None:
    """It is sent beside the application's baggage, sorted, and taken out on the other side."""
    set_destination_guard(Guard(THERE, HERE))
    token = context.attach(baggage.set_baggage("a", "1"))
    with tracer.start_as_current_span("outside"):
        headers = get_tracing_context_headers_for_http_request()
    context.detach(token)
    assert headers["baggage"] == f"a=1,{DESTINATION_KEY}={HERE}.{THERE}"
    set_destination_guard(None)
    with set_tracing_context_from_http_request_headers(headers), tracer.start_as_current_span("inside"):
        assert dict(baggage.get_all()) == {"a": "1"}
        assert get_tracing_context_headers_for_http_request()["baggage"] == "a=1"


def test_stale_digest_is_not_forwarded() -> None:
    """One that another library has put into the baggage is replaced by ours, or removed."""
    token = context.attach(baggage.set_baggage(DESTINATION_KEY, THERE))
    with tracer.start_as_current_span("outside"):
        assert "baggage" not in get_tracing_context_headers_for_http_request()
        set_destination_guard(Guard(HERE))
        assert get_tracing_context_headers_for_http_request()["baggage"] == f"{DESTINATION_KEY}={HERE}"
    with set_tracing_context_from_http_request_headers(VALID):
        assert baggage.get_baggage(DESTINATION_KEY) is None
    context.detach(token)


def test_no_name_travels() -> None:
    """What does not look like a digest stays here."""
    set_destination_guard(Guard("main.obs.spans", HERE))
    with tracer.start_as_current_span("outside"):
        assert get_tracing_context_headers_for_http_request()["baggage"] == f"{DESTINATION_KEY}={HERE}"


def with_digests(sent: str) -> dict[str, str]:
    return {**VALID, "baggage": f"{DESTINATION_KEY}={sent}"}


def test_same_destination_is_nothing_to_mention(caplog: pytest.LogCaptureFixture) -> None:
    """In any order."""
    set_destination_guard(Guard(THERE, HERE))
    span_inside(with_digests(f"{HERE}.{THERE}"))
    assert warnings_in(caplog) == []


def test_other_destination_is_mentioned_once_a_pair(caplog: pytest.LogCaptureFixture) -> None:
    """The warning says what happens and what to do; another pair gets its own."""
    set_destination_guard(Guard(HERE))
    for _ in range(3):
        span_inside(with_digests(THERE))
    (warning,) = warnings_in(caplog)
    assert f"digest {THERE}, this service to {HERE}: the trace will be split. Name the same destination" in warning
    assert "TRACELAKE_ACCEPT_DESTINATIONS" in warning
    span_inside(with_digests(f"{HERE}.{THERE}"))
    assert len(warnings_in(caplog)) == 2


def test_warnings_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A stranger who makes up digests fills neither the memory nor the log."""
    set_destination_guard(Guard(HERE))
    for n in range(1100):
        span_inside(with_digests(f"{n:016x}"))
    assert len(warnings_in(caplog)) == len(propagation._warned) == 1000


@pytest.mark.parametrize("sent", ["", "short", THERE.upper(), f"{THERE}.", f".{THERE}", "main.obs"])
def test_malformed_digest_is_ignored(sent: str, caplog: pytest.LogCaptureFixture) -> None:
    """The trace is continued, without a word."""
    set_destination_guard(Guard(HERE))
    assert span_inside(with_digests(sent)) is not None
    assert warnings_in(caplog) == []


@pytest.mark.parametrize("headers", [{}, {"traceparent": "broken"}])
def test_digest_without_a_trace_is_ignored(headers: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """There is no trace to split."""
    set_destination_guard(Guard(HERE))
    span_inside({**headers, "baggage": f"{DESTINATION_KEY}={THERE}"})
    assert warnings_in(caplog) == []


def test_allowed_destination_is_adopted_for_the_body(caplog: pytest.LogCaptureFixture) -> None:
    """It is left with the body, also when that raises."""
    guard = Guard(HERE)
    set_destination_guard(guard)
    with set_tracing_context_from_http_request_headers(with_digests(ALLOWED)):
        assert guard.diary == ["entered"]
    assert guard.diary == ["entered", "left"]
    with pytest.raises(KeyError), set_tracing_context_from_http_request_headers(with_digests(ALLOWED)):
        raise KeyError("body")
    assert guard.diary == ["entered", "left"] * 2
    assert warnings_in(caplog) == []


def test_service_without_a_destination_splits_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It records nothing."""
    set_destination_guard(Guard())
    span_inside(with_digests(THERE))
    assert warnings_in(caplog) == []


@pytest.mark.parametrize("guard", [FailingGuard(), FailingAdoption(HERE)])
def test_failing_guard_fails_no_request(guard: Guard | FailingGuard, caplog: pytest.LogCaptureFixture) -> None:
    """The trace goes on in both directions; the log has one warning."""
    set_destination_guard(guard)
    for _ in range(2):
        assert span_inside(with_digests(THERE)) is not None
        with tracer.start_as_current_span("outside"):
            assert "traceparent" in get_tracing_context_headers_for_http_request()
    assert len(warnings_in(caplog)) == 1


def parent_when_a_server_span_is_kept(headers: dict[str, str]) -> SpanContext | None:
    with contextlib.ExitStack() as stack:
        enter_remote_context(stack, headers, keep_server_span=True)
        with tracer.start_as_current_span("inside") as span:
            pass
    return span.parent


def test_server_span_of_an_instrumentation_stays_current() -> None:
    """Spans inside are its children; the caller's baggage counts all the same."""
    with (
        set_tracing_context_from_http_request_headers(VALID),
        tracer.start_as_current_span("server", kind=SpanKind.SERVER) as server,
    ):
        assert parent_when_a_server_span_is_kept(VALID) == server.get_span_context()
    with tracer.start_as_current_span("server", kind=SpanKind.SERVER) as server:
        assert parent_when_a_server_span_is_kept(BROKEN) == server.get_span_context()


def test_server_span_that_is_not_sampled_stays_current() -> None:
    """It tells by its trace id that it was made for this request."""
    dropped = NonRecordingSpan(SpanContext(int(TRACE, 16), 5, is_remote=False))
    with trace.use_span(dropped), contextlib.ExitStack() as stack:
        enter_remote_context(stack, {**VALID, "baggage": "a=1"}, keep_server_span=True)
        assert trace.get_current_span() is dropped
        assert baggage.get_baggage("a") == "1"


def test_any_other_span_gives_way_to_the_caller() -> None:
    """Such as one that was open when the server was started."""
    with tracer.start_as_current_span("start-up"):
        parent = parent_when_a_server_span_is_kept(VALID)
        assert parent is not None
        assert f"{parent.span_id:016x}" == SPAN
        assert parent_when_a_server_span_is_kept(BROKEN) is None
