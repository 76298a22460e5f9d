"""What a commit costs as a table's log grows: milliseconds of the first and of the last of many small batches.

Run: make bench, or python -m benchmarks.committing
"""

from __future__ import annotations

import statistics
import tempfile
import time

from benchmarks.recording import ATTRIBUTES

COMMITS = 1000
GROUP = 100
SPANS = 20


def run() -> dict[str, float]:
    """Commit small batches one by one to one table; return the figures."""
    from tracelake.destinations.base import Batch
    from tracelake.destinations.delta import DeltaSink
    from tracelake.spans.record import SpanRecord

    now = time.time_ns()
    spans = [SpanRecord(f"{n:032x}", f"{n:016x}", "span", now, now, attributes=ATTRIBUTES) for n in range(1, SPANS + 1)]
    took: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        sink = DeltaSink(f"{directory}/spans", version=1, create=True)
        for number in range(1, COMMITS + 1):
            start = time.perf_counter()
            sink.write(Batch("bench", number, 700 * SPANS, lambda: iter([spans])))
            took.append((time.perf_counter() - start) * 1000)
    first, last = statistics.median(took[:GROUP]), statistics.median(took[-GROUP:])
    return {
        f"first {GROUP} commits, ms each": first,
        f"last {GROUP} of {COMMITS} commits, ms each": last,
        "last / first": last / first,
    }


if __name__ == "__main__":
    for label, figure in run().items():
        print(f"{label:50} {figure:10.1f}")
