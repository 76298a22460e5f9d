"""The promise, under `kill -9`: a span whose `on_end` returned is in the table, once.

Apps write a journal: after `on_end` has returned, the span's ids, in one `write()`. What is in a journal has to be in
the table; what is in the table has to be there once. Seeds choose the moments; a few run by default, many more when
slow tests do.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lake import Lake, wait_until
from tests.numbered import add_segment, ids, lines, numbers
from tracelake.settings import Settings
from tracelake.shipper import launch
from tracelake.shipper.service import Shipper
from tracelake.spool.lane import Lane
from tracelake.spool.ledger import pending_bytes, read_in_flight, read_ledger

APP = """
import os, sys, threading, time
from opentelemetry.sdk.trace import TracerProvider
from tracelake import SpanRecorder

journal = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SpanRecorder())
tracer = provider.get_tracer("kill")
pause_s = float(sys.argv[3])

def work():
    while True:
        span = tracer.start_span("work", attributes={"text": "x" * 50})
        span.end()
        context = span.get_span_context()
        os.write(journal, b"%032x %016x\\n" % (context.trace_id, context.span_id))
        time.sleep(pause_s)

for _ in range(int(sys.argv[2])):
    threading.Thread(target=work).start()
"""

# Small files and small batches: many rotations and many commits for a kill to fall into.
SMALL = {"TRACELAKE_SEGMENT_MAX_BYTES": "100KB", "TRACELAKE_BATCH_MAX_BYTES": "300KB", "TRACELAKE_BATCH_MAX_AGE": "0.1"}


def seeds(few: int, many: int) -> list[object]:
    """Return the parameters of a test: a few seeds, and many more that are slow."""
    return [*range(few), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(few, many))]


@dataclass
class Crowd:
    """Apps that record until they are killed, and the journals they leave."""

    lake: Lake
    journals: list[Path] = field(default_factory=list)

    def start(self, threads: int, pause_s: float = 0) -> subprocess.Popen[str]:
        """Start an app, and wait until it records."""
        journal = self.lake.root / f"journal-{len(self.journals)}"
        self.journals.append(journal)
        app = self.lake.start(sys.executable, "-c", APP, str(journal), str(threads), str(pause_s), **SMALL)
        wait_until(lambda: journal.exists() and journal.stat().st_size > 0, f"the app records: {self.lake.output(app)}")
        return app

    def check(self) -> None:
        """Deliver the rest, and compare the journals with the table."""
        deliver_rest(self.lake)
        journal = Counter(
            tuple(text.decode().split())
            for path in self.journals
            for text in path.read_bytes().splitlines(keepends=True)
            if text.endswith(b"\n")
        )
        found = Counter(ids(self.lake.table))
        assert [key for key, times in found.items() if times > 1] == []
        assert set(journal) - set(found) == set()
        assert sum(journal.values()) > 0
        # Recorded, but killed before it was in the journal: at most one span a thread.
        assert len(set(found) - set(journal)) <= 16 * len(self.journals)


def deliver_rest(lake: Lake) -> None:
    """Wait for the shippers that run, then deliver what is left, as the next app's shipper would."""
    while any(pending_bytes(lane) for lane in lake.spool.lanes()):
        shipper = Shipper(lake.spool, Settings(), serves=lambda *_: True)
        shipper.drain()
        shipper.release()
        time.sleep(0.05)
    lake.settle()


