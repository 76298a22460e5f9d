"""OTLP into span tables, by OpenTelemetry's own exporter and by requests that no exporter sends."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from deltalake import DeltaTable, Field
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState

from tracelake import QueryError
from tracelake.spans import line, otlp, tables
from tracelake.spans.record import SpanEvent, SpanLink, SpanRecord
from tracelake.testing import MockTable, MockWorkspace
from tracelake.testing.storage.ingestion import MAX_BODY_BYTES, PATH
from tracelake.testing.web.faults import Fault

NAME = "main.obs.spans"
START = 1_700_000_000_000_000_000
VALUES = {"text": "a", "number": 1, "float": 0.5, "bytes": b"\x00\xff", "list": [1, "b"], "map": {"a": {"b": None}}}
# Early versions of OpenTelemetry know fewer kinds, leave out more of a scope, and try less again.
ATTRIBUTES = {key: value for key, value in VALUES.items() if key in BoundedAttributes(attributes=VALUES)}
IS_EARLY = len(ATTRIBUTES) < len(VALUES)
TRIES_AGAIN = pytest.mark.skipif(IS_EARLY, reason="early versions of OpenTelemetry give up")


@pytest.fixture
def table(workspace: MockWorkspace) -> MockTable:
    return workspace.create_table(NAME)


def headers(workspace: MockWorkspace, table: str = NAME, token: str = "", **more: str) -> dict[str, str]:
    found = {
        "Authorization": f"Bearer {token or workspace.environment()['DATABRICKS_TOKEN']}",
        "X-Databricks-UC-Table-Name": table,
        "Content-Type": "application/x-protobuf",
    }
    return found | {name.replace("_", "-"): value for name, value in more.items()}


def post(
    workspace: MockWorkspace, body: bytes | ExportTraceServiceRequest, table: str = NAME, token: str = "", **more: str
) -> requests.Response:
    sent = body if isinstance(body, bytes) else body.SerializeToString()
    return requests.post(workspace.url + PATH, sent, headers=headers(workspace, table, token, **more), timeout=20)


def span(number: int = 1, **fields: Any) -> SpanRecord:
    known = {"name": f"span {number}", "start_time_unix_nano": START + number, "end_time_unix_nano": START + 100}
    return SpanRecord(f"{number:032x}", f"{number:016x}", **{**known, **fields})


def message(*records: SpanRecord) -> ExportTraceServiceRequest:
    return ExportTraceServiceRequest.FromString(otlp.to_otlp(records or (span(),)))


def refused(response: requests.Response) -> tuple[int, str, str]:
    assert response.headers["Content-Type"] == "application/json"
    return response.status_code, response.json()["error_code"], response.json()["message"]


# --- OpenTelemetry's exporter ----------------------------------------------------------------------------------------


def exporter(workspace: MockWorkspace, *, token: str = "", **options: Any) -> OTLPSpanExporter:
    return OTLPSpanExporter(workspace.url + PATH, headers=headers(workspace, token=token), **options)


@pytest.fixture(scope="module")
def finished() -> Iterator[tuple[ReadableSpan, ...]]:
    """Spans of OpenTelemetry's SDK that hold all it can hold."""
    provider = TracerProvider(resource=Resource({"service.name": "shop", "pid": 7}), shutdown_on_exit=False)
    kept = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("library", "1.2", schema_url="https://example.com/schema", attributes={"scope": "s"})
    other = SpanContext(2**100, 2**50, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("k", "v")]))
    with tracer.start_as_current_span(
        "root", kind=SpanKind.SERVER, attributes=ATTRIBUTES, links=[Link(other, {"why": "because"})]
    ) as root:
        root.add_event("moment", {"a": [True, False]}, timestamp=START)
        with pytest.raises(ZeroDivisionError), tracer.start_as_current_span("child"):
            _ = 1 / 0
        root.set_status(StatusCode.OK)
    yield kept.get_finished_spans()
    provider.shutdown()


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_what_the_exporter_sends_is_read_back(
    workspace: MockWorkspace, table: MockTable, finished: tuple[ReadableSpan, ...], compression: Compression
) -> None:
    sender = exporter(workspace, compression=compression)
    assert sender.export(finished) is SpanExportResult.SUCCESS
    sender.shutdown()
    root, child = table.spans()
    sent_root = finished[1]
    assert (root.name, root.kind, root.status_code, root.parent_span_id) == ("root", 2, 1, None)
    assert root.trace_id == f"{sent_root.context.trace_id:032x}"
    assert child.parent_span_id == root.span_id == f"{sent_root.context.span_id:016x}"
    assert (root.start_time_unix_nano, root.end_time_unix_nano) == (sent_root.start_time, sent_root.end_time)
    assert root.attributes == ATTRIBUTES
    assert root.events == [SpanEvent("moment", START, {"a": [True, False]})]
    assert root.links == [SpanLink(f"{2**100:032x}", f"{2**50:016x}", "", {"why": "because"}, 0, 0x300)]
    assert (child.status_code, child.status_message) == (2, "ZeroDivisionError: division by zero")
    (raised,) = child.events
    assert (raised.name, raised.attributes["exception.type"]) == ("exception", "ZeroDivisionError")
    assert "1 / 0" in raised.attributes["exception.stacktrace"]
    assert line.resource_of(root).attributes == {"service.name": "shop", "pid": 7}
    scope = line.scope_of(child)
    assert (scope.name, scope.version) == ("library", "1.2")
    assert IS_EARLY or (scope.attributes, scope.schema_url) == ({"scope": "s"}, "https://example.com/schema")
    assert [row["service_name"] for row in table.rows()] == ["shop", "shop"]
    ((exchange),) = table.requests()
    assert (exchange.status, exchange.request.headers.get("content-encoding")) == (
        200,
        "gzip" if compression is Compression.Gzip else None,
    )


