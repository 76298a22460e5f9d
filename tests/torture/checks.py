"""What has to be so when a round is over and everything is delivered."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.torture.accounting import Recorded, Totals, compare, doubles
from tests.torture.journal import Journal, together
from tests.torture.places import Place
from tracelake.destinations.targets import parse_target
from tracelake.errors import TracelakeError
from tracelake.spool.lane import Lane, Spool
from tracelake.spool.ledger import Refusals, read_ledger
from tracelake.spool.notes import read_note

# What an app may say on its standard error, and nothing else.
_SAID = re.compile(
    r"\d+ spans could not be put into the spool, the last because: "
    r"|tracelake at exit: "
    r"|No shipper can be started, spans wait in the spool: "
    r"|lane \S+: "  # the shipper of an app that delivers by itself
)
# A thread of delta-rs that panics, as they do when its disk is full, is an error of a write that is tried again.
_BAD_LOG = re.compile(r"Traceback| (?:ERROR|CRITICAL) ")
_WRITER_PID = re.compile(r"[0-9a-f]{16}-(\d+)-[0-9a-f]{8}")


@dataclass(frozen=True)
class LaneOutcome:
    """What became of a lane; `doubles` are those that may be."""

    recorded: Recorded
    totals: Totals
    doubles: int


class Checks:
    """Checks a spool, and the destinations it was delivered to.

    Attributes:
        findings: what is wrong with what was delivered.
    """

    def __init__(
        self, spool: Spool, places: list[Place], journals: list[Journal], killed: set[int], *, tears_lines: bool
    ) -> None:
        """`tears_lines`: a full disk may have torn a line, or kept a note from being written."""
        self.findings: list[str] = []
        self._spool = spool
        self._places = places
        self._journals = journals
        self._killed = killed
        self._tears_lines = tears_lines

    def lanes(self) -> Iterator[LaneOutcome]:
        """Compare each destination with what was recorded for it."""
        lanes = {lane.note().target: lane for lane in self._spool.lanes()}
        for place in self._places:
            lane = lanes.get(parse_target(place.target).target)
            if lane is None:
                self.findings.append(f"{place.kind} has no lane")
                continue
            recorded, held, totals = together(self._journals, lane.name), place.held(), self._totals(lane)
            for text in compare(recorded, held, totals, exactly_once=place.exactly_once):
                self.findings.append(f"{place.kind}: {text}")
            yield LaneOutcome(recorded, totals, doubles(held))

    def files(self) -> Iterator[str]:
        """Yield what is in the spool and should not be."""
        for lane in self._spool.lanes():
            left = sorted(str(path) for path in Path(lane.path).rglob("*") if _is_left(path))
            if left:
                yield f"{len(left)} files are left in the spool, such as {', '.join(left[:2])}"
            yield from self._quarantine(lane)
        for log in Path(self._spool.shippers_dir).glob("*.log*"):
            bad = [line for line in log.read_text().splitlines() if _BAD_LOG.search(line)]
            if bad:
                yield f"the log {log} has {bad[0]!r}"

    def reports(self) -> Iterator[str]:
        """Yield where what processes and their notes say of themselves is not what they did."""
        for journal in self._journals:
            yield from journal.findings
            yield from journal.check_report()
        for lane in self._spool.lanes():
            yield from self._refusals(lane)

    def outputs(self, paths: list[Path]) -> Iterator[str]:
        """Yield what apps said that they should not have."""
        for path in paths:
            bad = [line for line in path.read_text().splitlines() if not _SAID.match(line)]
            if bad:
                yield f"an app said {bad[0]!r}: {path}"

    def _refusals(self, lane: Lane) -> Iterator[str]:
        """Compare the notes that writers leave with what their processes did."""
        noted: dict[int, int] = {}
        for name in os.listdir(lane.refusals_dir):
            match = _WRITER_PID.match(name)
            note = read_note(os.path.join(lane.refusals_dir, name), Refusals) if match else None
            if match and note:
                noted[int(match[1])] = note.spans
        for journal in self._journals:
            if lane.name not in journal.lanes:
                continue
            recorded = journal.lanes[lane.name]
            said, refused = noted.get(journal.pid, 0), len(recorded.refused)
            # One that was killed had no time to write the last ones down.
            may_lag = not journal.report or self._tears_lines
            if said > refused + len(recorded.unknown) or (said < refused and not may_lag):
                yield f"process {journal.pid} refused {refused} spans of lane {lane.name}, and its note says {said}"

    def _totals(self, lane: Lane) -> Totals:
        try:
            ledger = read_ledger(lane)
        except TracelakeError as error:
            self.findings.append(str(error))
            return Totals(0, 0, 0)
        return Totals(ledger.delivered, ledger.quarantined, len(list(self._set_aside(lane))))

    def _set_aside(self, lane: Lane) -> Iterator[dict[str, object]]:
        for path in sorted(Path(lane.quarantine_dir).glob("*.jsonl")):
            yield from map(json.loads, path.read_text().splitlines())

    def _quarantine(self, lane: Lane) -> Iterator[str]:
        """Yield lines that were set aside, but for those that a killed writer tore."""
        for line in self._set_aside(lane):
            writer = _WRITER_PID.match(str(line["segment"]))
            is_killed = self._tears_lines or (writer and int(writer[1]) in self._killed)
            if not (is_killed and str(line["reason"]).startswith("the line is torn")):
                yield f"set aside in lane {lane.name}: {line}"


def _is_left(path: Path) -> bool:
    """Say whether a file should be gone when all is delivered: segments, notes of batches, and what is half made."""
    if path.suffix == ".tmp":
        # A recorder may have been killed in the middle of these; nobody else can tell.
        return path.parent.name != "refusals" and not path.name.startswith(".lane.json.")
    return path.parent.name == "segments" or path.name == "in-flight.json"
