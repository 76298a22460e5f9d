"""The files of traces that are kept in experiments: their spans as MLflow uploads them, and attachments.

A client is given an address that is signed for one file, one method and a quarter of an hour, as object stores do, and
puts or gets the file there without authentication.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from urllib.parse import quote, urlencode
from xml.sax.saxutils import escape

from tracelake.testing.web.http import ApiError, Request, Response, Route

SPANS_FILE = "traces.json"

_PATH = "/mlflow-trace-data"
_DIRECTORY = "traces"
_OWNER = "experiment_id"
_SIGNED_FOR_S = 900
# What MLflow itself allows in the name of an attachment, which is a UUID.
_ATTACHMENT = re.compile(r"attachments/[\w-][\w.-]*")

# Takes the id of a trace and the content of its `traces.json`.
Uploaded = Callable[[str, bytes], None]


class TraceFiles:
    """Keeps the files, in a directory of the workspace; answers for their signed addresses."""

    def __init__(self, directory: str, uploaded: Uploaded) -> None:
        """Begin with the files that `directory` has; `uploaded` is called with the spans of a trace as they come."""
        self._directory = os.path.join(directory, _DIRECTORY)
        self._uploaded = uploaded
        self._key = secrets.token_bytes(32)

    def routes(self) -> list[Route]:
        """Return what is answered."""
        path = f"{_PATH}/{{trace_id}}/{{name}}"
        return [
            Route("PUT", path, self._put, is_open=True),
            Route("GET", path, self._get, is_open=True),
        ]

    def begin(self, trace_id: str, experiment_id: str) -> None:
        """Note which experiment a trace is in."""
        self._write(trace_id, _OWNER, experiment_id.encode())

    def experiment_of(self, trace_id: str) -> str | None:
        """Return the id of the experiment that a trace is in; None if there is no such trace."""
        try:
            with open(self._path(trace_id, _OWNER), encoding="ascii") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def signed_url(self, base_url: str, method: str, trace_id: str, name: str) -> str:
        """Return the address of a file for PUT or GET.

        Raises:
            ApiError: 400 INVALID_PARAMETER_VALUE, it is no file of a trace.
        """
        if name != SPANS_FILE and not _ATTACHMENT.fullmatch(name):
            raise ApiError(
                400,
                "INVALID_PARAMETER_VALUE",
                f"The path '{name}' is neither {SPANS_FILE} nor that of an attachment, attachments/<id>.",
            )
        path = f"{_PATH}/{trace_id}/{quote(name, safe='')}"
        expires = str(int(time.time()) + _SIGNED_FOR_S)
        signed = urlencode({"Expires": expires, "Signature": self._signature(method, path, expires)})
        return f"{base_url}{path}?{signed}"

    def remove(self, trace_id: str) -> None:
        """Remove the files of a trace, which is then known no more."""
        shutil.rmtree(os.path.join(self._directory, trace_id), ignore_errors=True)

    def _put(self, request: Request, trace_id: str, name: str) -> Response:
        refused = self._refused(request)
        if refused is not None:
            return refused
        if self.experiment_of(trace_id) is None:
            return _error(404, "NoSuchKey", "The trace was deleted.")
        if name == SPANS_FILE:
            self._uploaded(trace_id, request.body)
        self._write(trace_id, name, request.body)
        return Response(200, b"", {})

    def _get(self, request: Request, trace_id: str, name: str) -> Response:
        refused = self._refused(request)
        if refused is not None:
            return refused
        try:
            with open(self._path(trace_id, name), "rb") as file:
                return Response(200, file.read(), {"Content-Type": "application/octet-stream"})
        except FileNotFoundError:
            return _error(404, "NoSuchKey", "The specified key does not exist.")

    def _refused(self, request: Request) -> Response | None:
        expires = request.text("Expires")
        if not hmac.compare_digest(
            request.text("Signature").encode(), self._signature(request.method, request.path, expires).encode()
        ):
            return _error(403, "SignatureDoesNotMatch", "The signature is not the one of this request.")
        if int(expires) < time.time():
            return _error(403, "AccessDenied", "Request has expired")
        return None

    def _signature(self, method: str, path: str, expires: str) -> str:
        return hmac.new(self._key, f"{method}\n{path}\n{expires}".encode(), hashlib.sha256).hexdigest()

    def _write(self, trace_id: str, name: str, content: bytes) -> None:
        path = self._path(trace_id, name)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        temporary = f"{path}.{secrets.token_hex(8)}"
        with open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, path)

    def _path(self, trace_id: str, name: str) -> str:
        # A signed address has no other names than those that `signed_url` lets through.
        return os.path.join(self._directory, trace_id, name.replace("/", "-"))


def _error(status: int, code: str, message: str) -> Response:
    """Return an error in the shape of S3: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html"""
    error = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{error}'
    return Response(status, body.encode(), {"Content-Type": "application/xml"})
