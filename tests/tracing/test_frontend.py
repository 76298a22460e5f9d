"""`start_span` and `trace`: what the rows say, and what the app may do with its spans meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import decimal
import functools
import json
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
from opentelemetry import trace as otel_trace
from opentelemetry.sdk.trace import SpanLimits, TracerProvider

import tracelake
from tests.lake import Lake
from tracelake import SpanRecord, SpanRecorder
from tracelake.destinations.targets import parse_target
from tracelake.recorder.recorder import Recorder
from tracelake.settings import load_settings
from tracelake.tracing import frontend


@pytest.fixture
def recorder(lake: Lake) -> Recorder:
    """A recorder of its own, that delivers on `flush` only."""
    recorder = Recorder(load_settings({**lake.environ, "TRACELAKE_SHIPPER": "inline"}), lake.spool)
    recorder.set_default((parse_target(lake.table),))
    return recorder


@pytest.fixture(autouse=True)
def spans(lake: Lake, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, SpanRecord]]:
    """Return the spans recorded so far by name. The global provider is the test's, not the process's."""
    use_provider(recorder, monkeypatch)
    return lambda: {record.name: record for record in lake.records()}


def use_provider(recorder: Recorder, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    provider = TracerProvider(shutdown_on_exit=False, **options)
    provider.add_span_processor(SpanRecorder(recorder))
    monkeypatch.setattr(otel_trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(frontend, "install", lambda: None)


Spans = Callable[[], dict[str, SpanRecord]]


def test_span_has_what_it_was_given(spans: Spans) -> None:
    """Type, inputs, outputs, attributes, events, status, ids; a child is under its parent."""
    with tracelake.start_span("answer", span_type="AGENT", attributes={"user": "ann"}) as parent:
        parent.set_inputs({"question": "why?"})
        with tracelake.start_span("search", span_type="RETRIEVER") as child:
            child.set_attributes({"k": 3, "filters": {"lang": ["en", "de"]}})
            child.add_event("found", {"count": 2})
        parent.set_outputs("because")
    records = spans()
    assert records["answer"].attributes == {
        "mlflow.spanType": "AGENT",
        "user": "ann",
        "mlflow.spanInputs": {"question": "why?"},
        "mlflow.spanOutputs": "because",
    }
    assert records["search"].attributes == {"mlflow.spanType": "RETRIEVER", "k": 3, "filters": {"lang": ["en", "de"]}}
    assert records["search"].events[0].attributes == {"count": 2}
    assert records["search"].parent_span_id == records["answer"].span_id == parent.span_id
    assert records["search"].trace_id == parent.trace_id == child.trace_id
    assert records["answer"].status_code == records["search"].status_code == 1
    assert records["answer"].kind == 1


def test_row_has_decoded_values_under_the_keys_of_mlflow(lake: Lake, recorder: Recorder) -> None:
    """As MLflow's own exporter writes it: a text without quotes, all else as JSON."""

    @tracelake.trace(span_type="TOOL")
    def add(a: int, b: list[int], *rest: str, flag: bool = True) -> dict[str, Any]:
        del rest, flag
        return {"sum": a + b[0], "none": None}

    add(1, [2, 3], "x")
    with tracelake.start_span("text") as span:
        span.set_inputs("plain")
        span.set_outputs(None)
    assert recorder.flush(20).complete
    add_row, text_row = (row["attributes"] for row in lake.rows())
    assert add_row == {
        "mlflow.spanType": "TOOL",
        "mlflow.spanFunctionName": "add",
        "mlflow.spanInputs": '{"a":1,"b":[2,3],"rest":["x"],"flag":true}',
        "mlflow.spanOutputs": '{"sum":3,"none":null}',
    }
    assert text_row == {"mlflow.spanType": "UNKNOWN", "mlflow.spanInputs": "plain", "mlflow.spanOutputs": "null"}


