"""Headers that real clients send to a real server, and what is left when they are told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
import requests
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from tracelake.errors import ConfigurationError
from tracelake.tracing import propagation
from tracelake.tracing.clients import propagate, propagate_all, stop_propagating_all
from tracelake.tracing.propagation import set_destination_guard

WAIT_S = 20
DIGEST = "aaaaaaaaaaaaaaaa"

tracer = TracerProvider(shutdown_on_exit=False).get_tracer("tests")


def redirects(*stops: str) -> str:
    return urlencode([("to", stop) for stop in stops])


class Handler(BaseHTTPRequestHandler):
    """Keeps the headers of each request; ``?to=<url>&to=<url>`` redirects to the first, and on to the second."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append([(name.lower(), value) for name, value in self.headers.items()])  # type: ignore[attr-defined]
        stops = parse_qs(urlsplit(self.path).query).get("to", [])
        self.send_response(302 if stops else 200)
        if stops:
            self.send_header("Location", "?".join([stops[0], *filter(None, [redirects(*stops[1:])])]))
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *args: object) -> None:
        pass


class Server:
    """A server on loopback, reachable under two host names."""

    def __init__(self, http: ThreadingHTTPServer) -> None:
        self.all: list[list[tuple[str, str]]] = http.seen  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{http.server_port}/"
        self.other_host = f"http://localhost:{http.server_port}/"

    def values(self, name: str, request: int = -1) -> list[str]:
        return [value for key, value in self.all[request] if key == name]

    def parents(self) -> list[str]:
        """The parent id in each request's only traceparent, "" where there is none."""
        found = [self.values("traceparent", n) for n in range(len(self.all))]
        assert all(len(values) <= 1 for values in found)
        return [values[0].split("-")[2] if values else "" for values in found]


@pytest.fixture(scope="module")
def http_server() -> Iterator[ThreadingHTTPServer]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield http
    http.shutdown()
    http.server_close()
    thread.join(WAIT_S)
    assert not thread.is_alive()


@pytest.fixture
def server(http_server: ThreadingHTTPServer) -> Server:
    http_server.seen.clear()  # type: ignore[attr-defined]
    return Server(http_server)


