"""OTLP over HTTP into span tables: `POST /api/2.0/otel/v1/traces`, with the table's name in a header.

Protocol: https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

from __future__ import annotations

import threading
import zlib
from bisect import bisect_right
from functools import cache, partial
from itertools import accumulate, chain
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from tracelake.errors import PermanentDeliveryError
from tracelake.spans import otlp, rows, tables
from tracelake.testing.state import Table
from tracelake.testing.storage.lakehouse import Lakehouse
from tracelake.testing.storage.together import Together
from tracelake.testing.unity.catalog import Catalog
from tracelake.testing.web.http import ApiError, Request, Response, Route

if TYPE_CHECKING:
    import pyarrow as pa
    from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

    from tracelake.spans.record import SpanRecord

PATH = "/api/2.0/otel/v1/traces"
TABLE_HEADER = "X-Databricks-UC-Table-Name"
# Databricks publishes no limit of this call. This is far above what exporters send at once (512 spans of 2 kB are
# 1 MB), and far below what would hurt the process that the workspace is in.
MAX_BODY_BYTES = 10 * 2**20

_PROTOBUF = "application/x-protobuf"
_INT64_END = 2**63
# gzip's own header and checksum, as zlib counts them.
_GZIP = 16 + zlib.MAX_WBITS


class IngestionApi:
    """Takes spans that OTLP exporters send."""

    def __init__(self, catalog: Catalog, lakehouse: Lakehouse) -> None:
        self._catalog = catalog
        self._lakehouse = lakehouse
        # By table id, as long as requests are under way. Making columns of spans costs a millisecond, of however few:
        # requests at once share it.
        self._writers: WeakValueDictionary[str, Together[list[SpanRecord], list[str]]] = WeakValueDictionary()
        self._lock = threading.Lock()

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route("POST", PATH, self._export)]

    def _export(self, request: Request) -> Response:
        table = self._table(request)
        records, refused = _sound(_message(request))
        if records:
            refused += self._writer(table)(records)
            self._lakehouse.tidy(table)
        return _answer(refused)

    def _table(self, request: Request) -> Table:
        """Return the table that a request names, which its sender may write to."""
        name = request.headers.get(TABLE_HEADER.lower(), "").strip()
        if not name:
            raise ApiError(
                400,
                "INVALID_PARAMETER_VALUE",
                f"The header {TABLE_HEADER} is missing. Set it to the name of a table, as catalog.schema.table.",
            )
        table = self._catalog.table(name)
        # Whoever owns the table may write to it; others need both by name, for ALL PRIVILEGES does not count here.
        for privilege in ("SELECT", "MODIFY"):
            self._catalog.access.require(request.principal, privilege, table, explicitly=True)
        if table.table_type not in {"MANAGED", "EXTERNAL"} or table.data_source_format != "DELTA":
            kind = table.table_type if table.data_source_format in {"", "DELTA"} else table.data_source_format
            raise ApiError(
                400,
                "INVALID_PARAMETER_VALUE",
                f"Table '{name}' is of the kind {kind}. Spans go into a MANAGED or EXTERNAL table of the format DELTA.",
            )
        return table

    def _writer(self, table: Table) -> Together[list[SpanRecord], list[str]]:
        with self._lock:
            return self._writers.setdefault(table.table_id, Together(partial(self._write, table)))

    def _write(self, table: Table, requests: list[list[SpanRecord]]) -> list[list[str]]:
        """Commit the spans of some requests that can be rows, and return for each request why the others cannot."""
        try:
            converted, refused = self._converted(table, list(chain.from_iterable(requests)))
        except PermanentDeliveryError as error:
            raise ApiError(
                400, "INVALID_PARAMETER_VALUE", f"Table '{table.full_name}' cannot take spans. {error}"
            ) from error
        if converted.num_rows:
            self._lakehouse.commit(table, converted)
        ends = list(accumulate(map(len, requests)))
        reasons: list[list[str]] = [[] for _ in requests]
        for index, reason in refused:
            reasons[bisect_right(ends, index)].append(reason)
        return reasons

    def _converted(self, table: Table, records: list[SpanRecord]) -> tuple[pa.RecordBatch, list[tuple[int, str]]]:
        try:
            schema = self._lakehouse.schema(table)
            _check_columns(schema)
            return rows.convert(records, schema)
        except PermanentDeliveryError:
            # Somebody may have repaired the table since it was looked at.
            schema = self._lakehouse.schema(table, fresh=True)
            _check_columns(schema)
            return rows.convert(records, schema)


def _check_columns(schema: pa.Schema) -> None:
    """Raise PermanentDeliveryError unless a table has all columns of a span table; it may have more."""
    if tables.ATTRIBUTES not in schema.names:
        missing = [tables.ATTRIBUTES]
    else:
        version: tables.Version = 2 if tables.is_variant(schema.field(tables.ATTRIBUTES).type) else 1
        missing = [name for name in _columns(version) if name not in schema.names]
    if missing:
        raise PermanentDeliveryError(
            f"It is not a span table: it has no column {', '.join(missing)}. Create it with the columns of one."
        )


@cache
def _columns(version: tables.Version) -> tuple[str, ...]:
    return tuple(field["name"] for field in tables.delta_schema(version)["fields"])


def _message(request: Request) -> TracesData:
    """Return the spans of a body. A request to export has the same fields as the class of traces at rest."""
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _PROTOBUF:
        raise ApiError(
            415, "UNSUPPORTED_MEDIA_TYPE", f"The Content-Type {kind or '(none)'} is not taken. Send {_PROTOBUF}."
        )
    message = TracesData()
    try:
        message.ParseFromString(_plain(request))
    except DecodeError as error:
        raise ApiError(400, "MALFORMED_REQUEST", "The body is not an ExportTraceServiceRequest.") from error
    return message


def _plain(request: Request) -> bytes:
    """Return the body decompressed, which stops at the limit whatever the body would unfold to."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower() or "identity"
    if encoding == "gzip":
        unfolding = zlib.decompressobj(_GZIP)
        try:
            body = unfolding.decompress(request.body, MAX_BODY_BYTES + 1)
        except zlib.error as error:
            raise ApiError(400, "MALFORMED_REQUEST", f"The body is not gzip: {error}.") from error
        if len(body) <= MAX_BODY_BYTES and not unfolding.eof:
            raise ApiError(400, "MALFORMED_REQUEST", "The body is gzip that ends too early.")
        if unfolding.unused_data:
            raise ApiError(400, "MALFORMED_REQUEST", "The body is gzip with something after its end.")
    elif encoding == "identity":
        body = request.body
    else:
        raise ApiError(
            415, "UNSUPPORTED_MEDIA_TYPE", f"The Content-Encoding {encoding} is not taken. Send gzip, or none."
        )
    if len(body) > MAX_BODY_BYTES:
        raise ApiError(
            413,
            "REQUEST_TOO_LARGE",
            f"The body has more than {MAX_BODY_BYTES:,} bytes, decompressed. Send fewer spans a request.",
        )
    return body


