"""What Unity Catalog adds to a delivery, and what a commit takes when many write to one table.

The mocked workspace and an S3 server are processes of their own; the writers are in this one.
Run: make bench, or python -m benchmarks.unity_catalog
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple
from unittest import mock

from benchmarks.workspace import ATTRIBUTES

if TYPE_CHECKING:
    from tracelake import Sink, SpanRecord

# Spans of a batch, and batches of each way in turn.
SIZES = ((200, 40), (20_000, 10))
# Writers, and batches of each.
WRITERS = ((1, 64), (4, 24), (16, 8))
SPANS = 20

# Both end when their input does, which is when this process ends. The table is made as a plain one is.
WORKSPACE = """
import sys
from tracelake.destinations.delta import DeltaDestination
from tracelake.testing import MockWorkspace
DeltaDestination.parse(sys.argv[2]).open().begin()
with MockWorkspace() as workspace:
    workspace.create_schema("main.obs")
    workspace.use_s3(sys.argv[1], "AKIALAKE", "0nlyF0rTheW0rkspace")
    workspace.grant("EXTERNAL USE SCHEMA", on="main.obs", to=workspace.user)
    workspace.create_table("main.obs.spans", location=sys.argv[2])
    print(workspace.serve(), workspace.environment()["DATABRICKS_TOKEN"], flush=True)
    sys.stdin.read()
"""
S3 = """
import sys
from moto.server import ThreadedMotoServer
ours, sys.stdout = sys.stdout, sys.stderr
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=True)
server.start()
print("http://%s:%d" % server.get_host_and_port(), file=ours, flush=True)
sys.stdin.read()
"""


class Lake(NamedTuple):
    """Where tables are, and what the S3 server wrote of its requests."""

    log: Path

    def conflicts(self) -> int:
        """Return how many commits found that another was faster, and were made after it."""
        return len(re.findall(r'"(?:\x1b\[\d+m)*PUT \S*/_delta_log/\d+\.json [^"]*" 412', self.log.read_text()))


@contextmanager
def served(*, on_s3: bool = True) -> Iterator[Lake]:
    """Serve a workspace with a span table, on an S3 server or in a directory, and lead this process there."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        log, location = Path(directory, "s3.log"), "s3://lake/spans" if on_s3 else f"{directory}/spans"
        with log.open("w") as errors:
            (s3,) = stack.enter_context(_started(S3, errors=errors))
            urllib.request.urlopen(urllib.request.Request(f"{s3}/lake", method="PUT"), timeout=60).close()
            access = {
                "AWS_ENDPOINT_URL": s3,
                "AWS_ALLOW_HTTP": "true",
                "AWS_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": "AKIAPLAIN",
                "AWS_SECRET_ACCESS_KEY": "0fThePlainTable",
            }
            with mock.patch.dict(os.environ, access):
                url, token = stack.enter_context(_started(WORKSPACE, s3, location))
                access = {"DATABRICKS_HOST": url, "DATABRICKS_TOKEN": token, "DATABRICKS_CONFIG_FILE": os.devnull}
                with mock.patch.dict(os.environ, access):
                    yield Lake(log)


@contextmanager
def _started(program: str, *arguments: str, errors: IO[str] | None = None) -> Iterator[list[str]]:
    """Run a server, and give the words that it prints when it listens."""
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()
        finally:
            process.communicate()


def direct(spans: int, batches: int) -> dict[str, float]:
    """Write batches to a table of the catalog and to a plain Delta table on the same store in turn; return figures."""
    wall: dict[str, list[float]] = {"plain": [], "catalog": []}
    cpu: dict[str, list[float]] = {"plain": [], "catalog": []}
    with served(), ExitStack() as stack:
        sinks = {
            "plain": stack.enter_context(closing(_open("s3://lake/plain"))),
            "catalog": stack.enter_context(closing(_open("main.obs.spans"))),
        }
        records = _records(spans)
        for number in range(1, batches + 2):
            # Each goes first half of the time; the first round makes tables and asks for credentials.
            for way in sorted(sinks, reverse=bool(number % 2)):
                start, used = time.perf_counter(), time.process_time()
                _write(sinks[way], "bench", number, records)
                if number > 1:
                    wall[way].append(time.perf_counter() - start)
                    cpu[way].append(time.process_time() - used)
    figures = {f"{way}, ms a batch": statistics.median(wall[way]) * 1000 for way in wall}
    figures |= {f"{way}, ms of CPU a batch": statistics.fmean(cpu[way]) * 1000 for way in cpu}
    figures["catalog / plain, wall time"] = statistics.median(wall["catalog"]) / statistics.median(wall["plain"])
    figures["catalog / plain, CPU"] = sum(cpu["catalog"]) / sum(cpu["plain"])
    return figures


def writers(count: int, batches: int, *, on_s3: bool) -> dict[str, float]:
    """Have as many write to one table at once, each its own batches; return figures."""
    took: list[float] = []
    lost: list[int] = []
    with served(on_s3=on_s3) as lake:
        _write(_open("main.obs.spans"), "first", 1, _records(SPANS))

        def deliver(writer: int) -> None:
            from tracelake import TransientDeliveryError

            with closing(_open("main.obs.spans")) as sink:
                ready.wait()
                for number in range(1, batches + 1):
                    start = time.perf_counter()
                    while True:
                        try:
                            _write(sink, f"writer-{writer}", number, _records(SPANS))
                            break
                        except TransientDeliveryError:
                            lost.append(writer)
                    took.append(time.perf_counter() - start)

        ready = threading.Barrier(count)
        threads = [threading.Thread(target=deliver, args=(writer,)) for writer in range(count)]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall = time.perf_counter() - begun
        conflicts = lake.conflicts()
    if len(took) != count * batches:
        raise RuntimeError(f"{len(took)} of {count * batches} batches were written.")
    quantiles = statistics.quantiles(took, n=100, method="inclusive")
    return {
        "commits a second": len(took) / wall,
        "ms a batch, p50": quantiles[49] * 1000,
        "ms a batch, p99": quantiles[98] * 1000,
        **({"conflicts a batch": conflicts / len(took)} if on_s3 else {}),
        "batches that had to be uploaded again": len(lost),
    }


def _open(target: str) -> Sink:
    from tracelake.destinations.targets import parse_target

    return parse_target(target).open()


def _write(sink: Sink, app_id: str, number: int, records: list[SpanRecord]) -> None:
    from tracelake import Batch

    sink.write(Batch(app_id, number, 900 * len(records), lambda: iter([records])))


def _records(count: int) -> list[SpanRecord]:
    from tracelake import SpanRecord

    now = time.time_ns()
    return [SpanRecord(f"{n:032x}", f"{n:016x}", "chat", now, now, attributes=ATTRIBUTES) for n in range(1, count + 1)]


def run() -> dict[str, dict[str, float]]:
    """Return all figures, by what they are of."""
    figures = {f"{spans:,} spans a batch": direct(spans, batches) for spans, batches in SIZES}
    for store, on_s3 in (("a directory", False), ("S3", True)):
        for count, batches in WRITERS:
            figures[f"{count} writers, {store}"] = writers(count, batches, on_s3=on_s3)
    return figures


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
