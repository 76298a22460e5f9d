"""A real MLflow tracking server on loopback, with its database and artifacts in a directory of the test."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lake import FOREIGN, wait_until

# What keeps a program that uses MLflow from sending or fetching anything by itself.
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_MODEL_CATALOG_URI": ""}

# No worker process is started for jobs, and a gateway may call a provider on loopback.
_SETTINGS = QUIET | {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_GATEWAY_API_BASE_ALLOWED_SCHEMES": "http",
    "MLFLOW_GATEWAY_API_BASE_ALLOW_PRIVATE_IPS": "true",
    "MLFLOW_CRYPTO_KEK_PASSPHRASE": "a passphrase of the tests, 32 letters or more",
}


@dataclass(frozen=True)
class ServedSpan:
    """A span as the server gives it out, its ids in hexadecimal digits."""

    name: str
    span_id: str
    parent_span_id: str | None
    status: str
    attributes: dict[str, Any]
    events: list[str]


@dataclass(frozen=True)
class ServedTrace:
    """A trace as the server gives it out.

    Attributes:
        info: state, tags, metadata and the like, in the words of MLflow's REST interface.
    """

    info: dict[str, Any]
    spans: list[ServedSpan]

    @property
    def experiment_id(self) -> str:
        return str(self.info["trace_location"]["mlflow_experiment"]["experiment_id"])

    def span(self, name: str) -> ServedSpan:
        """Return the one span of this name."""
        (span,) = [span for span in self.spans if span.name == name]
        return span


@dataclass(frozen=True)
class MlflowServer:
    """A server that answers.

    Attributes:
        url: its tracking URI, with no slash at the end.
    """

    url: str
    _process: subprocess.Popen[bytes]
    _log: Path

    def log(self) -> str:
        """Return what the server printed so far."""
        return self._log.read_text()

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """Ask the REST interface, such as `experiments/create`, whichever of its versions has the path."""
        return self._ask(path, json.dumps(body).encode())

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """Ask the REST interface for something that is there."""
        return self._ask(f"{path}?{urllib.parse.urlencode(query)}", None)

    def trace(self, trace_id: str) -> ServedTrace | None:
        """Return a trace with the spans that the server has so far, or None if it knows none of this id (`tr-...`)."""
        try:
            trace = self.get("traces/get", trace_id=trace_id, allow_partial="true")["trace"]
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return None
        return ServedTrace(trace["trace_info"], [_span(span) for span in trace.get("spans", ())])

    def traces(self, experiment_id: str) -> list[str]:
        """Return the ids of the traces of an experiment."""
        location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment_id}}
        found = self.post("traces/search", locations=[location], max_results=100)
        return [trace["trace_id"] for trace in found.get("traces", ())]

    def stop(self) -> None:
        """End the server, and wait until it is gone; stopping it twice does nothing."""
        # The web server as well: the command waits for it, but in MLflow 3.9 does not tell it to end, and leaves it.
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses where only zombies are left
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(15)

    def _ask(self, path: str, body: bytes | None) -> dict[str, Any]:
        version = "3.0" if path.startswith(("gateway/", "traces/")) else "2.0"
        url = f"{self.url}/api/{version}/mlflow/{path}"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


@contextlib.contextmanager
def run_mlflow_server(root: Path, port: int = 0, *, store: str = "", **environ: str) -> Iterator[MlflowServer]:
    """Run `mlflow server` on SQLite under `root`, until the block ends; a second one there continues the first.

    Args:
        store: what comes before the URL of the database, such as `tracelake://`.
    """
    log = root / "mlflow-server.log"
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri={store}sqlite:///{root}/mlflow.db", f"--artifacts-destination={root}/artifacts"]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={key: value for key, value in os.environ.items() if not FOREIGN.match(key)}
            | _SETTINGS
            | {"HOME": str(root)}
            | environ,
            cwd=root,
            start_new_session=True,
        )
    server = MlflowServer("", process, log)
    try:
        url = wait_until(lambda: _url(server), "the MLflow server answers", 60)
        yield MlflowServer(url, process, log)
    finally:
        server.stop()


def _url(server: MlflowServer) -> str:
    assert server._process.poll() is None, server.log()
    found = re.search(r"running on (http://127\.0\.0\.1:[1-9]\d*)", server.log())
    if not found:
        return ""
    with urllib.request.urlopen(f"{found[1]}/health", timeout=10) as answer:
        return found[1] if answer.status == 200 else ""


def _span(span: dict[str, Any]) -> ServedSpan:
    return ServedSpan(
        span["name"],
        _hex(span["span_id"]),
        _hex(span["parent_span_id"]) if span.get("parent_span_id") else None,
        span.get("status", {}).get("code", ""),
        {item["key"]: _value(item["value"]) for item in span.get("attributes", ())},
        [event["name"] for event in span.get("events", ())],
    )


def _hex(identifier: str) -> str:
    return base64.b64decode(identifier).hex()


def _value(value: dict[str, Any]) -> Any:
    ((kind, content),) = value.items() if value else (("null", None),)
    if kind == "kvlist_value":
        return {item["key"]: _value(item.get("value", {})) for item in content.get("values", ())}
    if kind == "array_value":
        return [_value(item) for item in content.get("values", ())]
    return int(content) if kind == "int_value" else content
