"""A stand-in for Google Cloud Storage on loopback: an S3 server behind a gate that asks for OAuth tokens.

Its XML interface, which delta-rs speaks, is that of S3 but for the names of headers:
https://cloud.google.com/storage/docs/interoperability. The emulators that can be installed here speak the JSON
interface only.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

_UNAUTHENTICATED = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>AuthenticationRequired</Code>"
    b"<Message>Authentication required.</Message></Error>"
)

# The S3 server does not look at signatures, only whether there is one.
_SIGNED = "AWS4-HMAC-SHA256 Credential=gate/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=none"

_KEPT = ("Content-Range", "Content-Type", "ETag", "Last-Modified")


class CloudStorage(ThreadingHTTPServer):
    """Takes the requests that carry `token`.

    Attributes:
        token: the only one that is valid.
        tokens: each `Authorization` header that came.
    """

    daemon_threads = True

    def __init__(self, store: str, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = store
        self.token = token
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one packet
    server: CloudStorage

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._send(401, {}, _UNAUTHENTICATED)
            return
        headers = {name: self.headers[name] for name in ("Range", "Content-Type") if name in self.headers}
        headers["Authorization"] = _SIGNED
        # https://cloud.google.com/storage/docs/request-preconditions: generation 0 is that of no object.
        if self.headers.get("x-goog-if-generation-match") == "0":
            headers["If-None-Match"] = "*"
        url = self.server.store + self.path
        with requests.request(self.command, url, headers=headers, data=body, timeout=30) as stored:
            kept = {name: stored.headers[name] for name in _KEPT if name in stored.headers}
            kept["x-goog-generation"] = "1"
            length = stored.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(stored.content))
            self._send(stored.status_code, kept | {"Content-Length": length}, stored.content)

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the output of tests clean."""


@contextmanager
def run_cloud_storage(store: str, token: str) -> Iterator[CloudStorage]:
    """Run it until the block ends, with the buckets of an S3 server."""
    server = CloudStorage(store, token)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
