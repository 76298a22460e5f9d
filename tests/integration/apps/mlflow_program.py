"""A program of MLflow code that uses what MLflow's tracing has; every span has a name of its own.

`EXPERIMENT` names an experiment that is linked to the Unity Catalog tables `main.obs.agent_*`; without it the program
names no experiment.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import contextvars
import dataclasses
import datetime
import decimal
import enum
import json
import os
import random
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import mlflow
import numpy as np
import pydantic
from mlflow.entities import Link, LiveSpan, SpanEvent, SpanStatus, SpanStatusCode, SpanType
from mlflow.entities.trace_location import MlflowExperimentLocation, UnityCatalog
from opentelemetry import trace as otel
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

OTHER_TRACE, OTHER_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
START, END = 1_700_000_000_000_000_001, 1_700_000_001_000_000_009


@dataclasses.dataclass
class Place:
    city: str
    at: tuple[float, float]


class Passage(pydantic.BaseModel):
    text: str
    score: float | None = None
    places: list[Place] = []


class Level(enum.Enum):
    LOW = 1


class Named:
    def __repr__(self) -> str:
        return "Named()"


def circular() -> list[Any]:
    items: list[Any] = [1]
    items.append(items)
    return items


def nested(depth: int) -> Any:
    value: Any = "bottom"
    for level in range(depth):
        value = {"next": value} if level % 2 else [value]
    return value


VALUES: dict[str, Any] = {
    "dict": {"question": "Why?", "k": 3, "nested": {"list": [1, 2.5, None, True, {"deep": []}]}},
    "keys": {7: "int", 2.5: "float", True: "bool", None: "none", "": "empty", "a.b": "dot"},
    "keys of other kinds": {(1, 2): "tuple"},
    "list": [1, "two", 3.0, False, None],
    "tuple": (1, "two"),
    "set": {7},
    "text": "plain text",
    "text that is JSON": '{"a": 1}',
    "text of a number": "123",
    "text of null": "null",
    "text in quotes": '"quoted"',
    "unicode": "naïve 東京 🚀 \u0000 \x1b \u2028",
    "surrogate": "half \ud83d of a pair",
    "surrogate in a dict": {"k\udc80": ["\udcff"]},
    "empty text": "",
    "blank": " ",
    "none": None,
    "true": True,
    "false": False,
    "zero": 0,
    "negative": -1,
    "int64": 2**63 - 1,
    "least int64": -(2**63),
    "float": 0.1,
    "float zero": 0.0,
    "whole float": 1.0,
    "large float": 1e300,
    "nan": float("nan"),
    "infinity": float("inf"),
    "infinities": [float("-inf"), {"nan": float("nan")}],
    "empty list": [],
    "empty dict": {},
    "bytes": b"\x00\xff",
    "datetime": datetime.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=datetime.timezone.utc),
    "date": datetime.date(2026, 1, 2),
    "timedelta": datetime.timedelta(seconds=90),
    "decimal": decimal.Decimal("1.10"),
    "uuid": uuid.UUID(int=1),
    "enum": Level.LOW,
    "dataclass": Place("Oslo", (59.9, 10.7)),
    "pydantic": Passage(text="A lake.", score=0.5, places=[Place("Oslo", (59.9, 10.7))]),
    "models in a dict": {"passages": [Passage(text="A lake."), Place("Rome", (41.9, 12.5))]},
    "array": np.array([[1, 2], [3, 4]]),
    "array scalar": np.float32(1.5),
    "complex": 1 + 2j,
    "range": range(3),
    "object": Named(),
    "class": Named,
    "circular": circular(),
    "deep": nested(20),
    "big text": "x" * 1_000_000,
    "wide": {f"key {number}": number for number in range(300)},
    "like a tag": {"$bytes": "AAA="},
    "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
}
# A span with one of these never reaches the table by MLflow's own exporter.
HARD_VALUES: dict[str, Any] = {
    "huge": 2**63,
    "huge in a dict": {"n": [-(2**70)]},
    "deeper": nested(60),
}


def values() -> None:
    """A span for each value: as an attribute, as inputs and as outputs."""
    with mlflow.start_span("values") as root:
        root.set_attributes(VALUES)
        for key, value in VALUES.items():
            with mlflow.start_span(f"value: {key}", attributes={"at start": value}) as span:
                span.set_attribute("of value", value)
                if key != "circular":  # MLflow's own code looks for attachments in it without an end
                    span.set_inputs(value)
                    span.set_outputs({"wrapped": value})
    for key, value in HARD_VALUES.items():
        with mlflow.start_span("root of a hard value"), mlflow.start_span(f"hard: {key}") as span:
            span.set_attribute("of value", value)


def spans() -> None:
    """Nested spans of all types, with the same key set twice, and reserved attributes."""
    types = [value for name, value in vars(SpanType).items() if name.isupper()]
    with mlflow.start_span("types", span_type=SpanType.AGENT) as root:
        root.set_inputs({"question": "Why?"})
        for kind in [*types, "of our own", ""]:
            with mlflow.start_span(f"type: {kind}", span_type=kind) as span:
                span.set_attribute("twice", 1)
                span.set_attribute("twice", [2])
                span.set_inputs("in")
                span.set_outputs("out")
        with mlflow.start_span("described", span_type="LLM", log_level="WARNING", description="what it does") as span:
            span.set_inputs({"messages": []})
            span.set_attributes(
                {
                    "mlflow.chat.tokenUsage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15},
                    "mlflow.llm.model": "some-model",
                    "mlflow.message.format": "openai",
                }
            )
            span.set_outputs({"choices": [{"index": 0}]})
        root.set_outputs("Because.")


def functions() -> None:
    """Decorated functions of each kind."""

    @mlflow.trace(span_type=SpanType.CHAIN, attributes={"version": 2})
    def plain(question: str, *more: int, k: int = 3, **options: Any) -> list[str]:
        return [inner(question), str(k), str(more), str(options)]

    @mlflow.trace(name="inner function")
    def inner(question: str) -> str:
        return question.upper()

    @mlflow.trace
    def stream(count: int) -> Iterator[dict[str, int]]:
        for number in range(count):
            with mlflow.start_span(f"chunk {number}"):
                yield {"token": number}

    @mlflow.trace(output_reducer=lambda chunks: "".join(chunks))
    def reduced() -> Iterator[str]:
        yield "ein"
        yield "s\u00df"

    @mlflow.trace
    def broken_stream() -> Iterator[int]:
        yield 1
        raise ValueError("the stream broke")

    @mlflow.trace
    async def coroutine(name: str) -> str:
        await asyncio.sleep(0)
        return f"hello {name}"

    @mlflow.trace
    async def async_stream() -> AsyncIterator[int]:
        for number in range(2):
            await asyncio.sleep(0)
            yield number

    async def main() -> None:
        with mlflow.start_span("asyncio"):
            await coroutine("one")
            await asyncio.gather(*(coroutine(name) for name in ("two", "three")))
            assert [number async for number in async_stream()] == [0, 1]

    plain("why", 1, 2, tag="x")
    assert len(list(stream(3))) == 3
    assert len(list(reduced())) == 2
    with contextlib.suppress(ValueError):
        list(broken_stream())
    asyncio.run(main())


def errors() -> None:
    """Exceptions that are raised, that are recorded, and statuses set by hand."""

    def fail() -> None:
        with mlflow.start_span("raises"):
            raise ValueError("bad value: ünïcödé")

    with mlflow.start_span("errors") as root:
        try:
            fail()
        except ValueError as error:
            root.add_event(SpanEvent.from_exception(error))
        with mlflow.start_span("records") as span:
            span.record_exception("only text")
            span.record_exception(KeyError("key"))
        with mlflow.start_span("status ok") as span:
            span.set_status("OK")
        with mlflow.start_span("status error") as span:
            span.set_status(SpanStatus(SpanStatusCode.ERROR, "out of tokens"))
        with mlflow.start_span("status of code") as span:
            span.set_status(SpanStatusCode.ERROR)


def events_and_links() -> None:
    """Events with times and attributes of their own, links of all forms."""
    with mlflow.start_span("events") as span:
        span.add_event(SpanEvent("one"))
        span.add_event(SpanEvent("two", timestamp=START, attributes={"n": 1, "t": True, "f": 0.5, "s": ["a", "b"]}))
        span.add_event(SpanEvent("three", attributes={"zero": 0, "empty": "", "text": "123", "json": '{"a": 1}'}))
        span.add_event(SpanEvent("bytes", attributes={"bytes": b"\x00\xff"}))
    links = [
        Link(trace_id=f"tr-{OTHER_TRACE}", span_id=OTHER_SPAN, attributes={"why": "retry", "n": 1, "ratio": 0.5}),
        Link(trace_id=OTHER_TRACE, span_id=OTHER_SPAN),
    ]
    with mlflow.start_span("links", links=links) as span:
        span.add_link(Link(trace_id=span.trace_id, span_id=span.span_id, attributes={"self": True}))


def traces() -> None:
    """What belongs to the trace as a whole."""
    with mlflow.start_span("trace") as root:
        root.set_inputs({"question": "Why?"})
        mlflow.update_current_trace(
            tags={"env": "prod", "empty": ""},
            metadata={"commit": "abc", "mlflow.source.name": "agent"},
            client_request_id="request-1",
            request_preview="Why?",
            response_preview="Because.",
            session_id="session-1",
            user="user-1",
        )
        with mlflow.start_span("child of trace"):
            mlflow.update_current_trace(tags={"from": "child"})
        root.set_outputs("Because.")
    with (
        mlflow.tracing.context(metadata={"tenant": "t1"}, tags={"of": "context"}, session_id="s2", user="u2"),
        mlflow.start_span("in context"),
    ):
        pass
    with mlflow.start_span("state by hand"):
        mlflow.update_current_trace(state="ERROR")


def without_context() -> None:
    """Spans that are started and ended by hand, with times of their own, and one that outlives its root."""
    root = mlflow.start_span_no_context("detached", inputs={"a": 1}, tags={"by": "hand"}, start_time_ns=START)
    child = mlflow.start_span_no_context("detached child", parent_span=root, start_time_ns=START + 5)
    late = mlflow.start_span_no_context("late child", parent_span=root, start_time_ns=START + 6)
    child.end(outputs=["b"], attributes={"c": None}, status="ERROR", end_time_ns=END - 7)
    root.end(outputs={"d": 2}, end_time_ns=END)
    late.end(end_time_ns=END + 1)


def outlived() -> None:
    """A span that is still the current one, elsewhere, when its root has ended."""
    with mlflow.start_span("outlived"):
        mlflow.update_current_trace(tags={"early": "set before the root span ends"})
        context = contextvars.copy_context()
        late = mlflow.start_span("outlives its root")
        context.run(late.__enter__)
    context.run(mlflow.update_current_trace, tags={"late": "set after the root span has ended"})
    context.run(late.__exit__, None, None, None)


def threads() -> None:
    """A thread that is given the context, and one that is not."""

    def work(name: str) -> None:
        with mlflow.start_span(name):
            pass

    with mlflow.start_span("threads"):
        context = contextvars.copy_context()
        for target, arguments in ((context.run, (work, "in context of the caller")), (work, ("in no context",))):
            thread = threading.Thread(target=target, args=arguments)
            thread.start()
            thread.join()


def processors() -> None:
    """Span processors of MLflow change spans before they are written."""

    def redact(span: Any) -> None:
        if span.inputs:
            span.set_inputs({**span.inputs, "password": "[REDACTED]"})
        span.set_attribute("processed", True)

    def fail(span: Any) -> None:
        raise RuntimeError(f"a processor that fails for {span.name}")

    with (
        mlflow.tracing.configure(span_processors=[redact, fail]),
        mlflow.start_span("processed", attributes={"kept": 1}) as span,
    ):
        span.set_inputs({"password": "secret", "user": "me"})


def sampled() -> None:
    """Traces that are left out by their sampling ratio, with their children."""

    @mlflow.trace(sampling_ratio_override=0.0)
    def never() -> None:
        with mlflow.start_span("child of never"):
            pass

    @mlflow.trace(sampling_ratio_override=0.5)
    def sometimes(number: int) -> int:
        return number

    never()
    for number in range(12):
        sometimes(number)
    with mlflow.tracing.context(enabled=False), mlflow.start_span("switched off"):
        pass


def bridged() -> None:
    """Spans of OpenTelemetry that are made through MLflow's tracer provider."""
    tracer = mlflow.tracing.get_bridged_tracer_provider().get_tracer("some.library", "1.2", attributes={"scope": 1})
    state = TraceState([("vendor", "value")])
    remote = SpanContext(int(OTHER_TRACE, 16), int(OTHER_SPAN, 16), True, TraceFlags(1), state)
    attributes = {
        "text": "plain",
        "text of a number": "123",
        "text of a float": "1.50",
        "text that is JSON": '{"a": [1, null]}',
        "text in quotes": '"quoted"',
        "text of NaN": "NaN",
        "text of null": "null",
        "empty text": "",
        "int": 5,
        "zero": 0,
        "float": 2.5,
        "float zero": 0.0,
        "true": True,
        "false": False,
        "texts": ["a", "b"],
        "ints": [1, 2],
        "empty": [],
        "bytes": b"\x00\xff",
        "bytes of a number": b"12",
    }
    with tracer.start_as_current_span(
        "otel root", kind=SpanKind.SERVER, attributes=attributes, links=[otel.Link(remote, {"why": "caller", "n": 0})]
    ) as root:
        root.add_event("event", {"zero": 0, "empty": "", "texts": ["a"], "number": "123"}, START)
        with tracer.start_as_current_span("otel client", kind=SpanKind.CLIENT) as span:
            span.set_status(Status(StatusCode.ERROR, "no answer"))
        with contextlib.suppress(LookupError), tracer.start_as_current_span("otel raises"):
            raise LookupError("nowhere")
    with mlflow.start_span("mlflow over otel") as span:
        context = otel.set_span_in_context(span._span)
        with tracer.start_as_current_span("otel under mlflow", context=context) as under:
            under.set_attribute("in", "between")
    with tracer.start_as_current_span("otel by mlflow") as library_span:
        # As MLflow hands out the current span where it shares OpenTelemetry's provider.
        by_mlflow = LiveSpan(library_span, json.loads(library_span.attributes["mlflow.traceRequestId"]))
        by_mlflow.set_inputs({"q": "why"})
        by_mlflow.set_attributes({"text by mlflow": "x", "number by mlflow": 3, "dict by mlflow": {"a": [1]}})


