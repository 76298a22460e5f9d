"""A gate before an S3 server: it lets requests through, refuses keys, or loses answers, as a test says."""

from __future__ import annotations

import re
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit


class Seen(NamedTuple):
    """A request: what it asks for, and by which key."""

    method: str
    path: str
    key: str

    @property
    def is_commit(self) -> bool:
        """Whether it writes a commit of a Delta table."""
        return self.method == "PUT" and bool(re.search(r"/_delta_log/\d{20}\.json$", self.path))

    @property
    def is_upload(self) -> bool:
        """Whether it writes rows."""
        return self.method in ("PUT", "POST") and ".parquet" in self.path


class Refusal(NamedTuple):
    """What S3 answers in place of its own answer: an error, or with status 0 nothing, and resets the connection."""

    status: int
    code: str = ""
    message: str = ""
    is_carried_out: bool = False


EXPIRED = Refusal(400, "ExpiredToken", "The provided token has expired.")
DENIED = Refusal(403, "AccessDenied", "Access Denied")
LOST = Refusal(0, is_carried_out=True)
FAILED = Refusal(500, "InternalError", "We encountered an internal error. Please try again.", is_carried_out=True)


class Gate:
    """What goes through.

    Attributes:
        url: where it listens.
        requests: all that were seen.
        decide: says what becomes of a request; None lets it through.
    """

    def __init__(self, url: str, server: str) -> None:
        self.url = url
        self.server = server
        self.requests: list[Seen] = []
        self.decide: Callable[[Seen], Refusal | None] = lambda _: None

    def keys_used(self) -> list[str]:
        """Return the keys that were used, in the order of their first use."""
        return list(dict.fromkeys(seen.key for seen in self.requests))

    def refuse_key_from(self, is_first: Callable[[Seen], bool], refusal: Refusal) -> None:
        """Refuse the key of the first request that is one of these, from this request on."""
        refused: set[str] = set()

        def decide(seen: Seen) -> Refusal | None:
            if not refused and is_first(seen):
                refused.add(seen.key)
            return refusal if seen.key in refused else None

        self.decide = decide


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    gate: Gate

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
        seen = Seen(self.command, self.path.partition("?")[0], key[1] if key else "")
        self.gate.requests.append(seen)
        refusal = self.gate.decide(seen)
        if refusal is None or refusal.is_carried_out:
            status, headers, content, length = self._forwarded(body)
        if refusal is None:
            self._answer(status, headers, content, length)
        elif refusal.status:
            content = f"<Error><Code>{refusal.code}</Code><Message>{refusal.message}</Message></Error>".encode()
            self._answer(refusal.status, [("Content-Type", "application/xml")], content, len(content))
        else:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 - names of the base class

    def _forwarded(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes, int]:
        """Return the status, headers, content and its stated length (a HEAD has no content) that the server answers."""
        with closing(HTTPConnection(self.gate.server, timeout=30)) as connection:
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            content = answer.read()
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OF_CONNECTION]
        return answer.status, headers, content, int(answer.getheader("Content-Length") or len(content))

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, length: int) -> None:
        self.send_response_only(status)
        for name, value in (*headers, ("Content-Length", str(length))):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        return


_OF_CONNECTION = ("connection", "content-length", "transfer-encoding")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that hang up."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(*_)  # type: ignore[arg-type]


@contextmanager
def open_gate(s3: str) -> Iterator[Gate]:
    """Open a gate before the server of a URL."""

    class Handler(_Handler):
        pass

    with _Server(("127.0.0.1", 0), Handler) as server:
        Handler.gate = Gate(f"http://127.0.0.1:{server.server_port}", urlsplit(s3).netloc)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield Handler.gate
        finally:
            server.shutdown()
            thread.join()
