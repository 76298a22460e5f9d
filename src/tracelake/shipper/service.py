"""The shipper: serves every lane of the identities it may use, until told to stop or idle for long."""

from __future__ import annotations

import gc
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping

from tracelake.errors import LedgerError, SpoolError
from tracelake.settings import Settings
from tracelake.shipper.batch import plan_batch
from tracelake.shipper.lane import LaneShipper
from tracelake.spool.files import is_at, no_fork, open_locked
from tracelake.spool.lane import Lane, Spool, identity_digest
from tracelake.spool.ledger import read_ledger

_log = logging.getLogger("tracelake.shipper")

# How often the lanes are looked at; a look costs some ten system calls a lane.
_POLL_S = 0.1
# Lanes delivered at the same time, so that one slow destination does not hold up the others.
_WORKERS = 4


# A batch is a hundred thousand objects, none in a cycle; looking for cycles among them takes a fifth of the time.
_COLLECT_AFTER = 200_000


def own_process() -> None:
    """Set up a process that does nothing but ship; not for one that is an app's."""
    gc.set_threshold(_COLLECT_AFTER)


class Shipper:
    """Delivers the lanes of a spool whose identity `serves` accepts, one shipper an identity by file lock.

    Args:
        spool: the spool to deliver.
        settings: batch sizes and ages, idle time.
        serves: says whether an identity's lanes are this shipper's; called for each lane found.
        held: locks that this process holds already, by identity digest, as open file descriptors.
    """

    def __init__(
        self,
        spool: Spool,
        settings: Settings,
        *,
        serves: Callable[[Lane, Mapping[str, str]], bool],
        held: Mapping[str, int] | None = None,
    ) -> None:
        self._spool = spool
        self._settings = settings
        self._serves = serves
        self._locks = dict(held or {})
        self._lanes: dict[str, tuple[str, LaneShipper]] = {}
        self._identities: dict[str, tuple[tuple[int, int], Mapping[str, str]]] = {}
        self._unreadable: dict[str, str] = {}

    def run(self, stop: threading.Event, *, idle_s: float | None = None) -> None:
        """Deliver until `stop` is set, or until there was nothing to deliver for `idle_s` seconds (None: for ever).

        A batch under way is finished first. The locks are held until `release`.
        """
        workers = _Workers(_WORKERS, stop)
        try:
            busy_s = time.monotonic()
            while not stop.wait(_POLL_S):
                if self._look(workers):
                    busy_s = time.monotonic()
                elif idle_s is not None and time.monotonic() - busy_s >= idle_s:
                    workers.wait()
                    if any(lane.pending for _, lane in self._lanes.values()):
                        continue  # seen since the look
                    self.release()
                    # A recorder that saw the lock held just before left its spans to this shipper. One that comes now
                    # finds it free.
                    if not any(_has_work(lane) for lane in self._spool.lanes() if self._identity(lane) is not None):
                        return
                    busy_s = time.monotonic()
        finally:
            workers.end()

    def drain(self, deadline_s: float = float("inf")) -> None:
        """Deliver what is there in this thread, each lane until it is empty or fails; start none after `deadline_s`."""
        for lane in self._find():
            while time.monotonic() < deadline_s and lane.ship(flush=True):
                continue

    def release(self) -> None:
        """Let go of the locks, and of the destinations."""
        for _, lane in self._lanes.values():
            lane.close()
        self._lanes.clear()
        with no_fork:
            for descriptor in self._locks.values():
                os.close(descriptor)
            self._locks.clear()

    def forget(self) -> None:
        """In a forked child: close the copies of the locks, which stay the parent's."""
        self._lanes.clear()
        self.release()

    def _look(self, workers: _Workers) -> bool:
        """Start a delivery for every lane that has none running; say whether any lane has something to deliver."""
        self._drop_dead_locks(workers)
        pending = False
        for lane in self._find():
            workers.ship(lane)
            pending = pending or lane.pending > 0
        return pending

    def _drop_dead_locks(self, workers: _Workers) -> None:
        """Let go of locks whose files were removed, with the spool or by a cleaner: others do not see them."""
        for digest, descriptor in list(self._locks.items()):
            if is_at(descriptor, os.path.join(self._spool.shippers_dir, f"{digest}.lock")):
                continue
            _log.warning("the lock of identity %s was removed from %s", digest, self._spool.shippers_dir)
            workers.wait()
            for name, (owner, lane) in list(self._lanes.items()):
                if owner == digest:
                    lane.close()
                    del self._lanes[name]
            with no_fork:
                os.close(self._locks.pop(digest))

    def _find(self) -> list[LaneShipper]:
        found: list[LaneShipper] = []
        try:
            self._spool.check()
        except SpoolError as error:
            self._warn("", error)
            return found
        for lane in self._spool.lanes():
            if lane.name not in self._lanes:
                digest = self._owned(lane)
                if digest is None:
                    continue
                self._lanes[lane.name] = digest, LaneShipper(lane, self._settings)
            found.append(self._lanes[lane.name][1])
        return found

    def _owned(self, lane: Lane) -> str | None:
        """Return the identity's digest of a lane that is this shipper's, its lock taken; None if it is another's."""
        identity = self._identity(lane)
        if identity is None:
            return None
        digest = identity_digest(identity)
        if digest not in self._locks:
            with no_fork:
                try:
                    descriptor = open_locked(self._spool.lock_path(identity))
                except (OSError, SpoolError) as error:
                    self._warn(lane.name, error)
                    return None
                if descriptor is None:
                    return None
                self._locks[digest] = descriptor
        return digest

    def _identity(self, lane: Lane) -> Mapping[str, str] | None:
        """Return the identity of a lane that this shipper serves; None if it does not, or cannot be told to."""
        try:
            found = os.stat(lane.note_path)
            stamp = found.st_ino, found.st_mtime_ns
            # Read anew when it was replaced only: lanes of others are looked at ten times a second, too.
            if self._identities.get(lane.name, (None,))[0] != stamp:
                self._identities[lane.name] = stamp, lane.note().identity
        except (LedgerError, OSError) as error:
            self._warn(lane.name, error)
            return None
        identity = self._identities[lane.name][1]
        return identity if self._serves(lane, identity) else None

    def _warn(self, lane: str, error: Exception) -> None:
        """Say once why a lane, or with no name the whole spool, is left alone."""
        if self._unreadable.get(lane) != str(error):
            self._unreadable[lane] = str(error)
            _log.warning("%s is left alone: %s", f"lane {lane}" if lane else "the spool", error)


