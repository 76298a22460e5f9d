"""Code as users write it, which has to pass `mypy --strict`; it is type-checked, not run.

`assert_type` pins what a call returns: decorators keep signatures, and a client comes back as what it was.
"""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass

import httpx
import requests
from opentelemetry.sdk.trace import TracerProvider
from typing_extensions import assert_type

import tracelake

# Destinations


@dataclass(frozen=True)
class Nowhere:
    """A destination of a user's own, without inheriting anything."""

    name: str

    @property
    def target(self) -> str:
        return f"nowhere://{self.name}"

    @property
    def identity(self) -> Mapping[str, str]:
        return {}

    def check(self) -> list[tracelake.Finding]:
        return [tracelake.Finding("warning", "Nothing arrives.", remedy="Name another destination.")]

    def open(self) -> NowhereSink:
        return NowhereSink()


class NowhereSink:
    """A sink of a user's own."""

    def write(self, batch: tracelake.Batch) -> list[tracelake.Rejection]:
        if not batch.size:
            raise tracelake.TransientDeliveryError("Nothing to take.")
        rejections: list[tracelake.Rejection] = []
        for spans in batch.chunks():
            assert_type(spans, list[tracelake.SpanRecord])
            for index, span in enumerate(spans):
                assert_type(span.parent_span_id, str | None)
                assert_type(span.events, list[tracelake.SpanEvent])
                assert_type(span.links, list[tracelake.SpanLink])
                if not span.name:
                    rejections.append(tracelake.Rejection(index, "no name"))
        return rejections

    def close(self) -> None:
        pass


def parse(target: str) -> tracelake.Destination:
    return Nowhere(target.removeprefix("nowhere://"))


sink: tracelake.Sink = parse("nowhere://here").open()

assert_type(tracelake.set_destination("./traces"), tuple[tracelake.Destination, ...])
tracelake.set_destination(pathlib.Path("traces"), service_name="shop")
tracelake.set_destination(["./traces", pathlib.Path("copy"), Nowhere("here")])
tracelake.set_destination("./traces", redact=["*.password", "db.query.text"])
tracelake.set_destination("./traces", redact=lambda key, value: None if key == "user.id" else value)
tracelake.set_destination(None, redact=())

with tracelake.destination(Nowhere("there")) as destinations:
    assert_type(destinations, tuple[tracelake.Destination, ...])
    targets: list[str] = [destination.target for destination in destinations]

tracelake.set_destination(42)  # type: ignore[arg-type]
tracelake.set_destination("./traces", redact=42)  # type: ignore[arg-type]

# Spans

with tracelake.start_span("answer", span_type="AGENT", attributes={"tenant": "acme"}) as span:
    assert_type(span, tracelake.ActiveSpan)
    assert_type(span.trace_id, str)
    span.set_inputs({"question": "why?", "history": [1, 2.0, None, b"x"]})
    span.set_attributes({"retries": 2})
    span.add_event("cache miss", {"key": "why?"})
    span.set_status("ERROR", "why")
    span.record_exception(ValueError("no"))
    span.set_outputs(object())

current = tracelake.get_current_span()
assert_type(current, tracelake.ActiveSpan | None)
if current is not None:
    current.set_attribute("found", True)

tracelake.start_span(name=42)  # type: ignore[arg-type]


# Decorators keep the signature of what they decorate.


@tracelake.trace
def add(first: int, second: int = 0) -> int:
    return first + second


@tracelake.trace(name="named", span_type="TOOL", attributes={"a": 1})
def repeat(text: str, *, times: int) -> list[str]:
    return [text] * times


@tracelake.trace
async def ask(question: str) -> bytes:
    return question.encode()


@tracelake.trace(span_type="LLM")
def stream(prompt: str) -> Iterator[str]:
    yield prompt


@tracelake.trace
async def stream_later(prompt: str) -> AsyncIterator[str]:
    yield prompt


class Shop:
    @tracelake.trace
    def sell(self, item: str) -> float:
        return float(len(item))

    @classmethod
    @tracelake.trace
    def open(cls, names: list[str]) -> list[Shop]:
        return [cls() for _ in names]

    @staticmethod
    @tracelake.trace(name="price")
    def price(item: str) -> float:
        return float(len(item))


assert_type(add(1), int)
assert_type(repeat("a", times=2), list[str])
assert_type(stream("go on"), Iterator[str])
assert_type(stream_later("go on"), AsyncIterator[str])
assert_type(Shop().sell("book"), float)
assert_type(Shop.open(["corner"]), list[Shop])
assert_type(Shop.price("book"), float)
plain: Callable[[int, int], int] = add
coroutine: Callable[[str], Awaitable[bytes]] = ask

add("one")  # type: ignore[arg-type]
repeat("a")  # type: ignore[call-arg]
tracelake.trace("not a function")  # type: ignore[call-overload]


async def use() -> None:
    assert_type(await ask("why?"), bytes)
    async for part in stream_later("go on"):
        assert_type(part, str)


# Propagation

assert_type(tracelake.propagate(requests.Session()), requests.Session)
assert_type(tracelake.propagate(httpx.Client()), httpx.Client)
assert_type(tracelake.propagate(httpx.AsyncClient()), httpx.AsyncClient)
tracelake.propagate("no client")  # type: ignore[type-var]
tracelake.propagate_all()
tracelake.stop_propagating_all()

headers = tracelake.get_tracing_context_headers_for_http_request()
assert_type(headers, dict[str, str])
requests.get("http://127.0.0.1/", headers=headers, timeout=1)

with tracelake.set_tracing_context_from_http_request_headers(headers):
    pass
with tracelake.set_tracing_context_from_http_request_headers([(b"traceparent", b"00-0")], strict=True):
    pass
with tracelake.set_tracing_context_from_http_request_headers(httpx.Headers(headers)):
    pass
with tracelake.set_tracing_context_from_http_request_headers(requests.Response().headers):
    pass


def wsgi(environ: dict[str, object], start_response: Callable[..., object]) -> list[bytes]:
    start_response("200 OK", [])
    return [str(environ["PATH_INFO"]).encode()]


application = tracelake.WsgiTracingMiddleware(wsgi)


# OpenTelemetry

provider = TracerProvider()
recorder = tracelake.SpanRecorder()
tracelake.SpanRecorder(redact="*.password")
provider.add_span_processor(recorder)
assert_type(recorder.force_flush(timeout_millis=1000), bool)

# Reports and errors

report = tracelake.flush(timeout=1.5)
assert_type(report, tracelake.FlushReport)
counts: int = report.recorded + report.delivered + report.pending + report.dropped + report.quarantined
assert_type(report.complete, bool)
assert_type(report.errors, tuple[str, ...])

try:
    tracelake.set_destination("main.obs.spans")
except tracelake.TargetError as error:
    fix_the_code: tracelake.ConfigurationError = error
except tracelake.TracelakeError as error:
    print(error)

ERRORS: list[type[tracelake.TracelakeError]] = [
    tracelake.ConfigurationError,
    tracelake.DamageError,
    tracelake.DeliveryError,
    tracelake.LedgerError,
    tracelake.LineError,
    tracelake.MissingDependencyError,
    tracelake.PermanentDeliveryError,
    tracelake.PropagationError,
    tracelake.QueryError,
    tracelake.SettingError,
    tracelake.SpoolError,
    tracelake.TraceNotFoundError,
]
