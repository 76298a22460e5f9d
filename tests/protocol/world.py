"""A lane with apps and a shipper that die and come back, and what has to be true of it at any time.

Every line has a number. What its writer was told of it is what the world is held to: a line that was acknowledged is
in the destination or in quarantine, once; a line that was refused is in neither. Of a line whose writer died in the
middle, nobody was told anything: it may be there, once.
"""

from __future__ import annotations

import copy
import os
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import pytest

from tests.numbered import line
from tests.protocol.edge import Crash, Edge, Fault, Process
from tests.protocol.sink import POISON, FileStore, Moods, MoodyDestination, TableStore
from tracelake.destinations import targets
from tracelake.errors import LineError
from tracelake.settings import Settings
from tracelake.shipper.backoff import Backoff
from tracelake.shipper.lane import LaneShipper
from tracelake.spans.line import decode_line
from tracelake.spool.files import open_locked
from tracelake.spool.lane import Spool
from tracelake.spool.ledger import Quarantined, read_account, read_in_flight, read_ledger
from tracelake.spool.segment import FORMAT_VERSION
from tracelake.spool.writer import LaneWriter

# Three spans fill a segment, and four a batch.
SEGMENT_BYTES = 3 * len(line(1))
BATCH_BYTES = 4 * len(line(1)) + 10

# Where there is one, a disk in memory: what a run waits for are hundreds of directories.
_MEMORY = "/dev/shm"

# What may be left when all is delivered. A recorder's unfinished notes are not the shipper's to remove.
_LEFT = re.compile(
    r"\.?lane\.json(\.\w+\.tmp)?|refusals/\.?[\w-]+\.json(\.\w+\.tmp)?"
    r"|ledger\.json|delivery\.json|flush|quarantine/[\w-]+\.jsonl|segments/[\w-]+\.v2\.jsonl"
)


@dataclass
class App:
    """A process that records."""

    process: Process
    writer: LaneWriter
    unsure: int = 0  # lines that it was never told of


@dataclass
class Shipper:
    """A process that delivers, with the lock that says so."""

    process: Process
    lock: int
    lane: LaneShipper


