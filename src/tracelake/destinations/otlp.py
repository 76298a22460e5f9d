"""Send batches of spans to an OTLP/HTTP endpoint: https://opentelemetry.io/docs/specs/otlp/#otlphttp

At least once: a request whose answer is lost is sent again. One that was answered is not, also when a later request of
its batch fails, as long as the same process tries again.
"""

from __future__ import annotations

import logging
import re
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tracelake.destinations.base import Batch, Rejection
from tracelake.destinations.http import MAX_REASON, Connection, Tls, json_object, retry_after_s, said
from tracelake.errors import (
    DeliveryError,
    LineError,
    MissingDependencyError,
    PermanentDeliveryError,
    TransientDeliveryError,
)
from tracelake.redaction import one_line
from tracelake.spans.otlp import EncodedSpan, encode, export_request
from tracelake.spans.record import SpanRecord

if TYPE_CHECKING:
    from requests import Response

_log = logging.getLogger("tracelake.shipper")

# Before compression, which is where receivers draw the line. gRPC's own limit, which what stands behind HTTP endpoints
# often has; OpenTelemetry's collector takes 20 MiB over HTTP.
_MAX_BYTES = 4 * 2**20
# A request costs 0.4 ms of CPU, a fiftieth of what so many spans do. More would be worse when an endpoint leaves out
# spans and does not say which: all of their request are set aside.
_MAX_SPANS = 1024
# The quickest level: it takes a quarter of the time of the default one, for a quarter more bytes.
_GZIP_LEVEL = 1
_GZIP_WINDOW = 16 + zlib.MAX_WBITS  # with the header of gzip

# To connect, and between two bytes of an answer: services store spans before they answer.
_TIMEOUTS_S = (10.0, 60.0)

# An export request of one resource without spans: it stores nothing.
_NO_SPANS = b"\x0a\x00"
_PROTOBUF = "application/x-protobuf"

_TRANSIENT = (408, 425, 429)
_TOO_LARGE, _UNSUPPORTED = 413, 415
# The request is wrong, and so is one of its spans.
_WRONG = (400, 413, 422)

# Some endpoints never say the same twice.
_MAX_WARNINGS = 100

# Shorter values of headers would blank ordinary words.
_MIN_SECRET_LENGTH = 8

_NO_TRACE_ID, _NO_SPAN_ID = "0" * 32, "0" * 16
_MAX_TIME = 2**63


class OtlpEndpoint(Protocol):
    """Where export requests are sent, and by whose access."""

    @property
    def url(self) -> str:
        """The whole URL."""

    def headers(self) -> Mapping[str, str]:
        """Return the headers of the next request, which may hold secrets; asked before each.

        Raises:
            DeliveryError: there is no access.
        """

    def error(self, status: int, code: str, reason: str) -> DeliveryError | None:
        """Return what a refusal (4xx, but for those of load and size) means in the endpoint's own terms.

        None if it means what it does everywhere. `code` is the `error_code` of a JSON answer, or the number of a
        google.rpc.Status; empty if there is none.
        """


