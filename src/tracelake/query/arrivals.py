"""Spans as they land in a Delta table: each new commit is read once, and of the files those alone that it added."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tracelake.destinations.base import Destination
from tracelake.destinations.unity.statements import WarehouseTable
from tracelake.errors import MissingTableError, QueryError
from tracelake.query.table import open_table, reading
from tracelake.spans import rows
from tracelake.spans.record import SpanRecord

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyarrow.fs import PyFileSystem

# A table that is quiet for so long is opened anew: it may be another by now, and credentials end.
_REOPEN_S = 10.0
# Rows of a file that are in memory at a time.
_BATCH_ROWS = 4_096
# Spans that are known to have been there, so that one that is delivered twice is not.
_KNOWN = 100_000


class Arrivals:
    """The spans that land in the table of a destination from now on.

    A table that is not there yet, or that another takes the place of, is read from its beginning.
    """

    def __init__(self, destination: Destination) -> None:
        """Raises QueryError where the destination has no table that can be read, now or later."""
        self.destination = destination
        self._files: PyFileSystem | None = None
        self._table_id = ""
        self._version = -1
        self._opened_s = 0.0
        self._known: dict[tuple[str, str], None] = {}
        self._open(first=True)

    @property
    def is_there(self) -> bool:
        """Whether there is a table."""
        return self._files is not None

    def poll(self) -> Iterator[SpanRecord]:
        """Yield the spans that have landed since the last time, in the order in which they did.

        Raises:
            QueryError: the table cannot be read; it may be the next time.
            DamageError: a value of a span cannot be read.
        """
        if self._files is None or time.monotonic() - self._opened_s > _REOPEN_S:
            self._open()
        while self._files is not None:
            with reading(self.destination.target):
                added = _added(self._files, self._version + 1)
            if added is None:
                return
            self._opened_s = time.monotonic()
            for path in added:
                yield from self._new(self._files, path)
            self._version += 1  # not before: what could not be read is read again

    def _open(self, *, first: bool = False) -> None:
        self._opened_s = time.monotonic()
        try:
            table = open_table(self.destination)
        except MissingTableError:
            self._files = None
            return
        if isinstance(table, WarehouseTable):
            raise QueryError(
                f"The files of {self.destination.target} are closed to this user, and those are what is read as spans "
                "land. Have EXTERNAL USE SCHEMA granted, or list what is there with `tracelake traces`."
            )
        known, self._table_id = self._table_id, str(table.metadata().id)
        self._files = _files(table)
        if first:
            self._version = table.version()
        elif known != self._table_id or table.version() < self._version:
            self._version = -1
        # Of a log that is cleaned up the beginning is gone.
        with reading(self.destination.target):
            if self._version < table.version() and _added(self._files, self._version + 1) is None:
                self._version = table.version()

    def _new(self, files: PyFileSystem, path: str) -> Iterator[SpanRecord]:
        from pyarrow import parquet

        with reading(self.destination.target):
            try:
                source = files.open_input_file(path)
            except FileNotFoundError:
                return  # put together with others and deleted, while nobody looked
            with source:
                for batch in parquet.ParquetFile(source).iter_batches(_BATCH_ROWS):
                    for record in rows.from_arrow(batch):
                        if self._is_new((record.trace_id, record.span_id)):
                            yield record

    def _is_new(self, key: tuple[str, str]) -> bool:
        if key in self._known:
            return False
        self._known[key] = None
        if len(self._known) > _KNOWN:
            del self._known[next(iter(self._known))]
        return True


def _files(table: DeltaTable) -> PyFileSystem:
    from deltalake.fs import DeltaStorageHandler
    from pyarrow.fs import PyFileSystem

    # As `DeltaTable.to_pyarrow_dataset` does, which not every table has: with the access that the table was opened by.
    handler = DeltaStorageHandler.from_table(table._table, table._storage_options)
    return PyFileSystem(handler)


def _added(files: PyFileSystem, version: int) -> list[str] | None:
    """Return the paths of the files that a commit added with new rows; None if there is no such commit."""
    try:
        with files.open_input_file(f"_delta_log/{version:020d}.json") as log:
            actions: list[dict[str, Any]] = [json.loads(each) for each in log.read().splitlines() if each.strip()]
    except FileNotFoundError:
        return None
    # A file that is removed and added in one commit has fewer rows now, and none that is new.
    removed = {action["remove"]["path"] for action in actions if "remove" in action}
    adds = [action["add"] for action in actions if "add" in action]
    return [unquote(add["path"]) for add in adds if add.get("dataChange", True) and add["path"] not in removed]
