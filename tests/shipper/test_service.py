"""The shipper as a whole: whose lanes it serves, one lane beside another, and how long it stays."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from tests.lake import Lake, wait_until
from tests.numbered import add_segment, line, numbers
from tests.shipper.conftest import make_lane
from tracelake.settings import Settings
from tracelake.shipper.service import Shipper
from tracelake.spool.files import open_locked
from tracelake.spool.lane import Lane, LaneNote, identity_digest
from tracelake.spool.ledger import read_delivery
from tracelake.spool.notes import write_note
from tracelake.spool.writer import LaneWriter

FAST = Settings(batch_max_age_s=0.1)


def new_service(lake: Lake, settings: Settings = FAST, identity: Mapping[str, str] | None = None) -> Shipper:
    """Return a shipper of one identity's lanes, or of all."""
    wanted = None if identity is None else identity_digest(identity)
    return Shipper(lake.spool, settings, serves=lambda _, found: wanted in {None, identity_digest(found)})


@contextlib.contextmanager
def running(service: Shipper, idle_s: float | None = None) -> Iterator[threading.Thread]:
    """Run a shipper in a thread; ended and released after the with-body."""
    stop = threading.Event()
    thread = threading.Thread(target=service.run, args=(stop,), kwargs={"idle_s": idle_s})
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()
        service.release()


def test_drain_delivers_every_lane(lake: Lake) -> None:
    """Whatever there is, in this thread, without waiting for its age."""
    tables = [str(lake.root / f"table {number}") for number in range(3)]
    for number, table in enumerate(tables):
        add_segment(make_lane(lake, table), line(number))
    service = new_service(lake, Settings())
    service.drain()
    service.release()
    assert [numbers(table) for table in tables] == [[0], [1], [2]]


def test_drain_starts_nothing_after_its_deadline(lake: Lake, lane: Lane) -> None:
    """A process that has to end does not begin a batch."""
    add_segment(lane, line(1))
    service = new_service(lake)
    service.drain(time.monotonic() - 1)
    service.release()
    assert numbers(lake.table) == []


def test_lanes_of_other_identities_are_left_alone(lake: Lake) -> None:
    """Two identities side by side in one spool: each shipper delivers its own, and takes its own lock only."""
    identities = [{"profile": "a"}, {"profile": "b"}]
    tables = [str(lake.root / name) for name in ("a", "b")]
    for identity, table in zip(identities, tables, strict=True):
        add_segment(make_lane(lake, table, identity), line(1))
    service = new_service(lake, identity=identities[0])
    service.drain()
    assert [numbers(table) for table in tables] == [[1], []]
    assert open_locked(lake.spool.lock_path(identities[0])) is None
    other = open_locked(lake.spool.lock_path(identities[1]))
    assert other is not None
    os.close(other)
    service.release()


def test_lane_whose_lock_is_held_is_left_alone(lake: Lake, lane: Lane) -> None:
    """One shipper an identity: the second waits until the first is gone."""
    add_segment(lane, line(1))
    lock = open_locked(lake.spool.lock_path({}))
    assert lock is not None
    with running(new_service(lake)):
        time.sleep(0.5)  # five looks: that nothing happens has no event to wait for
        assert numbers(lake.table) == []
        os.close(lock)
        wait_until(lambda: numbers(lake.table) == [1], "the lane is delivered")


