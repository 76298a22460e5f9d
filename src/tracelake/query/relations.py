"""What a statement over a span table is about: its relations, and conditions that narrow them down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from tracelake.spans import tables

SPANS, ANNOTATIONS = "spans", "annotations"
DialectName = Literal["duckdb", "databricks"]


class Times(NamedTuple):
    """A time that spans start in, nanoseconds since the Unix epoch: from `start_ns` on, and before `end_ns`.

    None is the beginning of time, and the end of it.
    """

    start_ns: int | None = None
    end_ns: int | None = None

    def conditions(self) -> list[str]:
        """Return the SQL of a span that started then; empty for all time."""
        found = [] if self.start_ns is None else [f"{tables.START_TIME} >= {self.start_ns}"]
        return found if self.end_ns is None else [*found, f"{tables.START_TIME} < {self.end_ns}"]


ALWAYS = Times()


def among(trace_ids: Sequence[str]) -> str:
    """Return the condition that a span is of one of these traces; ids are 32 hex digits each, one at least."""
    return f"{tables.TRACE_ID} IN ({', '.join(map(repr, trace_ids))})"
