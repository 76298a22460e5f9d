"""Spans through Zerobus, Databricks' own service for rows of managed tables, by its SDK.

At least once: a row whose acknowledgement is lost is sent again. One that was acknowledged is not, also when a later
one of its batch fails, as long as the same process tries again.
https://docs.databricks.com/aws/en/ingestion/zerobus-overview
"""

from __future__ import annotations

import base64
import ctypes
import os
import re
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from tracelake.destinations.base import Batch, Rejection
from tracelake.destinations.http import MAX_REASON
from tracelake.errors import (
    DeliveryError,
    MissingDependencyError,
    PermanentDeliveryError,
    TracelakeError,
    TransientDeliveryError,
)
from tracelake.redaction import one_line

if TYPE_CHECKING:
    import pyarrow as pa

# The service takes messages of 10 MB.
_MAX_ROW_BYTES = 10_000_000
_MESSAGE_BYTES = 2 * 2**20
# Messages that are under way at once: an acknowledgement takes a fifth of a second.
_UNDER_WAY = 8

# The shipper tries again by itself, so the SDK is to be done soon; it sends again what was not acknowledged.
_RETRIES = 3
_BACKOFF_MS = 500
_CONNECT_MS = 15_000

# So many rows that are refused, one after the other and none taken, are not refused for what is in them.
_MAX_REFUSED = 8

# All that the service supports: https://docs.databricks.com/aws/en/ingestion/zerobus-limits
_TABLE = re.compile(r"\w+\.\w+\.\w+", re.ASCII)

# What the SDK says when the service ends a stream or does not begin one, and when the workspace gives no token.
_STATUS = re.compile(r"code: '(?P<code>.*?)', message: \"(?P<message>.*)\"", re.DOTALL)
_TOKEN_REFUSED = re.compile(r"Specified UC token .*?Client error \((?P<status>\d{3})\): ")
_TOO_BUSY = ("408", "429")
_INVALID_ROW = "Invalid argument: "

# The names of gRPC's status codes, by how the SDK says them.
_CODES = {
    "The request does not have valid authentication credentials": "UNAUTHENTICATED",
    "The caller does not have permission to execute the specified operation": "PERMISSION_DENIED",
    "Some requested entity was not found": "NOT_FOUND",
    "Client specified an invalid argument": "INVALID_ARGUMENT",
    "Operation is not implemented or not supported": "UNIMPLEMENTED",
}
_ACCESS_REMEDY = (
    "Set DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET to those of a service principal of the workspace."
)
_REMEDIES = {
    "UNAUTHENTICATED": _ACCESS_REMEDY,
    "PERMISSION_DENIED": (
        "Grant the service principal USE CATALOG, USE SCHEMA, and SELECT and MODIFY on the table, each by its name."
    ),
    "NOT_FOUND": "Zerobus makes no table: create it first, as a managed one.",
}
_OTHER_REMEDY = "Zerobus writes to managed Delta tables without catalog-managed commits; unset TRACELAKE_TRANSPORT."


