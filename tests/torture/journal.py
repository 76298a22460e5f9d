"""Reads the journals that `app.py` writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.accounting import Recorded, SpanKey


@dataclass
class Journal:
    """What one process did.

    Attributes:
        lanes: what was recorded, by lane.
        report: what its own report said when it ended: recorded, delivered, pending, dropped, quarantined; empty if it
            did not get so far.
        findings: spans that went nowhere.
    """

    pid: int
    lanes: dict[str, Recorded]
    report: tuple[int, ...] = ()
    findings: list[str] = field(default_factory=list)

    def check_report(self) -> list[str]:
        """Return what is wrong with the process's own report."""
        if not self.report:
            return []
        recorded, *parts = self.report
        kept, refused = (sum(len(getattr(lane, kind)) for lane in self.lanes.values()) for kind in ("kept", "refused"))
        if (recorded, sum(parts), parts[2]) == (kept + refused, kept + refused, refused):
            return []
        return [
            f"process {self.pid} ended {kept + refused} spans of which {refused} were refused, and reports "
            f"(recorded, delivered, pending, dropped, quarantined) = {self.report}"
        ]


def read_journal(path: Path) -> Journal:
    """Return what a journal says; of a line that is torn, nothing."""
    header, *lines = path.read_text().rpartition("\n")[0].split("\n")
    names = header.split()[1:]
    journal = Journal(int(path.name.partition("-")[0]), {name: Recorded() for name in names})
    begun: set[SpanKey] = set()
    for line in lines:
        sign, *words = line.split(" ")
        if sign == "=":
            journal.report = tuple(map(int, words))
            continue
        key = (words[0], words[1])
        if sign == ">":
            begun.add(key)
            continue
        begun.discard(key)
        for name, fate in zip(names, words[2], strict=True):
            if fate == "?":
                journal.findings.append(f"span {' '.join(key)} of process {journal.pid} was never given to lane {name}")
            else:
                (journal.lanes[name].kept if fate == "1" else journal.lanes[name].refused).add(key)
    for recorded in journal.lanes.values():
        recorded.unknown |= begun
    return journal


def together(journals: list[Journal], lane: str) -> Recorded:
    """Return what all processes recorded to a lane."""
    of_lane = [journal.lanes[lane] for journal in journals if lane in journal.lanes]
    return Recorded(
        set().union(*(each.kept for each in of_lane)),
        set().union(*(each.refused for each in of_lane)),
        set().union(*(each.unknown for each in of_lane)),
    )
