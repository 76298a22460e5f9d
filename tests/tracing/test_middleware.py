"""Requests over loopback to real servers: which span the application's spans have as their parent."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import http.client
import io
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, MutableMapping
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler
from wsgiref.simple_server import make_server as make_wsgiref_server
from wsgiref.util import FileWrapper

import flask
import httpx
import pytest
import requests
import uvicorn
from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import StreamingResponse
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from werkzeug.serving import make_server as make_werkzeug_server

from tracelake.tracing.middleware import TracingMiddleware, WsgiTracingMiddleware
from tracelake.tracing.propagation import set_destination_guard

TRACE = "12345678901234567890123456789012"
SPAN = "1234567890123456"
VALID = {"traceparent": f"00-{TRACE}-{SPAN}-01", "baggage": "user=ann"}
PARENT = f"{TRACE} {SPAN} ann"
ROOT = "root"
WAIT_S = 20

exporter = InMemorySpanExporter()
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(exporter))
tracer = provider.get_tracer("tests")


def report() -> str:
    """Make a span and tell its parent's ids and the caller's baggage."""
    with tracer.start_as_current_span("inside") as span:
        pass
    if span.parent is None:
        return ROOT
    return f"{span.parent.trace_id:032x} {span.parent.span_id:016x} {baggage.get_baggage('user')}"


@pytest.fixture(autouse=True)
def nothing_failed_to_detach(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever happens to a request, contexts are left where they were entered."""
    yield
    assert "Failed to detach context" not in [record.getMessage() for record in caplog.get_records("call")]
    assert not trace.get_current_span().get_span_context().is_valid


class Uvicorn(uvicorn.Server):
    """A server that says when it listens."""

    def __init__(self, app: Any) -> None:
        super().__init__(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=5))
        self.listening = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@contextlib.contextmanager
def served_by_uvicorn(app: Any) -> Iterator[str]:
    server = Uvicorn(app)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert server.listening.wait(WAIT_S)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(WAIT_S)
            assert not thread.is_alive()


