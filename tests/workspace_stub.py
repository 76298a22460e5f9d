"""A server that answers what MLflow's Unity Catalog exporter asks a workspace, at once, and keeps what it is sent.

`Workspace` serves from a thread; `python -m tests.workspace_stub` from a process of its own, which prints its address
and tells at `/counts?spans=3` how many traces of three spans have arrived whole.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TOKEN = "token-of-the-stub"
_TAGS = "mlflow.experiment.databricksTrace"
_INFO = re.compile(r"/api/4\.0/mlflow/traces/([^/]+)/([0-9a-f]{32})/info")
_LINK = re.compile(r"/api/5\.0/mlflow/experiments/(\d+)/trace-location:link")


class Workspace:
    """A workspace on the loopback interface, with experiments that can be linked to a table prefix.

    Attributes:
        url: its address.
        exports: table name and body of each OTLP request, as they came.
        infos: location, trace id (hex) and body of each trace info.
        unknown: what was asked that it has no answer to.
    """

    def __init__(self) -> None:
        self.exports: list[tuple[str, bytes]] = []
        self.infos: list[tuple[str, str, dict[str, Any]]] = []
        self.unknown: list[str] = []
        self._experiments: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        workspace = self

        class Handler(_Handler):
            def answer(self, method: str, body: bytes) -> tuple[int, Any]:
                return workspace._answer(method, self.path, self.headers, body)

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Workspace:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def serve(self) -> None:
        """Serve until the process is ended."""
        self._server.serve_forever()

    def requests(self) -> list[ExportTraceServiceRequest]:
        """Return the OTLP requests, parsed."""
        return [ExportTraceServiceRequest.FromString(body) for _, body in self.exports]

    def _answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, Any]:
        route = urlsplit(path).path
        if (method, route) == ("POST", "/api/2.0/otel/v1/traces"):
            self.exports.append((headers["X-Databricks-UC-Table-Name"], body))
            return 200, {}
        if route == "/.well-known/databricks-config":
            return 200, {"oidc_endpoint": f"{self.url}/oidc", "workspace_id": "1"}
        if found := _INFO.fullmatch(route):
            info = json.loads(body)
            self.infos.append((found[1], found[2], info))
            return 200, info
        if route.startswith("/api/2.0/mlflow/experiments/"):
            return self._experiment(route.rpartition("/")[2], parse_qs(urlsplit(path).query), body)
        if route == "/api/5.0/mlflow/tracing/locations":
            prefix = json.loads(body)["uc_table_prefix"]
            table = ".".join(prefix[part] for part in ("catalog_name", "schema_name", "table_prefix"))
            return 200, {"uc_table_prefix": {**prefix, "spans_table_name": f"{table}_otel_spans"}}
        if found := _LINK.fullmatch(route):
            prefix = json.loads(body)["uc_table_prefix"]
            table = prefix["spans_table_name"]
            self._experiments[found[1]]["tags"] = [
                {"key": f"{_TAGS}DestinationPath", "value": table.removesuffix("_otel_spans")},
                {"key": f"{_TAGS}SpanStorageTable", "value": table},
            ]
            return 200, {}
        if route == "/counts":
            return 200, self._counts(int(parse_qs(urlsplit(path).query)["spans"][0]))
        self.unknown.append(f"{method} {path}")
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

    def _counts(self, spans_of_a_trace: int) -> dict[str, Any]:
        spans = {
            (span.trace_id.hex(), span.span_id)
            for request in self.requests()
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        }
        arrived = Counter(trace for trace, _ in spans)
        whole = {trace for _, trace, _ in self.infos if arrived[trace] == spans_of_a_trace}
        return {"spans": len(spans), "whole traces": len(whole), "unknown": self.unknown}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self, method: str, body: bytes) -> tuple[int, Any]:
        raise NotImplementedError

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, answer = self.answer(self.command, body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _handle  # noqa: N815 - names of the base class

    def log_message(self, *_: object) -> None:
        return


if __name__ == "__main__":
    served = Workspace()
    print(served.url, flush=True)
    served.serve()
