"""Span tables opened for SQL: by DuckDB in this process, or by a SQL warehouse where their files are closed to us."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from tracelake.databricks.columns import type_text
from tracelake.destinations.annotations import annotations_table, open_annotations
from tracelake.destinations.base import Destination
from tracelake.destinations.unity.statements import WarehouseTable
from tracelake.errors import MissingDependencyError, QueryError
from tracelake.query import duck
from tracelake.query.table import open_table, reading
from tracelake.query.text import clean
from tracelake.redaction import redact
from tracelake.spans import tables
from tracelake.spans.annotations import annotations_schema

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from deltalake import DeltaTable

SPANS, ANNOTATIONS = "spans", "annotations"


class Reader(Protocol):
    """A span table and the annotations beside it, as they were when it was opened."""

    def run(self, statement: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """Return what one SELECT finds in the relations `spans` and `annotations`; without a table the latter is empty.

        A parameter is written `$name` for DuckDB and `:name` for Databricks. DuckDB's VARIANTs come as Arrow's struct
        of two binaries; a warehouse's nested columns come as the text of their JSON.

        Raises:
            QueryError: the statement is wrong, or a table cannot be read.
        """


class FilesReader:
    """Reads the files of Delta tables."""

    def __init__(self, destination: Destination, table: DeltaTable) -> None:
        self._destination = destination
        self._table = table
        self._by_name = False
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._has_annotations = False

    def run(self, statement: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """Return what one SELECT finds; DuckDB runs it."""
        import duckdb

        with reading(self._destination.target):
            try:
                connection = self._connected(with_annotations=ANNOTATIONS in statement)
                try:
                    return self._found(connection, statement, parameters)
                except duckdb.InvalidInputException as error:
                    # A file has fewer columns than the table, which shows when it is read.
                    if self._by_name or "schema mismatch" not in str(error):
                        raise
                    self.close()
                    self._by_name = True
                    connection = self._connected(with_annotations=self._has_annotations)
                    return self._found(connection, statement, parameters)
            except duckdb.Error as error:
                # It points at a place in the query, so its lines stay.
                reason = "\n".join(clean(line) for line in redact(str(error)).strip().splitlines())
                raise QueryError(
                    f'DuckDB refuses the query: {reason}\nSee the columns with: tracelake sql "DESCRIBE {SPANS}"'
                ) from error

    def close(self) -> None:
        """Let go of the connection; may be repeated."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self, *, with_annotations: bool) -> duckdb.DuckDBPyConnection:
        if self._connection is None or (with_annotations and not self._has_annotations):
            self.close()
            views: dict[str, DeltaTable | pa.Schema] = {SPANS: self._table}
            if with_annotations:
                table = open_annotations(self._destination)
                views[ANNOTATIONS] = tables.arrow_schema(annotations_schema()) if table is None else table
            self._connection = duck.connect(views, by_name=self._by_name)
            self._has_annotations = with_annotations
        return self._connection

    @staticmethod
    def _found(connection: duckdb.DuckDBPyConnection, statement: str, parameters: Mapping[str, Any] | None) -> pa.Table:
        checked = duck.select(connection, statement)
        return duck.to_arrow(connection.sql(checked, params=dict(parameters) if parameters else None))


class WarehouseReader:
    """Has a SQL warehouse read the tables."""

    def __init__(self, destination: Destination, table: WarehouseTable) -> None:
        self._destination = destination
        self._table = table

    def run(self, statement: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """Return what one SELECT finds; the warehouse runs it."""
        import pyarrow as pa

        with reading(self._destination.target):
            relations = {SPANS: self._table.info.name.sql}
            if ANNOTATIONS in statement:
                relations[ANNOTATIONS] = self._annotations
            found = self._table.query(statement, relations, parameters)
        cells = zip(*found.rows, strict=True) if found.rows else [() for _ in found.columns]
        arrays = [_array(kind, column) for (_, kind), column in zip(found.columns, cells, strict=True)]
        return pa.Table.from_arrays(arrays, names=[name for name, _ in found.columns])

    @cached_property
    def _annotations(self) -> str:
        name = annotations_table(self._table.info.name)
        if self._table.catalog.has_table(name):
            return name.sql
        columns = ", ".join(
            f"CAST(NULL AS {type_text(field['type'])}) AS {field['name']}" for field in annotations_schema()["fields"]
        )
        return f"(SELECT {columns} WHERE false)"


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


@contextmanager
def open_reader(destination: Destination) -> Iterator[Reader]:
    """Open the span table of a destination for SQL, until the with-block ends.

    Files are read by DuckDB here; a Unity Catalog table whose files are closed to us, a view among them, is read by a
    SQL warehouse of the workspace.

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
        return
    reader = FilesReader(destination, table)
    try:
        yield reader
    finally:
        reader.close()
