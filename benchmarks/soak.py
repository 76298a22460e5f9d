"""A long, steady run through each transport: memory, handles, threads and the table's files stay what they were.

An app and a shipper, each a process of its own, deliver spans in small batches. They are looked at after each tenth of
the spans, and at the end each span has to be there once. Exit code 1: something grew by more than GROWTH allows, or the
spans are not all there. Reads /proc, so it needs Linux.
Run: python -m benchmarks.soak [--spans N] [--rate N] [--transport NAME ...]
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from benchmarks import unity_catalog, workspace
from benchmarks.recording import ATTRIBUTES

SPANS = 1_000_000
RATE = 2_500
# What an MLflow server on SQLite keeps up with, for some two minutes.
MLFLOW_SPANS, MLFLOW_RATE = 5_000, 40
TRANSPORTS = ("delta", "s3", "uc-delta", "otlp", "mlflow")

_TRACE = 10
_TENTHS = 10
_COMMITS = 50
_WAIT_S = 600.0

# How much a figure of the last tenth may be above that of the first: times, and then plus. Files are put together when
# there are some 70, delivered segments go when they are full, and idle threads of delta-rs after ten seconds.
GROWTH = {
    "app, MB": (1.1, 8),
    "app, file descriptors": (1, 2),
    "app, threads": (1, 1),
    "shipper, MB": (1.3, 40),
    "shipper, file descriptors": (1, 32),  # connections to a store are made as they are needed, and kept
    "shipper, threads": (1, 30),
    "spool, KB": (1, 50_000),
    "active files": (1, 80),
}
# Files on disk grow with the spans, until `tracelake vacuum` removes those that are a week old. Times are for people: a
# machine with other work has any.


@dataclass(frozen=True)
class Place:
    """Where spans go: the target, the target to read them back from, and the directory of its files, if it has one."""

    target: str
    read: str = ""
    directory: str = ""
    database: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)


def app(spans: int, rate: int) -> None:
    """Record spans at a steady rate; print the first trace's id, and each tenth; end with the input."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    import tracelake

    provider = TracerProvider(resource=Resource.create({"service.name": "soak"}), shutdown_on_exit=False)
    provider.add_span_processor(tracelake.SpanRecorder())
    tracer = provider.get_tracer("soak", "1.0")
    start_s = time.monotonic()
    for number in range(_TRACE, spans + 1, _TRACE):
        with tracer.start_as_current_span("agent", attributes=ATTRIBUTES) as root:
            for _ in range(_TRACE - 1):
                with tracer.start_as_current_span("chat completion", attributes=ATTRIBUTES):
                    pass
        if number == _TRACE:
            print(f"{root.get_span_context().trace_id:032x}", flush=True)
        if number % (spans // _TENTHS) == 0:
            print(number, flush=True)
        time.sleep(max(0.0, start_s + number / rate - time.monotonic()))
    sys.stdin.read()


def soak(place: Place, spans: int, rate: int, spool: str) -> list[dict[str, float]]:
    """Deliver spans, and return the figures of each tenth.

    Raises:
        RuntimeError: not every span is there once.
    """
    environ = {
        **os.environ,
        **place.environ,
        "TRACELAKE_SPOOL_DIR": spool,
        "TRACELAKE_DESTINATION": place.target,
        "TRACELAKE_SHIPPER": "external",
        "TRACELAKE_BATCH_MAX_AGE": "0.2",
        "TRACELAKE_EXIT_TIMEOUT": "0",
    }
    quiet = {"env": environ, "stderr": subprocess.DEVNULL, "text": True}
    shipper = subprocess.Popen([sys.executable, "-m", "tracelake", "ship"], stdout=subprocess.DEVNULL, **quiet)
    command = [sys.executable, "-m", "benchmarks.soak", "app", str(spans), str(rate)]
    recorder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **quiet)
    assert recorder.stdout is not None
    tenths = []
    try:
        trace = recorder.stdout.readline().strip()
        _until(lambda: not place.read or _arrived(place, trace), "the first trace arrives")
        for _ in range(_TENTHS):
            recorder.stdout.readline()
            tenths.append(_look(place, recorder.pid, shipper.pid, spool, trace))
            print(".", end="", flush=True)
        recorder.communicate()
        _until(lambda: _delivered(spool), "all is delivered")
    finally:
        for process in (recorder, shipper):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(60)
    rows, distinct = _count(place)
    if rows != spans or distinct != spans:
        status = subprocess.run(
            [sys.executable, "-m", "tracelake", "status", "--json"], env=environ, capture_output=True
        )
        raise RuntimeError(
            f"{place.target} has {rows:,} rows of {distinct:,} spans, and {spans:,} were recorded: {status.stdout!r}"
        )
    return tenths


def grown(tenths: list[dict[str, float]]) -> list[str]:
    """Return the figures of the last tenth that are more than those of the first allow."""
    first, last = tenths[0], tenths[-1]
    return [name for name, (times, more) in GROWTH.items() if name in last and last[name] > first[name] * times + more]


def table_of(tenths: list[dict[str, float]]) -> Iterator[str]:
    """Yield the lines of a table: first and last tenth, their ratio, and the most of all tenths."""
    yield f"  {'':30} {'first':>10} {'last':>10} {'ratio':>7} {'most':>10}"
    for name, last in tenths[-1].items():
        first, most = tenths[0][name], max(tenth[name] for tenth in tenths)
        ratio = f"{last / first:.2f}" if first else "-"
        yield f"  {name:30} {first:10,.1f} {last:10,.1f} {ratio:>7} {most:10,.1f}"


