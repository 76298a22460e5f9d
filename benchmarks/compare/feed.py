"""Spans in the spool as a recorder leaves them, made without an SDK because that takes five times as long.

`python -m benchmarks.compare.feed FIRST LAST` records the spans of these numbers, and waits while too much of what it
wrote is not delivered.
"""

from __future__ import annotations

import json
import sys
import time

from benchmarks.compare import spans

# The spans whose texts come again and again, each time in another file of the table: about a batch.
POOL = 20_000
_BACKLOG_BYTES = 256 * 2**20


def feed(first: int, last: int) -> list[str]:
    """Record spans, and return the ids of some of their traces: one of each `POOL`."""
    from tracelake.recorder.recorder import Recorder
    from tracelake.settings import load_settings
    from tracelake.spool.lane import Spool
    from tracelake.spool.ledger import pending_bytes

    settings = load_settings()
    recorder = Recorder(settings, Spool(settings.spool_dir))
    writers = recorder.environment_route().writers
    pool = spans.records(min(POOL, last - first))
    trace_ids = []
    for begin in range(first, last, POOL):
        spans.renew(pool, begin)
        for record in pool[: last - begin]:
            recorder.record(record, writers)
        trace_ids.append(pool[0].trace_id)
        while pending_bytes(writers[0].lane) > _BACKLOG_BYTES:
            time.sleep(0.05)
    return trace_ids


if __name__ == "__main__":
    print(json.dumps({"trace_ids": feed(int(sys.argv[1]), int(sys.argv[2]))}))
