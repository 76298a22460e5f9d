"""A span table whose files are closed to us, which a SQL warehouse reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tracelake.databricks.columns import type_text
from tracelake.destinations.annotation_table import annotations_table
from tracelake.destinations.base import Destination
from tracelake.destinations.unity.statements import WarehouseTable
from tracelake.query.relations import ALWAYS, ANNOTATIONS, SPANS, DialectName, Times
from tracelake.query.table import reading, version_of
from tracelake.spans import rows, tables
from tracelake.spans.annotations import annotations_schema
from tracelake.spans.record import SpanRecord

if TYPE_CHECKING:
    import pyarrow as pa

# What a table is taken to hold where no statistics are at hand: a hundred spans a second.
_NS_A_SPAN = 10_000_000


class WarehouseReader:
    """Has a SQL warehouse read the tables."""

    dialect: DialectName = "databricks"

    def __init__(self, destination: Destination, table: WarehouseTable) -> None:
        self.destination = destination
        self.version = version_of(table)
        self._table = table

    def run(
        self,
        statement: str,
        parameters: Mapping[str, Any] | None = None,
        times: Times = ALWAYS,  # noqa: ARG002
    ) -> pa.Table:
        """Return what one SELECT finds; the warehouse runs it, and knows which files that takes."""
        import pyarrow as pa

        with reading(self.destination.target):
            relations = {SPANS: self._table.info.name.sql}
            if ANNOTATIONS in statement:
                relations[ANNOTATIONS] = self._annotations
            found = self._table.query(statement, relations, parameters)
        cells = zip(*found.rows, strict=True) if found.rows else [() for _ in found.columns]
        arrays = [_array(kind, column) for (_, kind), column in zip(found.columns, cells, strict=True)]
        return pa.Table.from_arrays(arrays, names=[name for name, _ in found.columns])

    def spans(self, columns: Sequence[str], where: str, times: Times = ALWAYS) -> list[SpanRecord]:  # noqa: ARG002
        """Return the spans of such rows."""
        with reading(self.destination.target):
            statement = f"SELECT {', '.join(columns)} FROM {SPANS} WHERE {where}"  # noqa: S608
            found = self._table.query(statement, {SPANS: self._table.info.name.sql})
        return rows.from_json([name for name, _ in found.columns], found.rows)

    def times_of(self, trace_ids: Sequence[str]) -> Times:  # noqa: ARG002
        """Return all time: one statement more would take longer."""
        return ALWAYS

    def recent(self, count: int, before_ns: int | None = None) -> int:
        """Return the time, as if spans came evenly, so many a second."""
        first, last = self._times
        found = (last + 1 if before_ns is None else before_ns) - count * _NS_A_SPAN
        return found if found > first else 0

    def earliest(self, count: int, after_ns: int = 0) -> int | None:
        """Return the time, as `recent` does."""
        first, last = self._times
        found = max(first, after_ns) + count * _NS_A_SPAN
        return found if found <= last else None

    @cached_property
    def _annotations(self) -> str:
        name = annotations_table(self._table.info.name)
        if self._table.catalog.has_table(name):
            return name.sql
        columns = ", ".join(
            f"CAST(NULL AS {type_text(field['type'])}) AS {field['name']}" for field in annotations_schema()["fields"]
        )
        return f"(SELECT {columns} WHERE false)"

    @cached_property
    def _times(self) -> tuple[int, int]:
        # The warehouse knows these without reading a file.
        statement = f"SELECT min({tables.START_TIME}) AS first, max({tables.START_TIME}) AS last FROM {SPANS}"  # noqa: S608
        row = self.run(statement).to_pylist()[0]
        first, last = row.values()
        return int(first or 0), int(last or 0)


def _array(kind: str, cells: Sequence[str | None]) -> pa.Array:
    """Return a column of a warehouse's result; one of a type that is not a number, a boolean or a time is text."""
    import pyarrow as pa

    if kind in ("BYTE", "SHORT", "INT", "LONG"):
        return pa.array([None if cell is None else int(cell) for cell in cells], pa.int64())
    if kind in ("FLOAT", "DOUBLE"):
        return pa.array([None if cell is None else float(cell) for cell in cells], pa.float64())
    if kind == "BOOLEAN":
        return pa.array([None if cell is None else cell == "true" for cell in cells], pa.bool_())
    if kind == "TIMESTAMP":
        moments = [None if cell is None else datetime.fromisoformat(cell.replace("Z", "+00:00")) for cell in cells]
        return pa.array(moments, pa.timestamp("us", "UTC"))
    return pa.array(cells, pa.string())
