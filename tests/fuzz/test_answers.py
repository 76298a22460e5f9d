"""Servers that answer too much, for too long or with nonsense, and bodies that unfold: memory and time are bounded."""

from __future__ import annotations

import contextlib
import gzip
import logging
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import pytest

from tests.destinations.contract import batch, spans
from tracelake.destinations import http
from tracelake.destinations.http import Connection, Tls
from tracelake.destinations.targets import parse_target
from tracelake.errors import PermanentDeliveryError, TransientDeliveryError
from tracelake.testing.storage.ingestion import MAX_BODY_BYTES, _message
from tracelake.testing.web.http import ApiError, Request

MIB = 2**20
Answer = Callable[[socket.socket], None]


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """Answer every request in a thread's own way, and give the address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=converse, args=(connection,), daemon=True).start()

    def converse(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as file:
            while file.readline():
                size = 0
                while (header := file.readline().strip().lower()) != b"":
                    if header.startswith(b"content-length:"):
                        size = int(header.partition(b":")[2])
                file.read(size)
                answer(connection)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def says(head: str, body: bytes = b"") -> Answer:
    """Return an answer with a status line, headers and a body."""
    return lambda connection: connection.sendall(f"HTTP/1.1 {head}\r\n\r\n".encode("latin-1") + body)


def bomb(size: int) -> bytes:
    """Return gzip that unfolds to so many zeros."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(compressor.compress(bytes(MIB)) for _ in range(size // MIB)) + compressor.flush()


@pytest.fixture(scope="module")
def gigabyte() -> bytes:
    """A MiB of gzip that is a GiB."""
    return bomb(1024 * MIB)


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")


def drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


@pytest.fixture
def peak() -> Iterator[Callable[[], int]]:
    """Tells the most memory that Python took since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.slow
def test_gigabyte_in_an_answer_is_not_unfolded(gigabyte: bytes, peak: Callable[[], int]) -> None:
    """The spans were taken, so they do not come again; what the endpoint says beyond that is not read."""
    head = f"200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(gigabyte)}"
    with serving(says(head, gigabyte)) as url, contextlib.closing(parse_target(f"otlp+{url}").open()) as sink:
        assert sink.write(batch(1, spans(3))) == []
        assert sink.write(batch(2, spans(3))) == []
    assert peak() < 100 * MIB


def test_endless_answer_is_cut(peak: Callable[[], int]) -> None:
    """As much as a limit is read, and the next request has a connection of its own."""
    with serving(endless) as url, contextlib.closing(Connection(url, Tls(), timeouts_s=(5, 5))) as connection:
        for _ in range(2):
            assert len(connection.request("POST", url, data=b"x").content) == http._MAX_ANSWER_BYTES
    assert peak() < 5 * http._MAX_ANSWER_BYTES


def test_answer_that_drips_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """No byte is waited for long, and all of them together are not either."""
    monkeypatch.setattr(http, "_MAX_ANSWER_S", 0.3)
    with serving(drip) as url, contextlib.closing(Connection(url, Tls(), timeouts_s=(5, 5))) as connection:
        started_s = time.monotonic()
        body = connection.request("POST", url, data=b"x").content
    assert time.monotonic() - started_s < 3
    assert set(body) == {ord("x")}


@pytest.mark.parametrize(
    "head",
    [
        "200 OK\r\nContent-Length: 100\r\nConnection: close",
        "200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4",
        "200 OK\r\nTransfer-Encoding: chunked",
        "999 \x1b[31mred\r\nContent-Length: 0",
        "503 a\tb\x00c\r\nContent-Type: text/plain\r\nRetry-After: Mon, 99 Foo 99999 99:99:99 GMT\r\nContent-Length: 0",
    ],
    ids=["cut", "no gzip", "no chunks", "status", "reason"],
)
def test_nonsense_is_an_error_of_ours(head: str, caplog: pytest.LogCaptureFixture) -> None:
    """An answer that is none fails a delivery in words that fit on a line."""
    caplog.set_level(logging.WARNING)

    def answer(connection: socket.socket) -> None:
        says(head, b"nope\r\n\r\n")(connection)
        connection.shutdown(socket.SHUT_RDWR)

    with serving(answer) as url, pytest.raises((TransientDeliveryError, PermanentDeliveryError)) as raised:
        parse_target(f"otlp+{url}").open().write(batch(1, spans(3)))
    assert str(raised.value).isprintable()
    assert all(record.getMessage().isprintable() for record in caplog.records)


@pytest.mark.slow
@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 1024 * MIB], ids=["just over", "gigabyte"])
def test_body_that_unfolds_too_far_is_refused(size: int, gigabyte: bytes, peak: Callable[[], int]) -> None:
    """The workspace stops at its limit, whatever the body would be."""
    body = gigabyte if size == 1024 * MIB else gzip.compress(bytes(size))
    sent = {"content-type": "application/x-protobuf", "content-encoding": "gzip"}
    with pytest.raises(ApiError) as raised:
        _message(Request("POST", "/", headers=sent, body=body))
    assert raised.value.status == 413
    assert peak() < 5 * MAX_BODY_BYTES
