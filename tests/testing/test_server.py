"""The workspace as an HTTP server: what HTTP clients of every kind do to it."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPResponse
from io import BytesIO
from pathlib import Path

import pytest
import requests

from tracelake import ConfigurationError
from tracelake.testing import MockWorkspace, Request
from tracelake.testing.web import server as module
from tracelake.testing.web.http import Response
from tracelake.testing.web.server import Server

TIMEOUT_S = 20


class Echo:
    """A server that answers with what it was asked.

    Attributes:
        gate: what requests to /wait wait for.
    """

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self.gate = threading.Event()
        self.waiting = threading.Event()
        self.server = Server(self._answer)
        self.address = ("127.0.0.1", self.server.port)
        self.url = self.server.url

    def _answer(self, request: Request) -> Response | None:
        self.seen.append(request)
        if request.path == "/wait":
            self.waiting.set()
            assert self.gate.wait(TIMEOUT_S)
        if request.path == "/reset":
            return None
        query = {name: list(found) for name, found in request.query.items()}
        return Response.of({"method": request.method, "path": request.path, "query": query, "size": len(request.body)})

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, TIMEOUT_S)


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    try:
        yield made
    finally:
        made.gate.set()
        made.server.close()


def everything(connection: socket.socket) -> bytes:
    """Read until the server ends the connection."""
    found = b""
    while read := connection.recv(65_536):
        found += read
    return found


def answers(found: bytes) -> list[tuple[int, bytes]]:
    """Return status and body of each answer in what a connection gave."""

    class Given:
        def __init__(self, stream: BytesIO) -> None:
            self.makefile = lambda *_: stream

    stream, parsed = BytesIO(found), []
    stream.close = lambda: None  # type: ignore[method-assign]
    while stream.tell() < len(found):
        response = HTTPResponse(Given(stream))  # type: ignore[arg-type]
        response.begin()
        parsed.append((response.status, response.read()))
    return parsed


def ask(echo: Echo, sent: bytes) -> list[tuple[int, bytes]]:
    """Send bytes and nothing more, and return the answers."""
    with closing(echo.connect()) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return answers(everything(connection))


def test_a_connection_serves_many_requests(echo: Echo) -> None:
    connection = HTTPConnection(*echo.address, timeout=TIMEOUT_S)
    with closing(connection):
        for number in range(5):
            connection.request("POST", f"/things/{number}?a=1&a=&b=%20", b"x" * number)
            answer = json.loads(connection.getresponse().read())
            assert answer == {
                "method": "POST",
                "path": f"/things/{number}",
                "query": {"a": ["1", ""], "b": [" "]},
                "size": number,
            }
        assert sum(thread.name == "mock-workspace-client" for thread in threading.enumerate()) == 1


def test_pipelined_requests_are_answered_in_their_order(echo: Echo) -> None:
    sent = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(20))
    assert [json.loads(body)["path"] for _, body in ask(echo, sent)] == [f"/{number}" for number in range(20)]


def test_head_is_answered_as_get_without_a_body(echo: Echo) -> None:
    response = requests.head(f"{echo.url}/a", timeout=TIMEOUT_S)
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["Content-Length"]) > 0
    assert echo.seen[0].method == "GET"


def test_a_body_in_chunks(echo: Echo) -> None:
    response = requests.post(f"{echo.url}/a", data=iter([b"a" * 10_000, b"b", b"c" * 70_000]), timeout=TIMEOUT_S)
    assert response.json()["size"] == 80_001
    with_extras = (
        b"POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n"
        b"3;name=value\r\nabc\r\n00A\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\nGET /c HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    assert [json.loads(body)["size"] for _, body in ask(echo, with_extras)] == [13, 0]
    assert echo.seen[1].body == b"abc0123456789"


@pytest.mark.parametrize(
    "body",
    [
        *(b"x\r\nabc\r\n0\r\n\r\n", b"-3\r\nabc\r\n0\r\n\r\n", b"0x3\r\nabc\r\n0\r\n\r\n", b"\r\n\r\n"),
        *(b"2\r\nabc\r\n0\r\n\r\n", b"1" * 70_000, b"0\r\n" + b"a: b\r\n" * 200 + b"\r\n"),
    ],
)
def test_malformed_chunks_are_refused(echo: Echo, body: bytes) -> None:
    ((status, answer),) = ask(echo, b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    assert (status, json.loads(answer)["error_code"]) == (400, "MALFORMED_REQUEST")
    assert echo.seen == []


def test_curl_sends_a_large_body(echo: Echo, tmp_path: Path) -> None:
    """It waits to be told to go on."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("there is no curl here")
    (tmp_path / "body").write_bytes(os.urandom(2_000_000))
    for header in ("Expect: 100-continue", "Transfer-Encoding: chunked"):
        command = [curl, "-sS", "--http1.1", "-H", header, "--data-binary", f"@{tmp_path / 'body'}", f"{echo.url}/a"]
        output = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=True).stdout
        assert json.loads(output)["size"] == 2_000_000
        assert echo.seen[-1].body == (tmp_path / "body").read_bytes()


