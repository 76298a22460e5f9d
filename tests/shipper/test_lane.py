"""One lane's delivery: when it is due, that each span arrives once, and what failures and damage change."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.lake import Lake
from tests.numbered import add_segment, line, lines, numbers
from tests.shipper.conftest import Clock, make_lane
from tracelake.shipper.lane import LaneShipper
from tracelake.spool.lane import Lane
from tracelake.spool.ledger import (
    InFlight,
    Ledger,
    Quarantined,
    Range,
    pending_bytes,
    read_delivery,
    read_in_flight,
    read_ledger,
    write_in_flight,
    write_ledger,
)
from tracelake.spool.segment import new_writer_name, open_segment

NewShipper = Callable[..., LaneShipper]


def commits(table: str) -> int:
    """Return the version of a table: each delivery is one commit after the one that made it."""
    return DeltaTable(table).version()


def ship_all(shipper: LaneShipper) -> None:
    """Deliver what there is, as `flush` has it done."""
    while shipper.ship(flush=True):
        continue


def test_batch_waits_until_it_is_old(lake: Lake, lane: Lane, clock: Clock, new_shipper: NewShipper) -> None:
    """A batch that is neither full nor asked for is delivered at its age, counted from the first look at it."""
    shipper = new_shipper(lane, batch_max_age_s=5)
    add_segment(lane, line(1))
    shipper.ship()
    clock.now_s += 4.9
    add_segment(lane, line(2))
    shipper.ship()
    assert numbers(lake.table) == []
    assert shipper.pending == len(lines([1, 2]))
    clock.now_s += 0.2
    shipper.ship()
    assert numbers(lake.table) == [1, 2]
    add_segment(lane, line(3))
    shipper.ship()
    assert numbers(lake.table) == [1, 2]


def test_full_batch_is_delivered_at_once(lake: Lake, lane: Lane, new_shipper: NewShipper) -> None:
    """Full batches follow each other without a wait; the rest waits for its age."""
    shipper = new_shipper(lane, batch_max_bytes=10 * len(line(100)), batch_max_age_s=3600)
    add_segment(lane, lines(range(100, 135)))
    while shipper.ship():
        continue
    assert numbers(lake.table) == list(range(100, 130))
    assert commits(lake.table) == 3


def test_requested_batch_is_delivered_at_once(lake: Lake, lane: Lane, new_shipper: NewShipper) -> None:
    """A recorder's flush delivers what there is, once for each request."""
    shipper = new_shipper(lane, batch_max_age_s=3600)
    add_segment(lane, line(1))
    lane.request_flush()
    shipper.ship()
    add_segment(lane, line(2))
    shipper.ship()
    assert numbers(lake.table) == [1]
    lane.request_flush()
    shipper.ship()
    assert numbers(lake.table) == [1, 2]


def test_delivered_segments_of_dead_writers_are_removed(lane: Lane, new_shipper: NewShipper) -> None:
    """What is left of ten writers is nothing but their totals."""
    for number in range(10):
        add_segment(lane, line(number))
    shipper = new_shipper(lane)
    ship_all(shipper)
    ship_all(shipper)
    assert lane.segments() == []
    ledger = read_ledger(lane)
    assert (ledger.offsets, ledger.delivered, len(ledger.writers)) == ({}, 10, 10)


def test_ledger_does_not_grow_with_every_process_that_ever_was(lane: Lane, new_shipper: NewShipper) -> None:
    """Totals of some hundreds of writers that are gone are kept, of those that were delivered last."""
    shipper = new_shipper(lane)
    for first in range(0, 600, 100):
        for number in range(first, first + 100):
            add_segment(lane, line(number))
        ship_all(shipper)
        ship_all(shipper)
    ledger = read_ledger(lane)
    assert (len(ledger.writers), ledger.offsets, ledger.delivered) == (256, {}, 600)