def test_a_table_of_version_1_holds_text(workspace: MockWorkspace, finished: tuple[ReadableSpan, ...]) -> None:
    table = workspace.create_table(NAME, schema_version=1)
    sender = exporter(workspace)
    assert sender.export(finished) is SpanExportResult.SUCCESS
    sender.shutdown()
    root, _ = table.spans()
    expected = {
        "text": "a",
        "number": "1",
        "float": "0.5",
        "bytes": "AP8=",
        "list": '[1,"b"]',
        "map": '{"a":{"b":null}}',
    }
    assert root.attributes == {key: expected[key] for key in ATTRIBUTES}


@TRIES_AGAIN
def test_the_exporter_tries_again(
    workspace: MockWorkspace, table: MockTable, finished: tuple[ReadableSpan, ...]
) -> None:
    workspace.faults.rate_limit(2, retry_after_s=0)
    workspace.faults.add(Fault("/api", times=1, status=503, retry_after_s=0))
    sender = exporter(workspace)
    assert sender.export(finished) is SpanExportResult.SUCCESS
    sender.shutdown()
    assert [exchange.status for exchange in table.requests()] == [429, 429, 503, 200]
    assert len(table.spans()) == 2


@TRIES_AGAIN
def test_an_answer_that_is_lost_makes_doubles(
    workspace: MockWorkspace, table: MockTable, finished: tuple[ReadableSpan, ...]
) -> None:
    """A request has nothing that tells the second from another one: Databricks stores it twice as well."""
    workspace.faults.lose_answer(1)
    sender = exporter(workspace)
    assert sender.export(finished) is SpanExportResult.SUCCESS
    sender.shutdown()
    assert len(table.spans()) == 4


def test_the_exporter_gives_up_where_trying_again_does_not_help(
    workspace: MockWorkspace, table: MockTable, finished: tuple[ReadableSpan, ...]
) -> None:
    sender = exporter(workspace, token=workspace.add_user("new@example.com").token)
    assert sender.export(finished) is SpanExportResult.FAILURE
    sender.shutdown()
    assert [exchange.status for exchange in table.requests()] == [403]
    assert table.spans() == []


# --- what is not taken -----------------------------------------------------------------------------------------------