def test_release_lets_go_of_lock_and_files(lake: Lake, lane: Lane) -> None:
    """A shipper that ended leaves no descriptor of the spool behind."""
    add_segment(lane, line(1))
    service = new_service(lake)
    service.drain()
    service.release()
    lock = open_locked(lake.spool.lock_path({}))
    assert lock is not None
    os.close(lock)
    if os.path.isdir("/proc/self/fd"):
        open_files = [_link(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
        assert [path for path in open_files if path.startswith(lake.spool.path)] == []


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""


def test_idle_shipper_ends(lake: Lake, lane: Lane) -> None:
    """It delivers what is there, waits its time and ends, with its lock free."""
    add_segment(lane, line(1))
    with running(new_service(lake), idle_s=0.3) as thread:
        thread.join(20)
        assert not thread.is_alive()
        lock = open_locked(lake.spool.lock_path({}))
        assert lock is not None
        os.close(lock)
    assert numbers(lake.table) == [1]


def test_shipper_with_spans_that_cannot_be_delivered_stays(lake: Lake, lane: Lane) -> None:
    """As long as something waits it is not idle, and delivers as soon as it can."""
    write_deltalake(lake.table, pa.table({"price": [1.5]}))
    add_segment(lane, line(1))
    with running(new_service(lake), idle_s=0.3) as thread:
        wait_until(lambda: read_delivery(lane).state == "stopped", "the lane is stopped")
        time.sleep(1)  # three times as long as an idle shipper stays
        assert thread.is_alive()
        shutil.rmtree(lake.table)
        lane.request_flush()
        wait_until(lambda: numbers(lake.table) == [1], "the lane is delivered")
        thread.join(20)
        assert not thread.is_alive()


def test_stopped_lane_holds_up_no_other(lake: Lake) -> None:
    """Five lanes that cannot be delivered, more than there are workers, and one that can."""
    for number in range(5):
        path = str(lake.root / f"foreign {number}")
        write_deltalake(path, pa.table({"price": [1.5]}))
        add_segment(make_lane(lake, path), line(1))
    good = make_lane(lake, lake.table)
    with running(new_service(lake)):
        for number in range(3):
            add_segment(good, line(number))
            wait_until(lambda seen=number: numbers(lake.table) == list(range(seen + 1)), "the lane is delivered")  # type: ignore[misc]


@pytest.mark.parametrize("damage", ["no note", "damaged note", "a directory for a note", "a stray file", "a link"])
def test_broken_lane_holds_up_no_other_and_is_logged_once(
    lake: Lake, lane: Lane, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is no lane is left alone, and does not fill the log while the shipper runs."""
    broken = Path(lake.spool.lanes_dir, "a-broken-lane")
    if damage == "a stray file":
        broken.touch()
    elif damage == "a link":
        broken.symlink_to(lane.path)
    else:
        broken.mkdir(mode=0o700)
        if damage == "damaged note":
            (broken / "lane.json").write_bytes(b"{")
        elif damage == "a directory for a note":
            (broken / "lane.json").mkdir()
    with running(new_service(lake)) as thread:
        for number in range(3):
            add_segment(lane, line(number))
            wait_until(lambda seen=number: numbers(lake.table) == list(range(seen + 1)), "the lane is delivered")  # type: ignore[misc]
        assert thread.is_alive()
    about = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(about) == (0 if damage in {"a stray file", "a link"} else 1)


def test_new_lane_is_found(lake: Lake) -> None:
    """A running shipper serves a destination that an app names later."""
    lake.spool.create()
    with running(new_service(lake)):
        add_segment(make_lane(lake, lake.table), line(1))
        wait_until(lambda: numbers(lake.table) == [1], "the lane is delivered")


def test_lane_that_becomes_this_identitys_is_found(lake: Lake) -> None:
    """A lane of another identity is taken up once its note says that it is this one's."""
    lane = make_lane(lake, lake.table, {"profile": "other"})
    add_segment(lane, line(1))
    with running(new_service(lake, identity={})):
        time.sleep(0.3)  # three looks: that nothing happens has no event to wait for
        write_note(lane.note_path, LaneNote(target=lake.table, identity={}, created_unix_nano=1))
        wait_until(lambda: numbers(lake.table) == [1], "the lane is delivered")


def test_missing_spool_is_waited_for(lake: Lake) -> None:
    """A shipper may be there before the first span."""
    with running(new_service(lake)) as thread:
        time.sleep(0.3)
        assert thread.is_alive()
        add_segment(make_lane(lake, lake.table), line(1))
        wait_until(lambda: numbers(lake.table) == [1], "the lane is delivered")


def remove(path: str) -> bool:
    """Remove a directory in which somebody may be writing; say whether it is gone."""
    shutil.rmtree(path, ignore_errors=True)
    return not os.path.exists(path)


def test_spool_removed_under_two_shippers_is_delivered_once(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    """After `rm -rf` of the spool a second shipper can take a lock of its own: the first sees that its lock is dead."""
    make_lane(lake, lake.table)
    with running(new_service(lake)) as first:
        add_segment(make_lane(lake, lake.table), line(0))
        wait_until(lambda: numbers(lake.table) == [0], "the first span is delivered")
        wait_until(lambda: remove(lake.spool.path), "the spool is removed")
        lane = make_lane(lake, lake.table)
        with running(new_service(lake)):
            for number in range(1, 30):
                add_segment(lane, line(number))
                time.sleep(0.02)
            wait_until(lambda: len(numbers(lake.table)) >= 30, "all is delivered")
            assert first.is_alive()
    assert numbers(lake.table) == list(range(30))
    assert caplog.text.count("the lock of identity") == 1


def test_stop_finishes_the_batch_under_way(lake: Lake, lane: Lane) -> None:
    """A shipper that is told to end leaves no batch half done."""
    writer = LaneWriter(lane, prepare=lambda: None, max_bytes=10**9, segment_max_bytes=10**6)
    for number in range(20_000):
        writer.append(line(number))
    writer.close()
    with running(new_service(lake, Settings(batch_max_bytes=200_000))):
        wait_until(lambda: os.path.exists(lane.in_flight_path), "a batch is under way")
    assert not os.path.exists(lane.in_flight_path)
    found = numbers(lake.table)
    assert found == list(range(len(found)))
    assert len(found) > 0


def test_idle_shipper_costs_next_to_nothing(lake: Lake) -> None:
    """Waiting for spans takes less than three hundredths of a processor, with ten lanes to look at."""
    for number in range(10):
        add_segment(make_lane(lake, str(lake.root / f"t{number}")), line(number))
    service = new_service(lake)
    service.drain()
    with running(service):
        before_s = time.process_time()
        time.sleep(2)
        assert time.process_time() - before_s < 0.06
