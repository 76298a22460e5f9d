"""The shipper's bookkeeping: what damage is told, and what a writer's account says."""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
from pathlib import Path

import msgspec
import pytest

from tests.numbered import add_segment, lines
from tracelake.errors import LedgerError
from tracelake.spool.lane import Lane
from tracelake.spool.ledger import (
    Account,
    Delivery,
    InFlight,
    Ledger,
    Quarantined,
    Range,
    Totals,
    clear_in_flight,
    pending_bytes,
    read_account,
    read_delivery,
    read_in_flight,
    read_ledger,
    read_refusals,
    write_delivery,
    write_in_flight,
    write_ledger,
    write_quarantine,
)

DAMAGED = [b"", b"{", b"null", b"[]", b"\x00" * 100, b'{"version":1}', b'{"version":"1"}', b'{"app_id":1,"version":1}']


def test_ledger_round_trips(lane: Lane) -> None:
    """What is written is read back; the file is its owner's only."""
    ledger = Ledger("tracelake-x", 7, {"segment": 10}, {"writer": Totals(3, 1)}, 3, 1, 99)
    write_ledger(lane, ledger)
    assert read_ledger(lane) == ledger
    assert stat.S_IMODE(os.stat(lane.ledger_path).st_mode) == 0o600


def test_new_ledgers_have_names_of_their_own(lane: Lane) -> None:
    """A batch number of one ledger is never taken for one of another's."""
    first, second = read_ledger(lane), read_ledger(lane)
    assert first.app_id != second.app_id
    assert (first.batch, first.offsets) == (0, {})


@pytest.mark.parametrize("data", DAMAGED)
def test_damaged_ledger_is_told(lane: Lane, data: bytes) -> None:
    """Damage is an error with the file and the page that says what to do, never an empty ledger; it stays as it is."""
    Path(lane.ledger_path).write_bytes(data)
    with pytest.raises(LedgerError, match=r"ledger\.json is damaged: .*docs/spool-format\.md"):
        read_ledger(lane)
    assert Path(lane.ledger_path).read_bytes() == data


@pytest.mark.parametrize("data", DAMAGED)
def test_damaged_in_flight_note_is_told(lane: Lane, data: bytes) -> None:
    """As for the ledger."""
    Path(lane.in_flight_path).write_bytes(data)
    with pytest.raises(LedgerError, match=r"in-flight\.json is damaged: .*docs/spool-format\.md"):
        read_in_flight(lane)


def test_ledger_of_a_newer_version_is_left_alone(lane: Lane) -> None:
    """A newer tracelake's ledger is not guessed at; the message says what to update."""
    Path(lane.ledger_path).write_bytes(b'{"version":2,"something":"new"}')
    with pytest.raises(LedgerError, match=r"version 2, and .* up to 1\. Update"):
        read_ledger(lane)


def test_in_flight_note_round_trips(lane: Lane) -> None:
    """Missing means that nothing is in flight."""
    assert read_in_flight(lane) is None
    note = InFlight("tracelake-x", 8, [Range("segment", 0, 10)], 99)
    write_in_flight(lane, note)
    assert read_in_flight(lane) == note
    clear_in_flight(lane)
    clear_in_flight(lane)
    assert read_in_flight(lane) is None


def test_quarantine_of_a_batch_replaces_its_own(lane: Lane) -> None:
    """A batch that is delivered again after a crash sets its lines aside once."""
    bad = Quarantined("segment", 5, "why", b"\xff\x00")
    ledger = Ledger("tracelake-0123456789ab")
    path = write_quarantine(lane, ledger, 3, [bad, bad])
    assert write_quarantine(lane, ledger, 3, [bad]) == path
    [text] = Path(path).read_bytes().splitlines()
    assert msgspec.json.decode(text, type=Quarantined) == bad


def test_delivery_note_is_not_worth_an_error(lane: Lane) -> None:
    """The note is for people: damage in it, or a disk that does not take it, stops nothing."""
    write_delivery(lane, Delivery("stopped", "why", 3))
    assert (read_delivery(lane).state, read_delivery(lane).error) == ("stopped", "why")
    Path(lane.delivery_path).write_bytes(b"{")
    assert read_delivery(lane).state == "delivering"
    assert "is damaged" in read_delivery(lane).error
    shutil.rmtree(lane.path)
    write_delivery(lane, Delivery("stopped"))


def test_damaged_refusals_are_listed(lane: Lane) -> None:
    """A note of refusals that cannot be read is not passed over in silence."""
    assert read_refusals(lane) == []
    Path(lane.refusals_dir, "writer.json").write_bytes(b"{")
    Path(lane.refusals_dir, ".writer.json.01.tmp").write_bytes(b"{")
    [note] = read_refusals(lane)
    assert "is damaged" in note.reason


def test_pending_bytes_are_those_past_the_offsets(lane: Lane) -> None:
    """What is delivered does not count, and a ledger that cannot be read counts nothing as delivered."""
    path = add_segment(lane, b"x" * 100)
    add_segment(lane, b"x" * 20)
    assert pending_bytes(lane) == 120
    write_ledger(lane, Ledger("a", offsets={os.path.basename(path): 70, "gone": 50}))
    assert pending_bytes(lane) == 50
    Path(lane.ledger_path).write_bytes(b"{")
    assert pending_bytes(lane) == 120


def test_account_tells_delivered_from_pending_and_lost(lane: Lane) -> None:
    """Of ten spans, four were delivered, one set aside, three wait, and two went with a segment that was removed."""
    data = lines(range(8))
    path = add_segment(lane, data)
    [segment] = lane.segments()
    offset = [start for start, _ in segment.lines(0, len(data))][5]
    ledger = Ledger("a", offsets={os.path.basename(path): offset}, writers={segment.writer: Totals(4, 1)})
    write_ledger(lane, ledger)
    account = read_account(lane, segment.writer, 10)
    assert account == Account(delivered=4, quarantined=1, pending=3)
    os.unlink(path)
    assert read_account(lane, segment.writer, 10) == dataclasses.replace(account, pending=0)


def test_account_of_a_long_backlog_is_taken_from_the_totals(lane: Lane) -> None:
    """A gigabyte is not read to count its lines."""
    add_segment(lane, b"x" * 2_000_000)
    [segment] = lane.segments()
    assert read_account(lane, segment.writer, 1234) == Account(0, 0, 1234)
