"""Read traces back, from the table that spans are recorded to or from another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from tracelake.destinations.base import Destination
from tracelake.destinations.resolve import parse_named
from tracelake.destinations.targets import Target
from tracelake.query import search, traces
from tracelake.query import sql as queries
from tracelake.query.infos import State
from tracelake.query.search import Search, TracePage
from tracelake.query.sql import Rows
from tracelake.query.traces import Trace
from tracelake.tracing.processor import active_route

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


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
    return traces.get_trace(trace_id, destination_of(target))


def search_traces(
    filter_string: str = "",
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    service: str = "",
    name: str = "",
    state: State | None = None,
    min_duration: timedelta | None = None,
    max_duration: timedelta | None = None,
    attributes: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    session: str = "",
    user: str = "",
    text: str = "",
    order_by: Sequence[str] = (),
    max_results: int = 100,
    page_token: str = "",
    target: Target | None = None,
) -> TracePage:
    """Return a page of the traces of which all of this is true, the newest first. Blocks.

    Args:
        filter_string: as `mlflow.search_traces` takes it: "status = 'ERROR' AND tag.team = 'search'".
        start, end: it started at or after the one, and before the other; UTC unless they have a zone.
        service, attributes: one span of it is of this service, and has these values.
        name, state: its own; "OK", "ERROR", or "IN_PROGRESS" as long as its root span is not in the table.
        min_duration, max_duration: how long it took.
        tags: values by key.
        session, user: whose it is, as MLflow's `mlflow.trace.session` and `mlflow.trace.user` say, or OpenTelemetry's
            `session.id` and `user.id`.
        text: is in the inputs or outputs of one span of it, in whatever case.
        order_by: as `mlflow.search_traces` takes it: ["execution_time DESC"].
        max_results: traces of a page.
        page_token: the `next_page_token` of the page before.
        target: as `get_trace` takes it.

    Raises:
        QueryError: the search is wrong, in a filter at the character that the message points at, or the table is
            missing or cannot be read.
        TargetError: the target is not understood.
        MissingDependencyError: DuckDB, delta-rs or pyarrow is not installed.
        DamageError: a value of a trace cannot be read.
    """
    wanted = Search(
        filter=filter_string,
        start_ns=None if start is None else unix_nano(start),
        end_ns=None if end is None else unix_nano(end),
        service=service,
        name=name,
        state=state,
        min_duration_ns=None if min_duration is None else _nanoseconds(min_duration),
        max_duration_ns=None if max_duration is None else _nanoseconds(max_duration),
        attributes=attributes or {},
        tags=tags or {},
        session=session,
        user=user,
        text=text,
        order_by=tuple(order_by),
        max_results=max_results,
        page_token=page_token,
    )
    return search.search_traces(destination_of(target), wanted)


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
    return Rows(queries.sql(query, destination_of(target)))


def destination_of(target: Target | None) -> Destination:
    """Return the destination of a target; of None, the first one that spans are recorded to here.

    Raises:
        TargetError: the target is not understood.
    """
    return (active_route().destinations if target is None else parse_named(target))[0]


def unix_nano(moment: datetime) -> int:
    """Return a time, UTC unless it has a zone, in nanoseconds since the Unix epoch."""
    return _nanoseconds((moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)) - _EPOCH)


def _nanoseconds(time: timedelta) -> int:
    return time // timedelta(microseconds=1) * 1000
