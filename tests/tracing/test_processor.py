"""What SpanRecorder makes of OpenTelemetry's spans: looked at in the spool, and once in the table."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from tests.lake import Lake
from tracelake import SpanRecord, SpanRecorder
from tracelake.destinations.targets import parse_target
from tracelake.recorder.recorder import Recorder
from tracelake.settings import load_settings
from tracelake.spans.line import resource_of, scope_of
from tracelake.tracing.processor import use_route

START_NS = 1_760_000_000_123_456_789
TRACE_ID, SPAN_ID = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
SAMPLED = TraceFlags(TraceFlags.SAMPLED)


@pytest.fixture
def recorder(lake: Lake) -> Recorder:
    """A recorder of its own, that delivers on `flush` only."""
    recorder = Recorder(load_settings({**lake.environ, "TRACELAKE_SHIPPER": "inline"}), lake.spool)
    recorder.set_default((parse_target(lake.table),))
    return recorder


@pytest.fixture
def provider(recorder: Recorder) -> TracerProvider:
    """A provider whose spans the recorder records."""
    return recording_provider(recorder)


def recording_provider(recorder: Recorder, **options: Any) -> TracerProvider:
    provider = TracerProvider(resource=Resource({"service.name": "shop"}), shutdown_on_exit=False, **options)
    provider.add_span_processor(SpanRecorder(recorder))
    return provider


def remote(flags: TraceFlags = SAMPLED, *, is_remote: bool = True) -> otel_context.Context:
    state = TraceState([("vendor", "a:b"), ("other", "1")])
    return trace.set_span_in_context(NonRecordingSpan(SpanContext(TRACE_ID, SPAN_ID, is_remote, flags, state)))


def only(lake: Lake) -> SpanRecord:
    (record,) = lake.records()
    return record


def test_every_field_of_a_span_is_recorded(lake: Lake, recorder: Recorder) -> None:
    """Nothing that a span can hold is left out on its way into the spool."""
    resource = Resource({"service.name": "shop", "host.cpus": 4}, "https://schema/resource")
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(SpanRecorder(recorder))
    tracer = provider.get_tracer("cart", "1.2", "https://schema/scope", {"scoped": True})
    linked = SpanContext(1, 2, True, SAMPLED, TraceState([("k", "v")]))
    links = [Link(linked, {"why": "batch"}), Link(SpanContext(3, 4, False))]
    span = tracer.start_span("pay", remote(), SpanKind.CLIENT, {"amount": 3.5}, links, START_NS)
    span.set_attribute("items", ["a", "b"])
    span.add_event("asked", {"try": 1}, START_NS + 1)
    span.set_status(Status(StatusCode.ERROR, "no money"))
    span.end(START_NS + 2)

    record = only(lake)
    assert record.trace_id == f"{TRACE_ID:032x}"
    assert record.span_id == f"{span.get_span_context().span_id:016x}"
    assert record.parent_span_id == f"{SPAN_ID:016x}"
    assert record.trace_state == "vendor=a:b,other=1"
    assert record.flags == 0x301
    assert (record.name, record.kind) == ("pay", 3)
    assert (record.start_time_unix_nano, record.end_time_unix_nano) == (START_NS, START_NS + 2)
    assert record.attributes == {"amount": 3.5, "items": ["a", "b"]}
    assert (record.status_code, record.status_message) == (2, "no money")
    (event,) = record.events
    assert (event.name, event.time_unix_nano, event.attributes) == ("asked", START_NS + 1, {"try": 1})
    first, second = record.links
    assert (first.trace_id, first.span_id) == (f"{1:032x}", f"{2:016x}")
    assert (first.trace_state, first.attributes, first.flags) == ("k=v", {"why": "batch"}, 0x301)
    assert (second.trace_state, second.attributes, second.flags) == ("", {}, 0x100)
    made_by = resource_of(record)
    assert made_by.attributes == {"service.name": "shop", "host.cpus": 4}
    assert made_by.schema_url == "https://schema/resource"
    scope = scope_of(record)
    assert (scope.name, scope.version, scope.schema_url) == ("cart", "1.2", "https://schema/scope")
    assert scope.attributes == {"scoped": True}


def test_span_is_a_row_of_the_table(lake: Lake, recorder: Recorder, provider: TracerProvider) -> None:
    """The row has the names and the texts of a span table."""
    with provider.get_tracer("cart").start_as_current_span("root", kind=SpanKind.SERVER) as root:
        provider.get_tracer("cart").start_span("child", attributes={"n": 1}).end()
    assert recorder.flush(20).complete
    by_name = {row["name"]: row for row in lake.rows()}
    assert by_name["root"]["kind"] == "SPAN_KIND_SERVER"
    assert by_name["root"]["parent_span_id"] is None
    assert by_name["root"]["status"] == {"message": "", "code": "STATUS_CODE_UNSET"}
    assert dict(by_name["root"]["resource"]["attributes"]) == {"service.name": "shop"}
    child = by_name["child"]
    assert child["parent_span_id"] == f"{root.get_span_context().span_id:016x}"
    assert child["attributes"] == {"n": "1"}
    assert child["instrumentation_scope"]["name"] == "cart"


@pytest.mark.parametrize(("kind", "number"), [(kind, number) for number, kind in enumerate(SpanKind, start=1)])
def test_kind_is_the_number_of_the_protocol(lake: Lake, provider: TracerProvider, kind: SpanKind, number: int) -> None:
    """OpenTelemetry counts kinds from 0, OTLP from 1."""
    provider.get_tracer("t").start_span("s", kind=kind).end()
    assert only(lake).kind == number


@pytest.mark.parametrize(("code", "number"), [(StatusCode.UNSET, 0), (StatusCode.OK, 1), (StatusCode.ERROR, 2)])
def test_status_is_the_number_of_the_protocol(
    lake: Lake, provider: TracerProvider, code: StatusCode, number: int
) -> None:
    """The three status codes."""
    span = provider.get_tracer("t").start_span("s")
    span.set_status(code)
    span.end()
    assert only(lake).status_code == number


@pytest.mark.parametrize(("is_remote", "flags"), [(True, 0x301), (False, 0x101)])
def test_flags_say_whether_the_parent_is_remote(
    lake: Lake, provider: TracerProvider, is_remote: bool, flags: int
) -> None:
    """Bits 8 and 9, as in OTLP."""
    provider.get_tracer("t").start_span("s", remote(is_remote=is_remote)).end()
    assert only(lake).flags == flags


def test_exception_is_an_event_with_its_stack_trace(lake: Lake, provider: TracerProvider) -> None:
    """The stack trace is whole, with its cause, and the status says what was raised."""
    with contextlib.suppress(ValueError), provider.get_tracer("t").start_as_current_span("s"):
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("b\u00e4d") from error
    record = only(lake)
    (event,) = record.events
    assert event.name == "exception"
    assert event.attributes["exception.type"] == "ValueError"
    assert event.attributes["exception.message"] == "b\u00e4d"
    assert "KeyError: 'first'" in event.attributes["exception.stacktrace"]
    assert "direct cause" in event.attributes["exception.stacktrace"]
    assert (record.status_code, record.status_message) == (2, "ValueError: b\u00e4d")


def test_what_the_limits_cut_is_counted(lake: Lake, recorder: Recorder) -> None:
    """Dropped attributes, events and links are counted, those of an event and of a link, too."""
    limits = SpanLimits(
        max_span_attributes=2,
        max_events=1,
        max_links=1,
        max_event_attributes=1,
        max_link_attributes=1,
        max_span_attribute_length=4,
    )
    tracer = recording_provider(recorder, span_limits=limits).get_tracer("t")
    context = SpanContext(1, 2, False, SAMPLED)
    links = [Link(context, {"a": 1, "b": 2}), Link(context, {"a": 1, "b": 2, "c": 3})]
    span = tracer.start_span("s", attributes={"a": 1, "b": 2, "c": 3, "d": "long text"}, links=links)
    for _ in range(4):
        span.add_event("e", {"a": 1, "b": 2})
    span.end()
    record = only(lake)
    assert record.attributes == {"c": 3, "d": "long"}
    assert (record.dropped_attributes_count, record.dropped_events_count, record.dropped_links_count) == (2, 3, 1)
    assert len(record.events) == len(record.links) == 1
    assert record.events[0].dropped_attributes_count == 1
    assert record.links[0].dropped_attributes_count == 2


class RecordOnly(Sampler):
    """Spans that are recorded, and not sampled."""

    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_ONLY)

    def get_description(self) -> str:
        return "record only"


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, RecordOnly()])
def test_unsampled_span_is_not_recorded(lake: Lake, recorder: Recorder, sampler: Sampler) -> None:
    """Neither counted nor written, and nothing of it is kept, whatever context it started in."""
    processor = SpanRecorder(recorder)
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(processor)
    with use_route(recorder.default_route()):
        provider.get_tracer("t").start_span("s").end()
    assert lake.records() == []
    assert recorder.report().recorded == 0
    assert not processor._routed


def test_span_is_recorded_once_for_several_recorders(lake: Lake, recorder: Recorder, provider: TracerProvider) -> None:
    """A second span recorder of the provider adds nothing, in whatever order spans end."""
    provider.add_span_processor(SpanRecorder(recorder))
    tracer = provider.get_tracer("t")
    first, second = tracer.start_span("a"), tracer.start_span("b")
    second.end()
    first.end()
    with tracer.start_as_current_span("c"), tracer.start_as_current_span("d"):
        pass
    assert [record.name for record in lake.records()] == ["b", "a", "d", "c"]
    assert recorder.report().recorded == 4


def test_two_recorders_of_two_spools_record_each(lake: Lake, provider: TracerProvider, tmp_path: Path) -> None:
    """Once for each destination is not once for all."""
    other = Lake(tmp_path / "other")
    other.root.mkdir()
    second = Recorder(load_settings({"TRACELAKE_SHIPPER": "external"}), other.spool)
    second.set_default((parse_target(other.table),))
    provider.add_span_processor(SpanRecorder(second))
    provider.get_tracer("t").start_span("s").end()
    assert len(lake.records()) == len(other.records()) == 1


def test_span_that_ends_after_its_root_is_recorded(lake: Lake, provider: TracerProvider) -> None:
    """Nothing waits for a trace to be complete."""
    tracer = provider.get_tracer("t")
    with tracer.start_as_current_span("root"):
        late = tracer.start_span("late")
    late.end()
    root, child = lake.records()
    assert (root.name, child.name, child.parent_span_id) == ("root", "late", root.span_id)


def test_span_that_ends_after_shutdown_is_recorded(lake: Lake, recorder: Recorder, provider: TracerProvider) -> None:
    """`shutdown` delivers what there is; a provider goes on to make spans, and they are recorded and delivered."""
    tracer = provider.get_tracer("t")
    late = tracer.start_span("late")
    tracer.start_span("early").end()
    provider.shutdown()
    assert [row["name"] for row in lake.rows()] == ["early"]
    late.end()
    assert recorder.flush(20).complete
    assert {row["name"] for row in lake.rows()} == {"early", "late"}


def test_force_flush_says_whether_all_is_delivered(lake: Lake, provider: TracerProvider) -> None:
    """True when the spans are in the table; False, and in time, when nobody delivers them."""
    provider.get_tracer("t").start_span("s").end()
    assert provider.force_flush()
    assert len(lake.rows()) == 1

    idle = Recorder(load_settings({"TRACELAKE_SHIPPER": "external"}), lake.spool)
    idle.set_default((parse_target(f"{lake.table}-2"),))
    waiting = recording_provider(idle)
    waiting.get_tracer("t").start_span("s").end()
    assert not waiting.force_flush(1_000)


def test_span_with_equal_start_and_end_is_recorded(lake: Lake, provider: TracerProvider) -> None:
    """A span of no length is a span, also one at the beginning of time."""
    tracer = provider.get_tracer("t")
    tracer.start_span("now", start_time=START_NS).end(START_NS)
    tracer.start_span("backwards", start_time=START_NS).end(START_NS - 5)
    now, backwards = lake.records()
    assert now.start_time_unix_nano == now.end_time_unix_nano == START_NS
    assert backwards.end_time_unix_nano == START_NS - 5


class Color(str, Enum):
    """A text that is not of the type `str`."""

    RED = "red"


class Hostile:
    """An object whose own code fails."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


