"""What a program of MLflow code pays for its traces: to tracelake, and to MLflow's own exporters.

The same program, each time in a process of its own, several rounds in turn, so that a noisy machine is noisy for all of
them. Servers are processes of their own that are not counted; tracelake's shipper, which runs beside the app, is.
Run: make bench, or python -m benchmarks.mlflow [TRACES OF THE BURST]
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BURST = 20_000
ROUNDS = 3
# So many that MLflow's own queues hold them: a span that is discarded costs nothing.
TRACES = 300
REST_TRACES = 100
WARM_UP = 20
# MLflow's exporter makes a request a trace, and one every five spans: its cost a span depends on the spans of a trace.
KINDS = {"one span a trace": 1, "three spans a trace": 3}

CPU_WANTED, WALL_WANTED = 0.10, 0.60

PASSAGES = [{"id": number, "text": "A lakehouse keeps tables as open files. " * 3} for number in range(3)]
ANSWER = {"role": "assistant", "content": "A lakehouse keeps tables as open files, with transactions."}


def contender(name: str, traces: int, spans: int) -> None:
    """Make traces, and print the CPU of this process and the wall time of the making."""
    import mlflow
    from mlflow.entities.trace_location import UnityCatalog

    if name == "nothing":
        _export_nothing()
    elif name == "unity catalog":
        mlflow.set_experiment("/bench", trace_location=UnityCatalog("main", "obs", "agent"))
    elif name == "rest":
        mlflow.set_experiment("bench")

    @mlflow.trace(span_type="RETRIEVER")
    def search(question: str) -> list[dict[str, Any]]:  # noqa: ARG001
        return PASSAGES

    def answer(question: str) -> None:
        with mlflow.start_span("answer", span_type="AGENT") as span:
            span.set_inputs({"question": question})
            search(question)
            complete(question)
            span.set_outputs(ANSWER["content"])

    def complete(question: str) -> None:
        with mlflow.start_span("chat completion", span_type="LLM", attributes={"temperature": 0.1}) as call:
            call.set_inputs({"messages": [{"role": "user", "content": question}]})
            call.set_outputs(ANSWER)

    def make(count: int) -> None:
        for number in range(count):
            (answer if spans == 3 else complete)(f"What is a lakehouse, asked for the {number}th time?")

    make(WARM_UP)
    _flush(name)
    cpu, wall = time.process_time(), time.perf_counter()
    make(traces)
    wall = time.perf_counter() - wall
    _flush(name)
    count = traces * spans
    print(json.dumps({"cpu": (time.process_time() - cpu) / count * 1e6, "wall": wall / count * 1e6}), flush=True)


def _export_nothing() -> None:
    """Leave MLflow what it does for a trace under way, and nothing of what it does with one that ended."""
    import mlflow
    from mlflow.entities.trace_location import MlflowExperimentLocation
    from mlflow.tracing.export.mlflow_v3 import MlflowV3SpanExporter
    from mlflow.tracing.trace_manager import InMemoryTraceManager

    def export(_: object, spans: Any) -> None:
        for span in spans:
            if span.parent is None:
                InMemoryTraceManager.get_instance().pop_trace(span.context.trace_id)

    MlflowV3SpanExporter.export = export  # type: ignore[method-assign]
    mlflow.tracing.set_destination(MlflowExperimentLocation("0"))  # else it looks for the experiment with each trace


def _flush(name: str) -> None:
    """Wait until MLflow has sent what it has; tracelake's spans are in the spool by then."""
    import mlflow

    if name in ("unity catalog", "rest"):
        mlflow.flush_trace_async_logging()