def test_writer_that_goes_on_delivering_is_not_forgotten(lane: Lane, new_shipper: NewShipper) -> None:
    """A service that started long before three hundred short processes finds its totals, though its file is gone."""
    old = new_writer_name()
    shipper = new_shipper(lane)
    for number in range(1, 4):
        Path(lane.segments_dir, f"{old}-{number:06d}.v1.jsonl").write_bytes(line(number))
        for other in range(150):
            add_segment(lane, line(1000 * number + other))
        ship_all(shipper)
        Path(lane.segments_dir, f"{old}-{number + 100:06d}.v1.jsonl").write_bytes(line(number + 100))
        ship_all(shipper)
        ship_all(shipper)
    assert read_ledger(lane).writers[old].delivered == 6


@pytest.mark.parametrize(
    "bad",
    [b"garbage\n", b"\x00\xff" * 500 + b"\n", line(9)[:-20] + b"\n", b"\n"],
    ids=["text", "binary", "cut", "empty"],
)
def test_bad_line_is_quarantined_and_the_others_delivered(
    lake: Lake, lane: Lane, new_shipper: NewShipper, bad: bytes
) -> None:
    """Its bytes, place and reason are in a file of the lane, and it is counted; nothing waits for it."""
    path = add_segment(lane, line(1) + bad + line(2))
    ship_all(new_shipper(lane))
    assert numbers(lake.table) == [1, 2]
    [file] = Path(lane.quarantine_dir).iterdir()
    [found] = [msgspec.json.decode(text, type=Quarantined) for text in file.read_bytes().splitlines()]
    assert (found.segment, found.offset, found.line) == (os.path.basename(path), len(line(1)), bad)
    assert (read_ledger(lane).delivered, read_ledger(lane).quarantined) == (2, 1)
    assert read_delivery(lane).state == "delivering"


def test_torn_end_of_a_dead_writer_is_quarantined(lake: Lake, lane: Lane, new_shipper: NewShipper) -> None:
    """A process that died within a write leaves one torn line, which holds nothing up."""
    add_segment(lane, line(1) + line(2)[:40])
    shipper = new_shipper(lane)
    for _ in range(3):
        ship_all(shipper)
    assert numbers(lake.table) == [1]
    assert read_ledger(lane).quarantined == 1
    assert lane.segments() == []


def test_segment_of_garbage_alone_is_quarantined_without_a_commit(
    lake: Lake, lane: Lane, new_shipper: NewShipper
) -> None:
    """Megabytes of zeros, as a disk leaves them after a power loss, are set aside; the table hears nothing of them."""
    add_segment(lane, bytes(3_000_000))
    ship_all(new_shipper(lane, batch_max_bytes=10**6))
    assert numbers(lake.table) == []
    assert read_ledger(lane).quarantined == 1
    add_segment(lane, line(1))
    ship_all(new_shipper(lane))
    assert numbers(lake.table) == [1]


def test_batch_committed_before_a_crash_is_not_written_again(lake: Lake, lane: Lane, new_shipper: NewShipper) -> None:
    """The shipper died between commit and ack: the table says that it has the batch, and only the ack is made up."""
    add_segment(lane, line(0) + b"bad\n")
    ship_all(new_shipper(lane))
    path = add_segment(lane, lines([1, 2]) + b"bad\n" + line(3))
    before = Path(lane.ledger_path).read_bytes()
    ledger = read_ledger(lane)
    ship_all(new_shipper(lane))
    after = read_ledger(lane)
    Path(lane.ledger_path).write_bytes(before)
    size = os.path.getsize(path)
    write_in_flight(lane, InFlight(ledger.app_id, ledger.batch + 1, [Range(os.path.basename(path), 0, size)], 1))
    add_segment(lane, line(4))
    ship_all(new_shipper(lane))
    assert numbers(lake.table) == [0, 1, 2, 3, 4]
    assert commits(lake.table) == 3
    settled = read_ledger(lane)
    assert (settled.delivered, settled.quarantined) == (after.delivered + 1, after.quarantined)
    assert len(os.listdir(lane.quarantine_dir)) == 2
    assert read_in_flight(lane) is None


