"""Plays a schedule: starts its apps, strikes them, heals all, has everything delivered, and checks the accounts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.error import URLError

from tests.lake import FOREIGN
from tests.torture.accounting import Recorded
from tests.torture.checks import Checks
from tests.torture.disk import SmallDisk
from tests.torture.journal import Journal, read_journal
from tests.torture.newer import NewerSegment, try_newer_note
from tests.torture.places import make_place
from tests.torture.processes import Process, apps_of, end, processes_of, shippers_of
from tests.torture.schedule import AppPlan, Event, Schedule
from tests.torture.servers import Servers
from tracelake.errors import LedgerError
from tracelake.spool.lane import Spool
from tracelake.spool.ledger import pending_bytes

HERE = Path(__file__).parent
_TICK_S = 0.05
_SHIP_EACH_S = 1.0
_DISK_MIB = 24
# On SIGTERM a shipper delivers what there is first.
_END_S = 120.0
_DELIVER_S = 120.0
# A shipper that has loaded delta-rs and pyarrow has some 250 MiB.
_MEMORY_MIB = 600
_CLOCK_JUMP_NS = 10 * 3600 * 10**9


@dataclass
class Outcome:
    """What became of a round.

    Attributes:
        kept: spans that recorders acknowledged, a span that goes to two destinations twice.
        doubles: rows beyond the first of a span, where there may be some.
        memory_mib: the most that a shipper had.
        faults: those that struck, by kind.
        findings: what is wrong.
        diary: what happened, and when.
        skipped: why a fault could not be tried; empty if all could.
    """

    schedule: Schedule
    kept: int = 0
    refused: int = 0
    unknown: int = 0
    quarantined: int = 0
    doubles: int = 0
    memory_mib: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    diary: list[str] = field(default_factory=list)
    skipped: str = ""


def play(schedule: Schedule, servers: Servers, root: Path) -> Outcome:
    """Play a round in a directory that is not there yet."""
    started_s = time.monotonic()
    servers.start(schedule.servers)
    played = Round(schedule, servers, root)
    try:
        played.run()
    finally:
        played.close()
    played.outcome.seconds = time.monotonic() - started_s
    return played.outcome


class Round:
    """One round."""

    def __init__(self, schedule: Schedule, servers: Servers, root: Path) -> None:
        self.outcome = Outcome(schedule)
        self._schedule = schedule
        self._servers = servers
        self._root = root
        root.mkdir()
        self._journals = root / "journals"
        self._journals.mkdir()
        self._disk = SmallDisk(root / "disk", _DISK_MIB) if schedule.disk else None
        disk = root / "disk"
        self._spool = Spool(str((disk if schedule.disk == "spool" else root) / "spool"))
        self._places = [
            make_place(
                kind,
                servers,
                disk if schedule.disk == "table" else root,
                root.name,
                logs_in_once=schedule.logs_in_once,
            )
            for kind in schedule.destinations
        ]
        self._environ = self._environment()
        self._apps: list[subprocess.Popen[bytes]] = []
        self._plans: dict[subprocess.Popen[bytes], AppPlan] = {}
        # What delivers for apps that leave it to others, as from cron.
        self._ship_once = [sys.executable, "-m", "tracelake", "ship", "--once", "--spool", self._spool.path]
        self._sidecar: subprocess.Popen[bytes] | None = None
        self._next_ship_s = 0.0
        self._killed: set[int] = set()
        self._newer: list[NewerSegment] = []
        self._heals: list[tuple[float, Callable[[], None]]] = []
        self._down: set[str] = set()
        self._started_s = time.monotonic()

    def run(self) -> None:
        """Play, heal, deliver, check."""
        for number in range(2):
            self._set_clock(number, 0)
        for plan in self._schedule.apps:
            self._start_app(plan)
        self._play()
        self._finish()
        self._check()

    def close(self) -> None:
        """End what is left, whatever happened; on a failure, the files stay."""
        for process in processes_of(self._root):
            process.signal(signal.SIGKILL)
        for app in self._apps:
            app.wait()
        if self._disk:
            self._disk.free()
            if self.outcome.findings and not self._disk.unusable:
                shutil.copytree(self._disk.path, self._root / "disk-kept")
            self._disk.close()

    def _environment(self) -> dict[str, str]:
        environ = {key: value for key, value in os.environ.items() if not FOREIGN.match(key)}
        environ |= {
            "HOME": str(self._root),
            "TRACELAKE_DESTINATION": ",".join(place.target for place in self._places),
            "TRACELAKE_SPOOL_DIR": self._spool.path,
            "TRACELAKE_EXIT_TIMEOUT": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE / "clock"), os.environ.get("PYTHONPATH")))),
            # That a process with threads forks.
            "PYTHONWARNINGS": "ignore::DeprecationWarning",
            "NO_PROXY": "127.0.0.1",
        }
        environ |= dict(self._schedule.settings)
        for place in self._places:
            environ |= place.environ
        return environ

    # --- processes ---------------------------------------------------------------------------------------------------

    def _start_app(self, plan: AppPlan) -> None:
        script = [sys.executable, str(HERE / "app.py"), str(self._journals), json.dumps(asdict(plan))]
        environ = {"TRACELAKE_SHIPPER": plan.mode, "TORTURE_CLOCK": self._clock(plan.clock)}
        app = self._start(script, f"app-{len(self._apps)}.output", **environ)
        self._apps.append(app)
        self._plans[app] = plan

    def _start(self, command: list[str], output: str, **environ: str) -> subprocess.Popen[bytes]:
        with open(self._root / output, "ab") as file:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=self._environ | environ,
                cwd=self._root,
            )

    def _tend(self) -> None:
        """Start anew what was killed or ended, as a service manager does."""
        for app in list(self._plans):
            if app.poll() is not None:
                self._start_app(self._plans.pop(app))
        is_due = self._sidecar is None or (self._sidecar.poll() is not None and self._now_s() >= self._next_ship_s)
        if is_due and any(plan.mode == "external" for plan in self._schedule.apps):
            self._next_ship_s = self._now_s() + _SHIP_EACH_S
            self._sidecar = self._start(self._ship_once, "ship.output", TORTURE_CLOCK=self._clock(0))

    def _pick(self, event: Event) -> Process | None:
        found = shippers_of(self._root) if event.fault.endswith("shipper") else apps_of(self._root)
        return found[int(event.pick * len(found))] if found else None

    # --- what goes wrong ---------------------------------------------------------------------------------------------

    def _play(self) -> None:
        events = list(self._schedule.events)
        next_look_s = 0.0
        while (now_s := self._now_s()) < self._schedule.length_s:
            self._heal(now_s)
            while events and events[0].at_s <= now_s:
                self._strike(events.pop(0))
            self._tend()
            if now_s >= next_look_s:
                next_look_s = now_s + 0.5
                self._look_at_memory()
            time.sleep(_TICK_S)

    def _now_s(self) -> float:
        return time.monotonic() - self._started_s

    def _strike(self, event: Event) -> None:
        kind, _, what = event.fault.partition("-")
        strike: Callable[[Event, str], str] = getattr(self, f"_strike_{kind}")
        said = strike(event, what)
        self._note(f"{event.fault}: {said or 'nothing there to strike'}")
        if said:
            self.outcome.faults[kind] += 1

    def _note(self, text: str) -> None:
        self.outcome.diary.append(f"{self._now_s():6.2f} s  {text}")

    def _heal(self, now_s: float) -> None:
        due = [heal for at_s, heal in self._heals if at_s <= now_s]
        self._heals = [(at_s, heal) for at_s, heal in self._heals if at_s > now_s]
        for heal in due:
            heal()

    def _heal_later(self, event: Event, heal: Callable[[], None]) -> None:
        self._heals.append((self._now_s() + event.for_s, heal))

    def _strike_kill(self, event: Event, _: str) -> str:
        process = self._pick(event)
        if process is None:
            return ""
        self._killed.add(process.pid)
        process.signal(signal.SIGKILL)
        return f"process {process.pid}"

    def _strike_term(self, event: Event, _: str) -> str:
        process = self._pick(event)
        if process is None:
            return ""
        process.signal(signal.SIGTERM)
        return f"process {process.pid}"

    def _strike_pause(self, event: Event, _: str) -> str:
        process = self._pick(event)
        if process is None:
            return ""
        process.signal(signal.SIGSTOP)
        self._heal_later(event, lambda: process.signal(signal.SIGCONT))
        return f"process {process.pid} for {event.for_s:.1f} s"

    def _strike_clock(self, event: Event, _: str) -> str:
        number, offset_ns = int(event.pick * 2), int((2 * event.amount - 1) * _CLOCK_JUMP_NS)
        self._set_clock(number, offset_ns)
        return f"clock {number} is {offset_ns / 3.6e12:+.1f} hours off"

    def _clock(self, number: int) -> str:
        return str(self._root / f"clock-{number}")

    def _set_clock(self, number: int, offset_ns: int) -> None:
        # In place: processes have it mapped.
        with open(os.open(self._clock(number), os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(struct.pack("<q", offset_ns))

    def _strike_net(self, event: Event, what: str) -> str:
        name = self._server(event)
        proxy = self._servers[name].proxy
        proxy.fail(what, event.amount)
        self._heal_later(event, proxy.heal)
        return f"{name} for {event.for_s:.1f} s"

    def _strike_server(self, event: Event, what: str) -> str:
        name = self._server(event)
        server = self._servers[name]
        if name in self._down or (what == "kill" and not server.keeps):
            return ""
        self._down.add(name)

        def heal() -> None:
            if what == "kill":
                server.start()
            else:
                server.signal(signal.SIGCONT)
            self._down.discard(name)

        if what == "kill":
            server.kill()
        else:
            server.signal(signal.SIGSTOP)
        self._heal_later(event, heal)
        return f"{name} for {event.for_s:.1f} s"

    def _server(self, event: Event) -> str:
        return self._schedule.servers[int(event.pick * len(self._schedule.servers))]

    def _strike_workspace(self, event: Event, what: str) -> str:
        if "workspace" in self._down:
            return ""
        times = 1 + int(event.amount * 4)
        try:
            if what == "token":
                self._servers.ask("expire_tokens")
                return "all tokens expire"
            call, options = {
                "429": ("rate_limit", {"retry_after_s": 1}),
                "5xx": ("fail", {"status": 500 + int(event.pick * 2) * 3}),
                "lost-answer": ("lose_answer", {}),
                "reset": ("reset_connection", {}),
            }[what]
            self._servers.ask(f"faults.{call}", times, **options)
        except (URLError, OSError):
            return ""  # just started again
        return f"{times} times"

    def _strike_disk(self, event: Event, _: str) -> str:
        if self._disk is None or self._disk.unusable:
            self.outcome.skipped = f"disk-full: {self._disk.unusable}" if self._disk else ""
            return ""
        self._disk.fill()
        self._heal_later(event, self._disk.free)
        return f"for {event.for_s:.1f} s"

    def _strike_newer(self, event: Event, what: str) -> str:
        lanes = [lane for lane in self._spool.lanes() if os.path.exists(lane.note_path)]
        if not lanes:
            return ""
        lane = lanes[int(event.pick * len(lanes))]
        try:
            if what == "segment":
                self._newer.append(NewerSegment.write(lane))
                return lane.name
            findings = try_newer_note(self._spool, lane, self._root, f"{what}.json", min(event.for_s, 1.5))
        except (OSError, LedgerError):
            return ""  # the disk is full
        if findings is None:
            return ""
        self.outcome.findings += findings
        return lane.name

    # --- the end -----------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Heal everything, let apps and shippers end, and deliver what is left."""
        self._heal(float("inf"))
        for process in processes_of(self._root):
            process.signal(signal.SIGCONT)
        self._servers.heal()
        for segment in self._newer:
            self.outcome.findings += segment.upgrade()
        self._note("healed")
        self.outcome.findings += end(self._root, shippers=False, timeout_s=_END_S)
        self.outcome.findings += self._exit_codes()
        self._note("apps ended")
        self._look_at_memory()
        self.outcome.findings += end(self._root, shippers=True, timeout_s=_END_S)
        self._note("shippers ended")
        self._deliver()
        self._note("delivered")
        self.outcome.findings += [f"left running: {each.pid} {each.command}" for each in processes_of(self._root)]

    def _exit_codes(self) -> list[str]:
        codes = {app.pid: app.wait() for app in self._apps}
        return [
            f"app {pid} ended with {code}"
            for pid, code in codes.items()
            # One that was asked to end before it could listen to that has recorded nothing.
            if code and not (code == -signal.SIGKILL and pid in self._killed) and code != -signal.SIGTERM
        ]

    def _deliver(self) -> None:
        """Run `tracelake ship --once` until nothing waits, and once more, which removes what is delivered."""
        deadline_s = time.monotonic() + _DELIVER_S
        while True:
            was_empty = not any(map(pending_bytes, self._spool.lanes()))
            code = self._start(self._ship_once, "ship-once.output").wait()
            if was_empty and code == 0:
                return
            if time.monotonic() > deadline_s:
                said = (self._root / "ship-once.output").read_text().splitlines()[-5:]
                self.outcome.findings.append(f"not delivered within {_DELIVER_S:g} s: {said}")
                return
            time.sleep(_TICK_S)

    def _check(self) -> None:
        journals = [read_journal(path) for path in sorted(self._journals.iterdir())]
        journals += [_journal_of(segment) for segment in self._newer]
        outputs = sorted(self._root.glob("app-*.output"))
        checks = Checks(self._spool, self._places, journals, self._killed, tears_lines=self._schedule.disk == "spool")
        for lane_outcome in checks.lanes():
            self.outcome.kept += len(lane_outcome.recorded.kept)
            self.outcome.refused += len(lane_outcome.recorded.refused)
            self.outcome.unknown += len(lane_outcome.recorded.unknown)
            self.outcome.quarantined += lane_outcome.totals.set_aside
            self.outcome.doubles += lane_outcome.doubles
        self.outcome.findings += [*checks.findings, *checks.files(), *checks.reports(), *checks.outputs(outputs)]
        if not self.outcome.kept:
            self.outcome.findings.append("nothing was recorded")
        if self.outcome.memory_mib > _MEMORY_MIB:
            self.outcome.findings.append(f"a shipper had {self.outcome.memory_mib} MiB of memory")

    def _look_at_memory(self) -> None:
        memory = [shipper.memory_kib // 1024 for shipper in shippers_of(self._root)]
        self.outcome.memory_mib = max([self.outcome.memory_mib, *memory])


def _journal_of(segment: NewerSegment) -> Journal:
    return Journal(0, {segment.lane.name: Recorded(kept=segment.spans)})