class Asgi:
    """A FastAPI application with the middleware, and what its background parts have seen."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.app.add_middleware(TracingMiddleware)
        self.in_background: list[str] = []
        self.background_done = threading.Event()
        self.stream_closed = threading.Event()
        self.app.get("/async")(self.get_async)
        self.app.get("/sync")(self.get_sync)
        self.app.get("/error")(self.get_error)
        self.app.get("/background")(self.get_background)
        self.app.get("/stream")(self.get_stream)
        self.app.get("/sync-stream")(self.get_sync_stream)
        self.app.get("/endless")(self.get_endless)

    async def get_async(self) -> str:
        await asyncio.sleep(0)
        return report()

    def get_sync(self) -> str:
        return report()

    def get_error(self) -> str:
        self.in_background.append(report())
        raise RuntimeError("the endpoint fails")

    async def get_background(self, tasks: BackgroundTasks) -> str:
        def work() -> None:
            self.in_background.append(report())
            self.background_done.set()

        tasks.add_task(work)
        return report()

    async def get_stream(self) -> StreamingResponse:
        async def chunks() -> AsyncIterator[str]:
            yield report() + "\n"
            with tracer.start_as_current_span("between") as span:
                yield report() + "\n"
                assert trace.get_current_span() is span
            yield report() + "\n"

        return StreamingResponse(chunks())

    def get_sync_stream(self) -> StreamingResponse:
        return StreamingResponse(report() + "\n" for _ in range(3))

    async def get_endless(self) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            try:
                with tracer.start_as_current_span("endless"):
                    while True:
                        yield b"x" * 65536
                        await asyncio.sleep(0)
            finally:
                self.stream_closed.set()

        return StreamingResponse(chunks())


@pytest.fixture(scope="module")
def asgi() -> Iterator[tuple[Asgi, str]]:
    application = Asgi()
    with served_by_uvicorn(application.app) as url:
        yield application, url


@pytest.mark.parametrize("path", ["/async", "/sync"])
def test_asgi_endpoint_runs_in_the_callers_trace(asgi: tuple[Asgi, str], path: str) -> None:
    """On the loop and in a thread of the pool; without headers its spans are roots."""
    _, url = asgi
    assert requests.get(url + path, headers=VALID, timeout=WAIT_S).json() == PARENT
    assert httpx.get(url + path, headers={"TRACEPARENT": VALID["traceparent"], "Baggage": "user=ann"}).json() == PARENT
    assert httpx.get(url + path).json() == ROOT


@pytest.mark.parametrize("value", ["", "garbage", f"ff-{TRACE}-{SPAN}-01", "x" * 5000])
def test_asgi_broken_header_fails_no_request(asgi: tuple[Asgi, str], value: str) -> None:
    """The spans start a trace of their own."""
    _, url = asgi
    response = httpx.get(url + "/async", headers={"traceparent": value, "tracestate": "FOO", "baggage": "\\"})
    assert (response.status_code, response.json()) == (200, ROOT)


def test_asgi_duplicate_traceparent_starts_a_new_trace(asgi: tuple[Asgi, str]) -> None:
    """Also when both are the same."""
    _, url = asgi
    traceparents = [("traceparent", VALID["traceparent"])] * 2
    assert httpx.get(url + "/async", headers=traceparents).json() == ROOT


@pytest.mark.parametrize("path", ["/stream", "/sync-stream"])
def test_asgi_streaming_response_stays_in_the_callers_trace(asgi: tuple[Asgi, str], path: str) -> None:
    """From the first chunk to the last."""
    _, url = asgi
    with httpx.stream("GET", url + path, headers=VALID) as response:
        lines = list(response.iter_lines())
    assert len(lines) == 3
    assert all(line.startswith(TRACE) for line in lines)
    assert lines[0] == lines[-1] == PARENT


def test_asgi_background_task_runs_in_the_callers_trace(asgi: tuple[Asgi, str]) -> None:
    """It outlives the response, not the request."""
    application, url = asgi
    application.in_background.clear()
    assert httpx.get(url + "/background", headers=VALID).json() == PARENT
    assert application.background_done.wait(WAIT_S)
    assert application.in_background == [PARENT]


def test_asgi_error_comes_through(asgi: tuple[Asgi, str]) -> None:
    """The server answers 500, as without the middleware."""
    application, url = asgi
    application.in_background.clear()
    assert httpx.get(url + "/error", headers=VALID).status_code == 500
    assert application.in_background == [PARENT]


def test_asgi_client_that_goes_away_leaves_no_context_behind(asgi: tuple[Asgi, str]) -> None:
    """The stream is closed, and the next request is its own."""
    application, url = asgi
    with httpx.stream("GET", url + "/endless", headers=VALID) as response:
        next(response.iter_raw())
    assert application.stream_closed.wait(WAIT_S)
    assert httpx.get(url + "/async").json() == ROOT


def test_asgi_concurrent_requests_keep_to_their_traces(asgi: tuple[Asgi, str]) -> None:
    """Interleaved on one loop and over the threads of the pool."""
    _, url = asgi

    async def call() -> None:
        async with httpx.AsyncClient(base_url=url) as client:
            ids = [f"{n:032x}" for n in range(1, 41)]
            replies = await asyncio.gather(
                *(
                    client.get(path, headers={"traceparent": f"00-{i}-{SPAN}-01"})
                    for i, path in zip(ids, ["/async", "/sync"] * 20, strict=True)
                )
            )
        assert [reply.json() for reply in replies] == [f"{i} {SPAN} None" for i in ids]

    asyncio.run(call())


async def drive(app: Any, scope: MutableMapping[str, Any]) -> list[MutableMapping[str, Any]]:
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "websocket.disconnect", "code": 1000}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize(("kind", "expected"), [("http", PARENT), ("websocket", PARENT), ("lifespan", ROOT)])
def test_asgi_scopes(kind: str, expected: str) -> None:
    """Requests and connections are in the caller's trace; the lifespan of the server has none."""

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
        await send({"type": "report", "text": report()})

    headers = [(name.encode(), value.encode()) for name, value in VALID.items()]
    sent = asyncio.run(drive(TracingMiddleware(app), {"type": kind, "headers": headers}))
    assert sent == [{"type": "report", "text": expected}]
    assert asyncio.run(drive(TracingMiddleware(app), {"type": kind}))[0]["text"] == ROOT