class _Workers:
    """Daemon threads that deliver lanes, each lane in one at a time.

    Not a `ThreadPoolExecutor`: that takes no work once the main thread has ended, which is when a shipper in a thread
    of the app delivers the last spans.
    """

    def __init__(self, count: int, stop: threading.Event) -> None:
        self._stop = stop
        self._queue: queue.SimpleQueue[LaneShipper | None] = queue.SimpleQueue()
        self._busy: set[LaneShipper] = set()
        self._threads = [
            threading.Thread(target=self._work, name=f"tracelake-lane-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def ship(self, lane: LaneShipper) -> None:
        """Have a lane delivered, unless it is being delivered."""
        if lane not in self._busy:
            self._busy.add(lane)
            self._queue.put(lane)

    def wait(self) -> None:
        """Wait until no lane is being delivered."""
        while self._busy:
            time.sleep(_POLL_S / 10)

    def end(self) -> None:
        """End the threads, each after its batch."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (lane := self._queue.get()) is not None:
            try:
                while not self._stop.is_set() and lane.ship():
                    continue
            except BaseException:  # noqa: BLE001 - a panic of Rust code is no Exception; the lane is looked at again
                _log.exception("lane %s could not be delivered", lane.lane.name)
            finally:
                self._busy.discard(lane)


def _has_work(lane: Lane) -> bool:
    try:
        return bool(plan_batch(lane, read_ledger(lane), max_bytes=1).ranges)
    except (LedgerError, OSError):
        return False