WEIRD: dict[str, Any] = {
    "enum": Color.RED,
    "huge": 2**80,
    "nan": float("nan"),
    "bytes": b"\xff\x00",
    "surrogate": "a\ud800b",
    "empty": "",
    "nothing": (),
    "mixed none": ["a", None],
    "object": object(),
    "set": {1},
    "nested": {"a": [{"b": (1, 2)}]},
    "lock": threading.Lock(),
}


@pytest.mark.filterwarnings("ignore")
def test_weird_attributes_never_cost_the_span(lake: Lake, recorder: Recorder, provider: TracerProvider) -> None:
    """Each value alone and all together: the span is delivered, whatever OpenTelemetry lets through."""
    tracer = provider.get_tracer("t")
    for name, value in WEIRD.items():
        span = tracer.start_span(name, attributes={name: value})
        span.add_event("e", {name: value})
        span.end()
    tracer.start_span("all", attributes=WEIRD).end()
    assert recorder.flush(20).complete
    rows = {row["name"]: row["attributes"] for row in lake.rows()}
    assert rows.keys() == {*WEIRD, "all"}
    assert rows["enum"] == {"enum": "red"}
    assert rows["huge"]["huge"] == str(2**80)
    assert rows["nan"]["nan"] == "NaN"
    assert rows["surrogate"]["surrogate"] == "a\\ud800b"
    assert "tracelake.degraded" in rows["surrogate"]


