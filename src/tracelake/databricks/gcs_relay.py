"""A relay on loopback that adds an OAuth token to requests for Google Cloud Storage.

Unity Catalog gives out a token there, and the object store of delta-rs before version 0.14 takes none: it can only make
one, of a service account's key: https://github.com/apache/arrow-rs-object-store/issues/300.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_STORE = "https://storage.googleapis.com"
_USER = "tracelake"

# What is between two neighbours only: https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1
_NOT_RELAYED = {
    "authorization",
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
_TIMEOUTS_S = (10, 120)

# The store reads the credentials of the environment also when it is told to send none; these stand in their place.
_NOBODY = json.dumps({"private_key": "", "private_key_id": "", "client_email": "", "disable_oauth": True})
_SERVICE_ACCOUNT = ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH")


def relayed(token: str, expires_at: float) -> dict[str, str]:
    """Return storage options with which requests carry the token, until it expires."""
    relay = _relay()
    host = f"127.0.0.1:{relay.server_port}"
    options = {
        "google_base_url": f"http://{host}",
        # The relay is its own proxy: its password stays out of URLs, and a proxy of the environment out of the way.
        "google_proxy_url": f"http://{_USER}:{relay.password(token, expires_at)}@{host}",
        "google_skip_signature": "true",
    }
    if not any(map(os.environ.get, _SERVICE_ACCOUNT)):  # either is an error beside the other
        options["google_service_account_key"] = _NOBODY
    return options


class _Relay(ThreadingHTTPServer):
    """Sends on the requests of those who know a password, each with the token that the password stands for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._lock = threading.Lock()
        self._tokens: dict[str, tuple[str, float]] = {}

    def password(self, token: str, expires_at: float) -> str:
        """Return a new password for a token, and forget the tokens that expired."""
        password = secrets.token_urlsafe(32)
        now = time.time()
        with self._lock:
            self._tokens = {key: entry for key, entry in self._tokens.items() if entry[1] > now}
            self._tokens[password] = token, expires_at
        return password

    def token(self, authorization: str) -> str | None:
        """Return the token that a `Proxy-Authorization` header stands for."""
        try:
            user, _, password = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        except ValueError:
            return None
        with self._lock:
            found = self._tokens.get(password) if user == _USER else None
        return found[0] if found else None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a connection that delta-rs let go of is no error, and it reports all others."""


@cache
def _relay() -> _Relay:
    relay = _Relay()
    threading.Thread(target=relay.serve_forever, name="tracelake-gcs-relay", daemon=True).start()
    return relay


class _Handler(BaseHTTPRequestHandler):
    """One connection of delta-rs."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one packet
    server: _Relay

    def setup(self) -> None:
        import requests

        super().setup()
        self._session = requests.Session()
        self._session.headers.clear()

    def finish(self) -> None:
        self._session.close()
        super().finish()

    def relay(self) -> None:
        """Send the request on, and its answer back."""
        import requests

        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = self.server.token(self.headers.get("Proxy-Authorization", ""))
        if token is None:
            self._answer(407, {}, b"The relay knows no such password.")
            return
        path = urlsplit(self.path)._replace(scheme="", netloc="").geturl()

        def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers["Authorization"] = f"Bearer {token}"
            return request

        try:
            with self._session.request(
                self.command,
                (os.environ.get("GOOGLE_BASE_URL") or _STORE).rstrip("/") + path,
                headers=_relayed(self.headers),
                data=body,
                auth=authorize,  # one in a netrc file would go before a header
                allow_redirects=False,
                stream=True,
                timeout=_TIMEOUTS_S,
            ) as response:
                self._answer(response.status_code, dict(response.headers), response.raw.read(decode_content=False))
        except (requests.RequestException, OSError) as error:
            self._answer(502, {}, f"Google Cloud Storage was not reached: {type(error).__name__}.".encode())

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = relay  # noqa: N815

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in _relayed(headers).items():
            self.send_header(name, value)
        length = next((value for name, value in headers.items() if name.lower() == "content-length"), None)
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing: delta-rs reports what fails."""


def _relayed(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _NOT_RELAYED}