@dataclass
class World:
    """See above.

    Attributes:
        kept: lines that were acknowledged, by number.
        refused: lines that were refused.
        unsure: lines whose writer died before it was told.
    """

    table: bool = False
    max_bytes: int = 2**20
    kept: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    unsure: set[int] = field(default_factory=set)
    apps: list[App] = field(default_factory=list)
    shipper: Shipper | None = None
    moods: Moods = field(default_factory=Moods)
    now_s: float = 1000.0

    def __post_init__(self) -> None:
        self.root = tempfile.mkdtemp(prefix="protocol-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None)
        self.edge = Edge()
        self.spool = Spool(os.path.join(self.root, "spool"))
        self.store = (TableStore if self.table else FileStore)(os.path.join(self.root, "store"))
        self.target = f"moody://{self.root}"
        self.lane = self.spool.lane(self.target, {})
        self._patch = pytest.MonkeyPatch()
        # Every run of a scenario makes the same names, so it makes the same calls.
        self._patch.setattr(os, "urandom", random.Random(0).randbytes)
        destination = MoodyDestination(self.target, self.edge, self.moods, self.store)
        self._patch.setitem(targets._BUILT_IN, "moody", lambda _: destination)
        self._numbers = iter(range(1, 10**9))
        self._writers: list[tuple[LaneWriter, int]] = []
        self._newer: set[str] = set()
        self.edge.install()

    def close(self) -> None:
        """Let go of everything."""
        for app in self.apps:
            self.edge.kill(app.process)
        if self.shipper:
            self.edge.kill(self.shipper.process)
        self.edge.remove()
        self._patch.undo()
        shutil.rmtree(self.root)

    def new_app(self) -> App:
        """Start an app."""
        writer = LaneWriter(
            self.lane,
            prepare=self._prepare,
            max_bytes=self.max_bytes,
            segment_max_bytes=SEGMENT_BYTES,
            clock=lambda: self.now_s,
        )
        self.apps.append(App(Process(), writer))
        return self.apps[-1]

    def fork(self, parent: App) -> App:
        """Start a child of an app."""
        child = App(Process(), copy.copy(parent.writer))
        if parent.writer._descriptor >= 0:
            child.writer._descriptor = self.edge.duplicate(parent.writer._descriptor, parent.process, child.process)
        self._run(child.process, None, child.writer.after_fork_in_child)
        self.apps.append(child)
        return child

    def append(self, app: App, kind: str = "good", fault: Fault | None = None) -> None:
        """Have an app record a line: a good one, one that is no span, or one that the destination never takes."""
        number = next(self._numbers)
        self.now_s += 0.2  # a writer that was told of an error refuses for less
        data = b"bad %d\n" % number if kind == "bad" else line(number, POISON if kind == "poison" else "")
        self.unsure.add(number)
        app.unsure += 1
        recorded = self._run(app.process, fault, app.writer.append, data)
        if recorded is None:
            self.end(app)
            return
        self.unsure.remove(number)
        app.unsure -= 1
        (self.kept if recorded else self.refused).add(number)

    def end(self, app: App) -> None:
        """Kill an app."""
        self.edge.kill(app.process)
        self.apps.remove(app)
        self._writers.append((app.writer, app.unsure))

    def ask(self, app: App, fault: Fault | None = None) -> None:
        """Have an app ask for delivery, and note what it refused."""

        def ask() -> bool:
            app.writer.note_refusals()
            self.lane.request_flush()
            return True

        if not self._run(app.process, fault, ask):
            self.end(app)

    def ship(self, fault: Fault | None = None, *, flush: bool = True) -> bool:
        """Have the shipper deliver once, a new one if there is none; return whether it says that there is more."""
        if self.shipper is None and not self._start_shipper():
            return False
        shipper = self.shipper
        assert shipper is not None
        more = self._run(shipper.process, fault, lambda: shipper.lane.ship(flush=flush))
        if more is None:
            self.shipper = None
        return bool(more)

    def replace_shipper(self) -> None:
        """Kill the shipper."""
        if self.shipper:
            self.edge.kill(self.shipper.process)
            self.shipper = None

    def add_newer_segment(self) -> None:
        """Have a newer release, that writes another format, leave a segment."""
        self._run(Process(), None, self._prepare)
        path = os.path.join(self.lane.segments_dir, f"{os.urandom(8).hex()}-1-{'0' * 8}-000001.v2.jsonl")
        with open(path, "wb") as file:
            file.write(b"newer")
        self._newer.add(path)

    def lose_power(self, seed: int) -> None:
        """Have everything die, and the disk forget what was not synced.

        Nobody vouches for lines that were not delivered: their segments are not synced. Nor for those that were set
        aside without an ack, which are read from the segments once more.
        """
        for app in list(self.apps):
            self.end(app)
        self.replace_shipper()
        self.edge.disk.lose_power(random.Random(seed))
        delivered = {*self.store.numbers(), *self._quarantined(acknowledged=True)}
        self.unsure |= self.kept - delivered
        self.kept &= delivered
        self._writers.clear()
        self._newer = set(filter(os.path.exists, self._newer))

    def check(self) -> None:
        """See that nothing is lost, twice there, or there although it was refused."""
        stored, aside = Counter(self.store.numbers()), Counter(self._quarantined())
        twice = [number for number, times in (stored + aside).items() if times > 1]
        assert twice == [], f"there twice: {twice}"
        found = stored.keys() | aside.keys()
        assert found <= self.kept | self.unsure, f"there, and never recorded: {found - self.kept - self.unsure}"
        lost = self.kept - found - self._waiting()
        assert lost == set(), f"lost: {lost}"
        if os.path.isdir(self.lane.path) and read_in_flight(self.lane) is None:
            for app in self.apps:
                self._check_account(app.writer, app.unsure)

    def settle(self) -> None:
        """Have everything end well, and see that nothing is left to do."""
        self.moods.next.clear()
        self.now_s += 100
        for app in [*self.apps, self.new_app()]:
            self.append(app)
        self.replace_shipper()
        self._deliver()
        for app in list(self.apps):
            self.end(app)
        self._deliver()
        self.check()
        stored, aside = self.store.numbers(), self._quarantined()
        assert self.kept <= {*stored, *aside}, f"not delivered: {self.kept - {*stored, *aside}}"
        for writer, unsure in self._writers:
            self._check_account(writer, unsure)
        assert all(map(os.path.exists, self._newer)), "a segment of another format was removed"
        left = [name for name in self._files() if not _LEFT.fullmatch(name)]
        assert left == [], f"left: {left}"

    def _prepare(self) -> None:
        self.spool.create()
        self.lane.create(self.target, {})

    def _run(
        self, process: Process, fault: Fault | None, function: Callable[..., object], *arguments: object
    ) -> object:
        """Return what a function of a process returns; None if it died of the fault."""
        try:
            with self.edge.running(process, fault):
                return function(*arguments)
        except Crash:
            return None

    def _start_shipper(self) -> bool:
        if not os.path.isdir(self.lane.path) or not os.path.exists(self.lane.note_path):
            return False
        process = Process()
        lock = self._run(process, None, open_locked, self.spool.lock_path({}))
        assert isinstance(lock, int), "the lock of a shipper that is dead is held"
        settings = Settings(batch_max_bytes=BATCH_BYTES, batch_max_age_s=5.0)
        lane = LaneShipper(self.lane, settings, clock=lambda: self.now_s, backoff=Backoff(random.Random(1)))
        self.shipper = Shipper(process, lock, lane)
        return True

    def _deliver(self) -> None:
        for _ in range(1000):
            self.now_s += 100
            if not self.ship() and self.shipper is not None and not self.shipper.lane.pending:
                break
        self.ship()

    def _waiting(self) -> set[int]:
        """Return the numbers of lines that are in segments and not marked as delivered."""
        if not os.path.isdir(self.lane.path):
            return set()
        offsets = read_ledger(self.lane).offsets
        return {
            number
            for segment in self.lane.segments()
            if segment.version == FORMAT_VERSION
            for _, data in segment.lines(offsets.get(segment.name, 0), segment.size())
            if (number := _number(data)) is not None
        }

    def _quarantined(self, *, acknowledged: bool = False) -> list[int]:
        found = []
        names = os.listdir(self.lane.quarantine_dir) if os.path.isdir(self.lane.quarantine_dir) else []
        for name in names:
            match = re.fullmatch(r"[\w-]+-(\d{9})\.jsonl", name)
            if match and (not acknowledged or int(match[1]) <= read_ledger(self.lane).batch):
                with open(os.path.join(self.lane.quarantine_dir, name), "rb") as file:
                    found += [msgspec.json.decode(each, type=Quarantined) for each in file]
        places = Counter((each.segment, each.offset) for each in found)
        assert max(places.values(), default=1) == 1, f"set aside twice: {places}"
        return [number for each in found if (number := _number(each.line)) is not None]

    def _check_account(self, writer: LaneWriter, unsure: int) -> None:
        account = read_account(self.lane, writer.name, writer.written)
        total = account.delivered + account.quarantined + account.pending
        assert writer.written <= total <= writer.written + unsure, (writer.written, unsure, account)

    def _files(self) -> list[str]:
        return [
            os.path.relpath(os.path.join(directory, name), self.lane.path)
            for directory, _, names in os.walk(self.lane.path)
            for name in names
        ]


def _number(data: bytes) -> int | None:
    """Return the number of a whole line."""
    if match := re.fullmatch(rb"bad (\d+)\n", data):
        return int(match[1])
    try:
        return int(decode_line(data).span_id, 16) if data.endswith(b"\n") else None
    except LineError:
        return None