MISUSES: dict[str, Callable[[trace.Tracer], None]] = {
    "name that is a number": lambda tracer: tracer.start_span(7).end(),  # type: ignore[arg-type]
    "name that is None": lambda tracer: tracer.start_span(None).end(),  # type: ignore[arg-type]
    "name that is an enum": lambda tracer: tracer.start_span(Color.RED).end(),
    "start in seconds": lambda tracer: tracer.start_span("s", start_time=1.5e9 + 0.25).end(),  # type: ignore[arg-type]
    "end in seconds": lambda tracer: tracer.start_span("s").end(1.5e9 + 0.25),  # type: ignore[arg-type]
    "time before 1970": lambda tracer: tracer.start_span("s", start_time=-5).end(),
    "time that is too late": lambda tracer: tracer.start_span("s").end(2**70),
    "event without a text": lambda tracer: _with_event(tracer, 7, None),
    "event in seconds": lambda tracer: _with_event(tracer, "e", 1.5e9 + 0.25),
}


def _with_event(tracer: trace.Tracer, name: Any, time: Any) -> None:
    span = tracer.start_span("s")
    span.add_event(name, timestamp=time)
    span.end()


@pytest.mark.parametrize("misuse", list(MISUSES))
def test_misuse_never_costs_the_span(lake: Lake, recorder: Recorder, provider: TracerProvider, misuse: str) -> None:
    """What OpenTelemetry takes without a look becomes a row all the same."""
    MISUSES[misuse](provider.get_tracer("t"))
    report = recorder.flush(20)
    assert report.complete, report
    assert len(lake.rows()) == 1


