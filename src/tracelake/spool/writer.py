"""The one object that appends to a lane, from every thread of one process."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable

from tracelake.errors import LedgerError, TracelakeError
from tracelake.spool.files import is_at, no_fork
from tracelake.spool.lane import Lane
from tracelake.spool.ledger import Refusals, pending_bytes, read_account
from tracelake.spool.notes import write_note
from tracelake.spool.segment import new_writer_name, open_segment

# How often a writer looks whether its segment is still there and how full the lane is, by time and by bytes written.
_CHECK_S = 1.0
_CHECK_BYTES = 2**20
_write = os.write  # once looked up, not twice a span

# Left free on the disk, and a sixteenth of a small one: a shipper that cannot write its notes cannot empty the spool.
_DISK_RESERVE_BYTES = 16 * 2**20
# A writer takes this share of what is free before it looks again: there may be as many of them.
_DISK_SHARES = 64
# After a refusal the disk is not asked again for this long: a full one must not slow the app down.
_REFUSE_S = 0.1


class LaneWriter:
    """Appends lines to a lane: one `write()` a line, in segments of this process's own.

    Safe to use from many threads, from signal handlers and from finalizers, because its lock is re-entrant and every
    state between two steps is a valid one. Never raises for a disk that fails: it refuses, and counts.

    Attributes:
        written: lines that are in the spool.
        refused: lines that are not.
        lost: lines that somebody removed, with their segment, before they were delivered.
    """

    def __init__(
        self,
        lane: Lane,
        *,
        prepare: Callable[[], None],
        max_bytes: int,
        segment_max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`prepare` makes the lane's directories, and may raise SpoolError; `max_bytes` bounds what is undelivered."""
        self.lane = lane
        self._prepare = prepare
        self._max_bytes = max_bytes
        self._segment_max_bytes = min(segment_max_bytes, max(1, max_bytes // 4))
        self._longest_check_bytes = min(_CHECK_BYTES, max(1, max_bytes // 16))
        self._clock = clock
        self._start()

    def _start(self) -> None:
        self.name = new_writer_name()
        self.written = 0
        self.refused = 0
        self.lost = 0
        self.last_reason = ""
        self.last_append_s = 0.0
        self._lock = threading.RLock()
        self._descriptor = -1
        self._path = ""
        self._sequences = itertools.count(1)
        self._size = 0
        self._room = 0
        self._checked_size = 0
        self._check_bytes = self._longest_check_bytes
        self._next_check_s = 0.0
        self._refuse_until_s = 0.0
        self._next_note_s = 0.0

    def append(self, line: bytes) -> bool:
        """Append one line, newline included; return whether it is in the spool."""
        with self._lock:
            now = self.last_append_s = self._clock()
            length = len(line)
            try:
                # The one comparison of the usual case: `_room` is 0 whenever anything else is to be done first.
                if self._size + length > self._room or now >= self._next_check_s:
                    self._make_room(length, now)
                written = _write(self._descriptor, line)
            except (OSError, TracelakeError) as error:
                return self._refuse(str(error), now, length)
            if written != length:
                self._drop_torn(written)
                return self._refuse(f"only {written} of {length} bytes could be written", now, length)
            self._size += length
            self.written += 1
            return True

    def refuse(self, reason: str) -> None:
        """Count a span that could not even be made into a line."""
        with self._lock:
            self._count_refusal(reason, self._clock())

    def close(self) -> None:
        """Let go of the segment; the next line starts another."""
        with self._lock:
            self._room = 0
            with no_fork:
                descriptor, self._descriptor = self._descriptor, -1
                if descriptor >= 0:
                    os.close(descriptor)

    def close_if_idle(self) -> None:
        """Close, unless a thread is appending: whoever holds the lock of another writer must not wait for this one."""
        if self._lock.acquire(blocking=False):
            try:
                self.close()
            finally:
                self._lock.release()

    def note_refusals(self) -> None:
        """Write down what was refused and what was lost, for `tracelake status`."""
        with self._lock:
            self._look_for_losses()
            if self.refused or self.lost:
                self._note()

    def after_fork_in_child(self) -> None:
        """Become a writer of the child's own. The parent's segment is closed here, and stays locked by the parent."""
        descriptor = self._descriptor
        self._start()
        if descriptor >= 0:
            os.close(descriptor)

    def _make_room(self, length: int, now: float) -> None:
        """See to it that a line may be written to the segment, the next one if need be.

        Raises:
            OSError, TracelakeError: it may not; the line is to be refused.
        """
        if length > self._max_bytes:
            raise _LineTooLongError(
                f"a span of {length} bytes is larger than TRACELAKE_SPOOL_MAX_BYTES, which is {self._max_bytes}"
            )
        if now < self._refuse_until_s:
            raise _LaneFullError(self.last_reason)
        if now >= self._next_check_s or self._size + length > self._checked_size + self._check_bytes:
            self._check(length, now)
        if self._descriptor < 0 or (self._size and self._size + length > self._segment_max_bytes):
            self._next_segment()
        self._room = max(self._size + length, min(self._segment_max_bytes, self._checked_size + self._check_bytes))

    def _next_segment(self) -> None:
        self._prepare()
        with no_fork:
            # A number that nobody else gets, a signal handler that comes right after it neither.
            descriptor, path = open_segment(self.lane.segments_dir, self.name, next(self._sequences))
            # Assigned in one step: a signal handler that appends right here finds the old segment or the new one.
            previous, self._descriptor, self._path = self._descriptor, descriptor, path
            # What was written since the last look counts on.
            self._checked_size, self._size = self._checked_size - self._size, 0
            if previous >= 0:
                os.close(previous)
        if self.refused or self.lost:
            self._note()  # what could not be written while there was no room for it, or no directory

    def _check(self, length: int, now: float) -> None:
        self._next_check_s = now + _CHECK_S
        self._checked_size = self._size
        self._look_for_losses()
        pending = pending_bytes(self.lane)
        if pending + length > self._max_bytes:
            raise _LaneFullError(
                f"the lane holds {pending} undelivered bytes, and TRACELAKE_SPOOL_MAX_BYTES is {self._max_bytes}"
            )
        self._check_disk(length)

    def _check_disk(self, length: int) -> None:
        try:
            disk = os.statvfs(self.lane.segments_dir)
        except (FileNotFoundError, NotADirectoryError):
            return  # not made yet
        if not disk.f_blocks:
            return  # file systems without a size of their own say 0
        free = disk.f_bavail * disk.f_frsize - length
        if free < min(_DISK_RESERVE_BYTES, disk.f_blocks * disk.f_frsize // 16):
            raise _LaneFullError(f"the disk of the spool has {free} bytes left, which delivery itself needs")
        self._check_bytes = min(self._longest_check_bytes, free // _DISK_SHARES)

    def _look_for_losses(self) -> None:
        if self._descriptor < 0 or is_at(self._descriptor, self._path):
            return
        self.close()
        try:
            account = read_account(self.lane, self.name, self.written)
        except (LedgerError, OSError):
            return  # the report then says that they are pending, and why that is not known
        lost = self.written - account.delivered - account.quarantined - account.pending
        if lost > self.lost:
            self.lost = lost
            self.last_reason = "the segment was removed before it was delivered"

    def _refuse(self, reason: str, now: float, length: int) -> bool:
        if now >= self._refuse_until_s:
            # Where a huge line does not fit, others may.
            self._refuse_until_s = now + (_REFUSE_S if length <= _CHECK_BYTES else 0)
            self._next_check_s = self._room = 0
        return self._count_refusal(reason, now)

    def _count_refusal(self, reason: str, now: float) -> bool:
        self.refused += 1
        self.last_reason = reason
        if now >= self._next_note_s:
            self._next_note_s = now + _CHECK_S
            self._note()
        return False

    def _note(self) -> None:
        path = os.path.join(self.lane.refusals_dir, f"{self.name}.json")
        try:
            write_note(path, Refusals(self.refused + self.lost, self.last_reason, time.time_ns()), durable=False)
        except OSError:
            return  # the disk refuses this too; the count stays here and is written with the next

    def _drop_torn(self, length: int) -> None:
        try:
            # Not at `_size`: an exception of the app's own may have kept a line from being counted that is there.
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - length)
        except OSError:
            self.close()  # the torn line is then the last of its segment, and is quarantined


class _LaneFullError(TracelakeError):
    """The lane is at its bound."""


class _LineTooLongError(TracelakeError):
    """A line has no room in the lane, however empty that is."""
