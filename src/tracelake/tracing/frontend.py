"""The front end of our own: `start_span` and `trace`, with MLflow's attribute keys, and no need for MLflow.

Inputs and outputs are values, not texts: the row holds them as MLflow's own exporter would have sent them.
OpenTelemetry attributes hold no nested values, so they travel to the recorder as JSON, under keys listed in
`JSON_KEYS_ATTRIBUTE`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar, overload

import msgspec
from opentelemetry import trace as otel_trace
from opentelemetry.trace import Status, StatusCode

from tracelake.errors import TracelakeError
from tracelake.recorder.recorder import current_recorder
from tracelake.spans.values import DEGRADED_KEY, Notes, degrade, tag
from tracelake.tracing.install import install
from tracelake.tracing.otel_span import JSON_KEYS_ATTRIBUTE

# MLflow's keys: https://github.com/mlflow/mlflow/blob/v3.0.0/mlflow/tracing/constant.py
SPAN_TYPE = "mlflow.spanType"
SPAN_INPUTS = "mlflow.spanInputs"
SPAN_OUTPUTS = "mlflow.spanOutputs"
SPAN_FUNCTION_NAME = "mlflow.spanFunctionName"

# What every version of OpenTelemetry takes as an attribute and gives back unchanged.
_SCALARS = (str, bool, int, float)

_P = ParamSpec("_P")
_R = TypeVar("_R")


class ActiveSpan:
    """A span under way. Values may be anything: what JSON cannot hold is degraded, and the row says so.

    After the span's end, setting something does nothing, as in OpenTelemetry.
    """

    def __init__(self, span: otel_trace.Span) -> None:
        self._span = span

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 lowercase hex digits."""
        return f"{self._span.get_span_context().trace_id:032x}"

    @property
    def span_id(self) -> str:
        """The span's id, 16 lowercase hex digits."""
        return f"{self._span.get_span_context().span_id:016x}"

    def set_inputs(self, inputs: Any) -> None:
        """Set what the operation was given."""
        self.set_attribute(SPAN_INPUTS, inputs)

    def set_outputs(self, outputs: Any) -> None:
        """Set what the operation gave back."""
        self.set_attribute(SPAN_OUTPUTS, outputs)

    def set_attribute(self, key: str, value: Any) -> None:
        """Set one attribute, to any value."""
        if not self._span.is_recording():
            return
        if type(value) in _SCALARS:
            self._span.set_attribute(key, value)
            listed = _attributes(self._span).get(JSON_KEYS_ATTRIBUTE, ())
            if key in listed:
                self._span.set_attribute(JSON_KEYS_ATTRIBUTE, [item for item in listed if item != key])
            return
        notes = Notes()
        text = msgspec.json.encode(tag(degrade(value, key, notes))).decode()
        self._span.set_attribute(key, text)
        self._extend(JSON_KEYS_ATTRIBUTE, [key])
        if notes:
            self._extend(DEGRADED_KEY, notes.texts())

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set several attributes."""
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def set_status(self, status: str, description: str | None = None) -> None:
        """Set the status: `OK`, `ERROR` or `UNSET`.

        Raises:
            ValueError: it is none of these.
        """
        if status not in StatusCode.__members__:
            raise ValueError(f"A span's status is OK, ERROR or UNSET, and {status!r} is none of these.")
        self._span.set_status(Status(StatusCode[status], description if status == "ERROR" else None))

    def record_exception(self, exception: BaseException) -> None:
        """Add an `exception` event with type, message and stack trace, and set the status to ERROR."""
        try:
            message = str(exception)
            self._span.record_exception(exception)
        except Exception as error:  # noqa: BLE001 - the exception's own code must not replace the exception
            kind = type(exception)
            message = f"<{kind.__qualname__}, whose str raised {type(error).__qualname__}>"
            name = f"{kind.__module__}.{kind.__qualname__}"
            self._span.add_event("exception", {"exception.type": name, "exception.message": message})
        self._span.set_status(Status(StatusCode.ERROR, f"{type(exception).__name__}: {message}"))

    def add_event(self, name: str, attributes: Mapping[str, Any] | None = None) -> None:
        """Add an event at this moment."""
        self._span.add_event(name, dict(attributes or {}))

    def _extend(self, key: str, items: list[str]) -> None:
        # Read from the span: `get_current_span` gives out several objects for one span.
        present = _attributes(self._span).get(key, ())
        self._span.set_attribute(key, [*present, *(item for item in items if item not in present)])


@contextlib.contextmanager
def start_span(
    name: str = "span", *, span_type: str = "UNKNOWN", attributes: Mapping[str, Any] | None = None
) -> Iterator[ActiveSpan]:
    """Run the with-body in a span, the child of the current one.

    The span ends with the body: with status OK, or, if an exception leaves it, with ERROR and an `exception` event.
    Records to the destination in force, without any set-up: by default the table at `./tracelake/spans`.

    Args:
        name: the span's name.
        span_type: MLflow's span type, such as `AGENT`, `LLM`, `TOOL`, `RETRIEVER` or `CHAIN`.
        attributes: attributes to begin with, of any value.
    """
    span = _start(name, span_type, attributes)
    with _ended(span), _current(span):
        yield span


@overload
def trace(func: Callable[_P, _R], /) -> Callable[_P, _R]: ...
@overload
def trace(
    *, name: str | None = None, span_type: str = "UNKNOWN", attributes: Mapping[str, Any] | None = None
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]: ...
def trace(
    func: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    span_type: str = "UNKNOWN",
    attributes: Mapping[str, Any] | None = None,
) -> Any:
    """Decorate a function so that each call is a span, with the arguments as inputs and the result as outputs.

    Works on functions, coroutine functions, generators and asynchronous generators. The outputs of a generator are the
    list of what it yielded; its span is current only while the generator itself runs. `set_outputs` called in the
    function wins over its result.
    """
    if func is None:
        return functools.partial(trace, name=name, span_type=span_type, attributes=attributes)
    if isinstance(func, (classmethod, staticmethod)):
        inner = trace(name=name, span_type=span_type, attributes=attributes)(func.__func__)
        return type(func)(inner)
    wrapped = _WRAPPERS[_kind(func)](func, name or _name_of(func), span_type, attributes)
    return functools.wraps(func)(wrapped)


def get_current_span() -> ActiveSpan | None:
    """Return the current span of this front end's or OpenTelemetry's, or None if none is recording."""
    span = otel_trace.get_current_span()
    return ActiveSpan(span) if span.is_recording() else None


def _start(name: str, span_type: str, attributes: Mapping[str, Any] | None) -> ActiveSpan:
    try:
        install()
    except TracelakeError as error:
        current_recorder().say("Spans of tracelake.start_span are not recorded. %s", error)
    span = ActiveSpan(_tracer().start_span(name))
    span.set_attribute(SPAN_TYPE, span_type)
    span.set_attributes(attributes or {})
    return span


_last_tracer: tuple[otel_trace.TracerProvider, otel_trace.Tracer] | None = None


def _tracer() -> otel_trace.Tracer:
    """Return the tracer of the global provider. Kept: a provider that is asked takes a lock, signal handler or not."""
    global _last_tracer
    provider = otel_trace.get_tracer_provider()
    if _last_tracer is None or _last_tracer[0] is not provider:
        _last_tracer = provider, provider.get_tracer("tracelake")
    return _last_tracer[1]


@contextlib.contextmanager
def _ended(span: ActiveSpan) -> Iterator[None]:
    """End the span with the body, which may suspend: the span is not made current here."""
    try:
        yield
    except GeneratorExit:
        span.set_status("OK")  # a consumer that has enough is no error
        raise
    except BaseException as error:
        span.record_exception(error)
        raise
    else:
        span.set_status("OK")
    finally:
        span._span.end()


def _call_function(func: Callable[..., Any], *span_arguments: Any) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with _called(func, span_arguments, args, kwargs) as span:
            result = func(*args, **kwargs)
            _set_result(span, result)
            return result

    return wrapper


def _call_coroutine(func: Callable[..., Any], *span_arguments: Any) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        with _called(func, span_arguments, args, kwargs) as span:
            result = await func(*args, **kwargs)
            _set_result(span, result)
            return result

    return wrapper


def _call_generator(func: Callable[..., Any], *span_arguments: Any) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        span = _begin(func, span_arguments, args, kwargs)
        outputs: list[Any] = []
        with _ended(span):
            generator = func(*args, **kwargs)
            step: Callable[[], Any] = functools.partial(next, generator)
            try:
                while True:
                    try:
                        with _current(span):
                            item = step()
                    except StopIteration as stop:
                        return stop.value
                    outputs.append(item)
                    try:
                        sent = yield item
                    except GeneratorExit:
                        raise
                    except BaseException as error:  # noqa: BLE001 - thrown in by the consumer, for the generator
                        step = functools.partial(generator.throw, error)
                    else:
                        step = functools.partial(generator.send, sent)
            finally:
                with _called_off(span, outputs):
                    generator.close()

    return wrapper


def _call_async_generator(func: Callable[..., Any], *span_arguments: Any) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        span = _begin(func, span_arguments, args, kwargs)
        outputs: list[Any] = []
        with _ended(span):
            generator = func(*args, **kwargs)
            step: Callable[[], Any] = generator.__anext__
            try:
                while True:
                    try:
                        with _current(span):
                            item = await step()
                    except StopAsyncIteration:
                        return
                    outputs.append(item)
                    try:
                        sent = yield item
                    except GeneratorExit:
                        raise
                    except BaseException as error:  # noqa: BLE001 - thrown in by the consumer, for the generator
                        step = functools.partial(generator.athrow, error)
                    else:
                        step = functools.partial(generator.asend, sent)
            finally:
                with _called_off(span, outputs):
                    await generator.aclose()

    return wrapper


_WRAPPERS = {
    "function": _call_function,
    "coroutine": _call_coroutine,
    "generator": _call_generator,
    "async generator": _call_async_generator,
}


def _name_of(func: Callable[..., Any]) -> str:
    # A `functools.partial` and an object with `__call__` have no name.
    return str(getattr(func, "__name__", type(func).__name__))


def _kind(func: Callable[..., Any]) -> str:
    if inspect.isasyncgenfunction(func):
        return "async generator"
    if inspect.isgeneratorfunction(func):
        return "generator"
    return "coroutine" if inspect.iscoroutinefunction(func) else "function"


@contextlib.contextmanager
def _called(
    func: Callable[..., Any], span_arguments: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[ActiveSpan]:
    span = _begin(func, span_arguments, args, kwargs)
    with _ended(span), _current(span):
        yield span


@contextlib.contextmanager
def _called_off(span: ActiveSpan, outputs: list[Any]) -> Iterator[None]:
    """Run the with-body, the closing of a generator, as its other steps; then set what it yielded as the outputs."""
    try:
        with _current(span):
            yield
    finally:
        _set_result(span, outputs)


def _begin(
    func: Callable[..., Any], span_arguments: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ActiveSpan:
    name, span_type, attributes = span_arguments
    span = _start(name, span_type, attributes)
    span.set_attribute(SPAN_FUNCTION_NAME, _name_of(func))
    with contextlib.suppress(TypeError, ValueError):  # a wrong call: the function itself says so
        bound = inspect.signature(func).bind(*args, **kwargs)
        bound.apply_defaults()
        first = next(iter(bound.arguments), None)
        span.set_inputs({key: value for key, value in bound.arguments.items() if key != first or key not in _RECEIVERS})
    return span


# The object a method is called on is not one of its inputs.
_RECEIVERS = ("self", "cls")


def _current(span: ActiveSpan) -> contextlib.AbstractContextManager[Any]:
    return otel_trace.use_span(span._span, end_on_exit=False, record_exception=False, set_status_on_exception=False)


def _set_result(span: ActiveSpan, result: Any) -> None:
    if SPAN_OUTPUTS not in _attributes(span._span):
        span.set_outputs(result)


def _attributes(span: otel_trace.Span) -> Mapping[str, Any]:
    return getattr(span, "attributes", None) or {}