def remote_span(name: str, span_id: bytes, parent: bytes | None, **attributes: str) -> dict[str, Any]:
    """A span as MLflow gives the spans of a finished trace to others."""
    return {
        "trace_id": base64.b64encode(bytes.fromhex(OTHER_TRACE)).decode(),
        "span_id": base64.b64encode(span_id).decode(),
        "parent_span_id": parent and base64.b64encode(parent).decode(),
        "name": name,
        "start_time_unix_nano": START,
        "end_time_unix_nano": END,
        "events": [{"name": "remote event", "time_unix_nano": START, "attributes": {"n": 1}}],
        "status": {"code": "STATUS_CODE_OK", "message": ""},
        "attributes": {"mlflow.traceRequestId": f'"tr-{OTHER_TRACE}"', "mlflow.spanType": '"TOOL"', **attributes},
        "links": [],
    }


def merged() -> None:
    """A finished trace of another process is made part of a trace, and of one of its own."""
    for name, start in (("merged", b"merged__"), ("added", b"added___")):
        top = remote_span(f"{name} root", start, None, **{"mlflow.spanInputs": '{"a": 1}', "key": '"text"'})
        below = remote_span(f"{name} child", start[:-1] + b"1", start, **{"mlflow.spanOutputs": "[1]"})
        info = {
            "trace_id": f"tr-{OTHER_TRACE}",
            "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}},
            "request_time": "2023-11-14T22:13:20Z",
            "state": "OK",
            "execution_duration_ms": 1000,
            "trace_metadata": {"remote": "metadata"},
            "tags": {"remote": "tag"},
        }
        trace = {"info": info, "data": {"spans": [top, below]}}
        if name == "added":
            mlflow.add_trace(trace)
        else:
            with mlflow.start_span("merges"):
                mlflow.add_trace(trace)