def test_batch_noted_before_a_crash_is_written_as_it_was_noted(lake: Lake, lane: Lane, new_shipper: NewShipper) -> None:
    """The shipper died before the commit: the same bytes go under the same number, and what came since goes after."""
    path = add_segment(lane, lines([1, 2]))
    ledger = Ledger("tracelake-test")
    write_ledger(lane, ledger)
    write_in_flight(lane, InFlight("tracelake-test", 1, [Range(os.path.basename(path), 0, len(line(1)))], 1))
    new_shipper(lane, batch_max_age_s=3600).ship()
    assert numbers(lake.table) == [1]
    assert DeltaTable(lake.table).transaction_version("tracelake-test") == 1
    ship_all(new_shipper(lane))
    assert numbers(lake.table) == [1, 2]
    assert DeltaTable(lake.table).transaction_version("tracelake-test") == 2


def test_batch_acknowledged_before_a_crash_is_forgotten(lake: Lake, lane: Lane, new_shipper: NewShipper) -> None:
    """The shipper died between the ack and the end of the note."""
    path = add_segment(lane, lines([1, 2]))
    ship_all(new_shipper(lane))
    ledger = read_ledger(lane)
    write_in_flight(lane, InFlight(ledger.app_id, ledger.batch, [Range(os.path.basename(path), 0, 10)], 1))
    ship_all(new_shipper(lane))
    assert numbers(lake.table) == [1, 2]
    assert read_in_flight(lane) is None


@pytest.mark.parametrize("name", ["ledger.json", "in-flight.json"])
def test_damaged_bookkeeping_stops_the_lane_and_changes_nothing(
    lake: Lake, lane: Lane, new_shipper: NewShipper, name: str
) -> None:
    """What cannot be trusted is not guessed at: the lane says what is damaged and waits for somebody."""
    add_segment(lane, line(1))
    ship_all(new_shipper(lane))
    add_segment(lane, line(2))
    Path(lane.path, name).write_bytes(b"\x00" * 200)
    before = sorted(os.listdir(lane.segments_dir))
    ship_all(new_shipper(lane))
    assert numbers(lake.table) == [1]
    delivery = read_delivery(lane)
    assert delivery.state == "stopped"
    assert f"{name} is damaged" in delivery.error
    assert "docs/spool-format.md" in delivery.error
    assert sorted(os.listdir(lane.segments_dir)) == before
    assert Path(lane.path, name).read_bytes() == b"\x00" * 200


def test_note_of_a_lost_ledger_stops_the_lane(lake: Lake, lane: Lane, new_shipper: NewShipper) -> None:
    """Whether a batch arrived cannot be asked without the ledger's name, so somebody has to decide."""
    path = add_segment(lane, line(1))
    write_in_flight(lane, InFlight("tracelake-other", 4, [Range(os.path.basename(path), 0, 5)], 1))
    ship_all(new_shipper(lane))
    assert read_delivery(lane).state == "stopped"
    assert "is of a ledger that is gone" in read_delivery(lane).error
    os.unlink(lane.in_flight_path)
    ship_all(new_shipper(lane))
    assert numbers(lake.table) == [1]
    assert read_delivery(lane).state == "delivering"


def test_ledger_written_by_another_shipper_is_read_anew(lake: Lake, lane: Lane, new_shipper: NewShipper) -> None:
    """Two shippers that both believe to hold the lane, because its lock file was removed.

    With the ledger of before, a batch would get a number that the table has, and nothing of it would be written.
    """
    shippers = [new_shipper(lane), new_shipper(lane)]
    for number in range(10):
        add_segment(lane, line(number))
        ship_all(shippers[number % 2])
        assert numbers(lake.table) == list(range(number + 1))