def test_exception_is_recorded_and_raised(spans: Spans) -> None:
    """The app gets its own exception, the span the status, the type and the stack trace."""
    error = ValueError("no")
    with pytest.raises(ValueError, match="no") as raised, tracelake.start_span("fails"):
        raise error
    assert raised.value is error
    record = spans()["fails"]
    assert (record.status_code, record.status_message) == (2, "ValueError: no")
    (event,) = record.events
    assert event.attributes["exception.type"] == "ValueError"
    assert "raise error" in event.attributes["exception.stacktrace"]


class UnprintableError(Exception):
    """An exception whose own text fails."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_exception_that_cannot_be_printed_stays_what_it_is(spans: Spans) -> None:
    """Recording it must not put another in its place."""
    with pytest.raises(UnprintableError), tracelake.start_span("fails"):
        raise UnprintableError
    record = spans()["fails"]
    assert "UnprintableError, whose str raised RuntimeError" in record.status_message
    assert record.events[0].attributes["exception.type"].endswith("UnprintableError")


def test_status_and_exceptions_set_by_hand(spans: Spans) -> None:
    """An exception that was handled may be recorded; a status that is none is refused."""
    with tracelake.start_span("retried") as span:
        span.record_exception(KeyError("first try"))
        with pytest.raises(ValueError, match="'GOOD' is none of these"):
            span.set_status("GOOD")
        span.set_status("OK")
    with tracelake.start_span("bad") as span:
        span.set_status("ERROR", "on purpose")
    records = spans()
    assert (records["retried"].status_code, len(records["retried"].events)) == (1, 1)
    assert records["bad"].status_code in (1, 2)


def test_span_that_has_ended_takes_nothing(spans: Spans) -> None:
    """And raises nothing: somebody may hold it still."""
    with tracelake.start_span("ended") as span:
        pass
    span.set_inputs({"late": True})
    span.set_attribute("late", True)
    span.add_event("late")
    assert spans()["ended"].attributes == {"mlflow.spanType": "UNKNOWN"}


def test_current_span(spans: Spans) -> None:
    """The innermost, also one of OpenTelemetry's; several objects for one span do not disturb each other."""
    assert tracelake.get_current_span() is None
    with tracelake.start_span("ours") as span:
        current = tracelake.get_current_span()
        assert current is not None
        assert current.span_id == span.span_id
        current.set_attribute("first", {"a": 1})
        span.set_attribute("second", [{"b": 2}])
    with otel_trace.get_tracer("t").start_as_current_span("theirs"):
        theirs = tracelake.get_current_span()
        assert theirs is not None
        theirs.set_outputs({"c": 3})
    assert tracelake.get_current_span() is None
    assert spans()["ours"].attributes == {"mlflow.spanType": "UNKNOWN", "first": {"a": 1}, "second": [{"b": 2}]}
    assert spans()["theirs"].attributes == {"mlflow.spanOutputs": {"c": 3}}


def test_value_set_again_replaces_the_first(spans: Spans) -> None:
    """A text that looks like JSON stays a text, also under a key that held a value before."""
    with tracelake.start_span("s") as span:
        span.set_outputs({"a": 1})
        span.set_outputs("12")
        span.set_attribute("x", "1")
        span.set_attribute("x", [1, "a"])
        span.set_attribute("y", '{"a":1}')
    assert spans()["s"].attributes == {
        "mlflow.spanType": "UNKNOWN",
        "mlflow.spanOutputs": "12",
        "x": [1, "a"],
        "y": '{"a":1}',
    }


class Item(pydantic.BaseModel):
    """A pydantic model."""

    name: str
    tags: list[str] = []


@dataclasses.dataclass
class Point:
    """A dataclass that holds a model."""

    x: int
    item: Item


class Array:
    """What NumPy's values look like from here."""

    def tolist(self) -> list[list[float]]:
        return [[1.0, 2.0]]


