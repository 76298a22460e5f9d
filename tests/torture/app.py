"""An app that records until it is ended, and keeps a journal of each of its processes: `journal.py` reads them."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, set_span_in_context

import tracelake
from tracelake.recorder.recorder import current_recorder
from tracelake.spool.writer import LaneWriter

DIRECTORY, PLAN = sys.argv[1], json.loads(sys.argv[2])
TRACE_SPANS = 10
CHILDREN = 3

stopping = False
fates = threading.local()
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(tracelake.SpanRecorder())
tracer = provider.get_tracer("torture")

_append = LaneWriter.append


def observed(self: LaneWriter, line: bytes) -> bool:
    """Note for this thread whether a lane took the span; nothing is changed."""
    kept = _append(self, line)
    fates.last[self.lane.name] = kept
    return kept


LaneWriter.append = observed  # type: ignore[method-assign]


class Journal:
    """What this process did: a line before and after each span's end, each in one `write()`."""

    def open(self) -> None:
        """Begin the journal of this process."""
        self.lanes = [writer.lane.name for writer in current_recorder().default_route().writers]
        path = os.path.join(DIRECTORY, f"{os.getpid()}-{time.monotonic_ns()}.journal")
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.write(f"lanes {' '.join(self.lanes)}")

    def write(self, text: str) -> None:
        os.write(self._file, f"{text}\n".encode())


journal = Journal()


def end(span: Span) -> None:
    """End a span, and journal where it went."""
    context = span.get_span_context()
    key = f"{context.trace_id:032x} {context.span_id:016x}"
    journal.write(f"> {key}")
    fates.last = {}
    span.end()
    kept = "".join({True: "1", False: "0", None: "?"}[fates.last.get(lane)] for lane in journal.lanes)
    journal.write(f"< {key} {kept}")
    time.sleep(PLAN["pause_s"])


def record(until_s: float = float("inf")) -> None:
    """Record traces of a root and its children, until the app is told to stop."""
    attributes = {"text": "x" * PLAN["text_bytes"]}
    while not stopping and time.monotonic() < until_s:
        root = tracer.start_span("root", attributes=attributes)
        for _ in range(TRACE_SPANS - 1):
            end(tracer.start_span("child", set_span_in_context(root), attributes=attributes))
            if stopping:
                break
        end(root)


def serve() -> None:
    """Record in threads, and fork children in between that record, too."""
    threads = [threading.Thread(target=record) for _ in range(PLAN["threads"])]
    for thread in threads:
        thread.start()
    parent = os.getppid()
    children: set[int] = set()
    # A worker whose parent is gone ends, as those of gunicorn do; and so does an app whose driver is.
    while not stopping and os.getppid() == parent:
        time.sleep(0.05)
        if PLAN["forks"] and len(children) < CHILDREN:
            children.add(fork(lambda: record(time.monotonic() + 1)))
        children -= {pid for pid in children if os.waitpid(pid, os.WNOHANG)[0]}
    stop()
    for thread in threads:
        thread.join()
    for pid in children:
        os.waitpid(pid, 0)


def finish() -> None:
    """Journal what the process's own report says."""
    report = tracelake.flush(1)
    counts = (report.recorded, report.delivered, report.pending, report.dropped, report.quarantined)
    journal.write("= " + " ".join(map(str, counts)))


def manage() -> None:
    """Keep workers running, as a pre-fork server does."""
    workers = {fork(serve) for _ in range(PLAN["workers"])}
    driver = os.getppid()
    while not stopping and os.getppid() == driver:
        time.sleep(0.05)
        gone = {pid for pid in workers if os.waitpid(pid, os.WNOHANG)[0]}
        workers = workers - gone | ({fork(serve) for _ in gone} if not stopping else set())
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    for pid in workers:
        os.waitpid(pid, 0)


def fork(run: Callable[[], None]) -> int:
    """Fork a child that runs a function and ends as a program does."""
    pid = os.fork()
    if not pid:
        journal.open()
        run()
        finish()
        sys.exit()
    return pid


def stop(*_: object) -> None:
    global stopping
    stopping = True


signal.signal(signal.SIGTERM, stop)
if PLAN["workers"]:
    manage()
else:
    journal.open()
    serve()
    finish()
