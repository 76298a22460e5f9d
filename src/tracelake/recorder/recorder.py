"""The recorder: appends spans to the lanes of their destinations, and sees to it that a shipper delivers them."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from tracelake.destinations.base import Destination
from tracelake.destinations.resolve import Resolved, resolve_environment
from tracelake.errors import LedgerError, TracelakeError
from tracelake.recorder.report import FlushReport
from tracelake.redaction import one_line
from tracelake.settings import Settings, read_settings
from tracelake.shipper import launch
from tracelake.spans.line import encode_line
from tracelake.spans.record import SpanRecord
from tracelake.spool.files import open_locked
from tracelake.spool.lane import Spool, identity_digest
from tracelake.spool.ledger import read_delivery, read_ledger
from tracelake.spool.writer import LaneWriter

_log = logging.getLogger("tracelake")

# How often a recorder looks whether a shipper runs; less often, by doubling, while shippers do not stay alive.
_WATCH_S = 5.0
_LONGEST_WATCH_S = 300.0
_POLL_S = 0.02
# A refusal is logged at most this often, with the total.
_COMPLAIN_S = 60.0
# Segments held open at a time: a service with a destination for each of a thousand tenants must not run out of files.
_MAX_OPEN = 128


@dataclass(frozen=True, eq=False)
class Route:
    """Where a span goes: a writer a destination."""

    destinations: tuple[Destination, ...]
    writers: tuple[LaneWriter, ...]


@dataclass
class _Watch:
    """When to look for the shipper of an identity again."""

    next_s: float = 0.0
    starts: int = 0


class Recorder:
    """Records spans of this process. Safe to use from many threads and across forks."""

    def __init__(self, settings: Settings, spool: Spool) -> None:
        self.settings = settings
        self.spool = spool
        self._lock = threading.RLock()
        self._routes: dict[tuple[Destination, ...], Route] = {}
        self._writers: dict[str, tuple[LaneWriter, dict[str, str] | None]] = {}
        self.default: Route | None = None  # None until a span asks
        self._watches: dict[str, _Watch] = {}
        self._thread: launch.ShipperThread | None = None
        self._may_ship = True
        self._next_watch_s = 0.0
        self._next_complaint_s = 0.0
        self._exit_deadline_s: float | None = None

    def set_default(self, destinations: tuple[Destination, ...] | None) -> None:
        """Send spans that name no destination of their own there; None: where the environment says."""
        self.default = None if destinations is None else self.route(destinations)

    def default_route(self) -> Route:
        """Return the route of spans that name no destination of their own."""
        route = self.default
        if route is None:
            route = self.default = self._environment_route()
        return route

    def route(self, destinations: tuple[Destination, ...]) -> Route:
        """Return the route to some destinations, always the same object for the same ones."""
        route = self._routes.get(destinations)
        if route is None:
            with self._lock:
                writers = tuple(self._writer(item.target, dict(item.identity), served=True) for item in destinations)
                route = self._routes.setdefault(destinations, Route(destinations, writers))
        return route

    def record(self, record: SpanRecord, writers: Iterable[LaneWriter]) -> None:
        """Append a span to lanes. When this returns, the span is in the spool, or counted as dropped."""
        line = encode_line(record)
        for writer in writers:
            if not writer.append(line):
                self._complain(writer)
            elif writer.last_append_s >= self._next_watch_s:
                self._watch_all()

    def refuse(self, writers: Iterable[LaneWriter], error: Exception) -> None:
        """Count a span that could not be made into a record."""
        for writer in writers:
            writer.refuse(one_line(repr(error)))
            self._complain(writer)

    def report(self) -> FlushReport:
        """Return what became of the spans of this process so far."""
        recorded = delivered = dropped = quarantined = pending = 0
        errors: dict[str, None] = {}
        for writer, _ in list(self._writers.values()):
            written, lost = writer.written, writer.lost
            done = quarantine = 0
            try:
                totals = read_ledger(writer.lane).writers.get(writer.name)
                if totals is not None:
                    done, quarantine = totals.delivered, totals.quarantined
            except (LedgerError, OSError) as error:
                errors[str(error)] = None
            waiting = max(0, written - done - quarantine - lost)
            recorded += written + writer.refused
            delivered += done
            quarantined += quarantine
            dropped += written + writer.refused - done - quarantine - waiting
            pending += waiting
            if writer.last_reason:
                errors[f"Dropped: {writer.last_reason}."] = None
            if waiting:
                delivery = read_delivery(writer.lane)
                if delivery.error:
                    errors[f"{writer.lane.name}: {delivery.error}"] = None
        return FlushReport(recorded, delivered, pending, dropped, quarantined, self.spool.path, tuple(errors))

    def flush(self, timeout_s: float) -> FlushReport:
        """Ask for delivery of what this process recorded, and wait for it, at most `timeout_s` seconds.

        Returns early when nothing is pending, when every lane that holds something is stopped by an error that
        somebody has to mend, or when nobody ships the spool.
        """
        started_ns = time.time_ns()
        deadline_s = time.monotonic() + timeout_s
        for writer, _ in list(self._writers.values()):
            writer.note_refusals()
        report = self.report()
        if not report.pending:
            return report
        for writer in self._pending_writers():
            writer.lane.request_flush()
        if self.settings.shipper == "inline":
            self._drain(deadline_s)
            return self.report()
        while True:
            self._watch_all(patiently=False)
            until_s = min(deadline_s, time.monotonic() + 1.0)
            while True:
                report = self.report()
                if not report.pending or self._is_hopeless(started_ns) or time.monotonic() >= deadline_s:
                    return report
                if time.monotonic() >= until_s:
                    break
                time.sleep(_POLL_S)

    def at_exit(self) -> None:
        """Wait a bounded time for delivery, once a process, and say what is left."""
        if self._exit_deadline_s is None:
            self._exit_deadline_s = time.monotonic() + self.settings.exit_timeout_s
        report = self.flush(max(0.0, self._exit_deadline_s - time.monotonic()))
        if self._thread is not None:
            self._thread.stop(max(0.0, self._exit_deadline_s - time.monotonic()))
        if report.pending or report.dropped:
            later = "" if self.settings.shipper == "process" else " Run `tracelake ship` to deliver what is pending."
            _log.warning("tracelake at exit: %s%s", report, later)

    def after_fork_in_child(self) -> None:
        """Start anew in a forked child: its own segments, its own counts, no thread."""
        self._lock = threading.RLock()
        self._exit_deadline_s = None
        self._next_watch_s = 0.0
        # delta-rs does not survive a fork: where it ran, the child only records, and the parent's shipper delivers.
        self._may_ship = "deltalake" not in sys.modules
        for writer, _ in self._writers.values():
            writer.after_fork_in_child()
        if self._thread is not None:
            self._thread.after_fork_in_child()
            self._thread = None

    def _environment_route(self) -> Route:
        try:
            resolved: Resolved = resolve_environment()
            return self.route(resolved.destinations)
        except TracelakeError as error:
            text = one_line(str(error))
            _log.error(
                "No destination for spans. %s Until then they stay in the spool, in %s; `tracelake status` shows them.",
                text,
                self.spool.path,
            )
            variable = text.split(":", 1)[0]
            return Route((), (self._writer(f"unresolved ({variable})", {"unresolved": variable}, served=False),))

    def _writer(self, target: str, identity: dict[str, str], *, served: bool) -> LaneWriter:
        lane = self.spool.lane(target, identity)
        found = self._writers.get(lane.name)
        if found is not None:
            return found[0]

        def prepare() -> None:
            self.spool.create()
            lane.create(target, identity)
            self._close_oldest()

        writer = LaneWriter(
            lane,
            prepare=prepare,
            max_bytes=self.settings.spool_max_bytes,
            segment_max_bytes=self.settings.segment_max_bytes,
        )
        self._writers[lane.name] = (writer, identity if served else None)
        return writer

    def _close_oldest(self) -> None:
        if len(self._writers) > _MAX_OPEN:
            by_age = sorted(
                (writer for writer, _ in list(self._writers.values())), key=lambda writer: -writer.last_append_s
            )
            for writer in by_age[_MAX_OPEN:]:
                writer.close()

    def _pending_writers(self) -> list[LaneWriter]:
        return [writer for writer, _ in list(self._writers.values()) if writer.written]

    def _is_hopeless(self, since_ns: int) -> bool:
        """Say whether no lane with spans of this process will be delivered soon."""
        for writer, identity in list(self._writers.values()):
            if not writer.written or identity is None:
                continue
            if self.settings.shipper == "external" and not self._is_shipped(identity):
                continue
            delivery = read_delivery(writer.lane)
            if delivery.state != "stopped" or delivery.since_unix_nano < since_ns:
                return False
        return True

    def _is_shipped(self, identity: dict[str, str]) -> bool:
        try:
            descriptor = open_locked(self.spool.lock_path(identity))
        except (OSError, TracelakeError):
            return False
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    def _watch_all(self, *, patiently: bool = True) -> None:
        """See to it that the lanes in use are shipped."""
        now = time.monotonic()
        self._next_watch_s = now + _WATCH_S
        if self.settings.shipper in {"external", "inline"}:
            return
        identities = {
            identity_digest(identity): identity
            for writer, identity in list(self._writers.values())
            if identity is not None and writer.written
        }
        for digest, identity in identities.items():
            watch = self._watches.setdefault(digest, _Watch())
            if patiently and now < watch.next_s:
                continue
            try:
                started = self._start_shipper(identity)
            except Exception as error:  # noqa: BLE001 - the app goes on, and its spans wait
                self.say("No shipper can be started, spans wait in the spool: %s", one_line(str(error)))
                started = "started"
            watch.starts = watch.starts + 1 if started == "started" else 0
            watch.next_s = now + min(_LONGEST_WATCH_S, _WATCH_S * 2 ** max(0, watch.starts - 1))

    def _start_shipper(self, identity: dict[str, str]) -> str:
        if self.settings.shipper == "process":
            state = launch.start_process(self.spool, identity)
            if state != "impossible":
                return state
        if self._may_ship:
            if self._thread is None:
                self._thread = launch.ShipperThread(self.spool, self.settings)
            self._thread.serve(identity)
        return "running"

    def _drain(self, deadline_s: float) -> None:
        if not self._may_ship:
            return
        from tracelake.shipper.service import Shipper

        digests = {identity_digest(identity) for _, identity in list(self._writers.values()) if identity is not None}
        shipper = Shipper(self.spool, self.settings, serves=lambda _, identity: identity_digest(identity) in digests)
        try:
            shipper.drain(deadline_s)
        finally:
            shipper.release()

    def _complain(self, writer: LaneWriter) -> None:
        self.say("%d spans could not be put into the spool, the last because: %s", writer.refused, writer.last_reason)

    def say(self, message: str, *arguments: object) -> None:
        """Log a warning, unless one was logged a moment ago: what goes wrong for a span goes wrong for thousands."""
        now = time.monotonic()
        if now >= self._next_complaint_s:
            self._next_complaint_s = now + _COMPLAIN_S
            _log.warning(message, *arguments)


_current: Recorder | None = None
_current_lock = threading.Lock()


def current_recorder() -> Recorder:
    """Return the recorder of this process, made at the first call from the environment's settings."""
    global _current
    if _current is None:
        with _current_lock:
            if _current is None:
                _current = _make_recorder()
    return _current


def flush(timeout: float = 30.0) -> FlushReport:
    """Wait until the spans of this process are delivered, at most `timeout` seconds, and say what became of them."""
    return current_recorder().flush(timeout)


def _make_recorder() -> Recorder:
    settings, problems = read_settings()
    for problem in problems:
        _log.error("%s", problem)
    if settings.shipper == "inline":
        import tracelake.shipper.service  # noqa: F401 - its thread pools cannot be imported while the interpreter ends
    recorder = Recorder(settings, Spool(settings.spool_dir))
    os.register_at_fork(after_in_child=_after_fork_in_child)
    atexit.register(_at_exit)
    return recorder


def _after_fork_in_child() -> None:
    global _current_lock
    _current_lock = threading.Lock()
    launch.after_fork_in_child()
    if _current is not None:
        _current.after_fork_in_child()


def _at_exit() -> None:
    try:
        if _current is not None:
            _current.at_exit()
    except Exception:  # noqa: BLE001 - the interpreter is ending
        _log.exception("tracelake could not wait for its spans; they are in the spool")
