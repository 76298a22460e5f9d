"""What opening a span table costs after many commits: with checkpoints as a shipper leaves them, and without any.

Run: make bench, or python -m benchmarks.opening
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

from tracelake.destinations.base import Batch
from tracelake.destinations.delta import DeltaSink
from tracelake.destinations.targets import parse_target
from tracelake.query.table import open_table
from tracelake.spans.record import SpanRecord

COMMITS = 10_000
TRIES = 11
_CHECKPOINT = 20  # commits between two of a shipper's


def run() -> dict[str, float]:
    """Return milliseconds that opening takes, the median of some tries."""
    figures = {}
    for label, since in ((f"checkpoint {_CHECKPOINT - 1} commits ago", _CHECKPOINT - 1), ("no checkpoint", COMMITS)):
        with tempfile.TemporaryDirectory() as directory:
            _make(Path(directory, "spans"), since)
            figures[f"{COMMITS:,} commits, {label}, ms"] = _opened_ms(f"{directory}/spans")
    return figures


def _make(path: Path, since: int) -> None:
    """Make a table of many commits, of which the last so many are after the last checkpoint.

    Commits are copies of a real one under other names of its file: what opening reads is the log alone.
    """
    from deltalake import DeltaTable

    now = time.time_ns()
    span = SpanRecord("a" * 32, "b" * 16, "span", now, now)
    DeltaSink(str(path), version=1, create=True).write(Batch("bench", 1, 700, lambda: iter([[span]])))
    log = path / "_delta_log"
    actions = [json.loads(line) for line in (log / f"{1:020d}.json").read_text().splitlines()]
    (add,) = (action["add"] for action in actions if "add" in action)
    name = add["path"]
    for version in range(2, COMMITS + 1):
        if version == COMMITS - since + 1:
            DeltaTable(str(path)).create_checkpoint()
        add["path"] = f"{version}-{name}"
        (log / f"{version:020d}.json").write_text("\n".join(map(json.dumps, actions)))


def _opened_ms(location: str) -> float:
    destination = parse_target(location)
    took = []
    for _ in range(TRIES):
        begun_s = time.perf_counter()
        open_table(destination)
        took.append((time.perf_counter() - begun_s) * 1000)
    return statistics.median(took[1:])


if __name__ == "__main__":
    for label, figure in run().items():
        print(f"{label:50} {figure:10.1f}")