def test_restored_spool_does_not_take_its_spans_for_those_that_are_there(
    lake: Lake, lane: Lane, new_shipper: NewShipper
) -> None:
    """The ledger of a backup repeats the number of a batch that the table has, with other spans in it."""
    add_segment(lane, line(1))
    ship_all(new_shipper(lane))
    backup = Path(lane.ledger_path).read_bytes()
    delivered = add_segment(lane, line(2))
    ship_all(new_shipper(lane))
    os.unlink(delivered)  # as the next look at the lane would; a ledger of before knows nothing of it
    Path(lane.ledger_path).write_bytes(backup)
    path = add_segment(lane, line(3))
    for _ in range(2):
        ship_all(new_shipper(lane))
        delivery = read_delivery(lane)
        assert delivery.state == "stopped"
        assert "already has batch 2" in delivery.error
        assert f"remove {lane.ledger_path}" in delivery.error
        assert numbers(lake.table) == [1, 2]
        assert os.path.exists(path)
    os.unlink(lane.ledger_path)
    ship_all(new_shipper(lane))
    assert numbers(lake.table) == [1, 2, 3]


def test_lane_that_was_removed_and_came_back_is_delivered(lake: Lake, lane: Lane, new_shipper: NewShipper) -> None:
    """A shipper goes on with what it finds, under a new ledger."""
    shipper = new_shipper(lane)
    add_segment(lane, line(1))
    ship_all(shipper)
    shutil.rmtree(lane.path)
    ship_all(shipper)
    make_lane(lake, lake.table)
    add_segment(lane, line(2))
    ship_all(shipper)
    assert numbers(lake.table) == [1, 2]


def test_segment_that_was_cut_is_not_delivered_again(
    lake: Lake, lane: Lane, new_shipper: NewShipper, caplog: pytest.LogCaptureFixture
) -> None:
    """What is left of it was delivered; the log says what happened to it."""
    descriptor, path = open_segment(lane.segments_dir, new_writer_name(), 1)
    os.write(descriptor, lines([1, 2, 3]))
    shipper = new_shipper(lane)
    ship_all(shipper)
    os.truncate(path, len(line(1)))
    ship_all(shipper)
    os.write(descriptor, line(4))
    os.close(descriptor)
    ship_all(shipper)
    assert numbers(lake.table) == [1, 2, 3, 4]
    assert "was cut to" in caplog.text


def test_segment_removed_in_flight_is_told(
    lake: Lake, lane: Lane, new_shipper: NewShipper, caplog: pytest.LogCaptureFixture
) -> None:
    """Spans that somebody removed while they were in flight are lost, and the log names their bytes."""
    path = add_segment(lane, line(1))
    gone = new_writer_name() + "-000001.v1.jsonl"
    write_ledger(lane, Ledger("tracelake-test"))
    ranges = [Range(gone, 0, 99), Range(os.path.basename(path), 0, len(line(1)))]
    write_in_flight(lane, InFlight("tracelake-test", 1, ranges, 1))
    ship_all(new_shipper(lane))
    assert numbers(lake.table) == [1]
    assert f"segment {gone} was removed before its bytes 0 to 99 were read" in caplog.text


def test_leftovers_of_killed_processes_are_removed(lane: Lane, new_shipper: NewShipper) -> None:
    """Half-written notes of a shipper before, and segments that never got their name; not another's notes."""
    mine = [".ledger.json.01.tmp", ".in-flight.json.01.tmp", "quarantine/.x.jsonl.01.tmp", "segments/x.v1.jsonl.new"]
    others = [".lane.json.01.tmp", "refusals/.w.json.01.tmp"]
    for name in mine + others:
        Path(lane.path, name).write_bytes(b"{")
    ship_all(new_shipper(lane))
    assert [name for name in mine + others if Path(lane.path, name).exists()] == others


def foreign_table(path: str) -> None:
    write_deltalake(path, pa.table({"price": [1.5]}))


def test_table_of_something_else_stops_the_lane(lake: Lake, lane: Lane, clock: Clock, new_shipper: NewShipper) -> None:
    """A table without a span's columns is not touched; once another is there, all that waited is delivered once."""
    foreign_table(lake.table)
    add_segment(lane, line(1))
    shipper = new_shipper(lane)
    ship_all(shipper)
    assert read_delivery(lane).state == "stopped"
    assert lake.table in read_delivery(lane).error
    assert commits(lake.table) == 0
    assert pending_bytes(lane) == len(line(1))
    shutil.rmtree(lake.table)
    add_segment(lane, line(2))
    clock.now_s += 61
    while shipper.ship():
        continue
    ship_all(shipper)
    assert numbers(lake.table) == [1, 2]
    assert read_delivery(lane).state == "delivering"


