"""The recorder: appends spans to the lanes of their destinations, and sees to it that a shipper delivers them."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from tracelake.destinations.base import Destination, is_confined
from tracelake.destinations.resolve import EXPERIMENT_ID, read_environment, resolve_environment
from tracelake.errors import LedgerError, TargetError, TracelakeError
from tracelake.recorder.redact import Redact, Redactor, masked, steps
from tracelake.recorder.report import FlushReport
from tracelake.redaction import one_line
from tracelake.settings import Settings, read_settings
from tracelake.shipper import launch
from tracelake.spans.line import encode_line
from tracelake.spans.record import SpanRecord
from tracelake.spool.files import no_fork
from tracelake.spool.lane import Spool, identity_digest
from tracelake.spool.ledger import Account, read_account, read_delivery, read_ledger
from tracelake.spool.writer import LaneWriter

_log = logging.getLogger("tracelake")

# How often a recorder looks whether a shipper runs; less often, by doubling, while shippers do not stay alive.
_WATCH_S = 5.0
_LONGEST_WATCH_S = 300.0
_POLL_S = 0.02
# What a program that ends waits for the batch that its own thread has under way, however short its timeout.
_LAST_BATCH_S = 30.0
# A refusal is logged at most this often, with the total.
_COMPLAIN_S = 60.0
# Segments held open at a time: a service with a destination for each of a thousand tenants must not run out of files.
_MAX_OPEN = max(128, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4, 16_384))


@dataclass(frozen=True, eq=False)
class Route:
    """Where a span goes: a writer a destination."""

    destinations: tuple[Destination, ...]
    writers: tuple[LaneWriter, ...]


@dataclass
class _Watch:
    """When to look for the shipper of an identity again, and how many were started that delivered nothing."""

    next_s: float = 0.0
    starts: int = 0
    delivered: int = 0


class Recorder:
    """Records spans of this process. Safe to use from many threads and across forks."""

    def __init__(self, settings: Settings, spool: Spool) -> None:
        self.settings = settings
        self.spool = spool
        self._redactor: Redactor | None = None
        self.use_redaction(())
        self._lock = threading.RLock()
        self._routes: dict[tuple[Destination, ...], Route] = {}
        self._writers: dict[str, tuple[LaneWriter, dict[str, str] | None]] = {}
        self.default: Route | None = None  # None until a span asks
        self._is_default_set = False
        self._environment_routes: dict[tuple[str, ...], Route] = {}
        self._watches: dict[str, _Watch] = {}
        self._thread: launch.ShipperThread | None = None
        self._may_ship = True
        self._drains = False
        self._next_watch_s = 0.0
        self._next_complaint_s = 0.0
        self._exit_deadline_s = 0.0
        self._written_at_exit = -1
        self._report_at_exit: FlushReport | None = None

    def use_redaction(self, redact: str | Iterable[str] | Redact) -> None:
        """Mask what patterns name, or have a callable do so, in every span of this process from now on.

        What TRACELAKE_REDACT names is masked in any case, first.

        Raises:
            ConfigurationError: `redact` is neither patterns nor a callable. Nothing changed.
        """
        both = [*steps(self.settings.redact), *steps(redact)]
        self._redactor = Redactor(both) if both else None

    def set_default(self, destinations: tuple[Destination, ...] | None) -> None:
        """Send spans that name no destination of their own there; None: where the environment says."""
        self._is_default_set = destinations is not None
        self.default = None if destinations is None else self.route(destinations)

    def default_route(self) -> Route:
        """Return the route of spans that name no destination of their own."""
        route = self.default
        if route is None:
            route = self.default = self.environment_route()
        return route

    def environment_route(self, experiment_id: str | None = None) -> Route:
        """Return the default route, where the environment names it as it is now.

        `experiment_id` comes before that of the environment, for a destination that has experiments.
        """
        if self._is_default_set and self.default is not None:
            return self.default
        environ = read_environment()
        if experiment_id is not None:
            environ[EXPERIMENT_ID] = experiment_id
        key = tuple(environ.values())
        route = self._environment_routes.get(key)
        if route is None:
            route = self._environment_routes[key] = self._resolve(environ)
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
        if self._redactor is not None:
            record = self._redacted(self._redactor, record)
        line = encode_line(record)
        for writer in writers:
            if not writer.append(line):
                self._complain(writer)
            elif writer.last_append_s >= self._next_watch_s:
                self._watch_all()

    def refuse(self, writers: Collection[LaneWriter], error: Exception) -> None:
        """Count a span that could not be made into a record."""
        reason = one_line(repr(error))
        for writer in writers:
            writer.refuse(reason)
            self._complain(writer)
        if not writers:
            self.say("A span could not be recorded: %s", reason)

    def report(self) -> FlushReport:
        """Return what became of the spans of this process so far."""
        recorded = delivered = dropped = quarantined = pending = 0
        errors: dict[str, None] = {}
        for writer, _ in list(self._writers.values()):
            refused, written = writer.refused, writer.written
            account = _account(writer, written, errors)
            settled = account.delivered + account.quarantined + account.pending
            # A line that an exception of the app's own, such as KeyboardInterrupt, kept from being counted is there.
            seen = max(written + refused, settled)
            recorded += seen
            delivered += account.delivered
            quarantined += account.quarantined
            dropped += seen - settled
            pending += account.pending
            if seen > settled:
                reason = writer.last_reason or "they were removed from the spool before they were delivered"
                errors[f"Dropped: {reason}."] = None
            if account.pending:
                delivery = read_delivery(writer.lane)
                if delivery.error:
                    errors[f"{writer.lane.name}: {delivery.error}"] = None
        return FlushReport(recorded, delivered, pending, dropped, quarantined, self.spool.path, tuple(errors))

    def flush(self, timeout_s: float) -> FlushReport:
        """Ask for delivery of what this process recorded until now, and wait for it, at most `timeout_s` seconds.

        Returns early when none of it is pending, when every lane that holds some of it is stopped by an error that
        somebody has to mend, or when nobody ships the spool.
        """
        started_ns = time.time_ns()
        deadline_s = time.monotonic() + timeout_s
        goals: dict[LaneWriter, int] = {}
        for writer, _ in list(self._writers.values()):
            writer.note_refusals()
            goals[writer] = writer.written
        ask_s = 0.0
        while waiting := [writer for writer, written in goals.items() if _account(writer, written, {}).pending]:
            if self.settings.shipper == "inline" or self._drains:
                self._drain(deadline_s)
                break
            if time.monotonic() >= ask_s:
                # Each second anew: a shipper that failed, or was replaced, in the meantime forgot that it was asked.
                ask_s = time.monotonic() + 1.0
                for writer in waiting:
                    writer.lane.request_flush()
                self._watch_all(patiently=False)
            if self._is_hopeless(waiting, started_ns) or time.monotonic() >= deadline_s:
                break
            time.sleep(_POLL_S)
        return self.report()

    def at_exit(self) -> None:
        """Wait a bounded time for delivery, and say what is left; no longer if it is called again without new spans."""
        written = sum(writer.written for writer, _ in list(self._writers.values()))
        if written != self._written_at_exit:
            self._written_at_exit = written
            self._exit_deadline_s = time.monotonic() + self.settings.exit_timeout_s
        report = self.flush(max(0.0, self._exit_deadline_s - time.monotonic()))
        if self._thread is not None:
            # Past the deadline, too: a thread that is in the middle of delta-rs when the interpreter goes crashes it.
            least_s = _LAST_BATCH_S if "deltalake" in sys.modules else 0.0
            self._thread.stop(max(least_s, self._exit_deadline_s - time.monotonic()))
        if (report.pending or report.dropped) and report != self._report_at_exit:
            self._report_at_exit = report
            later = "" if self.settings.shipper == "process" else " Run `tracelake ship` to deliver what is pending."
            _log.warning("tracelake at exit: %s%s", report, later)

    def after_fork_in_child(self) -> None:
        """Start anew in a forked child: its own segments, its own counts, no thread."""
        self._lock = threading.RLock()
        self._written_at_exit = -1
        self._next_watch_s = 0.0
        self._watches = {}
        # delta-rs does not survive a fork: where it ran, or a thread was about to load it, the child only records, and
        # the parent's shipper delivers. An import that was under way could never end in the child.
        self._may_ship = self._may_ship and self._thread is None and "deltalake" not in sys.modules
        for writer, _ in self._writers.values():
            writer.after_fork_in_child()
        if self._thread is not None:
            self._thread.after_fork_in_child()
            self._thread = None

    def _redacted(self, redactor: Redactor, record: SpanRecord) -> SpanRecord:
        try:
            return redactor(record)
        except Exception as error:  # noqa: BLE001 - the app's own code; what it did not see to must not get to the disk
            why = f"redact raised {type(error).__qualname__}"  # its message may hold the very value
            self.say("A span has all its values masked: %s.", why)
            return masked(record, why)

    def _resolve(self, environ: Mapping[str, str]) -> Route:
        try:
            return self.route(resolve_environment(environ).destinations)
        except Exception as error:  # noqa: BLE001 - the app goes on, and its spans wait
            text = one_line(str(error) if isinstance(error, TracelakeError) else repr(error))
            _log.error(
                "No destination for spans. %s Until then they stay in the spool, in %s; `tracelake status` shows them.",
                text,
                self.spool.path,
            )
            variable = text.split(":", 1)[0] if isinstance(error, TargetError) else "the environment"
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
        # A signal handler may have recorded to the same lane in the meantime: its writer is then everybody's.
        return self._writers.setdefault(lane.name, (writer, identity if served else None))[0]

    def _close_oldest(self) -> None:
        if len(self._writers) > _MAX_OPEN:
            by_age = sorted(
                (writer for writer, _ in list(self._writers.values())), key=lambda writer: -writer.last_append_s
            )
            for writer in by_age[_MAX_OPEN:]:
                writer.close_if_idle()

    def _is_hopeless(self, waiting: list[LaneWriter], since_ns: int) -> bool:
        """Say whether none of the lanes that hold spans of this process will be delivered soon."""
        for writer in waiting:
            identity = self._writers[writer.lane.name][1]
            if identity is None:
                continue
            if self.settings.shipper == "external" and not self._is_shipped(identity):
                continue
            delivery = read_delivery(writer.lane)
            if delivery.state != "stopped" or delivery.since_unix_nano < since_ns:
                return False
        return True

    def _is_shipped(self, identity: dict[str, str]) -> bool:
        try:
            return self.spool.is_shipped(identity)
        except TracelakeError:
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
            delivered = self._delivered(digest)
            # One that delivered and then had nothing to do for long ended as it should.
            watch.starts = watch.starts + 1 if started == "started" and delivered == watch.delivered else 0
            watch.delivered = delivered
            watch.next_s = now + min(_LONGEST_WATCH_S, _WATCH_S * 2 ** max(0, watch.starts - 1))

    def _delivered(self, digest: str) -> int:
        """Return the batches that were ever delivered from the lanes of an identity."""
        batches = 0
        for writer, identity in list(self._writers.values()):
            if identity is not None and identity_digest(identity) == digest:
                with contextlib.suppress(LedgerError, OSError):
                    batches += read_ledger(writer.lane).batch
        return batches

    def _start_shipper(self, identity: dict[str, str]) -> str:
        if self.settings.shipper == "process" and not is_confined(identity):
            state = launch.start_process(self.spool, identity)
            if state != "impossible":
                return state
        if self._may_ship:
            if self._thread is None:
                self._thread = launch.ShipperThread(self.spool, self.settings)
            try:
                self._thread.serve(identity)
            except RuntimeError:
                self._drains = True  # early versions of Python 3.12 start no thread once the main one has ended
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


def _account(writer: LaneWriter, written: int, errors: dict[str, None]) -> Account:
    try:
        return read_account(writer.lane, writer.name, written)
    except (LedgerError, OSError) as error:
        errors[str(error)] = None
        return Account(0, 0, written)


_current: Recorder | None = None
# Re-entrant: a signal handler may record a span while the recorder is being made.
_current_lock = threading.RLock()


def current_recorder() -> Recorder:
    """Return the recorder of this process, made at the first call from the environment's settings."""
    global _current
    if _current is None:
        with _current_lock:
            if _current is None:
                recorder = _make_recorder()
                _current = _current or recorder
    return _current


def flush(timeout: float = 30.0) -> FlushReport:
    """Wait until the spans of this process are delivered, at most `timeout` seconds, and say what became of them."""
    return current_recorder().flush(timeout)


def _make_recorder() -> Recorder:
    settings, problems = read_settings()
    for problem in problems:
        _log.error("%s", problem)
    recorder = Recorder(settings, Spool(settings.spool_dir))
    os.register_at_fork(before=no_fork.acquire, after_in_parent=no_fork.release, after_in_child=_after_fork_in_child)
    atexit.register(_at_exit)
    return recorder


def _after_fork_in_child() -> None:
    global _current_lock
    no_fork.release()
    _current_lock = threading.RLock()
    launch.after_fork_in_child()
    if _current is not None:
        _current.after_fork_in_child()


def _at_exit() -> None:
    try:
        if _current is not None:
            _current.at_exit()
    except Exception:  # noqa: BLE001 - the interpreter is ending
        _log.exception("tracelake could not wait for its spans; they are in the spool")
