"""A span table whose files are read here, by DuckDB; the connection that was used last is kept for the next question.

What a connection knows of the files of a table, it has read from the end of each, and a table has hundreds of them.
"""

from __future__ import annotations

import atexit
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from tracelake.destinations.annotations import open_annotations
from tracelake.destinations.base import Destination
from tracelake.errors import QueryError
from tracelake.query import duck, files
from tracelake.query.extents import Extents
from tracelake.query.relations import ALWAYS, ANNOTATIONS, SPANS, DialectName, Times, among
from tracelake.query.table import reading, version_of
from tracelake.query.text import clean
from tracelake.redaction import redact
from tracelake.spans import rows, tables
from tracelake.spans.annotations import annotations_schema
from tracelake.spans.record import SpanRecord

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from deltalake import DeltaTable


class FilesReader:
    """Reads the files of Delta tables.

    Its connection can read the files of the two tables and no other: those of their present versions, or, if it is to
    be kept, all in the directories of these.
    """

    dialect: DialectName = "duckdb"

    def __init__(self, destination: Destination, table: DeltaTable, *, is_kept: bool = False) -> None:
        self.destination = destination
        self._is_kept = is_kept
        self._by_name = False
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._allowed: set[str] = set()
        self._shown: dict[str, list[str]] = {}  # files that each view is of, by its name
        self._table = table
        self.version = version_of(table)

    @property
    def is_worth_keeping(self) -> bool:
        """Whether its connection knows what would have to be read again."""
        return self._connection is not None and bool(self._paths)

    def renew(self, table: DeltaTable) -> None:
        """Read this version of the tables from here on."""
        outdated = {ANNOTATIONS: ["_annotations"]}
        if (table.metadata().id, table.version()) != (self._table.metadata().id, self._table.version()):
            outdated[SPANS] = ["_paths", "_extents", "_spans"]
            self._table = table
            self.version = version_of(table)
        for view, properties in outdated.items():
            self._shown.pop(view, None)
            for name in properties:
                self.__dict__.pop(name, None)

    def run(self, statement: str, parameters: Mapping[str, Any] | None = None, times: Times = ALWAYS) -> pa.Table:
        """Return what one SELECT finds; DuckDB runs it."""
        import duckdb

        with reading(self.destination.target):
            with_annotations = ANNOTATIONS in statement
            try:
                try:
                    return self._found(times, statement, parameters, with_annotations=with_annotations)
                except duckdb.InvalidInputException as error:
                    # A file has fewer columns than the table, which shows when it is read.
                    if self._by_name or "schema mismatch" not in str(error):
                        raise
                    self._by_name = True
                    self._shown.clear()
                    return self._found(times, statement, parameters, with_annotations=with_annotations)
            except duckdb.Error as error:
                missing = next((path for path in self._paths if not os.path.exists(path)), None)
                if missing:
                    raise QueryError(
                        f"The table {self.destination.target} cannot be read: its file {missing} is not there. If it "
                        "was removed because the table was compacted and vacuumed meanwhile, try again."
                    ) from error
                # It points at a place in the query, so its lines stay.
                reason = "\n".join(clean(line) for line in redact(str(error)).strip().splitlines())
                raise QueryError(
                    f'DuckDB refuses the query: {reason}\nSee the columns with: tracelake sql "DESCRIBE {SPANS}"'
                ) from error

    def spans(self, columns: Sequence[str], where: str, times: Times = ALWAYS) -> list[SpanRecord]:
        """Return the spans of such rows."""
        statement = f"SELECT {', '.join(columns)} FROM {SPANS} WHERE {where}"  # noqa: S608
        return rows.from_arrow(self.run(statement, times=times))

    def times_of(self, trace_ids: Sequence[str]) -> Times:
        """Return the time, which takes two columns of all files: the others are read where the spans are, alone."""
        start = tables.START_TIME
        found = self.run(
            f"SELECT min({start}), max({start}), count(*) - count({start}) FROM {SPANS} WHERE {among(trace_ids)}"  # noqa: S608
        )
        first, last, unknown = (column[0].as_py() for column in found.columns)
        return ALWAYS if unknown else Times(first or 0, (last or 0) + 1)

    def recent(self, count: int, before_ns: int | None = None) -> int:
        """Return the time, from the statistics of the table's files."""
        return self._extents.recent(count, before_ns)

    def earliest(self, count: int, after_ns: int = 0) -> int | None:
        """Return the time, from the statistics of the table's files."""
        return self._extents.earliest(count, after_ns)

    def close(self) -> None:
        """Let go of the connection; may be repeated."""
        connection, self._connection = self._connection, None
        self._shown.clear()
        if connection is not None:
            connection.close()

    @cached_property
    def _extents(self) -> Extents:
        return Extents.of(self._table)

    @cached_property
    def _paths(self) -> list[str]:
        return files.local_files(self._table)

    @cached_property
    def _spans(self) -> DeltaTable | pa.Table:
        return _source(self._table)

    @cached_property
    def _annotations(self) -> DeltaTable | pa.Table:
        table = open_annotations(self.destination)
        return tables.arrow_schema(annotations_schema()).empty_table() if table is None else _source(table)

    def _found(
        self, times: Times, statement: str, parameters: Mapping[str, Any] | None, *, with_annotations: bool
    ) -> pa.Table:
        connection = self._connected({SPANS, ANNOTATIONS} if with_annotations else {SPANS}, times)
        checked = duck.select(connection, statement)
        return duck.to_arrow(connection.sql(checked, params=dict(parameters) if parameters else None))

    def _connected(self, names: set[str], times: Times) -> duckdb.DuckDBPyConnection:
        """Return a connection with these views, of which that of the spans has those of a time at least."""
        sources = {SPANS: (self._spans, self._paths)}
        if ANNOTATIONS in names:
            sources[ANNOTATIONS] = (self._annotations, _local_files(self._annotations))
        allowed = {path for _, paths in sources.values() for path in paths}
        if self._is_kept:
            allowed = set(map(os.path.dirname, allowed))
        if self._connection is None or not allowed <= self._allowed:
            self.close()
            self._allowed |= allowed
            self._connection = duck.guarded(self._allowed, are_directories=self._is_kept)
        for name, (source, paths) in sources.items():
            # DuckDB opens every column that is wanted of each file, also where no row of it is in question.
            chosen = (self._extents.within(paths, times) or paths[:1]) if name == SPANS else paths
            if self._shown.get(name) != chosen:
                duck.show(self._connection, name, source, chosen, by_name=self._by_name)
                self._shown[name] = chosen
        return self._connection


