"""The one object that appends to a lane, from every thread of one process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from tracelake.errors import TracelakeError
from tracelake.spool.lane import Lane
from tracelake.spool.ledger import Refusals, pending_bytes
from tracelake.spool.notes import write_note
from tracelake.spool.segment import new_writer_name, open_segment

# How often a writer looks whether its segment is still there and how full the lane is, by time and by bytes written.
_CHECK_S = 1.0
_CHECK_BYTES = 2**20
# After a refusal the disk is not asked again for this long: a full one must not slow the app down.
_REFUSE_S = 0.1


class LaneWriter:
    """Appends lines to a lane: one `write()` a line, in segments of this process's own.

    Safe to use from many threads, from signal handlers and from finalizers, because its lock is re-entrant and every
    state between two steps is a valid one. Never raises for a disk that fails: it refuses, and counts.

    Attributes:
        written: lines that are in the spool.
        refused: lines that are not.
        lost: lines written to a segment that somebody removed before it was delivered.
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
        self._check_bytes = min(_CHECK_BYTES, max(1, max_bytes // 16))
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
        self._descriptor: int | None = None
        self._sequence = 0
        self._size = 0
        self._lines_in_segment = 0
        self._next_check_s = 0.0
        self._unchecked_bytes = 0
        self._refuse_until_s = 0.0
        self._next_note_s = 0.0

    def append(self, line: bytes) -> bool:
        """Append one line, newline included; return whether it is in the spool."""
        with self._lock:
            now = self._clock()
            self.last_append_s = now
            if now < self._refuse_until_s:
                return self._refuse(1, self.last_reason, now)
            try:
                if now >= self._next_check_s or self._unchecked_bytes >= self._check_bytes:
                    self._check(now)
                descriptor = self._descriptor
                if descriptor is None or (self._size and self._size + len(line) > self._segment_max_bytes):
                    descriptor = self._next_segment()
                written = os.write(descriptor, line)
            except (OSError, TracelakeError) as error:
                return self._refuse(1, str(error), now)
            if written != len(line):
                self._drop_torn(descriptor)
                return self._refuse(1, f"only {written} of {len(line)} bytes could be written", now)
            self._size += written
            self._unchecked_bytes += written
            self._lines_in_segment += 1
            self.written += 1
            return True

    def refuse(self, reason: str) -> None:
        """Count a span that could not even be made into a line."""
        with self._lock:
            self._refuse(1, reason, self._clock())

    def close(self) -> None:
        """Let go of the segment; the next line starts another."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                os.close(descriptor)

    def note_refusals(self) -> None:
        """Write down what was refused, for `tracelake status`."""
        with self._lock:
            if self.refused or self.lost:
                self._note()

    def after_fork_in_child(self) -> None:
        """Become a writer of the child's own. The parent's segment is closed here, and stays locked by the parent."""
        descriptor = self._descriptor
        self._start()
        if descriptor is not None:
            os.close(descriptor)

    def _next_segment(self) -> int:
        self._prepare()
        self._sequence += 1
        descriptor, _ = open_segment(self.lane.segments_dir, self.name, self._sequence)
        # Assigned in one step: a signal handler that appends right here finds the old segment or the new one.
        previous, self._descriptor = self._descriptor, descriptor
        self._size = self._lines_in_segment = 0
        if previous is not None:
            os.close(previous)
        return descriptor

    def _check(self, now: float) -> None:
        self._next_check_s = now + _CHECK_S
        self._unchecked_bytes = 0
        if self._descriptor is not None and not os.fstat(self._descriptor).st_nlink:
            self.lost += self._lines_in_segment
            self.last_reason = "the segment was removed before it was delivered"
            self.close()
            self._note()
        pending = pending_bytes(self.lane)
        if pending >= self._max_bytes:
            self._next_check_s = 0.0
            raise _LaneFullError(
                f"the lane holds {pending} undelivered bytes, and TRACELAKE_SPOOL_MAX_BYTES is {self._max_bytes}"
            )

    def _refuse(self, spans: int, reason: str, now: float) -> bool:
        self.refused += spans
        self.last_reason = reason
        if now >= self._refuse_until_s:
            self._refuse_until_s = now + _REFUSE_S
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

    def _drop_torn(self, descriptor: int) -> None:
        try:
            os.ftruncate(descriptor, self._size)
        except OSError:
            self.close()  # the torn line is then the last of its segment, and is quarantined


class _LaneFullError(TracelakeError):
    """The lane is at its bound."""
