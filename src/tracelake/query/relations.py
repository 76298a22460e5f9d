"""What a statement over a span table is about: its relations, and conditions that narrow them down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from tracelake.spans import tables

SPANS, ANNOTATIONS = "spans", "annotations"
DialectName = Literal["duckdb", "databricks"]

# By so much the clocks of services may differ.
SKEW_NS = 10**9
# Spans of a trace are looked for as long after it has started.
LONG_NS = 3_600 * 10**9


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


def among(trace_ids: Sequence[str], column: str = tables.TRACE_ID) -> str:
    """Return the condition that a row is of one of these traces; ids are 32 hex digits each, one at least."""
    return f"{column} IN ({', '.join(map(repr, trace_ids))})"


def spans_sql(columns: Mapping[str, str], where: str, *, distinct: bool) -> str:
    """Return the SELECT of such spans: trace_id, span_id, and these columns, SQL by name.

    Of a span that is in the table twice, the row that ends last counts if it has to be `distinct`.
    """
    ids = f"{tables.TRACE_ID}, {tables.SPAN_ID}"
    chosen = "".join(
        f", max_by({sql}, {tables.END_TIME}) AS {name}" if distinct else f", {sql} AS {name}"
        for name, sql in columns.items()
    )
    grouped = f" GROUP BY {ids}" if distinct else ""
    return f"SELECT {ids}{chosen} FROM {SPANS} WHERE {where}{grouped}"  # noqa: S608