class Bench:
    """Runs contenders, each with what it needs beside it, and counts what arrives."""

    def __init__(self, root: str) -> None:
        self._root = Path(root)
        self._runs = 0

    def run(self, name: str, traces: int, spans: int) -> dict[str, float]:
        """Run one contender; return its figures a span, and how many traces it lost."""
        self._runs += 1
        directory = self._root / str(self._runs)
        directory.mkdir()
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "TRACELAKE_"))}
        environ |= {"HOME": str(directory), "MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
        environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{directory}/mlflow.db"
        return getattr(self, "_run_" + name.replace(" ", "_"))(directory, environ, traces, spans)

    def _run_nothing(self, _: Path, environ: dict[str, str], traces: int, spans: int) -> dict[str, float]:
        return _contend("nothing", traces, spans, environ, MLFLOW_ENABLE_ASYNC_TRACE_LOGGING="false")

    def _run_tracelake(self, directory: Path, environ: dict[str, str], traces: int, spans: int) -> dict[str, float]:
        table = f"{directory}/spans"
        environ |= {
            "TRACELAKE_SPOOL_DIR": f"{directory}/spool",
            "TRACELAKE_DESTINATION": table,
            "TRACELAKE_SHIPPER": "external",
            "TRACELAKE_EXIT_TIMEOUT": "0",
        }
        command = [sys.executable, "-m", "tracelake", "ship"]
        shipper = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            found = _contend("tracelake", traces, spans, environ)
        finally:
            shipper.send_signal(signal.SIGTERM)  # it delivers what is there, and ends
            _, _, usage = os.wait4(shipper.pid, 0)
            shipper.returncode = 0
        from deltalake import DeltaTable

        rows = DeltaTable(table).to_pyarrow_dataset().count_rows()
        count = (traces + WARM_UP) * spans
        assert rows == count, f"{rows} rows of {count} spans"
        return {**found, "shipper": (usage.ru_utime + usage.ru_stime) / count * 1e6, "lost": 0}

    def _run_unity_catalog(self, _: Path, environ: dict[str, str], traces: int, spans: int) -> dict[str, float]:
        with _workspace() as url:
            environ |= {"MLFLOW_TRACKING_URI": "databricks", "DATABRICKS_HOST": url, "DATABRICKS_TOKEN": "token"}
            found = _contend("unity catalog", traces, spans, environ, DATABRICKS_CONFIG_FILE=os.devnull)
            with urllib.request.urlopen(f"{url}/counts?spans={spans}") as answer:
                counts = json.load(answer)
        assert not counts["unknown"], counts
        return {**found, "lost": traces + WARM_UP - counts["whole traces"]}

    def _run_rest(self, directory: Path, environ: dict[str, str], traces: int, spans: int) -> dict[str, float]:
        from tests.mlflow_server import run_mlflow_server

        with run_mlflow_server(directory) as server:
            return _contend("rest", traces, spans, environ, MLFLOW_TRACKING_URI=server.url)


def _contend(name: str, traces: int, spans: int, environ: dict[str, str], **more: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.mlflow", "--contender", name, str(traces), str(spans)]
    output = subprocess.run(
        command, env=environ | more, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


@contextlib.contextmanager
def _workspace() -> Iterator[str]:
    server = subprocess.Popen([sys.executable, "-m", "benchmarks.instant_workspace"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def run(kind: str, burst: int = BURST) -> dict[str, float]:
    """Run all contenders in turn, and then the bursts; return the figures."""
    spans = KINDS[kind]
    found: dict[str, list[dict[str, float]]] = {"nothing": [], "tracelake": [], "unity catalog": []}
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(directory)
        for _ in range(ROUNDS):
            for name, runs in found.items():
                runs.append(bench.run(name, TRACES, spans))
        rest = bench.run("rest", REST_TRACES, spans)
        ours, theirs = bench.run("tracelake", burst, spans), bench.run("unity catalog", burst, spans)
    lost = sum(item["lost"] for item in found["unity catalog"])
    assert not lost, f"MLflow discarded {lost:.0f} traces of the rounds, so its CPU is not that of all spans"
    cpu, wall = (
        {name: statistics.median(item[key] for item in runs) for name, runs in found.items()} for key in ("cpu", "wall")
    )
    return {
        "MLflow with no exporter, CPU us": cpu["nothing"],
        "MLflow to tracelake, CPU us of the app": cpu["tracelake"],
        "MLflow to tracelake, CPU us of the shipper": ours["shipper"],
        "MLflow to Unity Catalog, CPU us": cpu["unity catalog"],
        "MLflow to an MLflow server, CPU us": rest["cpu"],
        f"tracelake / Unity Catalog, CPU (wanted: {CPU_WANTED})": (cpu["tracelake"] + ours["shipper"])
        / cpu["unity catalog"],
        "MLflow with no exporter, wall us": wall["nothing"],
        "MLflow to tracelake, wall us": wall["tracelake"],
        "MLflow to Unity Catalog, wall us": wall["unity catalog"],
        "MLflow to an MLflow server, wall us": rest["wall"],
        f"tracelake / Unity Catalog, wall (wanted: {WALL_WANTED})": wall["tracelake"] / wall["unity catalog"],
        f"a burst of {burst:,} traces, tracelake, wall us": ours["wall"],
        f"a burst of {burst:,} traces, Unity Catalog, wall us": theirs["wall"],
        "traces of the burst that tracelake lost": ours["lost"],
        "traces of the burst that MLflow discarded": theirs["lost"],
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contender"]:
        contender(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        for title in KINDS:
            print(f"\nA span of MLflow, {title}")
            for label, figure in run(title, int(sys.argv[1]) if sys.argv[1:] else BURST).items():
                print(f"  {label:60} {figure:10.2f}")