@pytest.fixture
def environment(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shippers that this process starts have the settings of the lake, and small batches."""
    for name, value in {**lake.environ, **SMALL}.items():
        if name.startswith("TRACELAKE_"):
            monkeypatch.setenv(name, value)


@contextlib.contextmanager
def shipper_process(lake: Lake) -> Iterator[int]:
    """Have a shipper process run, and give its id; killed afterwards."""
    before = len(lake.shippers())
    wait_until(lambda: launch.start_process(lake.spool, {}) == "started", "a shipper is started")
    pid = wait_until(lambda: lake.shippers()[before:], "the shipper is up")[0]
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("seed", seeds(1, 40))
def test_app_killed_at_any_moment_loses_nothing(lake: Lake, seed: int) -> None:
    """Sixteen threads record when the kill comes; what they noted after `on_end` is in the table."""
    moments = random.Random(seed)
    crowd = Crowd(lake)
    app = crowd.start(16)
    time.sleep(moments.uniform(0, 0.5))
    app.kill()
    assert app.wait(20) == -signal.SIGKILL
    crowd.check()


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("seed", seeds(1, 20))
@pytest.mark.slow
def test_shipper_killed_at_any_moment_repeats_and_loses_nothing(lake: Lake, seed: int) -> None:
    """Eight kills of one shipper after the other, while they deliver a backlog in small batches."""
    moments = random.Random(seed)
    lane = backlog(lake, 30_000)
    kills = 0
    while pending_bytes(lane) and kills < 8:
        with shipper_process(lake):
            time.sleep(moments.uniform(0.05, 0.5))
        kills += 1
    assert kills > 2
    deliver_rest(lake)
    assert numbers(lake.table) == list(range(30_000))
    assert read_ledger(lane).delivered == 30_000


def backlog(lake: Lake, spans: int) -> Lane:
    """Fill a lane with spans of writers that are gone."""
    lake.spool.create()
    lane = lake.spool.lane(lake.table, {})
    lane.create(lake.table, {})
    for first in range(0, spans, 1000):
        add_segment(lane, lines(range(first, min(first + 1000, spans))))
    return lane


def committed(lake: Lake) -> int:
    """Return the number of log entries of the table."""
    log = os.path.join(lake.table, "_delta_log")
    return sum(name.endswith(".json") for name in os.listdir(log)) if os.path.isdir(log) else 0


def noted_and_not_committed(lake: Lake, lane: Lane) -> bool:
    """Say whether a batch is in flight that is not in the table yet."""
    note = read_in_flight(lane)
    return note is not None and note.batch > read_ledger(lane).batch and committed(lake) == note.batch


def committed_and_not_acknowledged(lake: Lake, lane: Lane) -> bool:
    """Say whether a batch is in flight whose commit is there, and whose ack is not."""
    note = read_in_flight(lane)
    return note is not None and note.batch > read_ledger(lane).batch and committed(lake) == note.batch + 1


def acknowledged_and_not_cleared(lake: Lake, lane: Lane) -> bool:
    """Say whether a batch's ack is there, and its note still is."""
    note = read_in_flight(lane)
    return note is not None and note.batch == read_ledger(lane).batch and committed(lake) == note.batch + 1


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    "moment", [noted_and_not_committed, committed_and_not_acknowledged, acknowledged_and_not_cleared]
)
@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_shipper_killed_at_each_step_of_a_batch(lake: Lake, moment: Callable[[Lake, Lane], bool], kills: int) -> None:
    """The shipper is stopped when the files say that it is between two steps, and killed there."""
    lane = backlog(lake, 2000)
    next_number = 2000
    hits = 0
    while hits < kills:
        if pending_bytes(lane) < 200_000:
            add_segment(lane, lines(range(next_number, next_number + 2000)))
            next_number += 2000
        with shipper_process(lake) as pid:
            hits += stopped_at(pid, lambda: moment(lake, lane), lambda: not pending_bytes(lane))
    deliver_rest(lake)
    assert numbers(lake.table) == list(range(next_number))
    assert read_ledger(lane).delivered == next_number


def stopped_at(pid: int, is_there: Callable[[], bool], is_over: Callable[[], bool]) -> bool:
    """Stop a process as soon as something is so, and say whether it still was when the process stood still."""
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s and not is_over():
        if not is_there():
            continue
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: _state(pid) in {"T", "Z", ""}, "the process stands still")
        if is_there():
            return True
        os.kill(pid, signal.SIGCONT)
    return False


def _state(pid: int) -> str:
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return found[:1]


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("seed", seeds(0, 20))
def test_apps_and_shippers_killed_together(lake: Lake, seed: int) -> None:
    """Several rounds: an app records, its shipper delivers, and either dies at any moment."""
    moments = random.Random(seed)
    crowd = Crowd(lake)
    for _ in range(3):
        app = crowd.start(4, pause_s=0.0002)
        for _ in range(2):
            with contextlib.suppress(IndexError, ProcessLookupError):
                time.sleep(moments.uniform(0, 0.4))
                os.kill(lake.shippers()[-1], signal.SIGKILL)
            launch.start_process(lake.spool, {})
        time.sleep(moments.uniform(0, 0.3))
        app.kill()
        app.wait(20)
    crowd.check()


@pytest.mark.parametrize("seed", seeds(1, 10))
@pytest.mark.slow
def test_processes_at_once_killed_one_after_the_other(lake: Lake, seed: int) -> None:
    """Eight processes record to one table at once, and die in any order; one shipper delivers for all."""
    moments = random.Random(seed)
    crowd = Crowd(lake)
    apps = [crowd.start(2, pause_s=0.002) for _ in range(8)]
    moments.shuffle(apps)
    for app in apps:
        time.sleep(moments.uniform(0, 0.2))
        app.kill()
        app.wait(20)
    crowd.check()
    assert len(lake.shippers()) <= 2


FORKING = """
import os, sys
exec(open(sys.argv[4]).read())
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
while True:
    pid = os.fork()
    if not pid:
        for _ in range(20):
            span = tracer.start_span("child")
            span.end()
            context = span.get_span_context()
            os.write(journal, b"%032x %016x\\\\n" % (context.trace_id, context.span_id))
        os._exit(0)
    os.waitpid(pid, 0)
"""


@pytest.mark.parametrize("seed", seeds(1, 10))
def test_app_killed_while_it_forks_loses_nothing(lake: Lake, seed: int) -> None:
    """Children are forked between the writes, rotations and launches of four threads; then all is killed."""
    moments = random.Random(seed)
    crowd = Crowd(lake)
    program = lake.root / "app.py"
    program.write_text(APP)
    journal = lake.root / "journal-forks"
    crowd.journals.append(journal)
    source = FORKING.replace("\\\\n", "\\n")
    app = lake.start(sys.executable, "-c", source, str(journal), "0", "0.0005", str(program), **SMALL)
    wait_until(lambda: journal.exists() and journal.stat().st_size > 100_000, f"the app records: {lake.output(app)}")
    time.sleep(moments.uniform(0, 1.0))
    app.kill()
    app.wait(20)
    crowd.check()