def _local_files(source: DeltaTable | pa.Table) -> list[str]:
    import pyarrow as pa

    return [] if isinstance(source, pa.Table) else files.local_files(source)


def _source(table: DeltaTable) -> DeltaTable | pa.Table:
    """Return a table as DuckDB takes it: one that is closed to SQL is small, or has nothing in it."""
    if table.file_uris() and not files.closed_to_sql(table):
        return table
    import pyarrow as pa
    from deltalake import QueryBuilder

    return pa.table(QueryBuilder().register("t", table).execute("SELECT * FROM t"))


# The reader that was used last, if it was worth it. Taking it out is atomic, so that no two threads have it; one whose
# place is taken closes with its last reference.
_kept: deque[FilesReader] = deque(maxlen=1)


@contextmanager
def kept_reader(destination: Destination, table: DeltaTable) -> Iterator[FilesReader]:
    """Give a reader of a table, with the connection of the last one if that was of the same table."""
    reader = _taken(destination, table) or FilesReader(destination, table, is_kept=True)
    try:
        yield reader
    except BaseException:
        reader.close()  # whatever it was, the next question is not to meet it
        raise
    if reader.is_worth_keeping:
        _register()
        _kept.append(reader)
    else:
        reader.close()


def _taken(destination: Destination, table: DeltaTable) -> FilesReader | None:
    try:
        reader = _kept.pop()
    except IndexError:
        return None
    if reader.destination != destination:
        reader.close()
        return None
    reader.renew(table)
    return reader


def _clean_up() -> None:
    try:
        while True:
            _kept.pop().close()
    except IndexError:
        return


@cache
def _register() -> None:
    # DuckDB's threads are not there in a forked child, and would be waited for; nor do they outlive the interpreter.
    os.register_at_fork(before=_clean_up)
    atexit.register(_clean_up)
