"""The writer: every line it says is in the spool is there, whole and once; every other one is counted."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lake import Lake
from tests.numbered import line, numbers
from tests.spool.conftest import MIB
from tracelake.settings import Settings
from tracelake.shipper.lane import LaneShipper
from tracelake.spans.line import decode_line
from tracelake.spool.lane import Lane, Spool
from tracelake.spool.ledger import read_account, read_refusals
from tracelake.spool.writer import LaneWriter

NewWriter = Callable[..., LaneWriter]


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def written(lane: Lane) -> list[bytes]:
    """Return every line of every segment; a torn one has no newline."""
    return [text for segment in lane.segments() for _, text in segment.lines(0, segment.size())]


def test_appended_line_is_in_the_file_at_once(lane: Lane, new_writer: NewWriter) -> None:
    """Nothing waits in the process: what is appended can be read by another."""
    writer = new_writer(lane)
    assert writer.append(line(1))
    assert written(lane) == [line(1)]
    assert (writer.written, writer.refused, writer.lost) == (1, 0, 0)


def test_segment_rotates_by_size(lane: Lane, new_writer: NewWriter) -> None:
    """No segment grows past its size but one that holds a single longer line; only the last is open."""
    writer = new_writer(lane, segment_max_bytes=1000)
    big = line(0, "x" * 5000)
    for text in (line(1), line(2), line(3), line(4), line(5), big, line(6)):
        assert writer.append(text)
    segments = lane.segments()
    assert written(lane) == [line(1), line(2), line(3), line(4), line(5), big, line(6)]
    assert [segment.size() for segment in segments if segment.size() > 1000] == [len(big)]
    assert [segment.is_open() for segment in segments] == [False] * (len(segments) - 1) + [True]


def test_byte_bound_refuses_and_counts(lane: Lane, new_writer: NewWriter) -> None:
    """A lane that is full takes no more, says why in a note, and takes spans again once some are delivered."""
    clock = Clock()
    writer = new_writer(lane, max_bytes=64 * 1024, clock=clock)
    kept = 0
    while writer.append(line(kept, "x" * 1000)):
        kept += 1
    refused = 1 + sum(not writer.append(line(kept)) for _ in range(9))
    assert refused == 10
    assert (writer.written, writer.refused) == (kept, 10)
    assert 63 * 1024 <= sum(segment.size() for segment in lane.segments()) <= 64 * 1024 * 17 // 16 + 2000
    writer.note_refusals()
    [note] = read_refusals(lane)
    assert note.spans == 10
    assert "TRACELAKE_SPOOL_MAX_BYTES is 65536" in note.reason
    LaneShipper(lane, Settings()).ship(flush=True)
    clock.now_s += 0.2
    assert writer.append(line(kept))


def test_byte_bound_holds_for_all_writers_together(lane: Lane, new_writer: NewWriter) -> None:
    """The bound is that of the lane: each writer sees what the others wrote, a sixteenth of the bound later."""
    writers = [new_writer(lane, max_bytes=64 * 1024) for _ in range(4)]
    while sum(writer.append(line(1, "x" * 1000)) for writer in writers):
        continue
    total = sum(segment.size() for segment in lane.segments())
    assert 64 * 1024 <= total <= 64 * 1024 * (1 + 4 / 16) + 4 * 2000


def test_threads_write_whole_lines(lane: Lane, new_writer: NewWriter) -> None:
    """Threads that append while segments rotate tear, lose and repeat nothing."""
    writer = new_writer(lane, segment_max_bytes=4096)

    def append(first: int) -> None:
        for number in range(first, first + 500):
            assert writer.append(line(number))

    threads = [threading.Thread(target=append, args=(first,)) for first in range(0, 4000, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(decode_line(text).span_id, 16) for text in written(lane)) == list(range(4000))
    assert (writer.written, writer.refused) == (4000, 0)


INTERRUPTED = """
import gc, json, signal, sys, threading
from tests.numbered import line
from tracelake.spool.lane import Spool
from tracelake.spool.writer import LaneWriter

spool = Spool(sys.argv[1])
lane = spool.lane("table", {})

def prepare():
    spool.create()
    lane.create("table", {})

writer = LaneWriter(lane, prepare=prepare, max_bytes=2**26, segment_max_bytes=2000)
inside = 0

