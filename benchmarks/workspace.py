"""What the mocked workspace takes: spans a second through OTLP, its start, and its memory.

The workspace serves from a process of its own; the clients are in this one, their requests made beforehand.
Run: make bench, or python -m benchmarks.workspace
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import NamedTuple
from urllib.parse import urlsplit

PATH = "/api/2.0/otel/v1/traces"
TABLE = "main.obs.spans"
# Twelve attributes, as those of a call to a model.
ATTRIBUTES = {
    "gen_ai.operation.name": "chat",
    "gen_ai.system": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.request.temperature": 0.2,
    "gen_ai.usage.input_tokens": 1234,
    "gen_ai.usage.output_tokens": 321,
    "gen_ai.response.id": "chatcmpl-9f8e7d6c5b4a39281706f5e4d3c2b1a0",
    "gen_ai.response.finish_reasons": ["stop"],
    "mlflow.spanType": "LLM",
    "mlflow.spanInputs": {"messages": [{"role": "user", "content": "What is the weather in Paris? " * 5}]},
    "mlflow.spanOutputs": {"choices": [{"message": {"role": "assistant", "content": "Sunny, 21 degrees. " * 5}}]},
    "user.id": "user-1234",
}
EXPORTED = 512
EXPORTS = 60
TRACED = 5
TRACES = 640
CLIENTS = (1, 8, 32)
COMMITS = 3000
GROUP = 100
STARTS = 5
# The workspace remembers requests of 256 MB, which these fill.
MEMORY_ROUNDS = 10

SERVER = """
import sys
from tracelake.testing import MockWorkspace
with MockWorkspace(sys.argv[1]) as workspace:
    workspace.create_schema("main.obs")
    workspace.create_table("main.obs.spans", schema_version=int(sys.argv[2]))
    print(workspace.serve(), workspace.environment()["DATABRICKS_TOKEN"], flush=True)
    sys.stdin.read()
"""

STARTING = """
import urllib.request
from tracelake.testing import MockWorkspace
with MockWorkspace() as workspace:
    TABLE
    urllib.request.urlopen(workspace.serve() + "/.well-known/databricks-config").read()
"""
MAKING = 'workspace.create_schema("main.obs"); workspace.create_table("main.obs.spans")'


class Served(NamedTuple):
    """A workspace in a process of its own."""

    pid: int
    host: str
    headers: dict[str, str]
    location: str


@contextmanager
def served(schema_version: int = 2) -> Iterator[Served]:
    """Serve a workspace with one span table."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-c", SERVER, directory, str(schema_version)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            url, token = process.stdout.readline().split()
            headers = {
                "Authorization": f"Bearer {token}",
                "X-Databricks-UC-Table-Name": TABLE,
                "Content-Type": "application/x-protobuf",
            }
            (name,) = os.listdir(f"{directory}/tables")
            yield Served(process.pid, urlsplit(url).netloc, headers, f"{directory}/tables/{name}")
            process.communicate()


def bodies(requests: int, spans: int) -> list[bytes]:
    """Return requests of `spans` spans each."""
    from tracelake.spans import line, otlp
    from tracelake.spans.record import Resource, Scope, SpanRecord

    now = time.time_ns()
    resource = line.pack(Resource({"service.name": "bench", "telemetry.sdk.language": "python"}))
    scope = line.pack(Scope("bench", "1.0"))

    def span(number: int) -> SpanRecord:
        return SpanRecord(
            f"{1 + number // 10:032x}",
            f"{1 + number:016x}",
            "chat completion",
            now + number,
            now + number + 1_000_000,
            parent_span_id=f"{number:016x}" if number % 10 else None,
            attributes=ATTRIBUTES,
            resource=resource,
            scope=scope,
        )

    return [otlp.to_otlp([span(first * spans + number) for number in range(spans)]) for first in range(requests)]