class OtlpSink:
    """Sends batches to one endpoint."""

    def __init__(
        self, endpoint: OtlpEndpoint, tls: Tls | None = None, *, compress: bool = True, secrets: Collection[str] = ()
    ) -> None:
        """No text that leaves the sink shows any of `secrets`, or what the header Authorization holds.

        Raises:
            MissingDependencyError: a package that sending needs is not installed.
        """
        try:
            import requests  # noqa: F401
            from opentelemetry.proto.collector.trace.v1 import trace_service_pb2  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError(
                f"Sending spans to {endpoint.url} needs the package {error.name!r}, which is not installed here. "
                "Run: pip install 'tracelake[otlp]'"
            ) from error
        self._endpoint = endpoint
        self._connection = Connection(endpoint.url, tls or Tls(), timeouts_s=_TIMEOUTS_S)
        self._compress = compress
        self._secrets = tuple(secrets)
        self._authorization = ""
        self._warned: set[str] = set()

    def write(self, batch: Batch) -> list[Rejection]:
        """Send the spans of a batch that were not taken at an earlier try."""
        for spans in _requests(batch):
            self._send(spans, batch)
        return [Rejection(index, reason) for index, reason in sorted(batch.progress.rejected.items())]

    def close(self) -> None:
        """Let go of the connection; may be repeated."""
        self._connection.close()

    def probe(self) -> None:
        """Send a request without spans, which a sound endpoint takes.

        Raises:
            DeliveryError: the endpoint is not reached, refuses access, or takes no spans at all.
        """
        answer = self._post(_NO_SPANS)
        if isinstance(answer, _Refusal):
            raise PermanentDeliveryError(
                f"{self._endpoint.url} takes no spans at all ({answer.status}): {answer.reason}. See its log, and that "
                "of what is before it."
            )

    def _send(self, spans: Sequence[_Span], batch: Batch, *, any_is_taken: bool = False) -> None:
        """Send spans in one request, or in smaller ones if that cannot be."""
        answer = self._post(export_request(span.encoded for span in spans))
        if isinstance(answer, _Success):
            rejected = self._left_out(spans, answer)
        else:
            if not any_is_taken:
                self.probe()  # or good spans would be set aside for what is wrong with every request
            if len(spans) > 1:
                middle = len(spans) // 2
                for half in (spans[:middle], spans[middle:]):
                    self._send(half, batch, any_is_taken=True)
                return
            reason = f"{self._endpoint.url} does not take the span ({answer.status}): {answer.reason}."
            rejected = {spans[0].place: reason}
        batch.progress.rejected.update(rejected)
        batch.progress.spans = spans[-1].place + 1

    def _left_out(self, spans: Sequence[_Span], answer: _Success) -> dict[int, str]:
        """Return which spans of a request an endpoint left out when it took the others. It must not come again."""
        url, count, message = self._endpoint.url, answer.rejected, self._shown(answer.message)
        if count <= 0:
            if answer.message:
                self._warn(f"{url} took spans, and says: {message}.")
            return {}
        left_out: Sequence[_Span] = spans
        reason = f"{url} left the span out: {message}."
        if count < len(spans):
            ids = set(re.findall(r"[0-9a-f]+", answer.message.lower()))
            by_span = [span for span in spans if span.span_id in ids]
            by_trace = [span for span in spans if span.trace_id in ids]
            if len(by_span) == count:
                left_out = by_span
            elif len(by_trace) == count:
                left_out = by_trace
            else:
                reason = (
                    f"{url} took {len(spans) - count} of these {len(spans)} spans and does not say which: {message}."
                )
        return {span.place: reason for span in left_out}

    def _post(self, content: bytes) -> _Success | _Refusal:
        """Send a request and return what became of it, unless that is no matter of its spans.

        Raises:
            DeliveryError: no request of this kind can be sent now.
        """
        headers = dict(self._endpoint.headers())
        for name, value in headers.items():
            if not (value.isascii() and value.isprintable()) or value != value.strip():
                raise PermanentDeliveryError(
                    f"The header {name} for {self._endpoint.url} holds what none can. Set it anew."
                )
            if name.lower() == "authorization":
                self._authorization = value
        headers["Content-Type"] = _PROTOBUF
        if self._compress:
            response = self._connection.request(
                "POST", self._endpoint.url, data=_gzip(content), headers={**headers, "Content-Encoding": "gzip"}
            )
            if response.status_code != _UNSUPPORTED:
                return self._meaning(response)
        response = self._connection.request("POST", self._endpoint.url, data=content, headers=headers)
        if response.status_code != _UNSUPPORTED:
            self._compress = False
        return self._meaning(response)

    def _meaning(self, response: Response) -> _Success | _Refusal:
        url, status = self._endpoint.url, response.status_code
        if response.ok:
            return self._success(response)
        message, code = _error(response)
        reason = self._shown(said(response, message))
        if (status >= 500 and status != 501) or status in _TRANSIENT:
            raise TransientDeliveryError(
                f"{url} answered {status}: {reason}. It is tried again.", retry_after_s=retry_after_s(response)
            )
        error = None if status in (_TOO_LARGE, _UNSUPPORTED) else self._endpoint.error(status, code, reason)
        if error is not None:
            raise error
        if status in _WRONG:
            return _Refusal(status, reason)
        raise PermanentDeliveryError(f"{url} answered {status}: {reason}. Name the URL of an OTLP/HTTP endpoint.")

    def _success(self, response: Response) -> _Success:
        url, content = self._endpoint.url, response.content
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind == "text/html":
            raise PermanentDeliveryError(
                f"{url} answers with a page for people. Name the URL of an OTLP/HTTP endpoint."
            )
        if kind == "application/json" or content.startswith(b"{"):
            found = json_object(response)
            partial = found.get("partialSuccess", found.get("partial_success"))
            if not isinstance(partial, dict):
                return _Success()
            count = partial.get("rejectedSpans", partial.get("rejected_spans"))
            return _Success(_whole(count), str(partial.get("errorMessage", partial.get("error_message", ""))))
        from google.protobuf.message import DecodeError
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

        try:
            answer = ExportTraceServiceResponse.FromString(content).partial_success
        except DecodeError:
            self._warn(f"{url} took spans, and what it answers is not OTLP.")
            return _Success()
        return _Success(answer.rejected_spans, answer.error_message)

    def _warn(self, text: str) -> None:
        if text not in self._warned and len(self._warned) < _MAX_WARNINGS:
            self._warned.add(text)
            _log.warning("%s", text)

    def _shown(self, text: str) -> str:
        """Return a text of the endpoint's as an error may show it: it may repeat what it was sent."""
        for secret in (*self._secrets, self._authorization, self._authorization.rpartition(" ")[2]):
            if len(secret) >= _MIN_SECRET_LENGTH:
                text = text.replace(secret, "***")
        return one_line(text.strip(), MAX_REASON).rstrip(".") or "no reason given"