class ZerobusSink:
    """Sends batches to one table, over a stream that stays open."""

    def __init__(
        self,
        table: str,
        *,
        endpoint: str,
        workspace_url: str,
        client_id: str,
        client_secret: str,
        schema: pa.Schema,
        ack_timeout_s: float = 60.0,
    ) -> None:
        """Take what a stream needs; it is opened with the first batch.

        Args:
            table: `catalog.schema.table`.
            endpoint: URL of the service, `https://<workspace-id>.zerobus.<region>.cloud.databricks.com`.
            workspace_url: URL of the workspace, which gives tokens for the service.
            client_id: that of a service principal. Zerobus takes only tokens that were made for it.
            client_secret: the OAuth secret of the service principal.
            schema: the columns of the table.
            ack_timeout_s: how long rows may stay without acknowledgement.

        Raises:
            MissingDependencyError: the SDK is not installed.
            PermanentDeliveryError: the table cannot hold spans, or has a name that Zerobus does not take.
        """
        self._sdk = _load_sdk()
        from tracelake.spans.json_rows import row_encoder

        if not _TABLE.fullmatch(table):
            raise PermanentDeliveryError(
                f"{one_line(table)} has other than ASCII letters, digits and underscores in its name, and Zerobus "
                "takes no such table. Use another transport, or another name."
            )
        self._table = table
        self._endpoint = endpoint
        self._workspace_url = workspace_url
        self._credentials = client_id, client_secret
        self._ack_timeout_s = ack_timeout_s
        self._encode = row_encoder(schema)
        self._connection: _Connection | None = None

    def write(self, batch: Batch) -> list[Rejection]:
        """Send the spans of a batch that were not taken at an earlier try; returns when all are acknowledged."""
        try:
            try:
                self._send_all(batch)
            except _InvalidRowError:
                self._send_apart(batch)
        except DeliveryError:
            self.close()
            raise
        return [Rejection(index, reason) for index, reason in sorted(batch.progress.rejected.items())]

    def begin(self) -> None:
        """Open the stream, if it is not open.

        Raises:
            DeliveryError: the service is not reached, or does not take rows for the table.
        """
        self._stream()

    def close(self) -> None:
        """Let go of the stream, without a wait for anything; may be repeated."""
        self._connection = None

    def _send_all(self, batch: Batch) -> None:
        """Send the rows of a batch, several messages at once.

        Raises:
            DeliveryError: the stream broke.
            _InvalidRowError: it did so because of a row.
        """
        under_way: deque[_Message] = deque()
        failure: DeliveryError | None = None
        for rows in self._messages(batch):
            if len(under_way) == _UNDER_WAY:
                self._wait(under_way.popleft(), batch)
            try:
                under_way.append(self._ingest(rows))
            except DeliveryError as error:
                failure = error  # messages before it may have been taken, or be the cause
                break
        while under_way:
            self._wait(under_way.popleft(), batch)
        if failure is not None:
            raise failure

    def _send_apart(self, batch: Batch) -> None:
        """Send what is left of a batch one message after the other, to tell the rows that are refused from the others.

        Raises:
            DeliveryError: the stream broke, or no row is taken, so that it is not for what is in them.
        """
        progress = batch.progress
        refused: dict[int, str] = {}
        reason = ""
        taken, taken_before = False, progress.spans > 0
        for rows in self._messages(batch):
            parts = [rows]
            while parts:
                part = parts.pop()
                try:
                    self._wait(self._ingest(part), batch)
                    taken = True
                except _InvalidRowError as error:
                    if len(part) > 1:
                        middle = len(part) // 2
                        parts += [part[middle:], part[:middle]]
                        continue
                    reason = str(error)
                    refused[part[0].place] = f"Zerobus does not take the span: {reason}."
                    if not taken and len(refused) == _MAX_REFUSED:
                        raise self._none_taken(reason) from None
                if taken:
                    progress.rejected.update(refused)
                    progress.spans = part[-1].place + 1
        if refused and not taken and not taken_before:
            raise self._none_taken(reason)
        progress.rejected.update(refused)

    def _none_taken(self, reason: str) -> PermanentDeliveryError:
        return PermanentDeliveryError(
            f"Zerobus takes no span for {self._table}: {reason}. See whether its columns were changed: "
            f"`tracelake doctor {self._table}`."
        )

    def _messages(self, batch: Batch) -> Iterator[list[_Row]]:
        """Yield the rows of each message, but for those of earlier tries; what can be no row is rejected."""
        progress = batch.progress
        rows: list[_Row] = []
        size = 0
        for index, record in enumerate(chain.from_iterable(batch.chunks())):
            if index < progress.spans:
                continue
            try:
                text = self._encode(record)
            except Exception as error:  # noqa: BLE001 - whatever a record may raise, the others have to get through
                progress.rejected[index] = one_line(f"{type(error).__name__}: {error}")
                continue
            more = len(text) if text.isascii() else len(text.encode())
            if more > _MAX_ROW_BYTES:
                progress.rejected[index] = f"Its row has {more} bytes, and Zerobus takes {_MAX_ROW_BYTES}."
                continue
            if rows and size + more > _MESSAGE_BYTES:
                yield rows
                rows, size = [], 0
            rows.append(_Row(index, text))
            size += more
        if rows:
            yield rows

    def _ingest(self, rows: list[_Row]) -> _Message:
        stream = self._stream()
        try:
            return _Message(stream, stream.ingest_records_offset([row.text for row in rows]), rows)
        except self._sdk.ZerobusException as error:
            raise TransientDeliveryError(self._broke(str(error))) from None

    def _wait(self, message: _Message, batch: Batch) -> None:
        """Wait until a message is acknowledged.

        Raises:
            TransientDeliveryError: the stream broke before.
            _InvalidRowError: it did so because of a row, of this message or a later one.
        """
        try:
            message.stream.wait_for_offset(message.offset)
        except self._sdk.ZerobusException as error:
            if self._connection is not None:
                self._connection.stream = None
            text = str(error)
            # Two parts of the SDK may be the first to see it.
            if text.startswith(_INVALID_ROW) or _code(text) == "INVALID_ARGUMENT":
                raise _InvalidRowError(self._said(text.removeprefix(_INVALID_ROW))) from None
            raise TransientDeliveryError(self._broke(text)) from None
        batch.progress.spans = message.rows[-1].place + 1

    def _stream(self) -> Any:
        sdk = self._sdk
        try:
            if self._connection is None or self._connection.pid != os.getpid():
                self._connection = _Connection(sdk.ZerobusSdk(self._endpoint, self._workspace_url))
            if self._connection.stream is None:
                timeout_ms = int(self._ack_timeout_s * 1000)
                options = sdk.StreamConfigurationOptions(
                    recovery_retries=_RETRIES,
                    recovery_backoff_ms=_BACKOFF_MS,
                    recovery_timeout_ms=_CONNECT_MS,
                    flush_timeout_ms=timeout_ms,
                    # Later than the wait is over: a slow service is not sent the same once more.
                    server_lack_of_ack_timeout_ms=2 * timeout_ms,
                )
                self._connection.stream = self._connection.client.create_stream(
                    *self._credentials, sdk.TableProperties(self._table), options
                )
        except sdk.ZerobusException as error:
            raise self._not_opened(error) from None
        return self._connection.stream

    def _not_opened(self, error: Exception) -> DeliveryError:
        text = str(error)
        place = f"{self._endpoint} for {self._table}"
        token = _TOKEN_REFUSED.search(text)
        if token is not None and token["status"] not in _TOO_BUSY:
            return PermanentDeliveryError(
                f"{self._workspace_url} gives no token for {place} ({token['status']}): "
                f"{self._shown(text[token.end() :])}. {_ACCESS_REMEDY}"
            )
        if token is not None or not isinstance(error, self._sdk.NonRetriableException):
            return TransientDeliveryError(f"No stream is opened at {place}: {self._said(text)}. It is tried again.")
        remedy = _REMEDIES.get(_code(text), _OTHER_REMEDY)
        return PermanentDeliveryError(f"No stream is opened at {place}: {self._said(text)}. {remedy}")

    def _broke(self, text: str) -> str:
        return f"The stream to {self._endpoint} for {self._table} broke: {self._said(text)}. It is tried again."

    def _said(self, text: str) -> str:
        """Return the service's own words, and the code that comes with them, of what the SDK says."""
        found = _STATUS.search(text)
        return self._shown(f"{_code(text) or found['code']}: {found['message']}" if found else text)

    def _shown(self, text: str) -> str:
        """Return a text as an error may show it: it may repeat what was sent."""
        for secret in (self._credentials[1], base64.b64encode(":".join(self._credentials).encode()).decode()):
            text = text.replace(secret, "***")
        return one_line(text.strip(), MAX_REASON).rstrip(".") or "no reason given"


