"""What waits in a spool, what became of the rest, and who delivers: read from its files, nothing changed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tracelake.errors import LedgerError, LineError, SpoolError
from tracelake.spans.line import decode_line
from tracelake.spool.files import open_file
from tracelake.spool.lane import Lane, Spool, identity_digest
from tracelake.spool.ledger import Delivery, Ledger, read_in_flight, read_ledger, read_refusals
from tracelake.spool.notes import read_note
from tracelake.spool.segment import FORMAT_VERSION, Segment

LaneState = Literal["idle", "delivering", "retrying", "stopped", "unresolved", "no shipper", "damaged"]

# The key of a lane's identity whose spans were recorded while the environment named no usable destination.
UNRESOLVED_KEY = "unresolved"

_READ_BYTES = 2**20


@dataclass(frozen=True)
class LaneStatus:
    """One lane: the spans of one destination, written with one identity.

    Attributes:
        name: the name of its folder in the spool.
        path: the folder.
        target: where its spans go; empty if `lane.json` cannot be read.
        identity: the non-secret settings of whose access is used.
        shipper: the identity's digest, which names its lock and log; empty if `lane.json` cannot be read.
        shipper_running: whether a process delivers this identity's lanes now.
        state: `idle` nothing waits; `delivering`; `retrying` by itself after an error; `stopped` by an error that
            somebody has to mend; `no shipper` spans wait and nobody delivers; `unresolved` no destination was named;
            `damaged` its bookkeeping cannot be read.
        error: why the last delivery failed; empty if it did not.
        segments: its files of spans.
        open_segments: those that a running process may still append to.
        newer_segments: those in a format that a newer tracelake wrote, which this one leaves alone.
        pending_spans: spans that wait for delivery.
        pending_bytes: the bytes they take.
        oldest_pending_unix_nano: when the first of them ended, in nanoseconds since the Unix epoch; 0 if none waits.
        delivered: spans that are in the destination, since the lane's ledger began.
        quarantined: spans set aside because they are damaged or the destination can never take them.
        quarantine_files: the files that hold those.
        refused: spans that could not be put into the spool, and are lost.
        refusal: why the last of those was refused.
        last_commit_unix_nano: when the last batch was delivered; 0 for never.
        batch_in_flight: whether a batch is under way, or was when its shipper ended.
        damage: what of the lane's bookkeeping cannot be read, one text a file.
    """

    name: str
    path: str
    target: str
    identity: Mapping[str, str]
    shipper: str
    shipper_running: bool
    state: LaneState
    error: str
    segments: int
    open_segments: int
    newer_segments: int
    pending_spans: int
    pending_bytes: int
    oldest_pending_unix_nano: int
    delivered: int
    quarantined: int
    quarantine_files: tuple[str, ...]
    refused: int
    refusal: str
    last_commit_unix_nano: int
    batch_in_flight: bool
    damage: tuple[str, ...]

    @property
    def needs_action(self) -> bool:
        """Whether its spans wait for somebody to do something."""
        return self.state in {"stopped", "unresolved", "no shipper", "damaged"} or self.newer_segments > 0


@dataclass(frozen=True)
class SpoolStatus:
    """A spool and all its lanes, by name."""

    path: str
    lanes: tuple[LaneStatus, ...]

    @property
    def pending_spans(self) -> int:
        """Spans of all lanes that wait for delivery."""
        return sum(lane.pending_spans for lane in self.lanes)


def read_status(spool: Spool) -> SpoolStatus:
    """Return the status of a spool; no lanes if there is none.

    Changes nothing. Reads every byte that waits for delivery, to count its spans: a second or so for some gigabytes. A
    lane that is being delivered is seen somewhere between two batches.

    Raises:
        SpoolError: the spool cannot be read.
    """
    try:
        return SpoolStatus(spool.path, tuple(read_lane_status(spool, lane) for lane in spool.lanes()))
    except OSError as error:
        raise SpoolError(
            f"The spool {spool.path} cannot be read: {error.strerror} ({error.filename}). "
            "Run this as the user whose app records there, or name another spool with `--spool`."
        ) from error


def read_lane_status(spool: Spool, lane: Lane) -> LaneStatus:
    """Return the status of one lane. Raises OSError if its files cannot be read."""
    damage: list[str] = []
    target, identity = "", {}
    try:
        note = lane.note()
        target, identity = note.target, note.identity
    except LedgerError as error:
        damage.append(str(error))
    ledger = _ledger(lane, damage)
    delivery = _delivery(lane, damage)
    in_flight = _in_flight(lane, damage)
    pending = _Pending()
    segments = lane.segments()
    for segment in segments:
        pending.add(segment, ledger.offsets.get(segment.name, 0))
    refusals = sorted(read_refusals(lane), key=lambda refusal: refusal.last_unix_nano)
    running = bool(target) and spool.is_shipped(identity)
    return LaneStatus(
        name=lane.name,
        path=lane.path,
        target=target,
        identity=identity,
        shipper=identity_digest(identity) if target else "",
        shipper_running=running,
        state=_state(identity, delivery, pending, running, damage),
        error=delivery.error if pending.size else "",
        segments=len(segments),
        open_segments=sum(segment.is_open() for segment in segments),
        newer_segments=sum(segment.version > FORMAT_VERSION for segment in segments),
        pending_spans=pending.spans,
        pending_bytes=pending.size,
        oldest_pending_unix_nano=pending.oldest_unix_nano,
        delivered=ledger.delivered,
        quarantined=ledger.quarantined,
        quarantine_files=_files(lane.quarantine_dir),
        refused=sum(refusal.spans for refusal in refusals),
        refusal=refusals[-1].reason if refusals else "",
        last_commit_unix_nano=ledger.last_commit_unix_nano,
        batch_in_flight=in_flight,
        damage=tuple(damage),
    )


class _Pending:
    """Counts what waits in the segments of a lane."""

    def __init__(self) -> None:
        self.spans = 0
        self.size = 0
        self.oldest_unix_nano = 0

    def add(self, segment: Segment, offset: int) -> None:
        try:
            with open_file(segment.path) as file:
                file.seek(offset)
                first = file.readline()
                if not first:
                    return
                self.size += len(first)
                self.spans += first.endswith(b"\n")
                self._note_age(first, os.fstat(file.fileno()).st_mtime_ns)
                while block := file.read(_READ_BYTES):
                    self.size += len(block)
                    self.spans += block.count(b"\n")
        except FileNotFoundError:
            return  # delivered and removed since it was listed

    def _note_age(self, first_line: bytes, written_unix_nano: int) -> None:
        try:
            ended = decode_line(first_line).end_time_unix_nano
        except LineError:
            ended = written_unix_nano
        self.oldest_unix_nano = min(ended, self.oldest_unix_nano or ended)


def _state(
    identity: Mapping[str, str], delivery: Delivery, pending: _Pending, running: bool, damage: list[str]
) -> LaneState:
    if damage:
        return "damaged"
    if not pending.size:
        return "idle"
    if UNRESOLVED_KEY in identity:
        return "unresolved"
    if delivery.state == "stopped":
        return "stopped"
    return delivery.state if running else "no shipper"


def _ledger(lane: Lane, damage: list[str]) -> Ledger:
    try:
        return read_ledger(lane)
    except LedgerError as error:
        damage.append(str(error))
        return Ledger(app_id="")


def _delivery(lane: Lane, damage: list[str]) -> Delivery:
    try:
        return read_note(lane.delivery_path, Delivery) or Delivery("delivering")
    except LedgerError as error:
        damage.append(str(error))
        return Delivery("delivering")


def _in_flight(lane: Lane, damage: list[str]) -> bool:
    try:
        return read_in_flight(lane) is not None
    except LedgerError as error:
        damage.append(str(error))
        return True


def _files(directory: str) -> tuple[str, ...]:
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return ()
    return tuple(os.path.join(directory, name) for name in names if not name.startswith("."))
