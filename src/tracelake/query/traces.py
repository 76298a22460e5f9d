"""One trace: found by its id in a span table, de-duplicated and in order."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tracelake.destinations.base import Destination
from tracelake.errors import QueryError, TraceNotFoundError
from tracelake.query.reader import spans_of
from tracelake.redaction import one_line
from tracelake.spans import rows, tables
from tracelake.spans.record import SpanRecord

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from matplotlib.axes import Axes
    from mlflow.entities import Trace as MlflowTrace

_TRACE_ID = re.compile(r"(?:trace:/.*/|tr-)?([0-9a-f]{32}|[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12})", re.IGNORECASE)


@dataclass(frozen=True)
class Trace:
    """The spans of one trace that a table holds.

    Attributes:
        trace_id: 32 lowercase hex digits.
        spans: each span once, by start time; at one time, a parent before its children.
        duplicates: rows that were left out because they repeat a span, as at-least-once delivery may.
    """

    trace_id: str
    spans: tuple[SpanRecord, ...]
    duplicates: int = 0

    @classmethod
    def of(cls, trace_id: str, records: Iterable[SpanRecord]) -> Trace:
        """Return the trace of these records, without those of other traces; of one span, the last to end is kept."""
        chosen: dict[str, SpanRecord] = {}
        count = 0
        for record in records:
            if record.trace_id != trace_id:
                continue
            count += 1
            known = chosen.get(record.span_id)
            if known is None or record.end_time_unix_nano > known.end_time_unix_nano:
                chosen[record.span_id] = record
        # A span that starts with its first child ends no sooner than it.
        spans = sorted(
            chosen.values(),
            key=lambda span: (
                span.start_time_unix_nano,
                span.parent_span_id is not None,
                -span.end_time_unix_nano,
                span.span_id,
            ),
        )
        return cls(trace_id, tuple(spans), count - len(spans))

    @property
    def start_time_unix_nano(self) -> int:
        """When its first span started, in nanoseconds since the Unix epoch; 0 without spans."""
        return self.spans[0].start_time_unix_nano if self.spans else 0

    @property
    def duration_ns(self) -> int:
        """Nanoseconds from the start of its first span to the end of its last."""
        ends = (max(span.start_time_unix_nano, span.end_time_unix_nano) for span in self.spans)
        return max(ends, default=0) - self.start_time_unix_nano

    @property
    def roots(self) -> tuple[SpanRecord, ...]:
        """The spans without a parent."""
        return self._by_parent.get(None, ())

    @cached_property
    def orphans(self) -> dict[str, tuple[SpanRecord, ...]]:
        """Spans whose parent is not in the table, by the parent's span id."""
        return {
            parent: spans
            for parent, spans in self._by_parent.items()
            if parent is not None and parent not in self._by_id
        }

    def span(self, span_id: str) -> SpanRecord | None:
        """Return the span with this id, or None."""
        return self._by_id.get(span_id)

    def children(self, span: SpanRecord) -> tuple[SpanRecord, ...]:
        """Return the spans whose parent is `span`, by start time."""
        return self._by_parent.get(span.span_id, ())

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return its spans as plain values, with the fields of `tracelake show --json`."""
        from tracelake.query.convert import span_fields

        return [span_fields(span) for span in self.spans]

    def to_arrow(self) -> pa.Table:
        """Return its spans as rows of a version 1 table, whose attributes are text."""
        import pyarrow as pa

        return pa.Table.from_batches([rows.to_arrow(self.spans, tables.span_schema(1))])

    def to_pandas(self) -> pd.DataFrame:
        """Return its spans as a DataFrame, with the fields of `to_dicts` as columns.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        from tracelake.query.convert import data_frame

        found = self.to_dicts()
        return data_frame(found, found[0] if found else ())

    def to_mlflow(self) -> MlflowTrace:
        """Return it as MLflow's `Trace`; its tags and metadata are those of its root span.

        Raises:
            MissingDependencyError: MLflow is not installed.
            QueryError: it has no root span.
        """
        from tracelake.query.convert import mlflow_trace

        return mlflow_trace(self)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw it as a waterfall, one bar a span, and return the axes: a notebook shows them, `.figure` has `savefig`.

        Of very many spans, the first and those that failed or took longest are drawn.

        Args:
            ax: matplotlib's axes to draw into; None makes a figure, which pyplot does not know of.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        from tracelake.query.plot import plot_trace

        return plot_trace(self, ax)

    def _repr_html_(self) -> str:
        from tracelake.query.html import trace_html

        return trace_html(self)

    @cached_property
    def _by_id(self) -> dict[str, SpanRecord]:
        return {span.span_id: span for span in self.spans}

    @cached_property
    def _by_parent(self) -> dict[str | None, tuple[SpanRecord, ...]]:
        found: dict[str | None, list[SpanRecord]] = {}
        for span in self.spans:
            found.setdefault(span.parent_span_id, []).append(span)
        return {parent: tuple(spans) for parent, spans in found.items()}


def traces_of(records: Iterable[SpanRecord]) -> list[Trace]:
    """Return the traces that some records are of, in the order in which each first comes."""
    groups: dict[str, list[SpanRecord]] = {}
    for record in records:
        groups.setdefault(record.trace_id, []).append(record)
    return [Trace.of(trace_id, group) for trace_id, group in groups.items()]


def get_trace(trace_id: str, destination: Destination) -> Trace:
    """Return a trace that the table of a destination holds. Blocks; reads only the files that may have the trace.

    Args:
        trace_id: 32 hex digits, with or without MLflow's `tr-` or `trace:/<location>/` before them, in any case; a UUID
            with its dashes does as well.
        destination: a destination that is a table.

    Raises:
        TraceNotFoundError: the table has no span of this trace.
        QueryError: `trace_id` is no trace id, or the table is missing, is no span table, or cannot be read.
        MissingDependencyError: delta-rs or pyarrow is not installed.
        DamageError: a value of the trace cannot be read.
    """
    wanted = parse_trace_id(trace_id)
    records = spans_of(destination, [wanted])
    if not records:
        raise TraceNotFoundError(
            f"The table {destination.target} has no span of trace {wanted}. If it ended a moment ago, call "
            "`tracelake.flush()` in the service or look with `tracelake status` whether its spans still wait for "
            "delivery; if it went elsewhere, name that table with `--target`."
        )
    return Trace.of(wanted, records)


def parse_trace_id(text: str) -> str:
    """Return a trace id as tables hold it, 32 lowercase hex digits; `get_trace` says what it may look like.

    Raises:
        QueryError: it is none of these.
    """
    match = _TRACE_ID.fullmatch(text.strip())
    if match is None:
        raise QueryError(
            f"{one_line(text, 100)!r} is not a trace id. Give its 32 hex digits, as 4bf92f3577b34da6a3ce929d0e0e4736, "
            "with or without MLflow's `tr-` or `trace:/.../` before them."
        )
    return match[1].replace("-", "").lower()