def test_asgi_keeps_the_server_span_of_an_instrumentation() -> None:
    """An outer middleware that has made one gets the application's spans as children."""

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
        await send({"type": "report", "text": report()})

    async def instrumented(scope: Any, receive: Any, send: Any) -> None:
        with tracer.start_as_current_span("GET /", kind=SpanKind.SERVER) as span:
            spans.append(span)
            await TracingMiddleware(app)(scope, receive, send)

    spans: list[trace.Span] = []
    sent = asyncio.run(
        drive(instrumented, {"type": "http", "headers": [(b"traceparent", VALID["traceparent"].encode())]})
    )
    made = spans[0].get_span_context()
    assert sent[0]["text"] == f"{made.trace_id:032x} {made.span_id:016x} None"


def test_asgi_coroutine_closed_from_elsewhere_is_quiet() -> None:
    """As the garbage collector does with requests whose loop has stopped."""

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
        await Suspended()

    class Suspended:
        def __await__(self) -> Iterator[None]:
            yield

    headers = [(b"traceparent", VALID["traceparent"].encode())]
    request: Any = TracingMiddleware(app)({"type": "http", "headers": headers}, None, None)  # type: ignore[arg-type]
    contextvars.copy_context().run(request.send, None)
    before = context.get_current()
    contextvars.copy_context().run(request.close)
    assert context.get_current() == before


class Wsgi:
    """A Flask application with the middleware, and what its stream has seen."""

    def __init__(self) -> None:
        self.app = flask.Flask("tests")
        self.app.wsgi_app = WsgiTracingMiddleware(self.app.wsgi_app)  # type: ignore[method-assign]
        self.stream_closed = threading.Event()
        self.app.get("/plain")(report)
        self.app.get("/error")(self.get_error)
        self.app.get("/stream")(self.get_stream)
        self.app.get("/endless")(self.get_endless)

    def get_error(self) -> str:
        raise RuntimeError("the view fails " + report())

    def get_stream(self) -> flask.Response:
        def chunks() -> Iterator[str]:
            yield report() + "\n"
            with tracer.start_as_current_span("between") as span:
                yield report() + "\n"
                assert trace.get_current_span() is span
            yield report() + " " + flask.request.path + "\n"

        return flask.Response(flask.stream_with_context(chunks()))

    def get_endless(self) -> flask.Response:
        def chunks() -> Iterator[bytes]:
            try:
                with tracer.start_as_current_span("endless"):
                    while True:
                        yield b"x" * 65536
            finally:
                self.stream_closed.set()

        return flask.Response(chunks())


class QuietHandler(WSGIRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def served(server: Any) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(WAIT_S)
        assert not thread.is_alive()


@pytest.fixture(params=["werkzeug", "wsgiref"])
def wsgi(request: pytest.FixtureRequest) -> Iterator[tuple[Wsgi, str]]:
    """The application on a server with a thread a request, and on one that uses its only thread for all."""
    application = Wsgi()
    if request.param == "werkzeug":
        server: Any = make_werkzeug_server("127.0.0.1", 0, application.app, threaded=True)
    else:
        server = make_wsgiref_server("127.0.0.1", 0, application.app, handler_class=QuietHandler)
    with served(server) as url:
        yield application, url


def test_wsgi_view_runs_in_the_callers_trace(wsgi: tuple[Wsgi, str]) -> None:
    """Without headers, its spans are roots, on the same thread or not."""
    _, url = wsgi
    assert requests.get(url + "/plain", headers=VALID, timeout=WAIT_S).text == PARENT
    assert requests.get(url + "/plain", timeout=WAIT_S).text == ROOT


def test_wsgi_broken_headers_fail_no_request(wsgi: tuple[Wsgi, str]) -> None:
    """Malformed ones and duplicates start a new trace."""
    _, url = wsgi
    assert requests.get(url + "/plain", headers={"traceparent": "garbage"}, timeout=WAIT_S).text == ROOT
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=WAIT_S)
    connection.putrequest("GET", "/plain")
    connection.putheader("traceparent", VALID["traceparent"])
    connection.putheader("Traceparent", VALID["traceparent"])
    connection.endheaders()
    with connection.getresponse() as response:
        assert response.read().decode() == ROOT
    connection.close()


def test_wsgi_streaming_response_stays_in_the_callers_trace(wsgi: tuple[Wsgi, str]) -> None:
    """A span that is open between two chunks too, and Flask's own request context."""
    _, url = wsgi
    with requests.get(url + "/stream", headers=VALID, stream=True, timeout=WAIT_S) as response:
        lines = list(response.iter_lines(decode_unicode=True))
    assert lines[0] == PARENT
    assert lines[1].startswith(TRACE)
    assert lines[2] == f"{PARENT} /stream"
    assert requests.get(url + "/plain", timeout=WAIT_S).text == ROOT