def test_a_client_that_waits_to_be_told_is_told(echo: Echo) -> None:
    with closing(echo.connect()) as connection:
        connection.sendall(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert echo.seen == []
        connection.sendall(b"abc")
        connection.shutdown(socket.SHUT_WR)
        assert [status for status, _ in answers(everything(connection))] == [200]


def test_a_body_that_is_too_large_is_refused(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client gets the answer although it sends all of it first; one that asks first need not send it."""
    monkeypatch.setattr(module, "MAX_BODY_BYTES", 1_000_000)
    body = bytes(5_000_000)
    for data in (body, iter([body[:999_000], body[:1001], body])):
        response = requests.post(f"{echo.url}/a", data=data, timeout=TIMEOUT_S)
        assert (response.status_code, response.json()["error_code"]) == (413, "REQUEST_TOO_LARGE")
        assert response.headers["Connection"] == "close"
    asked = ask(echo, b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\nExpect: 100-continue\r\n\r\n")
    assert [status for status, _ in asked] == [413]
    assert echo.seen == []


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 400, "MALFORMED_REQUEST"),
        (b"GET /\xff\xfe oops HTTP/1.1\r\n\r\n", 400, "MALFORMED_REQUEST"),
        (b"GET / HTTP/x\r\n\r\n", 400, "MALFORMED_REQUEST"),
        (b"GET / HTTP/2.0\r\n\r\n", 505, "NOT_IMPLEMENTED"),
        (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 501, "NOT_IMPLEMENTED"),
        (b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "MALFORMED_REQUEST"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414, "MALFORMED_REQUEST"),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 70_000 + b"\r\n\r\n", 431, "MALFORMED_REQUEST"),
        (b"GET / HTTP/1.1\r\n" + b"A: a\r\n" * 200 + b"\r\n", 431, "MALFORMED_REQUEST"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400, "MALFORMED_REQUEST"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0\r\n\r\n0123456789", 400, "MALFORMED_REQUEST"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "NOT_IMPLEMENTED"),
    ],
    ids=lambda value: str(value[:30]) if isinstance(value, bytes) else str(value),
)
def test_what_is_no_request_is_refused(echo: Echo, sent: bytes, status: int, code: str) -> None:
    ((found, body),) = ask(echo, sent)
    assert (found, json.loads(body)["error_code"]) == (status, code)
    assert json.loads(body)["message"]
    assert echo.seen == []


def test_a_proxys_form_of_the_target_is_understood(echo: Echo) -> None:
    ((status, body),) = ask(echo, b"GET http://other.test/a/b?c=d HTTP/1.1\r\nHost: other.test\r\n\r\n")
    assert (status, json.loads(body)["path"], json.loads(body)["query"]) == (200, "/a/b", {"c": ["d"]})
    assert echo.seen[0].base_url == "http://other.test"


@pytest.mark.parametrize("head", [b"Content-Length: 10\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"])
def test_a_request_that_ends_too_early_is_none(echo: Echo, head: bytes) -> None:
    assert ask(echo, b"POST /a HTTP/1.1\r\nHost: a\r\n" + head) == []
    assert echo.seen == []


def test_clients_that_do_not_go_on_hold_up_nobody(echo: Echo) -> None:
    beginnings = (b"", b"POST /a HT", b"POST /a HTTP/1.1\r\nContent-Length: 100\r\n\r\nabc")
    stuck = [echo.connect() for _ in range(60)]
    for number, connection in enumerate(stuck):
        connection.sendall(beginnings[number % len(beginnings)])
    assert requests.get(f"{echo.url}/b", timeout=TIMEOUT_S).status_code == 200
    for connection in stuck:
        connection.close()


def test_a_reset_is_one(echo: Echo) -> None:
    """The client's TCP stack says so, not only its HTTP library."""
    with closing(echo.connect()) as connection:
        connection.sendall(b"GET /reset HTTP/1.1\r\nHost: a\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with pytest.raises(requests.ConnectionError, match="reset"):
        requests.get(f"{echo.url}/reset", timeout=TIMEOUT_S)
    assert requests.get(f"{echo.url}/a", timeout=TIMEOUT_S).status_code == 200


def test_a_client_that_resets_does_no_harm(echo: Echo, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(5):
        connection = echo.connect()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(b"POST /a HTTP/1.1\r\nContent-Length: 100\r\n\r\nabc")
        connection.close()
    assert requests.get(f"{echo.url}/a", timeout=TIMEOUT_S).status_code == 200
    assert capfd.readouterr() == ("", "")


def test_closing_ends_idle_connections(closed: Callable[[], bool]) -> None:
    made = Echo()
    session = requests.Session()
    session.get(f"{made.url}/a", timeout=TIMEOUT_S)
    half = made.connect()
    half.sendall(b"POST /a HTTP/1.1\r\nContent-Length: 100\r\n\r\nabc")
    silent = made.connect()
    with closing(silent), closing(half), closing(session):
        made.server.close(timeout_s=TIMEOUT_S)
        assert closed()
        for connection in (half, silent):
            with suppress(ConnectionResetError):  # one that was not accepted yet
                assert everything(connection) == b""
        with pytest.raises(ConnectionRefusedError):
            made.connect()


def test_closing_waits_for_the_answer_under_way(closed: Callable[[], bool]) -> None:
    made = Echo()
    with closing(made.connect()) as connection:
        connection.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        assert made.waiting.wait(TIMEOUT_S)
        closer = threading.Thread(target=made.server.close, args=(TIMEOUT_S,))
        closer.start()
        made.gate.set()
        closer.join(TIMEOUT_S)
        assert not closer.is_alive()
        assert closed()
        ((status, _),) = answers(everything(connection))
        assert status == 200


@pytest.fixture
def closed() -> Callable[[], bool]:
    """Say whether no thread and no socket is left of a server that was made in the test."""

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files are counted by /proc, which is not here")

    def sockets() -> int:
        gc.collect()
        found = 0
        for name in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # the listing itself
                found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        return found

    threads, before = set(threading.enumerate()), sockets()
    # The ends that the test itself holds: one of the session, two of its own.
    return lambda: {*threading.enumerate()} <= {*threads, threading.current_thread()} and sockets() <= before + 3


def test_a_port_in_use_is_said_to_be(echo: Echo) -> None:
    with pytest.raises(ConfigurationError, match=f"port {echo.server.port}: Address already in use.*another port"):
        Server(lambda _: None, port=echo.server.port)
    with pytest.raises(ConfigurationError, match="port 70000"):
        Server(lambda _: None, port=70_000)


def test_a_workspace_has_one_address() -> None:
    """However many threads ask for it first, and whatever they ask for later."""
    with MockWorkspace() as workspace, ThreadPoolExecutor(8) as pool:
        together = threading.Barrier(8)

        def address(_: int) -> str:
            together.wait(TIMEOUT_S)
            return workspace.url

        (url,) = set(pool.map(address, range(8)))
        assert workspace.serve(host="localhost") == url


def test_only_this_machine_is_listened_to_unless_told(caplog: pytest.LogCaptureFixture) -> None:
    with MockWorkspace() as workspace, caplog.at_level(logging.WARNING, "tracelake"):
        assert workspace.serve().startswith("http://127.0.0.1:")
        assert caplog.records == []
    with MockWorkspace() as workspace, caplog.at_level(logging.WARNING, "tracelake"):
        workspace.serve(host="0.0.0.0")
    assert "anyone who reaches this port can use the workspace" in caplog.text


def test_host_is_needed() -> None:
    """The system would take none for all of its addresses, and no client an URL without one."""
    with MockWorkspace() as workspace, pytest.raises(ConfigurationError, match="no host to listen on"):
        workspace.serve(host="")