def _sound(message: TracesData) -> tuple[list[SpanRecord], list[str]]:
    """Return the spans that are ones, and what is wrong with the others."""
    sound, refused = [], []
    for record in otlp.from_otlp(message):
        fault = _fault(record)
        if fault:
            refused.append(fault)
        else:
            sound.append(record)
    return sound, refused


def _fault(record: SpanRecord) -> str:
    # Ids are hexadecimal here, two digits a byte.
    if len(record.trace_id) != 32 or not record.trace_id.strip("0"):
        return f"trace_id {record.trace_id!r} is not 16 bytes with one that is not zero"
    if len(record.span_id) != 16 or not record.span_id.strip("0"):
        return f"span_id {record.span_id!r} is not 8 bytes with one that is not zero"
    if record.parent_span_id is not None and len(record.parent_span_id) != 16:
        return f"parent_span_id {record.parent_span_id!r} of span {record.span_id} is not 8 bytes"
    if max(record.start_time_unix_nano, record.end_time_unix_nano) >= _INT64_END:
        return f"span {record.span_id} is of a time after 2262, which no BIGINT of nanoseconds holds"
    return ""


def _answer(refused: list[str]) -> Response:
    # An empty message has no bytes. MLflow takes a body that has any for JSON, and complains.
    body = b""
    if refused:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

        answer = ExportTraceServiceResponse()
        answer.partial_success.rejected_spans = len(refused)
        answer.partial_success.error_message = f"{len(refused)} spans were rejected, the first because: {refused[0]}"
        body = answer.SerializeToString()
    return Response(200, body, {"Content-Type": _PROTOBUF})
