"""The workspace within this process: requests to its host that go through the package `requests` never leave it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tracelake.errors import MissingDependencyError
from tracelake.testing.web.http import ApiError, Request, Response

# A name that no resolver knows (RFC 6761): a request that escapes reaches nobody.
HOST = "https://workspace.databricks.test"

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class InProcess:
    """Answers requests to `HOST` in the thread that makes them, from `start` to `stop`; others go their way."""

    def __init__(self, answer: Callable[[Request], Response | None]) -> None:
        """Raises MissingDependencyError if the package `responses` is not installed."""
        try:
            import responses
        except ImportError as error:
            raise MissingDependencyError(
                "The workspace within this process needs the package 'responses', which is not installed here. "
                "Run: pip install 'tracelake[testing]'"
            ) from error
        self._answer = answer
        self._process = os.getpid()
        self._mock = responses.RequestsMock(assert_all_requests_are_fired=False)
        for method in _METHODS:
            self._mock.add_callback(method, re.compile(re.escape(HOST) + r"(/.*)?\Z"), self._called, content_type=None)
        self._mock.add_passthru(re.compile(rf"(?!{re.escape(HOST)})"))

    def start(self) -> None:
        """Begin to answer."""
        self._mock.start()

    def stop(self) -> None:
        """Answer no more."""
        self._mock.stop(allow_assert=False)
        self._mock.reset()

    def _called(self, prepared: Any) -> tuple[int, Mapping[str, str], bytes]:
        import requests

        if os.getpid() != self._process:
            # The workspace here is a copy: what it takes would never be seen in the process of the tests.
            refused = ApiError(
                501,
                "NOT_IMPLEMENTED",
                "The mocked workspace within a process does not answer processes forked from it. "
                "Set the variables of `environment()` in them, to reach it over HTTP.",
            ).response()
            return refused.status, refused.headers, refused.body
        parts = urlsplit(prepared.url)
        response = self._answer(
            Request(
                "GET" if prepared.method == "HEAD" else prepared.method,
                parts.path or "/",
                parse_qs(parts.query, keep_blank_values=True),
                {name.lower(): _text(value) for name, value in prepared.headers.items()},
                _bytes(prepared.body),
                HOST,
            )
        )
        # `responses` keeps every call, and so every body; the workspace keeps those that it is asked to.
        self._mock.calls.reset()
        if response is None:
            raise requests.ConnectionError(ConnectionResetError(104, "Connection reset by peer"))
        return response.status, response.headers, b"" if prepared.method == "HEAD" else response.body


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _bytes(body: Any) -> bytes:
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, (bytes, bytearray)):
        return bytes(body)
    if hasattr(body, "read"):
        return _bytes(body.read())
    return b"".join(map(_bytes, body))
