"""A server that answers what MLflow's exporters ask a workspace or an MLflow server, and counts what it is sent.

The mocked workspace of `tracelake.testing` commits spans to a Delta table before it answers. Beside it on one machine,
MLflow's exporter takes a sixth to two fifths more CPU a span and discards more of a burst; that would flatter ours.

`python -m benchmarks.instant_workspace [MS OF DELAY]` prints its address, and tells at `/counts` how many spans have
arrived. It answers at once but for the delay, and ends when its input does.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from typing import Any
from urllib.parse import parse_qs, urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_TAGS = "mlflow.experiment.databricksTrace"
# Of a workspace, and of an MLflow server.
_EXPORTS = ("/api/2.0/otel/v1/traces", "/v1/traces")
_INFO = re.compile(r"/api/4\.0/mlflow/traces/[^/]+/[0-9a-f]{32}/info|/api/3\.0/mlflow/traces")
_LINK = re.compile(r"/api/5\.0/mlflow/experiments/(\d+)/trace-location:link")


class _Server(ThreadingHTTPServer):
    """Has experiments that can be linked to a table prefix, and keeps the bodies of OTLP requests as they came."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, delay_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._delay_s = delay_s
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._exports: list[bytes] = []
        self._unknown: list[str] = []
        self._experiments: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        route = urlsplit(path).path
        if route == "/counts":
            return 200, self._counts()
        time.sleep(self._delay_s)
        if method == "POST" and route in _EXPORTS:
            self._exports.append(body)
            return 200, {}
        if route == "/.well-known/databricks-config":
            return 200, {"oidc_endpoint": f"{self.url}/oidc", "workspace_id": "1"}
        if _INFO.fullmatch(route):
            return 200, json.loads(body)
        if route == "/version":
            return 200, version("mlflow")
        if route.startswith("/api/2.0/mlflow/experiments/"):
            return self._experiment(route.rpartition("/")[2], parse_qs(urlsplit(path).query), body)
        if route == "/api/5.0/mlflow/tracing/locations":
            prefix = json.loads(body)["uc_table_prefix"]
            table = ".".join(prefix[part] for part in ("catalog_name", "schema_name", "table_prefix"))
            return 200, {"uc_table_prefix": {**prefix, "spans_table_name": f"{table}_otel_spans"}}
        if found := _LINK.fullmatch(route):
            table = json.loads(body)["uc_table_prefix"]["spans_table_name"]
            self._experiments[found[1]]["tags"] = [
                {"key": f"{_TAGS}DestinationPath", "value": table.removesuffix("_otel_spans")},
                {"key": f"{_TAGS}SpanStorageTable", "value": table},
            ]
            return 200, {}
        self._unknown.append(f"{method} {path}")
        return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": f"No {method} {path} here."}

    def _experiment(self, call: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        with self._lock:
            if call == "create":
                number = str(101 + len(self._experiments))
                name = json.loads(body)["name"]
                self._experiments[number] = {"experiment_id": number, "name": name, "lifecycle_stage": "active"}
                return 200, {"experiment_id": number}
            key = {"get": "experiment_id", "get-by-name": "experiment_name"}[call]
            for experiment in self._experiments.values():
                if experiment[key.replace("experiment_name", "name")] == query[key][0]:
                    return 200, {"experiment": experiment}
        return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"No experiment {query[key][0]}."}

    def _counts(self) -> dict[str, Any]:
        return {"spans": spans_of(self._exports), "unknown": self._unknown}


def spans_of(requests: list[bytes]) -> int:
    """Return how many spans there are in some OTLP requests, each counted once."""
    return len(
        {
            (span.trace_id, span.span_id)
            for body in requests
            for group in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        }
    )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        assert isinstance(self.server, _Server)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, answer = self.server.answer(self.command, self.path, body)
        content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _handle  # noqa: N815 - names of the base class

    def log_message(self, *_: object) -> None:
        return


if __name__ == "__main__":
    served = _Server(float(sys.argv[1]) / 1000 if sys.argv[1:] else 0.0)
    print(served.url, flush=True)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    sys.stdin.read()
