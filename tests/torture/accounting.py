"""Compares what recorders acknowledged with what a destination holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

# (trace id, span id) in hexadecimal digits.
SpanKey = tuple[str, str]

# As many spans as one finding names.
_NAMED = 3


@dataclass
class Recorded:
    """What recorders said of the spans of one lane.

    Attributes:
        kept: spans whose end had returned, and that were in the spool then.
        refused: spans whose end had returned, and that were counted as refused.
        unknown: spans that were being ended when their process was killed: they may be there, once.
    """

    kept: set[SpanKey] = field(default_factory=set)
    refused: set[SpanKey] = field(default_factory=set)
    unknown: set[SpanKey] = field(default_factory=set)


@dataclass(frozen=True)
class Totals:
    """What the ledger of a lane says, and what its quarantine holds."""

    delivered: int
    quarantined: int
    set_aside: int


def compare(recorded: Recorded, held: Counter[SpanKey], totals: Totals, *, exactly_once: bool) -> list[str]:
    """Return what is wrong with a lane and the destination it was delivered to, one text a kind of fault."""
    known = recorded.kept | recorded.refused | recorded.unknown
    found = [
        *_said("missing, and were acknowledged", recorded.kept - held.keys()),
        *_said("there, and were refused", recorded.refused & held.keys()),
        *_said("there, and nobody recorded them", held.keys() - known),
    ]
    if exactly_once:
        found += _said("there more than once", [key for key, times in held.items() if times > 1])
    if totals.delivered != len(held):
        found.append(f"the ledger says that {totals.delivered} spans are delivered, and {len(held)} are there")
    if totals.quarantined != totals.set_aside:
        found.append(
            f"the ledger says that {totals.quarantined} lines are quarantined, and the folder has {totals.set_aside}"
        )
    return found


def doubles(held: Counter[SpanKey]) -> int:
    """Return how many rows there are beyond the first of each span."""
    return held.total() - len(held)


def _said(what: str, spans: Collection[SpanKey]) -> Iterable[str]:
    if spans:
        some = ", ".join(" ".join(key) for key in sorted(spans)[:_NAMED])
        yield f"{len(spans)} spans are {what}, such as {some}"