@pytest.fixture(autouse=True)
def as_it_was(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The classes have their own methods before and after, and nothing is logged as an error."""
    before = {owner: owner.__dict__["send"] for owner in (requests.Session, httpx.Client, httpx.AsyncClient)}
    propagation._warned.clear()
    yield
    stop_propagating_all()
    set_destination_guard(None)
    assert {owner: owner.__dict__["send"] for owner in before} == before
    assert [record for record in caplog.get_records("call") if record.levelno > logging.WARNING] == []


class Guard:
    def check(self) -> None:
        return

    def digests(self) -> frozenset[str]:
        return frozenset({DIGEST})

    def adopt(self, digests: frozenset[str]) -> None:
        raise AssertionError(f"asked to adopt {digests}")


@contextlib.contextmanager
def span(trace_state: str = "") -> Iterator[str]:
    """A current span with an application's baggage and a destination; gives its id."""
    set_destination_guard(Guard())
    token = context.attach(baggage.set_baggage("user", "ann"))
    with tracer.start_as_current_span("caller") as current:
        made = current.get_span_context()
        state = TraceState([("foo", trace_state)]) if trace_state else TraceState()
        remade = SpanContext(made.trace_id, made.span_id, False, TraceFlags(1), state)
        with trace.use_span(NonRecordingSpan(remade)):
            yield f"{made.span_id:016x}"
    context.detach(token)


BAGGAGE = f"user=ann,tracelake.destination={DIGEST}"


class RequestsClient:
    """One call a method, the same for all clients."""

    def __init__(self, prepare: Callable[[Any], Any]) -> None:
        self.client = prepare(requests.Session())

    def get(self, *urls: str, **kwargs: Any) -> None:
        for url in urls:
            assert self.client.get(url, timeout=WAIT_S, **kwargs).text == "ok"

    def stream(self, url: str) -> None:
        with self.client.get(url, stream=True, timeout=WAIT_S) as response:
            assert b"".join(response.iter_content(1)) == b"ok"

    def get_in_each(self, urls: list[str], entered: Callable[[], contextlib.AbstractContextManager[str]]) -> list[str]:
        """Send one and the same request object several times, each in a context of its own."""
        prepared = self.client.prepare_request(requests.Request("GET", urls[0]))
        ids = []
        for _ in urls:
            with entered() as name:
                self.client.send(prepared)
            ids.append(name)
        return ids

    def close(self) -> None:
        self.client.close()


class HttpxClient(RequestsClient):
    def __init__(self, prepare: Callable[[Any], Any]) -> None:
        self.client = prepare(httpx.Client(follow_redirects=True, timeout=WAIT_S))

    def get(self, *urls: str, **kwargs: Any) -> None:
        for url in urls:
            assert self.client.get(url, **kwargs).text == "ok"

    def stream(self, url: str) -> None:
        with self.client.stream("GET", url) as response:
            assert b"".join(response.iter_raw()) == b"ok"

    def get_in_each(self, urls: list[str], entered: Callable[[], contextlib.AbstractContextManager[str]]) -> list[str]:
        request = self.client.build_request("GET", urls[0])
        ids = []
        for _ in urls:
            with entered() as name:
                self.client.send(request)
            ids.append(name)
        return ids


class AsyncHttpxClient(RequestsClient):
    def __init__(self, prepare: Callable[[Any], Any]) -> None:
        self.loop = asyncio.new_event_loop()
        self.client = prepare(httpx.AsyncClient(follow_redirects=True, timeout=WAIT_S))

    def get(self, *urls: str, **kwargs: Any) -> None:
        async def get_all() -> None:
            replies = await asyncio.gather(*(self.client.get(url, **kwargs) for url in urls))
            assert [reply.text for reply in replies] == ["ok"] * len(urls)

        self.loop.run_until_complete(get_all())

    def stream(self, url: str) -> None:
        async def read() -> None:
            async with self.client.stream("GET", url) as response:
                assert b"".join([chunk async for chunk in response.aiter_raw()]) == b"ok"

        self.loop.run_until_complete(read())

    def get_in_each(self, urls: list[str], entered: Callable[[], contextlib.AbstractContextManager[str]]) -> list[str]:
        request = self.client.build_request("GET", urls[0])
        ids = []
        for _ in urls:
            with entered() as name:
                self.loop.run_until_complete(self.client.send(request))
            ids.append(name)
        return ids

    def close(self) -> None:
        self.loop.run_until_complete(self.client.aclose())
        self.loop.close()


def everywhere(client: Any) -> Any:
    propagate_all()
    return client


def both(client: Any) -> Any:
    propagate_all()
    return propagate(client)


@pytest.fixture(params=[RequestsClient, HttpxClient, AsyncHttpxClient], ids=["requests", "httpx", "httpx-async"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[propagate, everywhere, both])
def client(kind: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    client = kind(request.param)
    yield client
    client.close()


def test_context_is_sent(client: Any, server: Server) -> None:
    """Each header once, on each request, and the response can be streamed."""
    with span("1") as parent:
        client.get(server.url, server.url + "other")
        client.stream(server.url)
    assert server.parents() == [parent] * 3
    for request in range(3):
        assert server.values("tracestate", request) == ["foo=1"]
        assert server.values("baggage", request) == [BAGGAGE]


def test_nothing_is_sent_without_a_span(client: Any, server: Server) -> None:
    """Requests go out as they are."""
    client.get(server.url)
    assert not {"traceparent", "tracestate", "baggage"} & {name for name, _ in server.all[0]}


def test_headers_on_the_request_win(client: Any, server: Server) -> None:
    """In any case, and a foreign traceparent gets no tracestate of ours."""
    theirs = f"00-{'1' * 32}-{'2' * 16}-00"
    with span("1"):
        client.get(server.url, headers={"TraceParent": theirs, "Baggage": "own=1"})
        client.get(server.url, headers={"traceparent": theirs})
        client.get(server.url, headers={"tracestate": "own=1"})
    assert server.values("traceparent", 0) == server.values("traceparent", 1) == [theirs]
    assert server.values("tracestate", 0) == server.values("tracestate", 1) == []
    assert [server.values("baggage", n) for n in range(3)] == [["own=1"], [BAGGAGE], [BAGGAGE]]
    assert server.values("tracestate", 2) == ["own=1"]


def test_request_sent_again_gets_the_context_of_that_time(client: Any, server: Server) -> None:
    """What we put there is no header of the application; without a span it is taken off."""
    ids = client.get_in_each([server.url] * 2, span)
    client.get_in_each([server.url], lambda: contextlib.nullcontext(""))
    assert server.parents() == [*ids, ""]


def test_redirect_on_one_host_carries_everything(client: Any, server: Server) -> None:
    """It is the same service."""
    with span("1") as parent:
        client.get(server.url + "?to=/next")
    assert server.parents() == [parent] * 2
    assert [server.values("baggage", n) for n in range(2)] == [[BAGGAGE]] * 2


def test_redirect_to_another_host_carries_no_baggage(client: Any, server: Server) -> None:
    """Nor does one further on that host; back on the first host it is sent again. Headers of the request stay."""
    with span("1") as parent:
        client.get(f"{server.url}?{redirects(server.other_host, server.other_host + 'next', server.url)}")
        client.get(f"{server.url}?{redirects(server.other_host)}", headers={"baggage": "own=1"})
    assert server.parents() == [parent] * 6
    assert [server.values("baggage", n) for n in range(4)] == [[BAGGAGE], [], [], [BAGGAGE]]
    assert [server.values("baggage", n) for n in (4, 5)] == [["own=1"], ["own=1"]]
    assert [server.values("tracestate", n) for n in range(6)] == [["foo=1"]] * 6


def test_failing_baggage_fails_no_request(client: Any, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """It goes out with what there is, and the log has one warning."""

    class Unprintable:
        def __str__(self) -> str:
            raise ValueError("no text")

    token = context.attach(baggage.set_baggage("a", Unprintable()))
    with tracer.start_as_current_span("caller") as current:
        client.get(server.url, server.url)
    context.detach(token)
    assert server.parents() == [f"{current.get_span_context().span_id:016x}"] * 2
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_propagate_twice_is_propagate_once(kind: Any, server: Server) -> None:
    """It gives the client back, with one hook or wrapper."""
    client = kind(lambda client: propagate(propagate(client)))
    hooks = getattr(client.client, "event_hooks", {"request": [None]})
    assert len(hooks["request"]) == 1
    if isinstance(client.client, requests.Session):
        assert inspect.unwrap(client.client.send) == requests.Session.send.__get__(client.client)
        assert client.client.send.__wrapped__ == inspect.unwrap(client.client.send)
    with span() as parent:
        client.get(server.url)
    assert server.parents() == [parent]
    client.close()


def test_stop_ends_what_all_has_begun_and_nothing_else(kind: Any, server: Server) -> None:
    """A client that was named goes on; the others are as they were, to their hooks."""
    ours = kind(propagate)
    named_later = kind(everywhere)
    plain = kind(lambda client: client)
    propagate_all()
    with span() as parent:
        for client in (ours, named_later, plain):
            client.get(server.url)
        propagate(named_later.client)
        stop_propagating_all()
        stop_propagating_all()
        for client in (ours, named_later, plain):
            client.get(server.url)
    assert server.parents() == [parent, parent, parent, parent, parent, ""]
    assert getattr(plain.client, "event_hooks", {"request": []})["request"] == []
    assert "send" not in plain.client.__dict__
    for client in (ours, named_later, plain):
        client.close()


def test_all_covers_the_functions_of_both_libraries(server: Server) -> None:
    """Which make a client for each call."""
    propagate_all()
    with span() as parent:
        requests.get(server.url, timeout=WAIT_S)
        httpx.get(server.url)
        with httpx.stream("GET", server.url) as response:
            response.read()
    assert server.parents() == [parent] * 3


def test_wrapped_methods_look_like_the_originals() -> None:
    """To help(), to inspect and to whoever asks whether ``send`` is a coroutine function."""
    signatures = [inspect.signature(owner.send) for owner in (requests.Session, httpx.Client, httpx.AsyncClient)]
    propagate_all()
    assert requests.Session.send.__qualname__ == "Session.send"
    assert inspect.iscoroutinefunction(httpx.AsyncClient.send)
    assert not inspect.iscoroutinefunction(httpx.Client.send)
    assert [inspect.signature(o.send) for o in (requests.Session, httpx.Client, httpx.AsyncClient)] == signatures


@pytest.fixture
def instrumented() -> Iterator[Callable[[], None]]:
    """OpenTelemetry's instrumentation of requests, to be put on when the test says so."""
    provider = TracerProvider(shutdown_on_exit=False)
    yield lambda: RequestsInstrumentor().instrument(tracer_provider=provider)
    RequestsInstrumentor().uninstrument()


def test_instrumentation_put_on_after_us_wins(instrumented: Callable[[], None], server: Server) -> None:
    """Its client span is the callee's parent; stopping leaves its wrapper in place."""
    propagate_all()
    instrumented()
    send = requests.Session.send
    with span() as parent:
        requests.get(server.url, timeout=WAIT_S)
        stop_propagating_all()
        assert requests.Session.send is send
        requests.get(server.url, timeout=WAIT_S)
        propagate_all()
        requests.get(server.url, timeout=WAIT_S)
    assert all(found not in ("", parent) for found in server.parents())
    RequestsInstrumentor().uninstrument()
    with span() as parent:
        requests.get(server.url, timeout=WAIT_S)
    assert server.parents()[-1] == parent


def test_instrumentation_put_on_before_us_wins(instrumented: Callable[[], None], server: Server) -> None:
    """Also with a redirect, and stopping gives its wrapper back."""
    instrumented()
    send = requests.Session.send
    propagate_all()
    with span() as parent:
        requests.get(server.url + "?to=/next", timeout=WAIT_S)
    assert all(found not in ("", parent) for found in server.parents())
    stop_propagating_all()
    assert requests.Session.send is send


def test_session_survives_pickling(server: Server) -> None:
    """The copy sends no context until it is asked to."""
    with propagate(requests.Session()) as session:
        copy = pickle.loads(pickle.dumps(session))
    with span() as parent, copy:
        copy.get(server.url, timeout=WAIT_S)
        propagate(copy).get(server.url, timeout=WAIT_S)
    assert server.parents() == ["", parent]


def without_headers() -> requests.PreparedRequest:
    prepared = requests.Request("GET", "http://127.0.0.1:1/").prepare()
    prepared.headers = None  # type: ignore[assignment]
    return prepared


@pytest.mark.parametrize(
    "make",
    [
        lambda: None,
        lambda: requests.Request("GET", "http://127.0.0.1:1/"),
        requests.PreparedRequest,
        without_headers,
        requests.Request("GET", "http://127.0.0.1:1/").prepare,
        lambda: requests.Request("GET", "mailto:nobody").prepare(),
    ],
)
def test_requests_that_cannot_be_sent_fail_as_without_us(make: Callable[[], Any]) -> None:
    """With the error of the library, not with one of ours."""
    with requests.Session() as plain, propagate(requests.Session()) as ours, span():
        assert error_of(ours, make()) == error_of(plain, make())


def error_of(session: requests.Session, request: Any) -> type[Exception] | None:
    try:
        session.send(request)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
        return type(error)
    return None


def test_httpx_requests_that_cannot_be_sent_fail_as_without_us() -> None:
    """With the error of the library, not with one of ours."""
    with propagate(httpx.Client()) as client, span():
        with pytest.raises(httpx.UnsupportedProtocol):
            client.get("no url")
        with pytest.raises(httpx.ConnectError):
            client.get("http://127.0.0.1:1/")


def test_transport_of_the_application_is_used() -> None:
    """The hook is on the client, so that any transport sees the headers."""
    with (
        propagate(
            httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200, headers=request.headers)))
        ) as client,
        span() as parent,
    ):
        assert parent in client.get("http://anywhere").headers["traceparent"]


@pytest.mark.parametrize("client", [None, 5, requests, requests.Session])
def test_other_clients_are_refused(client: Any) -> None:
    """The message says what was given, which clients fit, and how to do it by hand."""
    with pytest.raises(ConfigurationError, match=r"was given a .*\. Pass a requests\.Session, httpx\.Client or"):
        propagate(client)


ABSENT = """
import sys
import tracelake.tracing.clients as clients
assert not {"requests", "httpx"} & set(sys.modules)
sys.modules["requests"] = sys.modules["httpx"] = None  # an import of either raises ImportError
clients.propagate_all()
clients.propagate_all()
clients.stop_propagating_all()
try:
    clients.propagate(object())
except clients.ConfigurationError:
    print("fine")
"""


def test_missing_libraries_are_no_error() -> None:
    """Importing the module imports neither, and without them there is nothing to do."""
    ran = subprocess.run([sys.executable, "-c", ABSENT], capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "fine\n", "")