def test_stopped_lane_is_tried_on_a_slow_clock_and_when_asked(
    lake: Lake, lane: Lane, clock: Clock, new_shipper: NewShipper
) -> None:
    """Half a minute to a minute apart, and at once when a recorder asks for a flush; each try is counted."""
    foreign_table(lake.table)
    add_segment(lane, line(1))
    shipper = new_shipper(lane)
    ship_all(shipper)
    for seconds, attempts in ((29, 1), (31, 2), (29, 2)):
        clock.now_s += seconds
        shipper.ship()
        assert read_delivery(lane).attempts == attempts
    lane.request_flush()
    shipper.ship()
    shipper.ship()
    assert read_delivery(lane).attempts == 3


@pytest.mark.parametrize("obstacle", ["file", "log", "log entry"])
def test_obstacle_in_the_way_of_the_table_holds_the_lane(
    lake: Lake, lane: Lane, new_shipper: NewShipper, obstacle: str
) -> None:
    """A file where the table, its log or the next log entry should be: spans wait, and arrive once it is gone."""
    add_segment(lane, line(1))
    path = Path(lake.table)
    if obstacle == "file":
        path.touch()
    else:
        path.mkdir()
        path /= "_delta_log"
        if obstacle == "log entry":
            path.mkdir()
            path /= "00000000000000000000.json"
        path.write_bytes(b"not a log")
    shipper = new_shipper(lane)
    ship_all(shipper)
    assert read_delivery(lane).state in {"stopped", "retrying"}
    assert read_delivery(lane).error
    assert pending_bytes(lane) == len(line(1))
    path.unlink()
    ship_all(shipper)
    assert numbers(lake.table) == [1]


def test_table_on_a_read_only_disk_stops_the_lane(lake: Lake, small_disk: Path, new_shipper: NewShipper) -> None:
    """Spans wait until the disk takes them, and none is there twice."""
    table = str(small_disk / "table")
    lane = make_lane(lake, table)
    add_segment(lane, line(1))
    shipper = new_shipper(lane)
    ship_all(shipper)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    add_segment(lane, line(2))
    ship_all(shipper)
    assert read_delivery(lane).state == "stopped"
    assert "ead-only file system" in read_delivery(lane).error
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    ship_all(shipper)
    assert numbers(table) == [1, 2]


def test_table_on_a_full_disk_retries(lake: Lake, small_disk: Path, new_shipper: NewShipper) -> None:
    """No space for the table is a matter of time."""
    table = str(small_disk / "table")
    lane = make_lane(lake, table)
    filler = small_disk / "else"
    filler.write_bytes(bytes(8 * 2**20 - 40_960))
    add_segment(lane, lines(range(2000)))
    add_segment(lane, b"".join(line(number, os.urandom(200).hex()) for number in range(2000, 4000)))
    shipper = new_shipper(lane)
    ship_all(shipper)
    assert read_delivery(lane).state == "retrying"
    filler.unlink()
    ship_all(shipper)
    ship_all(shipper)
    assert numbers(table) == list(range(4000))


def test_lane_on_a_full_disk_waits_for_its_notes(lake: Lake, small_disk: Path, new_shipper: NewShipper) -> None:
    """Where no batch can be noted none is delivered, so that none is delivered twice."""
    small = Lake(small_disk)
    lane = make_lane(small, lake.table)
    add_segment(lane, line(1))
    filler = small_disk / "else"
    with open(filler, "wb", buffering=0) as file:
        for size in (2**20, 4096):
            while file.tell() < 2**23 and _wrote(file.fileno(), size):
                continue
    shipper = new_shipper(lane)
    ship_all(shipper)
    assert numbers(lake.table) == []
    filler.unlink()
    ship_all(shipper)
    assert numbers(lake.table) == [1]


