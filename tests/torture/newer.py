"""What a newer tracelake leaves in a spool: segments, ledgers and notes of formats that this one does not know."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.lake import wait_until
from tests.numbered import START_NS
from tests.torture.accounting import SpanKey
from tests.torture.processes import shippers_of
from tracelake.spans.line import encode_line
from tracelake.spans.record import SpanRecord
from tracelake.spool.files import no_fork, open_locked, read_file, replace_file
from tracelake.spool.lane import Lane, Spool
from tracelake.spool.notes import NOTE_VERSION
from tracelake.spool.segment import FORMAT_VERSION, new_writer_name

_SPANS = 20
_LOCK_S = 2.0


@dataclass
class NewerSegment:
    """A segment of the next format version, whose lines are as ever."""

    lane: Lane
    spans: set[SpanKey]
    path: str
    data: bytes

    @classmethod
    def write(cls, lane: Lane) -> NewerSegment:
        """Write one as an app leaves it that is gone. Raises OSError; then there is none."""
        records = [
            SpanRecord(uuid.uuid4().hex, uuid.uuid4().hex[:16], "newer", START_NS, START_NS + 1) for _ in range(_SPANS)
        ]
        data = b"".join(map(encode_line, records))
        path = os.path.join(lane.segments_dir, f"{new_writer_name()}-000001.v{FORMAT_VERSION + 1}.jsonl")
        replace_file(path, data)
        return cls(lane, {(record.trace_id, record.span_id) for record in records}, path, data)

    def upgrade(self) -> list[str]:
        """Let the format be one that is known; return what is wrong if somebody touched the segment before that."""
        if read_file(self.path) != self.data:
            return [f"the segment {self.path} of a newer format was touched"]
        os.rename(self.path, self.path.replace(f".v{FORMAT_VERSION + 1}.", f".v{FORMAT_VERSION}."))
        return []


def try_newer_note(spool: Spool, lane: Lane, root: Path, name: str, for_s: float) -> list[str] | None:
    """Let a note of a lane be of a newer version for a while, and return what changed in the lane meanwhile.

    None if it cannot be tried: there is no such note now, or a shipper within an app holds the lane's lock.
    """
    path = os.path.join(lane.path, name)
    with _locked(spool, lane, root) as is_ours:
        before = read_file(path)
        if not is_ours or before is None:
            return None
        note = msgspec.json.decode(before)
        replace_file(path, msgspec.json.encode(note | {"version": NOTE_VERSION + 1, "later": True}))
        seen = _state(lane)
    time.sleep(for_s)
    with _locked(spool, lane, root) as is_ours:
        findings = [] if _state(lane) == seen else [f"{path} was of a newer version, and the lane was changed"]
        # The lock is not to be had where an app delivers by itself: its shipper finds the note as it was at once.
        replace_file(path, before)
    return findings


@contextlib.contextmanager
def _locked(spool: Spool, lane: Lane, root: Path) -> Iterator[bool]:
    """Hold a lane's lock, its shipper killed; False if it is not to be had."""
    path = spool.lock_path(lane.note().identity)

    def take() -> list[int]:
        for shipper in shippers_of(root):
            shipper.signal(signal.SIGKILL)
        with no_fork:
            taken = open_locked(path)
        return [] if taken is None else [taken]

    try:
        held = wait_until(take, "the lock is free", _LOCK_S)
    except AssertionError:
        held = []
    try:
        yield bool(held)
    finally:
        for descriptor in held:
            os.close(descriptor)


def _state(lane: Lane) -> tuple[object, ...]:
    """Return what a shipper that stays away from a lane leaves as it is."""
    return (
        read_file(lane.ledger_path),
        read_file(lane.in_flight_path),
        os.listdir(lane.quarantine_dir),
    )
