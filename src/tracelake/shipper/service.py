"""The shipper: serves every lane of the identities it may use, until told to stop or idle for long."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

from tracelake.errors import LedgerError
from tracelake.settings import Settings
from tracelake.shipper.batch import plan_batch
from tracelake.shipper.lane import LaneShipper
from tracelake.spool.files import open_locked
from tracelake.spool.lane import Lane, Spool, identity_digest
from tracelake.spool.ledger import read_ledger

_log = logging.getLogger("tracelake.shipper")

# How often the lanes are looked at; a look costs some ten system calls a lane.
_POLL_S = 0.1
# Lanes delivered at the same time, so that one slow destination does not hold up the others.
_WORKERS = 4


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
        self._lanes: dict[str, LaneShipper] = {}
        self._running: dict[str, Future[None]] = {}

    def run(self, stop: threading.Event, *, idle_s: float | None = None) -> None:
        """Deliver until `stop` is set, or until there was nothing to deliver for `idle_s` seconds (None: for ever).

        A batch under way is finished first. The locks are held until `release`.
        """
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="tracelake-lane") as pool:
            busy_s = time.monotonic()
            while not stop.wait(_POLL_S):
                if self._look(pool, stop):
                    busy_s = time.monotonic()
                elif idle_s is not None and time.monotonic() - busy_s >= idle_s:
                    wait(self._running.values())
                    self.release()
                    # A recorder that saw the lock held just before left its spans to this shipper.
                    if not any(_has_work(lane.lane) for lane in self._find()):
                        return
                    busy_s = time.monotonic()

    def drain(self, deadline_s: float = float("inf")) -> None:
        """Deliver what is there in this thread, each lane until it is empty or fails; start none after `deadline_s`."""
        for lane in self._find():
            while time.monotonic() < deadline_s and lane.ship(flush=True):
                continue

    def release(self) -> None:
        """Let go of the locks, and of the destinations."""
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()
        for descriptor in self._locks.values():
            os.close(descriptor)
        self._locks.clear()

    def forget(self) -> None:
        """In a forked child: close the copies of the locks, which stay the parent's."""
        self._lanes.clear()
        self.release()

    def _look(self, pool: ThreadPoolExecutor, stop: threading.Event) -> bool:
        """Start a delivery for every lane that has none running; say whether any lane has something to deliver."""
        pending = False
        for lane in self._find():
            running = self._running.get(lane.lane.name)
            if running is None or running.done():
                self._running[lane.lane.name] = pool.submit(_ship, lane, stop)
            pending = pending or lane.pending > 0
        return pending

    def _find(self) -> list[LaneShipper]:
        found = []
        for lane in self._spool.lanes():
            shipper = self._lanes.get(lane.name)
            if shipper is None and self._owns(lane):
                shipper = self._lanes[lane.name] = LaneShipper(lane, self._settings)
            if shipper is not None:
                found.append(shipper)
        return found

    def _owns(self, lane: Lane) -> bool:
        try:
            identity = lane.note().identity
        except LedgerError as error:
            _log.warning("%s", error)
            return False
        if not self._serves(lane, identity):
            return False
        digest = identity_digest(identity)
        if digest not in self._locks:
            descriptor = open_locked(self._spool.lock_path(identity))
            if descriptor is None:
                return False
            self._locks[digest] = descriptor
        return True


def _ship(lane: LaneShipper, stop: threading.Event) -> None:
    while not stop.is_set() and lane.ship():
        continue


def _has_work(lane: Lane) -> bool:
    try:
        return bool(plan_batch(lane, read_ledger(lane), max_bytes=1).ranges)
    except LedgerError:
        return False