def _wrote(descriptor: int, size: int) -> bool:
    try:
        return os.write(descriptor, bytes(size)) == size
    except OSError:
        return False


def test_missing_table_is_not_made_when_that_is_off(
    lake: Lake, lane: Lane, new_shipper: NewShipper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TRACELAKE_CREATE_TABLE=false spans wait for a table that somebody else makes."""
    monkeypatch.setenv("TRACELAKE_CREATE_TABLE", "false")
    add_segment(lane, line(1))
    shipper = new_shipper(lane)
    ship_all(shipper)
    assert read_delivery(lane).state == "stopped"
    assert re.search(r"no table at .* TRACELAKE_CREATE_TABLE", read_delivery(lane).error)
    assert not os.path.exists(lake.table)
    monkeypatch.delenv("TRACELAKE_CREATE_TABLE")
    shipper = new_shipper(lane)
    ship_all(shipper)
    assert numbers(lake.table) == [1]


def test_lane_of_an_unknown_kind_is_stopped(lake: Lake, new_shipper: NewShipper) -> None:
    """The plugin that made the lane is not installed here: the lane says so, and keeps its spans."""
    lane = make_lane(lake, "nosuch://place")
    add_segment(lane, line(1))
    ship_all(new_shipper(lane))
    assert read_delivery(lane).state == "stopped"
    assert "nosuch" in read_delivery(lane).error
    assert pending_bytes(lane) == len(line(1))


@pytest.mark.parametrize("moment", ["between batches", "while a batch is in flight"])
def test_table_that_was_removed_is_made_anew(lake: Lake, lane: Lane, new_shipper: NewShipper, moment: str) -> None:
    """Somebody drops the table under a running shipper: what comes next goes into a new one, once."""
    shipper = new_shipper(lane)
    add_segment(lane, line(1))
    ship_all(shipper)
    path = add_segment(lane, line(2))
    if moment != "between batches":
        ledger = read_ledger(lane)
        write_in_flight(
            lane, InFlight(ledger.app_id, ledger.batch + 1, [Range(os.path.basename(path), 0, len(line(2)))], 1)
        )
    shutil.rmtree(lake.table)
    ship_all(shipper)
    assert numbers(lake.table) == [2]


def test_table_that_was_replaced_is_written_in_its_own_schema(
    lake: Lake, lane: Lane, new_shipper: NewShipper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is looked at anew for each batch: one of another schema version takes the next rows."""
    shipper = new_shipper(lane)
    add_segment(lane, line(1))
    ship_all(shipper)
    monkeypatch.setenv("TRACELAKE_SCHEMA_VERSION", "2")
    other = make_lane(lake, lake.table + "2")
    add_segment(other, line(7))
    ship_all(new_shipper(other))
    shutil.rmtree(lake.table)
    os.rename(lake.table + "2", lake.table)
    add_segment(lane, line(2))
    ship_all(shipper)
    assert numbers(lake.table) == [2, 7]


@pytest.mark.slow
def test_commits_cost_the_same_after_many(lake: Lake, lane: Lane, new_shipper: NewShipper) -> None:
    """The log is read from a checkpoint at most twenty commits old, however many there were."""
    shipper = new_shipper(lane)
    for number in range(65):
        add_segment(lane, line(number))
        ship_all(shipper)
    log = Path(lake.table, "_delta_log")
    checkpoint = json.loads((log / "_last_checkpoint").read_text())["version"]
    assert commits(lake.table) - checkpoint <= 20
    assert numbers(lake.table) == list(range(65))


def test_failure_is_logged_once(
    lake: Lake, lane: Lane, new_shipper: NewShipper, caplog: pytest.LogCaptureFixture
) -> None:
    """The same error again is counted in the delivery note, not written to the log for ever."""
    caplog.set_level(logging.INFO)
    foreign_table(lake.table)
    add_segment(lane, line(1))
    shipper = new_shipper(lane)
    for _ in range(5):
        ship_all(shipper)
    assert read_delivery(lane).attempts == 5
    assert len(caplog.records) == 1