def test_success_has_an_empty_body(workspace: MockWorkspace, table: MockTable) -> None:
    """MLflow takes anything else for JSON."""
    for sent, body in ((message(), b""), (b"", b"")):
        response = post(workspace, sent)
        assert (response.status_code, response.content) == (200, body)
        assert response.headers["Content-Type"] == "application/x-protobuf"
    assert [found.name for found in table.spans()] == ["span 1"]


def test_the_headers_are_case_insensitive(workspace: MockWorkspace, table: MockTable) -> None:
    sent = {name.upper(): value for name, value in headers(workspace).items()}
    sent["CONTENT-TYPE"] = "Application/X-Protobuf; charset=utf-8"
    response = requests.post(workspace.url + PATH, message().SerializeToString(), headers=sent, timeout=20)
    assert response.status_code == 200
    assert len(table.spans()) == 1


@pytest.mark.parametrize(
    ("table", "status", "code", "text"),
    [
        ("", 400, "INVALID_PARAMETER_VALUE", "The header X-Databricks-UC-Table-Name is missing"),
        ("spans", 400, "INVALID_PARAMETER_VALUE", "'spans' is not a valid name"),
        ("main.obs.spans.more", 400, "INVALID_PARAMETER_VALUE", "'main.obs.spans.more' is not a valid name"),
        ("main..spans", 400, "INVALID_PARAMETER_VALUE", "'main..spans' is not a valid name"),
        ("none.obs.spans", 404, "CATALOG_DOES_NOT_EXIST", "Catalog 'none' does not exist"),
        ("main.none.spans", 404, "SCHEMA_DOES_NOT_EXIST", "Schema 'main.none' does not exist"),
        ("main.obs.none", 404, "TABLE_DOES_NOT_EXIST", "Table 'main.obs.none' does not exist"),
    ],
)
def test_a_table_that_is_not_there(workspace: MockWorkspace, table: str, status: int, code: str, text: str) -> None:
    found = refused(post(workspace, message(), table=table))
    assert found[:2] == (status, code)
    assert text in found[2]


@pytest.mark.parametrize(
    ("table_type", "data_source_format", "text"),
    [
        ("VIEW", "", "of the kind VIEW"),
        ("FOREIGN", "DELTA", "of the kind FOREIGN"),
        ("FOREIGN", "POSTGRESQL_FORMAT", "of the kind POSTGRESQL_FORMAT"),
        ("EXTERNAL", "PARQUET", "of the kind PARQUET"),
        ("MATERIALIZED_VIEW", "DELTA", "of the kind MATERIALIZED_VIEW"),
    ],
)
def test_a_table_of_another_kind(workspace: MockWorkspace, table_type: Any, data_source_format: str, text: str) -> None:
    workspace.create_table(NAME)
    with workspace._store.changing() as state:
        state.tables[NAME].table_type = table_type
        state.tables[NAME].data_source_format = data_source_format
    status, code, said = refused(post(workspace, message()))
    assert (status, code) == (400, "INVALID_PARAMETER_VALUE")
    assert text in said


def test_a_table_that_is_not_for_spans(workspace: MockWorkspace) -> None:
    table = workspace.create_table(NAME, columns={"id": "long", "trace_id": "string"})
    status, code, said = refused(post(workspace, message()))
    assert (status, code) == (400, "INVALID_PARAMETER_VALUE")
    assert "Table 'main.obs.spans' cannot take spans" in said
    assert "no column attributes" in said
    assert table.rows() == []


def test_a_column_of_another_type(workspace: MockWorkspace) -> None:
    columns = {field["name"]: field["type"] for field in tables.delta_schema(2)["fields"]}
    workspace.create_table(NAME, columns={**columns, "kind": "long"})
    assert "Column kind has the type int64" in refused(post(workspace, message()))[2]
    workspace.drop(NAME)
    repaired = workspace.create_table(NAME, columns=columns)
    assert post(workspace, message()).status_code == 200
    assert len(repaired.spans()) == 1


