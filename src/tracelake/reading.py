"""Read traces back, from the table that spans are recorded to or from another."""

from __future__ import annotations

from tracelake.destinations.base import Destination
from tracelake.destinations.resolve import parse_named
from tracelake.destinations.targets import Target
from tracelake.query import sql as queries
from tracelake.query import traces
from tracelake.query.sql import Rows
from tracelake.query.traces import Trace
from tracelake.tracing.processor import active_route


def get_trace(trace_id: str, *, target: Target | None = None) -> Trace:
    """Return a trace, each span once. Blocks; reads only the files of the table that may have it.

    Spans are there once they are delivered: `tracelake.flush()` waits for those of this process.

    Args:
        trace_id: 32 hex digits, with or without MLflow's `tr-` or `trace:/<location>/` before them, in any case; a UUID
            with its dashes does as well.
        target: the table (see docs/destinations.md); None is the first destination that spans are recorded to here.

    Raises:
        TraceNotFoundError: the table has no span of this trace.
        QueryError: `trace_id` is no trace id, or the table is missing, is no span table, or cannot be read.
        TargetError: the target is not understood.
        MissingDependencyError: delta-rs or pyarrow is not installed.
        DamageError: a value of the trace cannot be read.
    """
    return traces.get_trace(trace_id, _table(target))


def sql(query: str, *, target: Target | None = None) -> Rows:
    """Return what one SELECT finds in the view `spans`, one row a span as it is stored. Blocks.

    DuckDB runs it, or for a table whose files are closed to us a SQL warehouse, in its dialect; either reads this one
    table and, as the view `annotations`, the annotations beside it, and changes nothing.

    Args:
        target: as `get_trace` takes it.

    Raises:
        QueryError: the statement is wrong or does more than read, or the table is missing or cannot be read.
        TargetError: the target is not understood.
        MissingDependencyError: DuckDB, delta-rs or pyarrow is not installed.
    """
    return Rows(queries.sql(query, _table(target)))


def _table(target: Target | None) -> Destination:
    return (active_route().destinations if target is None else parse_named(target))[0]