def test_nothing_is_raised_into_the_app(
    lake: Lake, recorder: Recorder, provider: TracerProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """A spool that cannot be written costs spans, which are counted, and one line in the log, and the app nothing."""
    Path(lake.spool.path).write_text("not a directory")
    with caplog.at_level(logging.WARNING, "tracelake"):
        for _ in range(20):
            provider.get_tracer("t").start_span("s").end()
    report = recorder.report()
    assert (report.recorded, report.dropped, report.pending) == (20, 20, 0)
    assert any(lake.spool.path in error for error in report.errors)
    assert len([entry for entry in caplog.records if entry.name == "tracelake"]) == 1


def test_span_of_a_kind_that_cannot_be_is_counted(recorder: Recorder) -> None:
    """A foreign object in place of a span is refused, and the report says so."""
    SpanRecorder(recorder).on_end(Broken())  # type: ignore[arg-type]
    report = recorder.report()
    assert (report.recorded, report.dropped) == (1, 1)
    assert "AttributeError" in " ".join(report.errors)


class Broken:
    """What is sampled, and has nothing else."""

    context = SpanContext(1, 2, False, SAMPLED)


@pytest.fixture
def concurrent() -> Iterator[ConcurrentMultiSpanProcessor]:
    """The other span processor that a provider may have: it calls each of its own in a thread."""
    processor = ConcurrentMultiSpanProcessor(2)
    yield processor
    processor._executor.shutdown()


def test_concurrent_processors_lose_nothing(
    lake: Lake, recorder: Recorder, concurrent: ConcurrentMultiSpanProcessor
) -> None:
    """Spans that end in several threads at once, recorded from a pool of others, are all there."""
    tracer = recording_provider(recorder, active_span_processor=concurrent).get_tracer("t")
    threads = [threading.Thread(target=lambda: [tracer.start_span("s").end() for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = lake.records()
    assert len({record.span_id for record in records}) == len(records) == 400
