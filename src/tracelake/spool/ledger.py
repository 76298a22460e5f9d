"""The shipper's bookkeeping of a lane: what is delivered, what is in flight, what is set aside.

Only the shipper that holds the lock of the lane's identity writes here; anybody may read.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass
from typing import Literal

import msgspec

from tracelake.errors import LedgerError
from tracelake.redaction import one_line
from tracelake.spool.files import remove_file, replace_file
from tracelake.spool.lane import Lane
from tracelake.spool.notes import NOTE_VERSION, read_note, write_note

# Up to this size, the lines of a writer that wait are counted one by one; beyond, its totals tell how many there are.
_MAX_COUNTED_BYTES = 2**20


class Totals(msgspec.Struct, omit_defaults=True):
    """Spans of one writer that left the spool."""

    delivered: int = 0
    quarantined: int = 0


class Ledger(msgspec.Struct):
    """`ledger.json`: everything before `offsets[segment]` is delivered or quarantined.

    `app_id` and `batch` identify the last batch in the destination. A new ledger has a new `app_id`, so the number of
    a batch can never be taken for one of a ledger that was lost. `writers` has the totals of writers that may still
    ask for them.
    """

    app_id: str
    batch: int = 0
    offsets: dict[str, int] = {}
    writers: dict[str, Totals] = {}
    delivered: int = 0
    quarantined: int = 0
    last_commit_unix_nano: int = 0
    version: int = NOTE_VERSION


class Range(msgspec.Struct, frozen=True):
    """Bytes `start` to `end` of a segment."""

    segment: str
    start: int
    end: int


class InFlight(msgspec.Struct, frozen=True):
    """`in-flight.json`: the batch that may or may not be in the destination."""

    app_id: str
    batch: int
    ranges: list[Range]
    created_unix_nano: int
    version: int = NOTE_VERSION


class Refusals(msgspec.Struct):
    """`refusals/<writer>.json`: spans a writer could not put into the spool, and why the last one."""

    spans: int
    reason: str
    last_unix_nano: int
    version: int = NOTE_VERSION


class Delivery(msgspec.Struct):
    """`delivery.json`: how delivery of the lane goes. `retrying` is by itself, `stopped` needs somebody to act."""

    state: Literal["delivering", "retrying", "stopped"]
    error: str = ""
    attempts: int = 0
    since_unix_nano: int = 0
    version: int = NOTE_VERSION


class Quarantined(msgspec.Struct):
    """One line of a quarantine file: a line of a segment that is not a span, or that the sink cannot take.

    `line` is base64, because it may be anything.
    """

    segment: str
    offset: int
    reason: str
    line: bytes


@dataclass(frozen=True)
class Account:
    """What became of the lines of one writer. What is none of these was removed from the spool undelivered."""

    delivered: int
    quarantined: int
    pending: int


def read_ledger(lane: Lane) -> Ledger:
    """Return the lane's ledger, a new one if there is none.

    Raises:
        LedgerError: it cannot be trusted.
    """
    return read_note(lane.ledger_path, Ledger) or Ledger(app_id=f"tracelake-{uuid.uuid4()}")


def write_ledger(lane: Lane, ledger: Ledger) -> None:
    """Replace the lane's ledger. Raises OSError; then nothing changed."""
    write_note(lane.ledger_path, ledger)


def read_in_flight(lane: Lane) -> InFlight | None:
    """Return the batch in flight, or None.

    Raises:
        LedgerError: the note cannot be trusted.
    """
    return read_note(lane.in_flight_path, InFlight)


def write_in_flight(lane: Lane, note: InFlight) -> None:
    """Note a batch before it is written. Raises OSError; then nothing changed."""
    write_note(lane.in_flight_path, note)


def clear_in_flight(lane: Lane) -> None:
    """Forget the batch in flight; the ledger has it, or it was never written."""
    remove_file(lane.in_flight_path)


def write_quarantine(lane: Lane, ledger: Ledger, batch: int, lines: list[Quarantined]) -> str:
    """Set lines of a batch aside and return the file's path. The same batch replaces its own file."""
    path = os.path.join(lane.quarantine_dir, f"{ledger.app_id[-12:]}-{batch:09d}.jsonl")
    replace_file(path, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return path


def read_delivery(lane: Lane) -> Delivery:
    """Return how delivery of the lane goes."""
    try:
        return read_note(lane.delivery_path, Delivery) or Delivery("delivering")
    except LedgerError as error:
        return Delivery("delivering", error=str(error))


def write_delivery(lane: Lane, delivery: Delivery) -> None:
    """Replace the lane's delivery note; it is for people, so a disk that is full does not stop delivery."""
    delivery.since_unix_nano = time.time_ns()
    try:
        write_note(lane.delivery_path, delivery, durable=False)
    except OSError:
        return


def read_refusals(lane: Lane) -> list[Refusals]:
    """Return what the lane's writers refused, one entry a writer that refused anything."""
    try:
        names = os.listdir(lane.refusals_dir)
    except FileNotFoundError:
        return []
    notes = []
    for name in names:
        try:
            note = None if name.startswith(".") else read_note(os.path.join(lane.refusals_dir, name), Refusals)
        except LedgerError as error:
            note = Refusals(0, str(error), 0)
        if note:
            notes.append(msgspec.structs.replace(note, reason=one_line(note.reason)))  # others may write there, too
    return notes


def read_account(lane: Lane, writer: str, written: int) -> Account:
    """Return what became of the first `written` lines of a writer.

    Raises:
        LedgerError: the lane's ledger cannot be trusted.
        OSError: the lane cannot be read.
    """
    # Listed before the ledger is read: a segment that is not there by then is delivered, or was removed by somebody.
    sizes = {segment: segment.size() for segment in lane.segments() if segment.writer == writer}
    ledger = read_ledger(lane)
    totals = ledger.writers.get(writer) or Totals()
    waiting = max(0, written - totals.delivered - totals.quarantined)
    rest = {segment: (ledger.offsets.get(segment.name, 0), size) for segment, size in sizes.items()}
    if waiting and sum(max(0, size - start) for start, size in rest.values()) <= _MAX_COUNTED_BYTES:
        waiting = min(waiting, sum(segment.count_lines(start, size) for segment, (start, size) in rest.items()))
    return Account(totals.delivered, totals.quarantined, waiting)


def pending_bytes(lane: Lane) -> int:
    """Return the bytes of a lane that are neither delivered nor quarantined, as far as its ledger can be read."""
    try:
        offsets = read_ledger(lane).offsets
    except LedgerError:
        offsets = {}
    return sum(max(0, segment.size() - offsets.get(segment.name, 0)) for segment in lane.segments())