def test_a_table_is_looked_at_again_before_it_is_refused(workspace: MockWorkspace) -> None:
    columns = {field["name"]: field["type"] for field in tables.delta_schema(2)["fields"] if field["name"] != "kind"}
    table = workspace.create_table(NAME, columns=columns)
    assert "it has no column kind" in refused(post(workspace, message()))[2]
    DeltaTable(table.location).alter.add_columns(Field("kind", "string"))
    assert post(workspace, message()).status_code == 200
    assert [found.kind for found in table.spans()] == [1]


def test_privileges_have_to_be_named(workspace: MockWorkspace, table: MockTable) -> None:
    """ALL PRIVILEGES on a trace table does not let its holder write traces; owning it does."""
    user = workspace.add_user("new@example.com")

    def missing() -> str:
        status, code, text = refused(post(workspace, message(), token=user.token))
        assert (status, code) == (403, "PERMISSION_DENIED")
        return text

    assert "does not have USE CATALOG on Catalog 'main'" in missing()
    workspace.grant("USE CATALOG", on="main", to=user.name)
    assert "does not have USE SCHEMA on Schema 'main.obs'" in missing()
    workspace.grant("USE SCHEMA", on="main.obs", to=user.name)
    assert "does not have SELECT on Table" in missing()
    workspace.grant("ALL PRIVILEGES", on=NAME, to=user.name)
    assert "does not have SELECT on Table" in missing()
    workspace.grant("SELECT", on=NAME, to=user.name)
    assert "does not have MODIFY on Table" in missing()
    workspace.grant("MODIFY", on=NAME, to=user.name)
    assert post(workspace, message(), token=user.token).status_code == 200
    workspace.revoke("MODIFY", on=NAME, from_=user.name)
    assert "does not have MODIFY on Table" in missing()
    assert len(table.spans()) == 1


def test_who_asks_is_asked_first(workspace: MockWorkspace, table: MockTable) -> None:
    assert requests.post(workspace.url + PATH, b"", timeout=20).status_code == 401
    assert post(workspace, message(), token="wrong").status_code in {401, 403}
    assert table.spans() == []


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ({"Content_Type": "application/json"}, 415, "application/json"),
        ({"Content_Type": "text/plain; charset=utf-8"}, 415, "text/plain"),
        ({"Content_Encoding": "deflate"}, 415, "deflate"),
        ({"Content_Encoding": "zstd"}, 415, "zstd"),
        ({"Content_Encoding": "gzip, gzip"}, 415, "gzip, gzip"),
    ],
)
def test_formats_that_are_not_taken_are_named(
    workspace: MockWorkspace, table: MockTable, sent: dict[str, str], status: int, code: str
) -> None:
    found = refused(post(workspace, b"{}", **sent))
    assert found[:2] == (status, "UNSUPPORTED_MEDIA_TYPE")
    assert code in found[2]
    assert table.spans() == []


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        pytest.param(b"\xff\xff\xff", "", id="no message"),
        pytest.param(b"\x0a\x05abc", "", id="torn message"),
        pytest.param(b"not gzip", "gzip", id="no gzip"),
        pytest.param(gzip.compress(b"x" * 1000)[:-20], "gzip", id="torn gzip"),
        pytest.param(b"", "gzip", id="empty gzip"),
        pytest.param(gzip.compress(b"") * 2, "gzip", id="two gzips"),
        pytest.param(gzip.compress(b"\xff\xff\xff"), "gzip", id="no message in gzip"),
        pytest.param(zlib.compress(b""), "gzip", id="zlib"),
    ],
)
def test_a_body_that_cannot_be_read(workspace: MockWorkspace, table: MockTable, body: bytes, encoding: str) -> None:
    status, code, text = refused(post(workspace, body, Content_Encoding=encoding or "identity"))
    assert (status, code) == (400, "MALFORMED_REQUEST")
    assert text.startswith("The body is")
    assert table.spans() == []