class Finalized:
    def __init__(self):
        self.itself = self
    def __del__(self):
        append()

def append(*_):
    global inside
    inside += 1
    assert writer.append(line(10**6 + inside))
    if sys.argv[2] == "signal":
        signal.setitimer(signal.ITIMER_REAL, 0.0002)

if sys.argv[2] == "signal":
    signal.signal(signal.SIGALRM, append)
    signal.setitimer(signal.ITIMER_REAL, 0.0002)
else:
    gc.set_threshold(3)
for number in range(20_000):
    if sys.argv[2] != "signal" and number % 10 == 0:
        Finalized()
    assert writer.append(line(number))
signal.signal(signal.SIGALRM, signal.SIG_IGN)
gc.collect()
gc.set_threshold(700)
print(writer.written, writer.refused, inside)
"""


@pytest.mark.parametrize("kind", ["signal", "finalizer"])
@pytest.mark.slow
def test_append_inside_an_append_loses_nothing(lake: Lake, kind: str) -> None:
    """A signal handler, or a finalizer, that records a span while a span is being recorded: both are there."""
    root = str(Path(__file__).parents[2])
    output = lake.run(INTERRUPTED, lake.spool.path, kind, PYTHONPATH=root)
    count, refused, inside = map(int, output.split())
    [lane] = lake.spool.lanes()
    found = Counter(int(decode_line(text).span_id, 16) for text in written(lane))
    assert inside > 20
    assert found == Counter([*range(20_000), *range(10**6 + 1, 10**6 + inside + 1)])
    assert (count, refused) == (20_000 + inside, 0)


def test_removed_spool_is_made_anew_and_its_loss_counted(lake: Lake, lane: Lane, new_writer: NewWriter) -> None:
    """Somebody removes the spool under a running app: what was in it is counted as lost, what follows is recorded."""
    clock = Clock()
    writer = new_writer(lane, clock=clock)
    for number in range(3):
        writer.append(line(number))
    shutil.rmtree(lake.spool.path)
    clock.now_s += 1.1
    assert writer.append(line(4))
    assert written(lane) == [line(4)]
    assert (writer.written, writer.lost, writer.refused) == (4, 3, 0)
    [note] = read_refusals(lane)
    assert (note.spans, note.reason) == (3, "the segment was removed before it was delivered")
    assert read_account(lane, writer.name, writer.written).pending == 1


def test_spool_moved_away_is_made_anew(lake: Lake, lane: Lane, new_writer: NewWriter) -> None:
    """A segment that goes on existing elsewhere is delivered by nobody, so nothing more is written to it."""
    clock = Clock()
    writer = new_writer(lane, clock=clock)
    writer.append(line(1))
    os.rename(lake.spool.path, lake.spool.path + " of yesterday")
    clock.now_s += 1.1
    assert writer.append(line(2))
    assert written(lane) == [line(2)]
    assert writer.lost == 1


def test_delivered_segment_that_is_removed_is_no_loss(lake: Lake, lane: Lane, new_writer: NewWriter) -> None:
    """Only what was not delivered counts as lost."""
    clock = Clock()
    writer = new_writer(lane, clock=clock)
    for number in range(3):
        writer.append(line(number))
    LaneShipper(lane, Settings()).ship(flush=True)
    writer.append(line(3))
    os.unlink(lane.segments()[0].path)
    clock.now_s += 1.1
    assert writer.append(line(4))
    assert writer.lost == 1
    assert numbers(lake.table) == [0, 1, 2]


def test_lane_that_cannot_be_made_refuses_and_counts(lake: Lake, new_writer: NewWriter) -> None:
    """A file where the spool should be keeps nothing from going on but the spans, which are counted."""
    Path(lake.spool.path).touch()
    writer = new_writer(lake.spool.lane(lake.table, {}))
    assert not writer.append(line(1))
    assert not writer.append(line(2))
    assert (writer.written, writer.refused) == (0, 2)
    assert "cannot be made" in writer.last_reason
    assert "TRACELAKE_SPOOL_DIR" in writer.last_reason


def test_unusable_spool_costs_the_app_little(lake: Lake, new_writer: NewWriter) -> None:
    """A disk that refuses is asked again ten times a second, not for each span."""
    Path(lake.spool.path).touch()
    writer = new_writer(lake.spool.lane(lake.table, {}))
    started_s = time.perf_counter()
    for _ in range(10_000):
        writer.append(b"{}\n")
    assert writer.refused == 10_000
    assert time.perf_counter() - started_s < 2


def test_closed_writer_starts_another_segment(lane: Lane, new_writer: NewWriter) -> None:
    """A writer that let go of its segment never touches it again: the shipper may be removing it."""
    writer = new_writer(lane)
    writer.append(line(1))
    writer.close()
    writer.close()
    writer.append(line(2))
    first, second = lane.segments()
    assert (first.is_open(), second.is_open()) == (False, True)
    assert first.writer == second.writer == writer.name


def test_writer_that_is_appending_is_not_closed(lane: Lane, new_writer: NewWriter) -> None:
    """The writer of another lane that wants files to be closed passes over one in use, and never waits for it."""
    writer = new_writer(lane)
    writer.append(line(1))
    inside, leave = threading.Event(), threading.Event()
    writer._prepare = lambda: (inside.set(), leave.wait(20))  # type: ignore[assignment, func-returns-value]
    appending = threading.Thread(target=lambda: writer.append(line(2, "x" * 17 * MIB)))
    appending.start()
    assert inside.wait(20)
    writer.close_if_idle()
    assert lane.segments()[0].is_open()
    leave.set()
    appending.join()
    writer.close_if_idle()
    assert not any(segment.is_open() for segment in lane.segments())


def test_forked_child_is_another_writer(lane: Lane, new_writer: NewWriter) -> None:
    """A child has a name, a segment and counts of its own, and does not keep its parent's segment open."""
    writer = new_writer(lane)
    writer.append(line(1))
    [segment] = lane.segments()
    parent = writer.name, os.dup(writer._descriptor)
    writer.after_fork_in_child()
    assert segment.is_open()
    os.close(parent[1])
    assert not segment.is_open()
    assert (writer.name != parent[0], writer.written) == (True, 0)
    writer.append(line(2))
    assert len(lane.segments()) == 2