def test_wsgi_error_comes_through(wsgi: tuple[Wsgi, str], caplog: pytest.LogCaptureFixture) -> None:
    """Flask answers 500, and the next request is its own."""
    _, url = wsgi
    assert requests.get(url + "/error", headers=VALID, timeout=WAIT_S).status_code == 500
    assert f"the view fails {PARENT}" in caplog.text
    assert requests.get(url + "/plain", timeout=WAIT_S).text == ROOT


def test_wsgi_client_that_goes_away_leaves_no_context_behind(wsgi: tuple[Wsgi, str]) -> None:
    """The server closes the response, which leaves the context."""
    application, url = wsgi
    with requests.get(url + "/endless", headers=VALID, stream=True, timeout=WAIT_S) as response:
        next(response.iter_content(1))
    assert application.stream_closed.wait(WAIT_S)
    assert requests.get(url + "/plain", timeout=WAIT_S).text == ROOT


ENVIRON = {"REQUEST_METHOD": "GET", "HTTP_TRACEPARENT": VALID["traceparent"], "HTTP_BAGGAGE": "user=ann"}


def call(app: Callable[..., Iterable[bytes]], **environ: Any) -> Iterable[bytes]:
    return WsgiTracingMiddleware(app)({**ENVIRON, **environ}, lambda *_: None)


def test_wsgi_response_may_change_threads() -> None:
    """Each chunk on another thread, closed on a third: one context all the same."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:  # noqa: ARG001
        with tracer.start_as_current_span("whole") as span:
            for _ in range(3):
                assert trace.get_current_span() is span
                yield f"{span.parent.trace_id:032x}".encode()  # type: ignore[attr-defined]

    def elsewhere(work: Callable[[], Any]) -> None:
        thread = threading.Thread(target=lambda: results.append(work()))
        thread.start()
        thread.join(WAIT_S)

    results: list[Any] = []
    body: Any = call(app)
    chunks = iter(body)
    elsewhere(lambda: next(chunks))
    elsewhere(lambda: next(chunks))
    elsewhere(body.close)
    assert results == [TRACE.encode(), TRACE.encode(), None]
    assert [span.name for span in exporter.get_finished_spans()].count("whole") == 1


def test_wsgi_app_that_raises_leaves_the_context() -> None:
    """At once, or in its first chunk."""

    def raises(environ: Any, start_response: Any) -> Iterable[bytes]:  # noqa: ARG001
        raise KeyError(report())

    def raises_later(environ: Any, start_response: Any) -> Iterator[bytes]:  # noqa: ARG001
        yield b""
        raise KeyError(report())

    with pytest.raises(KeyError, match=PARENT):
        call(raises)
    body: Any = call(raises_later)
    assert next(body) == b""
    with pytest.raises(KeyError, match=PARENT):
        next(body)
    body.close()
    body.close()


def test_wsgi_plain_bodies_are_handed_over_as_they_are() -> None:
    """Servers send a list of one with its length, and a file with sendfile."""
    chunks = [b"all"]
    file = FileWrapper(io.BytesIO(b"all"))
    assert call(lambda *_: chunks) is chunks
    assert call(lambda *_: file, **{"wsgi.file_wrapper": FileWrapper}) is file
    assert call(lambda *_: file) is not file
    file.close()


class AdoptingGuard:
    """Adopts whatever comes, and keeps a diary."""

    def __init__(self) -> None:
        self.diary: list[str] = []

    def check(self) -> None:
        return

    def digests(self) -> frozenset[str]:
        return frozenset({"a" * 16})

    @contextlib.contextmanager
    def adopt(self, digests: frozenset[str]) -> Iterator[None]:
        self.diary.append(f"entered {sorted(digests)}")
        yield
        self.diary.append("left")


def test_wsgi_adopted_destination_holds_until_the_response_is_closed() -> None:
    """Not just until the application has returned."""
    guard = AdoptingGuard()
    set_destination_guard(guard)
    try:
        body: Any = call(lambda *_: (chunk for chunk in [b"1"]), HTTP_BAGGAGE="tracelake.destination=" + "b" * 16)
        assert list(body) == [b"1"]
        assert guard.diary == ["entered ['bbbbbbbbbbbbbbbb']"]
        body.close()
        assert guard.diary[1:] == ["left"]
    finally:
        set_destination_guard(None)