def test_a_body_that_is_too_large(workspace: MockWorkspace, table: MockTable) -> None:
    """What gzip would unfold to counts, and is not unfolded."""
    large = message(span(attributes={"text": "x" * (MAX_BODY_BYTES - 1000)})).SerializeToString()
    assert post(workspace, gzip.compress(large), Content_Encoding="gzip").status_code == 200
    over = bytes(MAX_BODY_BYTES + 1)
    bomb = gzip.compress(bytes(300 * 2**20), 9)
    for body, encoding in ((over, "identity"), (gzip.compress(over), "gzip"), (bomb, "gzip")):
        status, code, text = refused(post(workspace, body, Content_Encoding=encoding))
        assert (status, code) == (413, "REQUEST_TOO_LARGE")
        assert f"more than {MAX_BODY_BYTES:,} bytes" in text
    assert len(table.spans()) == 1


def test_spans_that_are_none_are_rejected_and_the_others_kept(workspace: MockWorkspace, table: MockTable) -> None:
    sent = message(*(span(number) for number in range(1, 15)))
    spans = sent.resource_spans[0].scope_spans[0].spans
    spans[1].trace_id = b""
    spans[2].span_id = b""
    spans[3].trace_id = b"\1" * 15
    spans[4].span_id = b"\1" * 9
    spans[5].trace_id = bytes(16)
    spans[6].parent_span_id = b"\1" * 7
    spans[7].start_time_unix_nano = spans[7].end_time_unix_nano + 1  # a clock was set back: that happens
    spans[8].end_time_unix_nano = 2**63
    spans[9].start_time_unix_nano = 2**64 - 1
    spans[10].kind = 9  # type: ignore[assignment]
    spans[11].dropped_attributes_count = 2**32 - 1
    spans[12].events.add(time_unix_nano=2**63)
    response = post(workspace, sent)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/x-protobuf"
    partial = ExportTraceServiceResponse.FromString(response.content).partial_success
    assert partial.rejected_spans == 11
    assert "trace_id '' is not 16 bytes" in partial.error_message
    assert [found.name for found in table.spans()] == ["span 1", "span 14", "span 8"]


def test_values_of_every_kind_are_kept(workspace: MockWorkspace, table: MockTable) -> None:
    values = {
        **ATTRIBUTES,
        "none": None,
        "empty": [],
        "nothing": {},
        "true": True,
        "large": 2**63 - 1,
        "small": -(2**63),
        "": "no key",
        "deep": {"list": [[{"a": [b"b"]}]]},
        "text": "ä\x00🎈",
        "infinite": float("inf"),
        "zero": -0.0,
    }
    record = span(attributes=values, flags=0x301, trace_state="a=b", status_code=2, status_message="bad")
    record.events = [SpanEvent("event", START, values, 3)]
    record.links = [SpanLink("ab" * 16, "cd" * 8, "k=v", values, 4, 0xFFFFFFFF)]
    record.dropped_attributes_count, record.dropped_events_count, record.dropped_links_count = 5, 6, 7
    assert post(workspace, message(record)).status_code == 200
    (found,) = table.spans()
    assert found.attributes == values
    assert found.events == record.events
    assert found.links == record.links
    assert (found.flags, found.trace_state, found.status_message) == (0x301, "a=b", "bad")
    counts = (found.dropped_attributes_count, found.dropped_events_count, found.dropped_links_count)
    assert counts == (5, 6, 7)


def test_a_table_that_was_dropped_and_made_again(workspace: MockWorkspace) -> None:
    workspace.create_table(NAME)
    assert post(workspace, message()).status_code == 200
    workspace.drop(NAME)
    assert refused(post(workspace, message()))[:2] == (404, "TABLE_DOES_NOT_EXIST")
    again = workspace.create_table(NAME, schema_version=1)
    assert post(workspace, message(span(2), span(3))).status_code == 200
    assert [found.name for found in again.spans()] == ["span 2", "span 3"]
    with pytest.raises(QueryError):
        workspace.table("main.obs.other")


def test_spans_within_this_process(workspace: MockWorkspace, table: MockTable) -> None:
    with workspace.in_process() as host:
        response = requests.post(host + PATH, message().SerializeToString(), headers=headers(workspace), timeout=20)
    assert response.status_code == 200
    assert len(table.spans()) == 1
