"""A Zerobus service on loopback: the gRPC stream that the real SDK speaks, and the token endpoint of a workspace.

It keeps the rows that it acknowledged, and fails on demand.
"""

from __future__ import annotations

import base64
import json
import threading
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

grpc = pytest.importorskip("grpc", reason="grpcio is not installed, which this service is made with")

CLIENT_ID = "11111111-2222-3333-4444-555555555555"
SECRET = "the-secret-of-the-service-principal"
JSON_RECORDS = 2

_PACKAGE = "databricks.zerobus"
# What the SDK sends when it has JSON records, and what it reads: message -> (number, name, type, in a oneof).
_MESSAGES: dict[str, list[tuple[int, str, str, bool]]] = {
    "CreateStream": [(1, "table_name", "string", False), (4, "record_type", "int32", False)],
    "JsonBatch": [(1, "records", "strings", False)],
    "IngestRecord": [(1, "offset_id", "int64", False), (3, "json_record", "string", False)],
    "IngestBatch": [(1, "offset_id", "int64", False), (3, "json_batch", "JsonBatch", False)],
    "Request": [
        (1, "create_stream", "CreateStream", True),
        (2, "ingest_record", "IngestRecord", True),
        (3, "ingest_record_batch", "IngestBatch", True),
    ],
    "Created": [(1, "stream_id", "string", False)],
    "Acknowledged": [(1, "durability_ack_up_to_offset", "int64", False)],
    "Response": [(1, "create_stream_response", "Created", True), (2, "ingest_record_response", "Acknowledged", True)],
}


def _messages() -> dict[str, Any]:
    """Return the classes of the messages."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="zerobus_stub.proto", package=_PACKAGE, syntax="proto2")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        if any(in_oneof for *_, in_oneof in fields):
            message.oneof_decl.add(name="payload")
        for number, field_name, kind, in_oneof in fields:
            added = message.field.add(name=field_name, number=number, label=kinds.LABEL_OPTIONAL)
            if kind == "strings":
                added.label, added.type = kinds.LABEL_REPEATED, kinds.TYPE_STRING
            elif kind in _MESSAGES:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                added.type = {"string": kinds.TYPE_STRING, "int32": kinds.TYPE_INT32, "int64": kinds.TYPE_INT64}[kind]
            if in_oneof:
                added.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


_CLASSES = _messages()
_Request, _Response = _CLASSES["Request"], _CLASSES["Response"]

# A status code of gRPC, and what is said with it.
Failure = tuple[Any, str]


@dataclass
class ZerobusServer:
    """What was received, and how the next requests are answered.

    Attributes:
        url: of the service.
        workspace_url: of the workspace that gives tokens for it.
        table: the one table there is.
        rows: those acknowledged, in their order; the service would have made them durable.
        offered: how many rows came, with those that were never acknowledged and those that came again.
        streams: how many streams were opened.
        tokens: the forms by which tokens were asked for.
        given: what the header Authorization may hold.
        acknowledges: cleared, rows are received and not acknowledged.
        received: counts the messages that came.
        refusals: how the next streams are refused, one after the other.
        breaks: after how many messages the next streams break, and how; one after the other.
        invalid: which rows are refused, and their stream with them.
        token_status: how tokens are answered.
    """

    url: str = ""
    workspace_url: str = ""
    table: str = "main.obs.spans"
    rows: list[dict[str, Any]] = field(default_factory=list)
    offered: Counter[str] = field(default_factory=Counter)
    streams: int = 0
    tokens: list[dict[str, str]] = field(default_factory=list)
    given: set[str] = field(default_factory=set, repr=False)
    acknowledges: threading.Event = field(default_factory=threading.Event)
    received: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    refusals: deque[Failure] = field(default_factory=deque)
    breaks: deque[tuple[int, Failure]] = field(default_factory=deque)
    invalid: Callable[[dict[str, Any]], bool] = lambda _: False
    token_status: int = 200

    def answer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        """Speak EphemeralStream."""
        # The SDK waits for these before it sends anything.
        context.send_initial_metadata(())
        self.streams += 1
        metadata = dict(context.invocation_metadata())
        created = next(requests).create_stream
        if self.refusals:
            context.abort(*self.refusals.popleft())
        if metadata.get("authorization") not in self.given:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, f"bad token {metadata.get('authorization')}")
        if self.table not in (created.table_name, metadata.get("x-databricks-zerobus-table-name")):
            context.abort(grpc.StatusCode.NOT_FOUND, f"Table {created.table_name} cannot be found")
        assert created.record_type == JSON_RECORDS
        yield _Response(create_stream_response={"stream_id": f"stream {self.streams}"})
        taken, failure = self.breaks.popleft() if self.breaks else (-1, None)
        for number, request in enumerate(requests):
            if failure is not None and number == taken:
                context.abort(*failure)
            sent = getattr(request, request.WhichOneof("payload"))
            assert sent.offset_id == number, "offsets count from 0 in each stream"
            # A batch of one comes as a record.
            records = [sent.json_record] if request.HasField("ingest_record") else sent.json_batch.records
            rows = [json.loads(record) for record in records]
            self.offered.update(row["span_id"] for row in rows)
            self.received.release()
            if any(map(self.invalid, rows)):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Record does not fit the table")
            self.acknowledges.wait()
            self.rows += rows
            yield _Response(ingest_record_response={"durability_ack_up_to_offset": number})

    def token(self, authorization: str, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """Return the status and the body for who asks for a token."""
        self.tokens.append(form)
        expected = "Basic " + base64.b64encode(f"{CLIENT_ID}:{SECRET}".encode()).decode()
        if self.token_status != 200 or authorization != expected:
            status = self.token_status if self.token_status != 200 else 401
            return status, {"error": "invalid_client", "error_description": f"not {authorization} {SECRET}"}
        token = uuid.uuid4().hex
        self.given.add(f"Bearer {token}")
        return 200, {"access_token": token, "token_type": "Bearer", "expires_in": 3600}


@contextmanager
def run_zerobus() -> Iterator[ZerobusServer]:
    """Run one in this process."""
    service = ZerobusServer()
    service.acknowledges.set()
    handler = grpc.stream_stream_rpc_method_handler(
        service.answer, request_deserializer=_Request.FromString, response_serializer=_Response.SerializeToString
    )
    server = grpc.server(ThreadPoolExecutor(max_workers=8), options=[("grpc.max_receive_message_length", 10 * 2**20)])
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(f"{_PACKAGE}.Zerobus", {"EphemeralStream": handler}),)
    )
    service.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    tokens = ThreadingHTTPServer(("127.0.0.1", 0), _token_handler(service))
    service.workspace_url = f"http://127.0.0.1:{tokens.server_port}"
    thread = threading.Thread(target=tokens.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.start()
    try:
        yield service
    finally:
        service.acknowledges.set()
        server.stop(grace=None).wait()
        tokens.shutdown()
        tokens.server_close()
        thread.join()


def _token_handler(service: ZerobusServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = {name: texts[0] for name, texts in parse_qs(body).items()}
            status, answer = service.token(self.headers["Authorization"], form)
            assert self.path == "/oidc/v1/token"
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler
