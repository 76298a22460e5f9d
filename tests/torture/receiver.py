"""A plain OTLP/HTTP endpoint: `receiver.py PORT FILE` appends path, trace id and span id of each span to a file."""

from __future__ import annotations

import os
import sys
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

stored = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.write(stored, b"\n")  # ends the line that a killed one may have left torn


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        body = self.rfile.read(size)
        if len(body) < size:
            return  # the connection was cut
        if self.headers.get("Content-Encoding") == "gzip":
            body = zlib.decompress(body, 31)
        request = ExportTraceServiceRequest.FromString(body)
        spans = [
            span for each in request.resource_spans for scope_spans in each.scope_spans for span in scope_spans.spans
        ]
        # Stored before it is answered.
        os.write(
            stored,
            "".join(f"{self.path} {span.trace_id.hex()} {span.span_id.hex()}\n" for span in spans).encode(),
        )
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
