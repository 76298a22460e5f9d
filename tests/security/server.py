"""A server on loopback that answers each request the same way, and repeats what it was told: headers and path.

It takes requests for a proxy as well, and CONNECT, which it answers like any other.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class EchoServer:
    """Answers with `status` and `headers`; the body is that of `body`, or else what was asked.

    A request of more than `limit` bytes is too large for it.

    Attributes:
        seen: of each request, its method, target and headers.
    """

    def __init__(
        self,
        status: int = 200,
        headers: dict[str, str] | None = None,
        body: str | None = None,
        limit: int | None = None,
    ) -> None:
        self.status = status
        self.limit = limit
        self.headers = headers or {}
        self.body = body
        self.seen: list[tuple[str, str, dict[str, str]]] = []

    @contextmanager
    def serve(self, tls: ssl.SSLContext | None = None) -> Iterator[str]:
        """Serve, and give the URL."""
        echo = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = len(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
                headers = dict(self.headers)
                echo.seen.append((self.command, self.path, headers))
                told = ", ".join(f"{name}: {value}" for name, value in headers.items())
                message = f"refused {self.command} {self.path} with {told}"
                body = json.dumps({"error_code": "REFUSED", "message": message}) if echo.body is None else echo.body
                self.send_response(413 if length > (echo.limit or length) else echo.status, "refused")
                for name, value in {
                    "Content-Type": "application/json",
                    "WWW-Authenticate": f"Bearer realm={headers.get('Authorization', 'none')}",
                    **echo.headers,
                    "Content-Length": str(len(body.encode())),
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body.encode())

            do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do_PATCH = do_CONNECT = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        server = _Server(("127.0.0.1", 0), Handler)
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients that trust nobody hang up."""