def test_full_disk_keeps_room_for_delivery(lake: Lake, small_disk: Path, new_writer: NewWriter) -> None:
    """Spans are refused before the disk is full, so that the shipper can write its notes, and empty the spool."""
    spool = Spool(str(small_disk / "spool"))
    spool.create()
    lane = spool.lane(lake.table, {})
    lane.create(lake.table, {})
    (small_disk / "else").write_bytes(bytes(5 * MIB))
    clock = Clock()
    writer = new_writer(lane, clock=clock, max_bytes=4 * MIB)
    kept = 0
    while writer.append(line(kept, "x" * 10_000)):
        kept += 1
    disk = os.statvfs(small_disk)
    assert 0 < disk.f_bavail * disk.f_frsize < MIB
    assert "bytes left" in writer.last_reason
    LaneShipper(lane, Settings()).ship(flush=True)
    LaneShipper(lane, Settings()).ship(flush=True)
    clock.now_s += 0.2
    assert writer.append(line(kept))
    assert numbers(lake.table) == list(range(kept))


def test_many_writers_keep_room_for_delivery(lake: Lake, small_disk: Path, new_writer: NewWriter) -> None:
    """Also when all of them write within a second, and start segments more often than they look at the disk."""
    spool = Spool(str(small_disk / "spool"))
    spool.create()
    lane = spool.lane(lake.table, {})
    lane.create(lake.table, {})
    writers = [
        new_writer(lane, clock=Clock(), max_bytes=10**9, segment_max_bytes=size) for size in [20_000] * 10 + [MIB] * 10
    ]
    kept = 0
    while writers:
        for writer in list(writers):
            if writer.append(line(kept, "x" * 2000)):
                kept += 1
            else:
                writers.remove(writer)
                assert "bytes left" in writer.last_reason
    LaneShipper(lane, Settings()).ship(flush=True)
    assert numbers(lake.table) == list(range(kept))


def test_byte_bound_holds_for_small_segments(lane: Lane, new_writer: NewWriter) -> None:
    """A segment that is smaller than what a writer may write between two looks does not put the next look off."""
    writer = new_writer(lane, clock=Clock(), max_bytes=MIB, segment_max_bytes=2000)
    while writer.append(line(writer.written, "x" * 500)):
        assert writer.written < 4000
    assert sum(segment.size() for segment in lane.segments()) < 1.1 * MIB


