"""The network that fails does fail, in each of its ways, and is sound again when it is healed."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.torture.proxy import Proxy
from tests.torture.servers import free_port

SENT = b"x" * 5000


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection: socket.socket) -> None:
            with connection, contextlib.suppress(ConnectionError):
                while data := connection.recv(65536):
                    connection.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    proxy = Proxy(echo)
    yield proxy
    proxy.close()


def talk(proxy: Proxy, timeout_s: float = 5) -> bytes:
    """Send, and return what comes back until all did or the connection ends."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=timeout_s) as connection:
        connection.sendall(SENT)
        found = b""
        while len(found) < len(SENT) and (data := connection.recv(65536)):
            found += data
        return found


def test_passes_on(proxy: Proxy) -> None:
    assert talk(proxy) == SENT


@pytest.mark.parametrize("fault", ["cut-request", "cut-answer"])
def test_cuts(proxy: Proxy, fault: str) -> None:
    """No more than a part arrives, and then the connection is over."""
    proxy.fail(fault, 0.5)
    with contextlib.suppress(ConnectionError):
        assert len(talk(proxy)) < len(SENT)
    proxy.heal()
    assert talk(proxy) == SENT


def test_refuses(proxy: Proxy) -> None:
    proxy.fail("refuse", 0)
    with pytest.raises(ConnectionRefusedError):
        talk(proxy)
    proxy.heal()
    assert talk(proxy) == SENT


def test_swallows(proxy: Proxy) -> None:
    """Nothing comes back; what was swallowed is lost with its connection."""
    proxy.fail("black-hole", 0)
    with pytest.raises(TimeoutError):
        talk(proxy, timeout_s=0.2)
    threading.Timer(0.2, proxy.heal).start()
    with contextlib.suppress(ConnectionError):
        assert talk(proxy) == b""
    assert talk(proxy) == SENT


def test_delays(proxy: Proxy) -> None:
    proxy.fail("delay", 0.2)
    started_s = time.monotonic()
    assert talk(proxy) == SENT
    assert time.monotonic() - started_s > 0.15


def test_one_fault_ends_the_one_before(proxy: Proxy) -> None:
    proxy.fail("refuse", 0)
    proxy.fail("delay", 0)
    assert talk(proxy) == SENT


def test_server_that_is_gone() -> None:
    """The connection is reset."""
    gone = Proxy(free_port())
    with contextlib.closing(gone), contextlib.suppress(ConnectionError):
        assert talk(gone) == b""