class _Span(NamedTuple):
    place: int
    trace_id: str
    span_id: str
    encoded: EncodedSpan


class _Success(NamedTuple):
    """`rejected` of the spans were left out, for what `message` says."""

    rejected: int = 0
    message: str = ""


class _Refusal(NamedTuple):
    """The request cannot be taken as it is."""

    status: int
    reason: str


def _requests(batch: Batch) -> Iterator[list[_Span]]:
    """Yield the spans of each request, but for those of earlier tries; what cannot be sent at all is rejected."""
    progress = batch.progress
    spans: list[_Span] = []
    size = 0
    shared: set[tuple[bytes, bytes]] = set()
    for index, record in enumerate(chain.from_iterable(batch.chunks())):
        if index < progress.spans:
            continue
        fault = _fault(record)
        if not fault:
            try:
                encoded = encode(record)
            except (LineError, ValueError, TypeError, struct.error) as error:
                fault = one_line(str(error))
        if fault:
            progress.rejected[index] = fault
            continue
        resource, scope, span = encoded
        more = len(span) + (0 if (resource, scope) in shared else len(resource) + len(scope))
        if spans and (size + more > _MAX_BYTES or len(spans) == _MAX_SPANS):
            yield spans
            spans, size = [], 0
            shared.clear()
            more = len(span) + len(resource) + len(scope)
        shared.add((resource, scope))
        spans.append(_Span(index, record.trace_id, record.span_id, encoded))
        size += more
    if spans:
        yield spans


def _fault(record: SpanRecord) -> str:
    """Return why no endpoint takes a span; empty if one may."""
    if len(record.trace_id) != 32 or record.trace_id == _NO_TRACE_ID:
        return f"trace_id {one_line(record.trace_id, 50)!r} is not 16 bytes with one that is not zero"
    if len(record.span_id) != 16 or record.span_id == _NO_SPAN_ID:
        return f"span_id {one_line(record.span_id, 50)!r} is not 8 bytes with one that is not zero"
    if record.parent_span_id is not None and len(record.parent_span_id) != 16:
        return f"parent_span_id {one_line(record.parent_span_id, 50)!r} is not 8 bytes"
    if not 0 <= record.start_time_unix_nano < _MAX_TIME or not 0 <= record.end_time_unix_nano < _MAX_TIME:
        return "it is of a time before 1970 or after 2262, which no 64 bits of nanoseconds hold"
    return ""


def _gzip(content: bytes) -> bytes:
    compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
    return compressor.compress(content) + compressor.flush()


def _whole(value: object) -> int:
    """Return a 64-bit number of JSON, which may be a text."""
    with suppress(ValueError, TypeError):
        return int(str(value))
    return 0


def _error(response: Response) -> tuple[str, str]:
    """Return the message and the code in an answer that is an error, JSON or google.rpc.Status; empty if none is."""
    if not response.headers.get("Content-Type", "").startswith(_PROTOBUF):
        found = json_object(response)
        return str(found.get("message") or ""), str(found.get("error_code") or found.get("code") or "")
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTracePartialSuccess

    try:
        # The class of Status is in a package that nothing else here needs; its first two fields are as these.
        status = ExportTracePartialSuccess.FromString(response.content)
    except DecodeError:
        return "", ""
    return status.error_message, str(status.rejected_spans or "")