def test_disk_filled_by_others_refuses_and_tears_nothing(lake: Lake, small_disk: Path, new_writer: NewWriter) -> None:
    """No space left in the middle of a line: the line is taken back and counted, and the next ones go in later."""
    spool = Spool(str(small_disk / "spool"))
    spool.create()
    lane = spool.lane(lake.table, {})
    lane.create(lake.table, {})
    clock = Clock()
    writer = new_writer(lane, clock=clock, max_bytes=10**9)
    assert writer.append(line(0, "x" * 1000))
    filler = small_disk / "else"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    refused = sum(not writer.append(line(number, "x" * 3000)) for number in range(1, 20))
    assert refused >= 18  # one may fit into the segment's last block
    filler.unlink()
    clock.now_s += 0.2
    assert writer.append(line(99, "x" * 3000))
    assert writer.written == 20 - refused + 1
    assert [text for text in written(lane) if not text.endswith(b"\n")] == []
    assert len(written(lane)) == writer.written
    assert writer.refused == refused
    writer.note_refusals()
    [note] = read_refusals(lane)
    assert note.spans == refused
    assert "No space left" in note.reason or "could be written" in note.reason


LIMITED = """
import resource, sys
from tests.numbered import line
from tracelake.spool.lane import Spool
from tracelake.spool.writer import LaneWriter

spool = Spool(sys.argv[1])
lane = spool.lane("table", {})
spool.create()
lane.create("table", {})
now = [0.0]
writer = LaneWriter(lane, prepare=lambda: None, max_bytes=2**26, segment_max_bytes=2**24, clock=lambda: now[0])
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for number in range(50):
    now[0] += 1
    writer.append(line(number, "x" * 700))
print(writer.written, writer.refused)
"""


def test_short_write_is_taken_back(lake: Lake) -> None:
    """A file that may not grow takes a part of a line: the part is removed, and the line counted as refused."""
    output = lake.run(LIMITED, lake.spool.path, PYTHONPATH=str(Path(__file__).parents[2]))
    kept, refused = map(int, output.split())
    [lane] = lake.spool.lanes()
    assert written(lane) == [line(number, "x" * 700) for number in range(kept)]
    assert kept + refused == 50
    assert kept == 10_000 // len(line(1, "x" * 700))


def test_read_only_disk_refuses(lake: Lake, small_disk: Path, new_writer: NewWriter) -> None:
    """A disk that was mounted read-only after a fault takes no spans, and the reason says so."""
    spool = Spool(str(small_disk / "spool"))
    spool.create()
    lane = spool.lane(lake.table, {})
    lane.create(lake.table, {})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    writer = new_writer(lane)
    assert not writer.append(line(1))
    assert writer.refused == 1
    assert "Read-only file system" in writer.last_reason


UNPRIVILEGED = """
import os, sys
from tests.numbered import line
from tracelake.spool.lane import Spool
from tracelake.spool.writer import LaneWriter

os.seteuid(65534)
spool = Spool(sys.argv[1])
lane = spool.lane("table", {})
writer = LaneWriter(lane, prepare=spool.create, max_bytes=2**26, segment_max_bytes=2**24)
print(writer.append(line(1)), writer.refused, writer.last_reason)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_spool_of_another_user_refuses(lake: Lake, lane: Lane) -> None:
    """A user who may not write to the spool is told, and nothing is taken for an empty lane."""
    output = lake.run(UNPRIVILEGED, lake.spool.path, PYTHONPATH=str(Path(__file__).parents[2]))
    assert output.startswith("False 1 ")
    assert "ermission denied" in output or "must be a directory of user 65534" in output
    assert lane.segments() == []


def test_many_writers_come_and_go_without_leaking_files(lane: Lane, new_writer: NewWriter) -> None:
    """Segments that rotate, close and reopen leave no descriptor behind."""
    writer = new_writer(lane, segment_max_bytes=1000)
    writer.append(line(0))
    gc.collect()  # what earlier tests left to be collected
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for number in range(300):
        writer.append(line(number))
        if number % 10 == 0:
            writer.close()
    writer.append(line(0))
    gc.collect()
    assert not before or len(os.listdir("/proc/self/fd")) == before