WHEN = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
VALUES: dict[str, tuple[Any, Any]] = {
    "model": (Item(name="a", tags=["b"]), {"name": "a", "tags": ["b"]}),
    "dataclass": (Point(1, Item(name="a")), {"x": 1, "item": {"name": "a", "tags": []}}),
    "datetime": (WHEN, "2026-01-02T03:04:05Z"),
    "date": (datetime.date(2026, 1, 2), "2026-01-02"),
    "uuid": (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    "decimal": (decimal.Decimal("1.50"), "1.50"),
    "array": (Array(), [[1.0, 2.0]]),
    "tuple": ((1, (2, "x")), [1, [2, "x"]]),
    "set": ({7}, [7]),
    "bytes": (b"\x00\xff", b"\x00\xff"),
    "none": (None, None),
    "empty": ({}, {}),
    "empty list": ([], []),
    "mixed": ([1, "a", None, 2.5], [1, "a", None, 2.5]),
    "looks like a tag": ({"$bytes": "AA=="}, {"$bytes": "AA=="}),
    "deep": ({"a": [{"b": {"c": [WHEN]}}]}, {"a": [{"b": {"c": ["2026-01-02T03:04:05Z"]}}]}),
    "int keys": ({1: "a"}, {"1": "a"}),
    "false": (False, False),
    "zero": (0, 0),
    "infinite": (float("inf"), float("inf")),
}


@pytest.mark.parametrize("name", list(VALUES))
@pytest.mark.parametrize("way", ["inputs", "outputs", "attribute", "start"])
def test_values_keep_their_shape(spans: Spans, name: str, way: str) -> None:
    """The same for inputs, outputs, attributes and those given at the start, and nothing is said to be degraded."""
    value, expected = VALUES[name]
    with tracelake.start_span("s", attributes={"key": value} if way == "start" else None) as span:
        if way == "inputs":
            span.set_inputs(value)
        elif way == "outputs":
            span.set_outputs(value)
        elif way == "attribute":
            span.set_attribute("key", value)
    key = {"inputs": "mlflow.spanInputs", "outputs": "mlflow.spanOutputs"}.get(way, "key")
    assert spans()["s"].attributes == {"mlflow.spanType": "UNKNOWN", key: expected}


def test_numpy_values_become_their_python_ones(spans: Spans) -> None:
    """Scalars and arrays, where NumPy is installed."""
    numpy = pytest.importorskip("numpy")
    with tracelake.start_span("s") as span:
        span.set_inputs({"f": numpy.float32(0.5), "i": numpy.int64(7), "a": numpy.arange(3)})
    assert spans()["s"].attributes["mlflow.spanInputs"] == {"f": 0.5, "i": 7, "a": [0, 1, 2]}


def test_value_that_json_cannot_hold_is_degraded_in_sight(spans: Spans) -> None:
    """The span says which, and what became of it."""
    with tracelake.start_span("s") as span:
        span.set_inputs({"fine": 1, "odd": object()})
        span.set_attribute("big", [2**70])
    attributes = spans()["s"].attributes
    assert attributes["mlflow.spanInputs"]["fine"] == 1
    assert attributes["mlflow.spanInputs"]["odd"].startswith("<object object")
    notes = attributes["tracelake.degraded"]
    assert any(note.startswith("mlflow.spanInputs.odd: object") for note in notes)
    assert any(note.startswith("big[0]: integer") for note in notes)


def test_limit_on_length_cuts_texts_and_leaves_no_broken_json_behind(
    spans: Spans, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text is cut as a text; JSON that was cut is a text as well, and the span is recorded."""
    use_provider(recorder, monkeypatch, span_limits=SpanLimits(max_span_attribute_length=20))
    with tracelake.start_span("s") as span:
        span.set_inputs({"question": "a long one, longer than that"})
        span.set_outputs("a long text, longer than that")
        span.set_attribute("short", {"a": 1})
    attributes = spans()["s"].attributes
    assert attributes["mlflow.spanInputs"] == '{"question":"a long '
    assert attributes["mlflow.spanOutputs"] == "a long text, longer "
    assert attributes["short"] == {"a": 1}


def test_limit_on_length_comes_from_the_environment(lake: Lake) -> None:
    """OpenTelemetry's own variable."""
    lake.run(
        "import tracelake\nwith tracelake.start_span('s') as span: span.set_outputs('x' * 100)",
        OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT="20",
    )
    (row,) = lake.rows()
    assert row["attributes"]["mlflow.spanOutputs"] == "x" * 20


def test_limit_on_count_leaves_values_whole(spans: Spans, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest attributes go, and those that stay are decoded."""
    use_provider(recorder, monkeypatch, span_limits=SpanLimits(max_span_attributes=4))
    with tracelake.start_span("s") as span:
        for number in range(10):
            span.set_attribute(f"k{number}", {"n": number})
    attributes = spans()["s"].attributes
    assert attributes
    assert all(value == {"n": int(key[1:])} for key, value in attributes.items())


def test_trace_on_a_function(spans: Spans) -> None:
    """With and without arguments of its own; the function keeps its name, its documentation and its signature."""

    @tracelake.trace
    def plain(a: int, b: int = 2) -> int:
        """Add."""
        return a + b

    @tracelake.trace(name="renamed", span_type="TOOL", attributes={"team": "x"})
    def other() -> None:
        span = tracelake.get_current_span()
        assert span is not None
        span.set_outputs("by hand")

    assert plain(1) == 3
    other()
    assert (plain.__name__, plain.__doc__) == ("plain", "Add.")
    assert spans()["plain"].attributes["mlflow.spanInputs"] == {"a": 1, "b": 2}
    assert spans()["plain"].attributes["mlflow.spanOutputs"] == 3
    assert spans()["renamed"].attributes == {
        "mlflow.spanType": "TOOL",
        "team": "x",
        "mlflow.spanFunctionName": "other",
        "mlflow.spanInputs": {},
        "mlflow.spanOutputs": "by hand",
    }


def test_trace_on_methods(spans: Spans) -> None:
    """The receiver is no input, whichever decorator comes first."""

    class Shop:
        @tracelake.trace
        def method(self, a: int) -> int:
            return a

        @classmethod
        @tracelake.trace
        def inner(cls, a: int) -> str:
            return f"{cls.__name__} {a}"

        @tracelake.trace
        @classmethod
        def outer(cls, a: int) -> str:
            return f"{cls.__name__} {a}"

        @staticmethod
        @tracelake.trace
        def static(a: int) -> int:
            return a

        @tracelake.trace(name="outer static")
        @staticmethod
        def outer_static(a: int) -> int:
            return a

        @property
        @tracelake.trace
        def value(self) -> int:
            return 5

    shop = Shop()
    assert (shop.method(1), shop.inner(1), Shop.outer(1), shop.static(1), Shop.outer_static(1)) == (
        1, "Shop 1", "Shop 1", 1, 1,
    )  # fmt: skip
    assert shop.value == 5
    records = spans()
    assert records.keys() == {"method", "inner", "outer", "static", "outer static", "value"}
    inputs = {name: record.attributes["mlflow.spanInputs"] for name, record in records.items()}
    assert inputs.pop("value") == {}
    assert all(value == {"a": 1} for value in inputs.values())


def test_trace_on_what_has_no_name(spans: Spans) -> None:
    """A partial and an object with `__call__` are named by their type."""

    class Callable_:  # noqa: N801
        def __call__(self, a: int) -> int:
            return a

    assert tracelake.trace(functools.partial(max, 1))(2) == 2
    assert tracelake.trace(Callable_())(3) == 3
    assert {"partial", "Callable_"} == spans().keys()


def test_wrong_call_is_the_functions_own_error(spans: Spans) -> None:
    """And a span that says so."""

    @tracelake.trace
    def plain(a: int) -> int:
        return a

    @tracelake.trace
    def generate(a: int) -> Iterator[int]:
        yield a

    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        plain()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        list(generate())  # type: ignore[call-arg]
    assert spans()["plain"].status_code == spans()["generate"].status_code == 2


def test_trace_on_a_coroutine(spans: Spans) -> None:
    """The span lasts as long as the coroutine, and tasks do not see each other's."""

    @tracelake.trace
    async def leaf(number: int) -> int:
        await asyncio.sleep(0)
        if number == 1:
            raise ValueError("one")
        return number

    async def main() -> list[Any]:
        with tracelake.start_span("root"):
            return await asyncio.gather(leaf(1), leaf(2), return_exceptions=True)

    assert asyncio.iscoroutinefunction(leaf) or sys.version_info >= (3, 14)
    failed, fine = asyncio.run(main())
    assert (type(failed), fine) == (ValueError, 2)
    assert spans()["leaf"].parent_span_id == spans()["root"].span_id


def test_cancelled_coroutine_is_recorded(spans: Spans) -> None:
    """With an error, and the cancellation goes on its way."""

    @tracelake.trace
    async def forever() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        await asyncio.wait_for(forever(), 0.01)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(main())
    assert spans()["forever"].status_message.startswith("CancelledError")


def test_trace_on_a_generator(spans: Spans) -> None:
    """Outputs are what it yielded; what is sent in and what it returns get through."""

    @tracelake.trace
    def talk(first: str) -> Generator[str, str, str]:
        heard = yield first
        heard = yield heard.upper()
        return heard

    def listen() -> Generator[str, str, str]:
        return (yield from talk("hello"))

    listener = listen()
    assert next(listener) == "hello"
    assert spans() == {}
    assert listener.send("you") == "YOU"
    with pytest.raises(StopIteration) as stop:
        listener.send("bye")
    assert stop.value.value == "bye"
    record = spans()["talk"]
    assert record.attributes["mlflow.spanInputs"] == {"first": "hello"}
    assert record.attributes["mlflow.spanOutputs"] == ["hello", "YOU"]
    assert record.status_code == 1


def test_span_of_a_generator_is_current_only_while_it_runs(spans: Spans) -> None:
    """The consumer's spans are not the generator's children; those made in it are, up to its very end."""

    @tracelake.trace
    def generate() -> Iterator[int]:
        try:
            for number in range(3):
                with tracelake.start_span(f"inside {number}"):
                    pass
                yield number
        finally:
            with tracelake.start_span("cleanup"):
                pass

    with tracelake.start_span("consumer") as consumer:
        for number in generate():
            current = tracelake.get_current_span()
            assert current is not None
            assert current.span_id == consumer.span_id
            with tracelake.start_span(f"outside {number}"):
                pass
            if number == 1:
                break
    generator = spans()["generate"]
    assert generator.parent_span_id == consumer.span_id
    assert generator.attributes["mlflow.spanOutputs"] == [0, 1]
    assert generator.status_code == 1
    assert {name for name, record in spans().items() if record.parent_span_id == generator.span_id} == {
        "inside 0",
        "inside 1",
        "cleanup",
    }
    assert spans()["outside 0"].parent_span_id == consumer.span_id


def test_generator_may_catch_what_is_thrown_in(spans: Spans) -> None:
    """As without the decorator; what it does not catch is the span's error."""

    @tracelake.trace
    def generate() -> Generator[str, None, None]:
        try:
            yield "a"
        except KeyError:
            yield "caught"
        yield "b"

    generator = generate()
    assert next(generator) == "a"
    assert generator.throw(KeyError("x")) == "caught"
    with pytest.raises(ValueError, match="y"):
        generator.throw(ValueError("y"))
    record = spans()["generate"]
    assert record.attributes["mlflow.spanOutputs"] == ["a", "caught"]
    assert (record.status_code, record.status_message) == (2, "ValueError: y")


def test_generator_that_is_never_run_makes_no_span(spans: Spans) -> None:
    """Its body did not begin."""

    @tracelake.trace
    def generate() -> Iterator[int]:
        yield 1

    generate()
    assert spans() == {}


def test_generator_that_is_forgotten_ends_its_span(spans: Spans) -> None:
    """When it is collected, like one that was closed."""

    @tracelake.trace
    def generate() -> Iterator[int]:
        yield 1
        yield 2

    generator = generate()
    next(generator)
    del generator
    assert spans()["generate"].attributes["mlflow.spanOutputs"] == [1]


def test_trace_on_an_async_generator(spans: Spans) -> None:
    """Sent values, thrown exceptions, an early end, and children of the right parent."""

    @tracelake.trace
    async def talk() -> Any:
        try:
            heard = yield "hello"
            with tracelake.start_span("inside"):
                await asyncio.sleep(0)
            try:
                yield heard
            except KeyError:
                yield "caught"
        finally:
            with tracelake.start_span("cleanup"):
                await asyncio.sleep(0)

    async def main() -> None:
        with tracelake.start_span("consumer") as consumer:
            talker = talk()
            assert await talker.__anext__() == "hello"
            current = tracelake.get_current_span()
            assert current is not None
            assert current.span_id == consumer.span_id
            assert await talker.asend("you") == "you"
            assert await talker.athrow(KeyError("x")) == "caught"
            await talker.aclose()

    asyncio.run(main())
    record = spans()["talk"]
    assert record.attributes["mlflow.spanOutputs"] == ["hello", "you", "caught"]
    assert record.status_code == 1
    assert record.parent_span_id == spans()["consumer"].span_id
    assert spans()["inside"].parent_span_id == spans()["cleanup"].parent_span_id == record.span_id


def test_async_generator_that_fails(spans: Spans) -> None:
    """The consumer gets the exception, the span the outputs so far."""

    @tracelake.trace
    async def generate() -> AsyncIterator[int]:
        yield 1
        raise ValueError("second")

    async def consume() -> list[int]:
        return [number async for number in generate()]

    with pytest.raises(ValueError, match="second"):
        asyncio.run(consume())
    assert spans()["generate"].attributes["mlflow.spanOutputs"] == [1]
    assert spans()["generate"].status_code == 2


def test_decorated_twice(spans: Spans) -> None:
    """What is decorated is still of its kind."""

    @tracelake.trace(name="outer")
    @tracelake.trace(name="inner")
    async def work() -> int:
        return 1

    @tracelake.trace(name="outer stream")
    @tracelake.trace(name="inner stream")
    def stream() -> Iterator[int]:
        yield 1

    assert asyncio.run(_awaited(work())) == 1
    assert list(stream()) == [1]
    assert spans()["inner"].parent_span_id == spans()["outer"].span_id
    assert spans()["inner stream"].parent_span_id == spans()["outer stream"].span_id


async def _awaited(result: Awaitable[int]) -> int:
    return await result


LIGHT = """
import json, sys
import tracelake
with tracelake.start_span("s") as span:
    span.set_inputs({"a": [1]})
heavy = {"mlflow", "pyarrow", "deltalake", "databricks", "numpy", "pandas", "requests", "httpx"}
print(json.dumps(sorted(heavy & {name.partition(".")[0] for name in sys.modules})))
"""


def test_recording_loads_nothing_heavy_and_needs_no_mlflow(lake: Lake, tmp_path: Path) -> None:
    """In a fresh interpreter in which MLflow cannot even be imported."""
    (tmp_path / "mlflow.py").write_text("raise ImportError('there is no MLflow here')")
    assert json.loads(lake.run(LIGHT)) == []
    (row,) = lake.rows()
    assert row["attributes"]["mlflow.spanInputs"] == '{"a":[1]}'