@contextmanager
def served(transport: str, directory: str) -> Iterator[Place]:
    """Give a transport a place to lead to."""
    if transport == "delta":
        yield Place(f"{directory}/spans", f"{directory}/spans", f"{directory}/spans")
    elif transport in ("s3", "uc-delta"):
        with unity_catalog.served():
            target = "main.obs.spans" if transport == "uc-delta" else "s3://lake/plain"
            yield Place(target, target)
    elif transport == "otlp":
        with workspace.served(schema_version=1) as server:
            access = {
                "DATABRICKS_HOST": f"http://{server.host}",
                "DATABRICKS_TOKEN": server.headers["Authorization"].removeprefix("Bearer "),
                "DATABRICKS_CONFIG_FILE": os.devnull,
            }
            yield Place(workspace.TABLE, server.location, server.location, environ=access)
    else:
        from tests.mlflow_server import run_mlflow_server

        with run_mlflow_server(Path(directory)) as server:
            yield Place(server.url, database=str(next(Path(directory).rglob("*.db"))))


def _look(place: Place, recorder: int, shipper: int, spool: str, trace: str) -> dict[str, float]:
    figures = {
        **_process("app", recorder),
        **_process("shipper", shipper),
        "spool, KB": sum(map(_size, Path(spool).rglob("*"))) / 1000,
    }
    if place.read:
        figures |= _table(place, trace)
    return figures


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a note of the shipper's is gone as soon as it is read
        return 0


def _process(name: str, pid: int) -> dict[str, float]:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        f"{name}, MB": int(status["VmRSS"].split()[0]) / 1024,
        f"{name}, file descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        f"{name}, threads": int(status["Threads"]),
    }


def _table(place: Place, trace: str) -> dict[str, float]:
    from tracelake.destinations.targets import parse_target
    from tracelake.query.table import open_table
    from tracelake.query.traces import get_trace

    destination = parse_target(place.read)
    start = time.perf_counter()
    table = open_table(destination)
    opening = time.perf_counter() - start
    took = [
        float(entry["operationMetrics"]["execution_time_ms"])
        for entry in table.history(_COMMITS)
        if entry["operation"] == "WRITE" and "execution_time_ms" in entry.get("operationMetrics", {})
    ]
    start = time.perf_counter()
    get_trace(trace, destination)
    figures = {
        "active files": float(len(table.file_uris())),
        "a commit, ms": statistics.median(took),
        "opening the table, ms": opening * 1000,
        "a trace by its id, ms": (time.perf_counter() - start) * 1000,
    }
    if place.directory:
        figures["files on disk"] = len(list(Path(place.directory).glob("*.parquet")))
        figures["log files"] = len(os.listdir(f"{place.directory}/_delta_log"))
    return figures


def _arrived(place: Place, trace: str) -> bool:
    from tracelake.destinations.targets import parse_target
    from tracelake.errors import QueryError
    from tracelake.query.traces import get_trace

    try:
        return bool(get_trace(trace, parse_target(place.read)))
    except QueryError:
        return False


def _delivered(spool: str) -> bool:
    from tracelake.spool.lane import Spool
    from tracelake.spool.ledger import pending_bytes

    return not any(pending_bytes(lane) for lane in Spool(spool).lanes())


def _until(look: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + _WAIT_S
    while not look():
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"not within {_WAIT_S:.0f} s: {what}")
        time.sleep(0.1)


def _count(place: Place) -> tuple[int, int]:
    """Return how many rows there are, and of how many spans."""
    if place.database:
        import sqlite3

        with sqlite3.connect(place.database) as connection:
            found = connection.execute("SELECT count(*), count(DISTINCT trace_id || span_id) FROM spans").fetchone()
    else:
        import duckdb

        from tracelake.destinations.targets import parse_target
        from tracelake.query.table import open_table

        with duckdb.connect() as duck:
            duck.register("spans", open_table(parse_target(place.read)).to_pyarrow_dataset())
            found = duck.sql("SELECT count(*), count(DISTINCT concat(trace_id, span_id)) FROM spans").fetchall()[0]
    return int(found[0]), int(found[1])


def run(transport: str, spans: int, rate: int) -> bool:
    """Soak one transport and print what is found; say whether all is well."""
    if transport == "mlflow":
        spans, rate = min(spans, MLFLOW_SPANS), min(rate, MLFLOW_RATE)
    print(f"\n{transport}: {spans:,} spans at {rate:,} a second ", end="", flush=True)
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        place = stack.enter_context(served(transport, directory))
        stack.enter_context(mock.patch.dict(os.environ, place.environ))
        start_s = time.monotonic()
        tenths = soak(place, spans, rate, f"{directory}/spool")
    print(f" {time.monotonic() - start_s:.0f} s, each span once")
    for line in table_of(tenths):
        print(line)
    found = grown(tenths)
    for name in found:
        print(f"  {name}: grew by more than it may")
    return not found


def main() -> int:
    """Soak the transports that are asked for, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spans", type=int, default=SPANS, help="of each transport (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=RATE, help="spans a second (default: %(default)s)")
    parser.add_argument("--transport", nargs="+", choices=TRANSPORTS, default=TRANSPORTS)
    arguments = parser.parse_args()
    well = [run(each, arguments.spans, arguments.rate) for each in arguments.transport]
    return 0 if all(well) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["app"]:
        app(int(sys.argv[2]), int(sys.argv[3]))
    else:
        sys.exit(main())
