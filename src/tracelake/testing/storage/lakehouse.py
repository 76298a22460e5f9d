"""The rows of a workspace's tables: real Delta tables, in its directory or where external tables are."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from tracelake.redaction import one_line
from tracelake.spans import tables
from tracelake.testing.state import S3, Store, Table
from tracelake.testing.storage.together import Together
from tracelake.testing.web.http import ApiError

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

_log = logging.getLogger(__name__)

_MANAGED = "tables"
_LOCAL = ("", "file")
_S3 = ("s3", "s3a")

# Each commit reads the list of the table's files, at some 0.1 ms a file: small ones are put together this often.
_COMPACT_EVERY = 25
# Files that are larger than this stay as they are, so that putting small ones together never takes long.
_COMPACT_BYTES = 2**20
# Statistics of all columns would make the log longer, and commits three times as slow.
_STATISTICS = "delta.dataSkippingStatsColumns"
# How often a commit is tried when others change the table at the same time.
_ATTEMPTS = 5


class Lakehouse:
    """Opens, fills and reads the Delta tables of a workspace. delta-rs is loaded with the first of them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open: dict[str, _Writer] = {}
        self._dropped: set[str] = set()
        self._lock = threading.Lock()

    def managed_location(self, table_id: str) -> str:
        """Return where a new managed table is."""
        return _file_url(os.path.join(self._store.directory, _MANAGED, table_id))

    def external_location(self, location: str) -> str:
        """Return the location of an external table as a URL.

        Raises:
            ApiError: 400, it is none that this workspace can reach.
        """
        if os.path.isabs(location):
            return _file_url(location)
        try:
            parts = urlsplit(location)
        except ValueError:  # brackets that are no address
            parts = urlsplit("")
        if parts.scheme == "file" and parts.netloc in {"", "localhost"} and os.path.isabs(unquote(parts.path)):
            return _file_url(unquote(parts.path))
        if parts.scheme in _S3 and parts.netloc:
            if self._store.state.s3 is None:
                raise ApiError(
                    400,
                    "INVALID_PARAMETER_VALUE",
                    f"The location {location} is on S3, and this workspace has no S3 server.",
                )
            return f"s3://{parts.netloc}{parts.path.rstrip('/')}"
        raise ApiError(
            400,
            "INVALID_PARAMETER_VALUE",
            f"The location {location} is neither an absolute directory nor on S3.",
        )

    def create(self, table: Table, schema: Mapping[str, Any]) -> None:
        """Make the Delta table of a table, unless its location has one."""
        from deltalake import DeltaTable, Schema

        names = {field["name"] for field in schema["fields"]}
        skipping = [name for name in tables.SKIPPING_COLUMNS[2] if name in names]
        statistics = {_STATISTICS: ",".join(skipping)} if skipping else {}
        DeltaTable.create(
            self._path(table),
            Schema.from_json(json.dumps(schema)),
            mode="ignore",
            name=table.full_name,
            configuration={**statistics, **table.properties},
            storage_options=self._options(table),
            raise_if_key_not_exists=False,
        )

    def add_columns(self, table: Table, fields: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Add columns, given as Delta fields, and return the Delta schema that the table has then."""
        from deltalake import Schema

        opened = self.open(table)
        opened.alter.add_columns(Schema.from_json(json.dumps({"type": "struct", "fields": list(fields)})).fields)
        changed: dict[str, Any] = json.loads(opened.schema().to_json())
        return changed

    def append(self, table: Table, rows: pa.RecordBatch) -> None:
        """Commit rows, and tidy up if it is due."""
        self.commit(table, rows)
        self.tidy(table)

    def commit(self, table: Table, rows: pa.RecordBatch) -> None:
        """Add rows in the columns of `schema`; they are committed when this returns. Rows given at once share a commit.

        Raises:
            ApiError: 404, the location has no Delta table; 503, others changed its columns meanwhile.
        """
        if not self._writer(table).append(rows):
            raise _busy("A column was changed while rows were written")

    def tidy(self, table: Table) -> None:
        """Put small files together and shorten the log, if enough were written since; others go on to commit."""
        self._writer(table).tidy()

    def open(self, table: Table) -> DeltaTable:
        """Open a table at its newest version, whoever wrote it.

        Raises:
            ApiError: 404, it was dropped, or its location has no Delta table.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        try:
            if table.table_id not in self._dropped:
                return DeltaTable(self._path(table), storage_options=self._options(table))
        except DeltaError as error:
            # One that is dropped while it is opened fails in other ways.
            is_gone = _is_local(table) and not os.path.isdir(os.path.join(self._path(table), "_delta_log"))
            if not isinstance(error, TableNotFoundError) and not is_gone and table.table_id not in self._dropped:
                raise
            raise ApiError(
                404,
                "RESOURCE_DOES_NOT_EXIST",
                f"The location {table.storage_location} of table '{table.full_name}' has no Delta table any more. "
                "Put it back, or drop the table and create it anew.",
            ) from error
        raise ApiError(404, "TABLE_DOES_NOT_EXIST", f"Table '{table.full_name}' does not exist.")

    def schema(self, table: Table, *, fresh: bool = False) -> pa.Schema:
        """Return the Arrow schema of a table as this workspace writes it; `fresh` looks what others made of it.

        Raises:
            ApiError: 404, its location has no Delta table.
            PermanentDeliveryError: a column has a type that is not known.
        """
        return self._writer(table).schema(fresh=fresh)

    def forget(self, table: Table) -> None:
        """Let go of a dropped table; the data of a managed one is removed."""
        with self._lock:
            writer = self._open.pop(table.table_id, None)
            # A request that found the table before may open it, and a writer leaves files where a table was.
            self._dropped.add(table.table_id)
        with writer.append.lock if writer is not None else contextlib.nullcontext():
            if table.table_type == "MANAGED":
                # Who reads or writes it in this moment finds all of it, or nothing.
                dropped = f"{self._path(table)}.dropped"
                with contextlib.suppress(OSError):  # somebody removed it
                    os.rename(self._path(table), dropped)
                shutil.rmtree(dropped, ignore_errors=True)

    def _writer(self, table: Table) -> _Writer:
        with self._lock:
            writer = self._open.get(table.table_id)
            if writer is None:
                log = os.path.join(self._path(table), "_delta_log") if _is_local(table) else ""
                writer = self._open[table.table_id] = _Writer(lambda: self.open(table), log)
            return writer

    def _path(self, table: Table) -> str:
        return unquote(urlsplit(table.storage_location).path) if _is_local(table) else table.storage_location

    def _options(self, table: Table) -> dict[str, str] | None:
        s3 = self._store.state.s3
        return s3_options(s3) if s3 and table.storage_location.startswith("s3://") else None


def _is_local(table: Table) -> bool:
    return urlsplit(table.storage_location).scheme in _LOCAL


def _file_url(path: str) -> str:
    return f"file://{quote(os.path.normpath(path))}"


def s3_options(s3: S3) -> dict[str, str]:
    """Return delta-rs' storage options for an S3 server."""
    return {
        "AWS_ENDPOINT_URL": s3.endpoint_url,
        "AWS_ACCESS_KEY_ID": s3.access_key_id,
        "AWS_SECRET_ACCESS_KEY": s3.secret_access_key,
        "AWS_REGION": s3.region,
        "AWS_ALLOW_HTTP": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
    }


class _Writer:
    """Appends to one table; rows of several threads share a commit.

    Attributes:
        append: adds rows, and returns whether they fit the table's columns.
    """

    def __init__(self, open_table: Callable[[], DeltaTable], log: str) -> None:
        """`log` is the directory of the table's log; empty for a table that is on no disk of this machine."""
        self.append = Together(self._write)
        self._open_table = open_table
        self._log = log
        self._table: DeltaTable | None = None
        self._schema: pa.Schema = None
        self._newest: tuple[int, int] | None = None
        self._small_files = 0
        self._compacting = threading.Lock()

    def schema(self, *, fresh: bool) -> pa.Schema:
        schema = self._schema
        if schema is None or fresh:
            with self.append.lock:
                self._opened(anew=fresh)
                schema = self._schema
        return schema

    def tidy(self) -> None:
        if self._small_files >= _COMPACT_EVERY and self._compacting.acquire(blocking=False):
            try:
                self._compact()
            finally:
                self._compacting.release()

    def _write(self, taken: list[pa.RecordBatch]) -> list[bool]:
        import pyarrow as pa
        from deltalake import PostCommitHookProperties, write_deltalake
        from deltalake.exceptions import CommitFailedError, DeltaError

        # Checkpoints are made when files are put together.
        hooks = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
        failed: Exception | None = None
        for attempt in range(_ATTEMPTS):
            table = self._opened(anew=attempt > 0)
            fitted = [_fitted(rows, self._schema) for rows in taken]
            batches = [rows for rows in fitted if rows is not None]
            try:
                if batches:
                    reader = pa.RecordBatchReader.from_batches(self._schema, batches)
                    write_deltalake(table, reader, mode="append", post_commithook_properties=hooks)
            except DeltaError as error:
                if not isinstance(error, CommitFailedError) and not (self._log and self._is_replaced(table)):
                    raise
                # Others changed the table's columns, were faster, or removed it: opened anew, it is there or not.
                failed = error
                continue
            self._newest = self._stamp(table)
            self._small_files += 1
            return [rows is not None for rows in fitted]
        raise _busy(f"The commit lost against other writers: {one_line(str(failed))}")

    def _opened(self, *, anew: bool) -> DeltaTable:
        """Return the table; opened anew if asked for, or if others put another one into its place."""
        if self._table is None or anew or not self._log or self._is_replaced(self._table):
            self._table = None
            self._table = self._open_table()
            self._schema = tables.arrow_schema(json.loads(self._table.schema().to_json()))
            self._newest = self._stamp(self._table)
        return self._table

    def _is_replaced(self, table: DeltaTable) -> bool:
        """Say whether the newest commit that is known is not there any more, of a table on a disk of this machine."""
        stamp = self._stamp(table)
        return stamp is None or stamp != self._newest

    def _stamp(self, table: DeltaTable) -> tuple[int, int] | None:
        """Return what tells the newest commit that is known from one of the same number in another table."""
        try:
            found = os.stat(os.path.join(self._log, f"{table.version():020d}.json"))
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _compact(self) -> None:
        from deltalake.exceptions import DeltaError

        self._small_files = 0
        try:
            table = self._open_table()
            table.optimize.compact(target_size=_COMPACT_BYTES)
            table.create_checkpoint()
            table.cleanup_metadata()
        except (DeltaError, ApiError, OSError) as error:
            # The rows are committed all the same, and the next turn tries again.
            _log.info("Small files of a table stay as they are: %s", one_line(str(error)))
        with self.append.lock:
            self._table = None


def _fitted(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch | None:
    """Return rows with columns that others added to the table since the rows were made; None if they do not fit."""
    import pyarrow as pa

    if rows.schema.equals(schema):
        return rows
    columns = []
    for field in schema:
        index = rows.schema.get_field_index(field.name)
        if index >= 0 and rows.schema.field(index).type == field.type:
            columns.append(rows.column(index))
        elif index < 0 and field.nullable:
            columns.append(pa.nulls(rows.num_rows, field.type))
        else:
            return None
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _busy(seen: str) -> ApiError:
    return ApiError(503, "TEMPORARILY_UNAVAILABLE", f"{seen}. Send them again.")