def remote_parent() -> None:
    """A trace that began in another service."""
    headers = {"traceparent": f"00-{OTHER_TRACE}-{OTHER_SPAN}-01"}
    with (
        mlflow.tracing.set_tracing_context_from_http_request_headers(headers),
        mlflow.start_span("of a caller"),
        mlflow.start_span("below that of a caller"),
    ):
        mlflow.update_current_trace(tags={"of a caller": "x"})


def in_experiments() -> None:
    """A trace that names an experiment of its own."""
    with mlflow.start_span("in an experiment", trace_destination=MlflowExperimentLocation("0")):
        pass


PARTS: list[Callable[[], None]] = [
    values,
    spans,
    functions,
    errors,
    events_and_links,
    traces,
    without_context,
    outlived,
    threads,
    processors,
    sampled,
    bridged,
    merged,
    remote_parent,
    in_experiments,
]


def main() -> None:
    """Run all parts; each starts with the same ids in each run."""
    if experiment := os.environ.get("EXPERIMENT"):
        mlflow.set_experiment(experiment, trace_location=UnityCatalog("main", "obs", "agent"))
    mlflow.tracing.get_bridged_tracer_provider()
    for number, part in enumerate(PARTS):
        random.seed(number)  # OpenTelemetry's ids come from there
        part()


if __name__ == "__main__":
    main()
