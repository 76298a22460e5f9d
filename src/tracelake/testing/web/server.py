"""The workspace as an HTTP server on this machine."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import re
import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tracelake.errors import ConfigurationError
from tracelake.testing.web.http import ApiError, Request, Response

_log = logging.getLogger(__name__)

# What no client of a workspace sends; a body of more is refused unread.
MAX_BODY_BYTES = 256 * 2**20
_IDLE_S = 60
# How long, and how much, a client goes on to send that was told already that its body is refused.
_LINGER_S = 5
_LINGER_BYTES = 4 * MAX_BODY_BYTES
_READ_BYTES = 2**16
_LINE_BYTES = 2**16
_MAX_TRAILERS = 100
_TRUNCATED = "the client hung up within a body"
_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]{1,15}")

# What is wrong with a request before it is one; other codes are MALFORMED_REQUEST.
_CODES = {408: "REQUEST_TIMEOUT", 501: "NOT_IMPLEMENTED", 505: "NOT_IMPLEMENTED"}

# Answers a request; None means that the connection is to be reset instead.
Answer = Callable[[Request], "Response | None"]


class Server:
    """Serves over HTTP/1.1, IPv4, each connection in a thread of its own, until it is closed.

    Attributes:
        port: the port that it listens on.
        url: its address, with the host that it was given.
    """

    def __init__(self, answer: Answer, *, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen at once; `port` 0 is any free one. Warns of a `host` that others than this machine can reach.

        Raises:
            ConfigurationError: the port is in use, or the host is none of this machine.
        """

        class Handler(_Handler):
            def answer(self, request: Request) -> Response | None:
                return answer(request)

        if not host:
            raise ConfigurationError("The workspace has no host to listen on. Name one, or 0.0.0.0 for all.")
        if not _is_loopback(host):
            _log.warning(
                "The mocked workspace listens on %s: anyone who reaches this port can use the workspace. "
                "Listen on 127.0.0.1 unless others have to.",
                host,
            )
        try:
            self._server = _Server((host, port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigurationError(
                f"The workspace cannot listen on {host} port {port}: {reason}. "
                "Choose another port, or port 0 for any that is free."
            ) from error
        self.port: int = self._server.server_port
        self.url = f"http://{host}:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="mock-workspace", daemon=True
        )
        self._thread.start()

    def close(self, timeout_s: float = 10.0) -> None:
        """Take no more requests, and wait for the answers under way."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.hang_up(timeout_s)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(ThreadingHTTPServer):
    """Knows its connections, so that it can end those that nobody uses.

    Attributes:
        is_closing: whether a connection ends with the answer under way.
    """

    daemon_threads = True
    request_queue_size = 128
    allow_reuse_port = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.is_closing = False
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # The base class asks the resolver for this machine's name, which can take seconds and is used nowhere.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self._serve_connection, args=(request, client_address), name="mock-workspace-client", daemon=True
        )
        with self._lock:
            self._connections[thread] = request
        thread.start()

    def _serve_connection(self, request: Any, client_address: Any) -> None:
        try:
            self.process_request_thread(request, client_address)
        finally:
            with self._lock:
                del self._connections[threading.current_thread()]

    def hang_up(self, timeout_s: float) -> None:
        """End all connections: idle ones at once, others with the answer under way or when the time is up."""
        self.is_closing = True
        deadline_s = time.monotonic() + timeout_s
        with self._lock:
            connections = dict(self._connections)
        for connection in connections.values():
            _shut(connection, socket.SHUT_RD)
        for thread in connections:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        for connection in connections.values():
            _shut(connection, socket.SHUT_RDWR)

    def handle_error(self, *_: Any) -> None:
        """Say nothing of clients that hang up."""
        if not isinstance(sys.exc_info()[1], OSError):
            _log.exception("The mocked workspace failed to serve a connection")


def _shut(connection: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # it has ended
        connection.shutdown(how)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = _IDLE_S
    wbufsize = -1  # head and body leave together
    server: _Server

    def answer(self, request: Request) -> Response | None:
        raise NotImplementedError

    def _handle(self) -> None:
        try:
            request = self._request()
        except ApiError as error:
            self._refuse(error)
            return
        response = self.answer(request)
        if response is None:
            self._reset()
            return
        if self.server.is_closing:
            self.close_connection = True
        self._send(response)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815 - names of the base class

    def _request(self) -> Request:
        target = self.path
        if not target.startswith("/"):  # a proxy's form, with scheme and host
            try:
                parts = urlsplit(target)
            except ValueError as error:
                raise ApiError(400, "MALFORMED_REQUEST", f"The target of the request is no URL: {error}.") from error
            target = f"{parts.path or '/'}?{parts.query}"
        path, _, query = target.partition("?")
        host = self.headers.get("Host") or f"127.0.0.1:{self.server.server_port}"
        return Request(
            "GET" if self.command == "HEAD" else self.command,
            path,
            parse_qs(query, keep_blank_values=True),
            {name.lower(): value for name, value in self.headers.items()},
            self._body(),
            f"http://{host}",
        )

    def _body(self) -> bytes:
        coding = self.headers.get("Transfer-Encoding")
        if coding is not None:
            if coding.strip().lower() != "chunked":
                raise ApiError(501, "NOT_IMPLEMENTED", f"The Transfer-Encoding {coding} is not taken. Send chunked.")
            return _read_chunks(self.rfile)
        return _read(self.rfile, self._length())

    def _length(self) -> int:
        length = self.headers.get("Content-Length", "0").strip()
        if not re.fullmatch(r"[0-9]{1,15}", length):
            raise ApiError(400, "MALFORMED_REQUEST", f"The header Content-Length is {length!r}.")
        if int(length) > MAX_BODY_BYTES:
            raise _too_large()
        return int(length)

    def handle_expect_100(self) -> bool:
        """Tell a client that waits for it to send its body, unless the body is refused for its length."""
        try:
            self._length()
        except ApiError as error:
            self._refuse(error)
            return False
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no request at all, in the shape of the other errors."""
        self.request_version = self.protocol_version  # that of what could not be read has no answers with a status
        text = message or explain or self.responses.get(code, ("",))[0]
        self._refuse(ApiError(code, _CODES.get(code, "MALFORMED_REQUEST"), f"{text}."))

    def _refuse(self, error: ApiError) -> None:
        """Answer a request that was not read to its end, and end the connection."""
        self.close_connection = True
        self._send(error.response())
        self.wfile.flush()
        # Closed now, with something unread, the connection would be reset, and the answer lost.
        _shut(self.connection, socket.SHUT_WR)
        self.connection.settimeout(_LINGER_S)
        left = _LINGER_BYTES
        with contextlib.suppress(OSError):
            while left > 0 and not self.server.is_closing and (read := self.connection.recv(_READ_BYTES)):
                left -= len(read)

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    def _reset(self) -> None:
        # Without lingering, closing sends a reset in place of an orderly end.
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def version_string(self) -> str:
        """Return the header Server."""
        return "databricks"

    def log_message(self, *_: object) -> None:
        return


def _read(stream: BufferedIOBase, size: int) -> bytes:
    body = stream.read(size)
    if len(body) < size:
        raise ConnectionAbortedError(_TRUNCATED)
    return body


def _read_chunks(stream: BufferedIOBase) -> bytes:
    """Read a body of unknown length: https://www.rfc-editor.org/rfc/rfc9112#section-7.1"""
    chunks: list[bytes] = []
    total = 0
    while True:
        head = stream.readline(_LINE_BYTES)
        if not head:
            raise ConnectionAbortedError(_TRUNCATED)
        length = head.split(b";")[0].strip()
        if not _HEXADECIMAL.fullmatch(length):
            raise ApiError(400, "MALFORMED_REQUEST", f"A chunk of the body has the length {length[:20]!r}.")
        size = int(length, 16)
        if size == 0:
            break
        total += size
        if total > MAX_BODY_BYTES:
            raise _too_large()
        chunks.append(_read(stream, size))
        if stream.readline(3).strip():
            raise ApiError(400, "MALFORMED_REQUEST", f"A chunk of the body has more than its {size} bytes.")
    for _ in range(_MAX_TRAILERS):
        if not stream.readline(_LINE_BYTES).strip():
            return b"".join(chunks)
    raise ApiError(400, "MALFORMED_REQUEST", f"The body has more than {_MAX_TRAILERS} trailers.")


def _too_large() -> ApiError:
    return ApiError(413, "REQUEST_TOO_LARGE", f"The body has more than {MAX_BODY_BYTES:,} bytes.")
