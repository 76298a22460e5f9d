"""Span tables opened for SQL: by DuckDB in this process, or by a SQL warehouse where their files are closed to us."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tracelake.destinations.base import Destination
from tracelake.destinations.unity.destination import UnityCatalogDestination
from tracelake.destinations.unity.statements import WarehouseTable
from tracelake.errors import MissingDependencyError, QueryError
from tracelake.query import files
from tracelake.query.files_reader import FilesReader, kept_reader
from tracelake.query.relations import ALWAYS, SPANS, DialectName, Times, among
from tracelake.query.table import open_table, reading
from tracelake.query.warehouse_reader import WarehouseReader
from tracelake.spans import rows, tables
from tracelake.spans.record import SpanRecord

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable


class Reader(Protocol):
    """A span table and the annotations beside it, as they were when it was opened.

    Attributes:
        version: schema version of the span table.
        dialect: of the SQL that `run` takes.
    """

    destination: Destination
    version: tables.Version
    dialect: DialectName

    def run(self, statement: str, parameters: Mapping[str, Any] | None = None, times: Times = ALWAYS) -> pa.Table:
        """Return what one SELECT finds in the relations `spans` and `annotations`; without a table the latter is empty.

        A parameter is written `$name` for DuckDB and `:name` for Databricks. DuckDB's VARIANTs come as Arrow's struct
        of two binaries; a warehouse's nested columns come as the text of their JSON.

        Args:
            times: spans that started at others may be there or not, so the statement has to leave them out itself.

        Raises:
            QueryError: the statement is wrong, or a table cannot be read.
        """

    def spans(self, columns: Sequence[str], where: str, times: Times = ALWAYS) -> list[SpanRecord]:
        """Return the spans that a condition in SQL is true of, with these of their columns; `times` as `run` has it.

        Raises:
            QueryError: a table cannot be read.
            DamageError: a value of a span cannot be read.
        """

    def times_of(self, trace_ids: Sequence[str]) -> Times:
        """Return a time in which all spans of these traces started, where that is found sooner than they are.

        Args:
            trace_ids: 32 lowercase hex digits each, one at least.
        """

    def recent(self, count: int, before_ns: int | None = None) -> int:
        """Return a time such that about so many spans started from then until `before_ns`; 0 if it has no more.

        Times are nanoseconds since the Unix epoch, and None is the end of time. It is made from statistics.
        """

    def earliest(self, count: int, after_ns: int = 0) -> int | None:
        """Return a time such that about so many spans started from `after_ns` until then; None if it has no more."""


@contextlib.contextmanager
def open_reader(destination: Destination, *, for_users: bool = False) -> Iterator[Reader]:
    """Open the span table of a destination for SQL, until the with-block ends.

    Files are read by DuckDB here; a Unity Catalog table whose files are closed to us, a view among them, is read by a
    SQL warehouse of the workspace.

    Args:
        for_users: whether statements are not our own: then files that are not the table's any more are out of reach.

    Raises:
        QueryError: there is no table, it is not a span table, or cannot be read.
        MissingDependencyError: DuckDB, delta-rs or pyarrow is not installed.
    """
    try:
        import duckdb  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "SQL needs the package 'duckdb', which is not installed here. Run: pip install 'tracelake[sql]'"
        ) from error
    table = open_table(destination)
    if isinstance(table, WarehouseTable):
        yield WarehouseReader(destination, table)
    elif closed := files.closed_to_sql(table):
        yield WarehouseReader(destination, _by_warehouse(destination, closed))
    elif for_users:
        with contextlib.closing(FilesReader(destination, table)) as reader:
            yield reader
    else:
        with kept_reader(destination, table) as reader:
            yield reader


def spans_of(destination: Destination, trace_ids: Sequence[str]) -> list[SpanRecord]:
    """Return all spans of traces, with all of their columns. Blocks.

    delta-rs reads them, of every table that it can open. DuckDB, if it is installed, says first when they started: of a
    table of many files that takes a third of the time.

    Args:
        trace_ids: 32 lowercase hex digits each, one at least.

    Raises:
        QueryError: there is no table, it is not a span table, or cannot be read.
        MissingDependencyError: delta-rs or pyarrow is not installed.
        DamageError: a value of a span cannot be read.
    """
    table = open_table(destination)
    if isinstance(table, WarehouseTable):
        return WarehouseReader(destination, table).spans(["*"], among(trace_ids))
    import pyarrow as pa
    from deltalake import QueryBuilder

    with reading(destination.target):
        where = " AND ".join([among(trace_ids), *_times_of(destination, table, trace_ids).conditions()])
        statement = f"SELECT * FROM {SPANS} WHERE {where}"  # noqa: S608
        return rows.from_arrow(pa.table(QueryBuilder().register(SPANS, table).execute(statement)))


def _times_of(destination: Destination, table: DeltaTable, trace_ids: Sequence[str]) -> Times:
    if importlib.util.find_spec("duckdb") is None or not files.local_files(table):
        return ALWAYS
    try:
        with kept_reader(destination, table) as reader:
            return reader.times_of(trace_ids)
    except QueryError:
        return ALWAYS  # delta-rs reads some that DuckDB does not, and says what is wrong with others


def _by_warehouse(destination: Destination, closed: str) -> WarehouseTable:
    reason = f"it {closed}"
    if isinstance(destination, UnityCatalogDestination):
        with reading(destination.target):
            return destination.open_by_warehouse(reason)
    raise QueryError(
        f"The table {destination.target} cannot be asked by SQL or searched here: {reason}. A trace by its id can be "
        "had, as by `tracelake show`; for the rest use Spark (docs/spark.md), or a table without that feature."
    )
