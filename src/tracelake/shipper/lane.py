"""Deliver one lane: plan a batch, note it, write it, acknowledge it; after any crash, settle what was in flight."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace

from tracelake.destinations.base import Batch, Destination, Progress, Sink
from tracelake.destinations.targets import parse_target
from tracelake.errors import (
    BatchExistsError,
    ConfigurationError,
    DamageError,
    LedgerError,
    PermanentDeliveryError,
    TracelakeError,
    TransientDeliveryError,
)
from tracelake.redaction import one_line
from tracelake.settings import Settings
from tracelake.shipper.backoff import Backoff
from tracelake.shipper.batch import BatchReader, Plan, plan_batch
from tracelake.spool.files import remove_file, remove_temporaries, sync_dir
from tracelake.spool.lane import Lane
from tracelake.spool.ledger import (
    Delivery,
    InFlight,
    Ledger,
    Totals,
    clear_in_flight,
    read_delivery,
    read_in_flight,
    read_ledger,
    write_delivery,
    write_in_flight,
    write_ledger,
    write_quarantine,
)
from tracelake.spool.segment import remove_unfinished

_log = logging.getLogger("tracelake.shipper")

# What only the shipper writes.
_NOTES = ("ledger.json", "in-flight.json", "delivery.json")
# Totals of writers without segments are kept for this many: they may be waiting to see their last spans delivered.
_KEEP_WRITERS = 256


class LaneShipper:
    """Delivers one lane. Only the holder of the lock of the lane's identity may; used by one thread at a time.

    Attributes:
        pending: spool bytes that waited for delivery at the last look.
    """

    def __init__(
        self,
        lane: Lane,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        backoff: Backoff | None = None,
    ) -> None:
        self.lane = lane
        self.pending = 0
        self._settings = settings
        self._clock = clock
        self._backoff = backoff or Backoff()
        self._sink: Sink | None = None
        self._tried = ("", 0, 0)
        self._progress = Progress()
        self._ledger: Ledger | None = None
        self._ledger_stamp: tuple[int, int] | None = None
        self._waiting_since_s: float | None = None
        self._flushed_ns = 0
        self._delivery = read_delivery(lane)

    def ship(self, *, flush: bool = False) -> bool:
        """Deliver what is due: a full batch, an old one, or with `flush` (or when a recorder asked) whatever there is.

        Returns whether there is more to deliver at once. Never raises: the lane's delivery note says what went wrong,
        and the lane is tried again when its back-off is over.
        """
        requested_ns = self.lane.flush_requested_ns()
        flush = flush or requested_ns != self._flushed_ns
        if self._clock() < (self._backoff.asked_until_s if flush else self._backoff.next_try_s):
            return False
        try:
            more = self._settle() or self._ship_next(flush=flush)
        except Exception as error:  # noqa: BLE001 - spans stay in the spool whatever happens, and other lanes go on
            self._failed(error)
            more = False
        if not more:
            self._flushed_ns = requested_ns
        return more

    def close(self) -> None:
        """Let go of the destination."""
        sink, self._sink = self._sink, None
        if sink is not None:
            try:
                sink.close()
            except Exception:  # noqa: BLE001 - what it held is given up either way
                _log.exception("lane %s: the destination could not be closed", self.lane.name)

    def _settle(self) -> bool:
        """Finish the batch that a crash or an error left in flight, if there is one."""
        note = read_in_flight(self.lane)
        if note is None:
            return False
        self.pending = sum(item.end - item.start for item in note.ranges)
        ledger = self._read_ledger()
        if note.app_id != ledger.app_id:
            raise LedgerError(
                f"{self.lane.in_flight_path} is of a ledger that is gone, so what it delivered is not known. "
                "Remove it to deliver all of the lane again; spans that were delivered are then there twice."
            )
        if note.batch > ledger.batch:
            self._deliver(ledger, note, retried=True)
        else:
            clear_in_flight(self.lane)
        return True

    def _ship_next(self, *, flush: bool) -> bool:
        ledger = self._read_ledger()
        plan = plan_batch(self.lane, ledger, self._settings.batch_max_bytes)
        self.pending = plan.size
        self._tidy(ledger, plan)
        if not plan.ranges:
            self._waiting_since_s = None
            return False
        now = self._clock()
        if self._waiting_since_s is None:
            self._waiting_since_s = now
        if not (flush or plan.full or now - self._waiting_since_s >= self._settings.batch_max_age_s):
            return False
        note = InFlight(ledger.app_id, ledger.batch + 1, plan.ranges, time.time_ns())
        write_in_flight(self.lane, note)
        try:
            self._deliver(ledger, note, retried=False)
        except BatchExistsError as error:
            clear_in_flight(self.lane)  # or its spans would be taken for those that are there
            raise LedgerError(
                f"{error} If the spool was restored from a backup, remove {self.lane.ledger_path} to deliver all "
                "of the lane under a new name; spans that were delivered are then there twice."
            ) from error
        return plan.full

    def _deliver(self, ledger: Ledger, note: InFlight, *, retried: bool) -> None:
        reader = BatchReader(self.lane, note.ranges)
        batch = reader.batch(note.app_id, note.batch, retried=retried)
        rejections = self._open().write(self._with_progress(batch))
        reader.count()
        reader.set_aside(rejections)
        for item in reader.missing:
            _log.error("segment %s was removed before its bytes %d to %d were read", item.segment, item.start, item.end)
        if reader.bad:
            path = write_quarantine(self.lane, ledger, note.batch, reader.bad)
            _log.warning("%d lines are no spans or were rejected; they are in %s", len(reader.bad), path)
        self._acknowledge(ledger, note, reader)
        self._waiting_since_s = None
        self._backoff.succeeded()
        self._set_delivery(Delivery("delivering"))

    def _with_progress(self, batch: Batch) -> Batch:
        """Return a batch with what its last try noted, if that was a try of the very same spans."""
        tried = (batch.app_id, batch.number, batch.size)
        if tried != self._tried:
            self._tried, self._progress = tried, batch.progress
        return replace(batch, progress=self._progress)

    def _acknowledge(self, ledger: Ledger, note: InFlight, reader: BatchReader) -> None:
        writers = {segment.name: segment.writer for segment in self.lane.segments()}
        for item in note.ranges:
            ledger.offsets[item.segment] = item.end
        for writer, spans in reader.spans.items():
            # Put last: those that had nothing delivered for longest are forgotten first.
            totals = ledger.writers[writer] = ledger.writers.pop(writer, Totals())
            totals.delivered += spans
            ledger.delivered += spans
        for line in reader.bad:
            if line.segment in writers:
                ledger.writers.setdefault(writers[line.segment], Totals()).quarantined += 1
            ledger.quarantined += 1
        ledger.batch = note.batch
        ledger.last_commit_unix_nano = time.time_ns()
        self._write_ledger(ledger)
        clear_in_flight(self.lane)

    def _tidy(self, ledger: Ledger, plan: Plan) -> None:
        """Remove delivered segments of writers that are gone, and forget those that are removed."""
        for segment in plan.finished:
            # The file goes first: an offset without its file is forgotten, a file without its offset is sent twice.
            remove_file(segment.path)
        for name, size in plan.cut.items():
            _log.warning("segment %s was cut to %d bytes, below what is delivered of it", name, size)
            ledger.offsets[name] = size
        names = {segment.name for segment in self.lane.segments()}
        gone = [name for name in ledger.offsets if name not in names]
        for name in gone:
            del ledger.offsets[name]
        if plan.cut or gone:
            self._forget_writers(ledger, {segment.writer for segment in self.lane.segments()})
            sync_dir(self.lane.segments_dir)  # or a power loss could bring back a file whose offset is forgotten
            self._write_ledger(ledger)

    def _forget_writers(self, ledger: Ledger, present: set[str]) -> None:
        gone = [writer for writer in ledger.writers if writer not in present]
        for writer in gone[:-_KEEP_WRITERS]:
            del ledger.writers[writer]

    def _read_ledger(self) -> Ledger:
        # Only the holder of the lock writes it, so it is read anew only if it is not the one written last: the lane was
        # removed and came back, somebody repaired it, or another shipper took over a lock whose file was removed.
        if self._ledger is None or self._ledger_stamp != self._stamp():
            self._ledger = read_ledger(self.lane)
            self._write_ledger(self._ledger)
            remove_unfinished(self.lane.segments_dir)
            remove_temporaries(self.lane.path, _NOTES)
            remove_temporaries(self.lane.quarantine_dir)
        return self._ledger

    def _write_ledger(self, ledger: Ledger) -> None:
        write_ledger(self.lane, ledger)
        self._ledger_stamp = self._stamp()

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.lane.ledger_path)
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _open(self) -> Sink:
        if self._sink is None:
            destination: Destination = parse_target(self.lane.note().target)
            self._sink = destination.open()
        return self._sink

    def _failed(self, error: Exception) -> None:
        permanent = isinstance(error, (PermanentDeliveryError, ConfigurationError, DamageError))
        text = one_line(str(error)) if isinstance(error, (TracelakeError, OSError)) else one_line(repr(error))
        if text != self._delivery.error:
            unexpected = not isinstance(error, (TracelakeError, OSError))
            _log.warning("lane %s: %s", self.lane.name, text, exc_info=error if unexpected else None)
        self.close()
        self._ledger = None
        at_least_s = error.retry_after_s if isinstance(error, TransientDeliveryError) else 0.0
        self._backoff.failed(self._clock(), permanent=permanent, at_least_s=at_least_s)
        self._set_delivery(Delivery("stopped" if permanent else "retrying", text, self._backoff.attempts))

    def _set_delivery(self, delivery: Delivery) -> None:
        if (delivery.state, delivery.error, delivery.attempts) != (
            self._delivery.state,
            self._delivery.error,
            self._delivery.attempts,
        ):
            self._delivery = delivery
            write_delivery(self.lane, delivery)
