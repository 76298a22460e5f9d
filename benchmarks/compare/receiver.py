"""A receiver of OTLP/HTTP as a collector is: it decodes each request and appends it to a file, then answers.

`python -m benchmarks.compare.receiver [--store FILE] [--delay MS]` prints its address, and tells at `/counts` how many
spans have arrived, each counted once. It ends when its input does. Without `--store` it decodes nothing, and answers at
once but for the delay.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks.instant_workspace import spans_of


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, store: str, delay_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.delay_s = delay_s
        self.file = open(store, "ab", buffering=0) if store else None  # noqa: SIM115 - for as long as it serves
        self.lock = threading.Lock()
        self.bodies: list[bytes] = []

    def take(self, body: bytes, encoding: str) -> None:
        """Store a request, or keep it to be counted."""
        if self.file is None:
            self.bodies.append(gzip.decompress(body) if encoding == "gzip" else body)
        else:
            body = gzip.decompress(body) if encoding == "gzip" else body
            ExportTraceServiceRequest.FromString(body)
            with self.lock:
                self.file.write(len(body).to_bytes(4, "big") + body)
        time.sleep(self.delay_s)

    def spans(self) -> int:
        """Return how many spans came of those that are kept."""
        return spans_of(self.bodies)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        assert isinstance(self.server, _Server)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.take(body, self.headers.get("Content-Encoding", ""))
        self._answer(b"", "application/x-protobuf")

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        self._answer(json.dumps({"spans": self.server.spans()}).encode(), "application/json")

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        return


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", default="")
    parser.add_argument("--delay", type=float, default=0.0)
    arguments = parser.parse_args()
    server = _Server(arguments.store, arguments.delay / 1000)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