class _Row(NamedTuple):
    place: int
    text: str


class _Message(NamedTuple):
    """Rows that the stream has taken, to be acknowledged by their offset."""

    stream: Any
    offset: int
    rows: list[_Row]


class _InvalidRowError(TracelakeError):
    """The service refuses a row, and has ended the stream for it."""


@dataclass(eq=False)
class _Connection:
    """What the SDK holds open, in the process that opened it; the client keeps the token for the next stream."""

    client: Any
    stream: Any = None
    pid: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        _connections.add(self)


_connections: weakref.WeakSet[_Connection] = weakref.WeakSet()


def _keep_connections() -> None:
    # A forked child has none of the SDK's threads, and would wait for them for ever when it frees what is theirs.
    for connection in _connections:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


os.register_at_fork(after_in_child=_keep_connections)


def _code(text: str) -> str:
    found = _STATUS.search(text)
    return _CODES.get(found["code"], "") if found else ""


def _load_sdk() -> Any:
    # The SDK logs to standard output what the service says, which may repeat a secret, unless this is set on import.
    quiet = "RUST_LOG" not in os.environ
    if quiet:
        os.environ["RUST_LOG"] = "off"
    try:
        import zerobus.sdk.sync as sdk
    except ImportError as error:
        raise MissingDependencyError(
            "Sending spans to Zerobus needs the package 'databricks-zerobus-ingest-sdk', which is not installed here. "
            "Run: pip install 'tracelake[zerobus]'"
        ) from error
    finally:
        if quiet:
            del os.environ["RUST_LOG"]
    return sdk