def send(workspace: Served, sent: list[bytes], clients: int) -> tuple[float, list[float]]:
    """Send requests from as many threads, each with a connection; return the seconds of all, and of each."""
    took: list[float] = []

    def client(number: int) -> None:
        with closing(HTTPConnection(workspace.host, timeout=60)) as connection:
            for body in sent[number::clients]:
                start = time.perf_counter()
                connection.request("POST", PATH, body, workspace.headers)
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    raise RuntimeError(f"The workspace answered {response.status}.")
                took.append(time.perf_counter() - start)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - start
    if len(took) != len(sent):
        raise RuntimeError(f"{len(took)} of {len(sent)} requests were answered.")
    return wall, took


def ingestion(schema_version: int) -> dict[str, float]:
    """Return spans a second, and the median time of an answer."""
    figures: dict[str, float] = {}
    large, small = bodies(EXPORTS, EXPORTED), bodies(TRACES, TRACED)
    figures["bytes a span"] = len(large[0]) / EXPORTED
    for sent, spans, clients in ((large, EXPORTED, 1), (large, EXPORTED, 4), *((small, TRACED, n) for n in CLIENTS)):
        with served(schema_version) as workspace:
            send(workspace, sent[:1], 1)  # delta-rs and pyarrow are loaded
            wall, took = send(workspace, sent, clients)
            _check(workspace, spans * (len(sent) + 1))
        label = f"{spans} spans a request, {clients} client{'s' * (clients > 1)}"
        figures[f"{label}, spans a second"] = spans * len(sent) / wall
        figures[f"{label}, ms an answer"] = statistics.median(took) * 1000
    return figures


def commits() -> dict[str, float]:
    """Return the time of an answer, which is a commit each, as a table gets more of them; in ms."""
    sent = bodies(COMMITS, TRACED)
    with served() as workspace:
        took = send(workspace, sent, 1)[1]
    return {
        f"first {GROUP} of {COMMITS:,} requests, ms an answer": statistics.median(took[:GROUP]) * 1000,
        f"last {GROUP}, ms an answer": statistics.median(took[-GROUP:]) * 1000,
        "slowest one in a hundred, ms": statistics.quantiles(took, n=100)[-1] * 1000,
        "slowest, ms": max(took) * 1000,
    }


def memory() -> dict[str, float]:
    """Return the memory of the workspace's process, in MB, when its record of requests is full, and later."""
    sent = bodies(EXPORTS, EXPORTED)
    figures: dict[str, float] = {}
    with served() as workspace:
        for each in range(1, 2 * MEMORY_ROUNDS + 1):
            send(workspace, sent, 1)
            if each in {1, MEMORY_ROUNDS, 2 * MEMORY_ROUNDS}:
                figures[f"after {each * EXPORTS * EXPORTED:,} spans, MB"] = _resident_mb(workspace.pid)
    return figures


def start() -> dict[str, float]:
    """Return the time from the start of the interpreter to the first answer, with a table made or without."""
    programs = {
        "first answer, ms": STARTING.replace("TABLE", ""),
        "first answer with a span table made, ms": STARTING.replace("TABLE", MAKING),
    }
    figures = {}
    for label, program in programs.items():
        took = []
        for _ in range(STARTS):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            took.append((time.perf_counter() - begun) * 1000)
        figures[label] = statistics.median(took)
    return figures


def _check(workspace: Served, spans: int) -> None:
    from deltalake import DeltaTable

    found = DeltaTable(workspace.location).to_pyarrow_table(columns=["span_id"]).num_rows
    if found != spans:
        raise RuntimeError(f"The table has {found} spans, and {spans} were sent.")


def _resident_mb(pid: int) -> float:
    with open(f"/proc/{pid}/status") as file:
        return next(int(row.split()[1]) / 1024 for row in file if row.startswith("VmRSS"))


if __name__ == "__main__":
    figures = {
        "start": start(),
        "version 2": ingestion(2),
        "version 1": ingestion(1),
        "commits": commits(),
        "memory": memory(),
    }
    print(json.dumps(figures, indent=2))
