"""Keep a Delta table small and quick: put small files together, remove old spans, remove files that nothing needs.

All of it is done beside running shippers. What is removed from the table stays on disk until `vacuum`.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from tracelake.destinations.delta_errors import need_delta
from tracelake.destinations.delta_log import AUTO_COMPACT, passes_checkpoint, shorten, sync_commits, turn
from tracelake.destinations.parquet import ROW_GROUP_ROWS, writer_properties
from tracelake.errors import DeliveryError, PermanentDeliveryError, TracelakeError
from tracelake.redaction import one_line
from tracelake.spans import tables

if TYPE_CHECKING:
    from deltalake import DeltaTable

    from tracelake.destinations.delta import DeltaSink

_log = logging.getLogger("tracelake.shipper")

# A reader opens few files of this size, and reads little of each by the statistics of its row groups.
TARGET_BYTES = 128 * 2**20
# A shipper puts files together that are smaller than this, when there are so many, which takes it less than a second.
_SMALL_BYTES = 8 * 2**20
_MANY_FILES = 50

# Delta's own least: what others uploaded and have not yet committed, or still read, is younger.
VACUUM_HOURS = 168
# Less than this no file is left alone, whatever is asked for: a batch under way takes no longer.
LEAST_VACUUM_HOURS = 1

# How long a turn is taken for by one who is killed before it ends.
_SHIPPER_TURN_S = 3600.0
_COMMAND_TURN_S = 24 * 3600.0
# A command lets a shipper finish.
_WAIT_S = 10.0
# A long optimize commits what it has this often.
_COMMIT_EVERY = timedelta(minutes=5)
_COMPACTIONS_AT_ONCE = 2
_TRIES = 20

# Table features that change nothing about which files there are, and what is in them.
_FEATURES = {
    *("appendOnly", "invariants", "checkConstraints", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"),
    *("variantType", "variantType-preview"),
}
_FEATURES_VERSION = 7
_PLAIN_VERSION = 3
# What delta-rs and Spark name the files of rows.
_DATA_FILE = "part-*.parquet"


@dataclass(frozen=True)
class Elsewhere:
    """A table whose upkeep is not for us: who does it, and what to do instead."""

    reason: str


@runtime_checkable
class MaintainableDestination(Protocol):
    """A destination that is a table, whose files may be ours to maintain."""

    def maintained(self) -> DeltaSink | Elsewhere:
        """Return what opens the table with the right to write to it, or who else maintains it.

        Raises:
            DeliveryError: there is no access to it.
        """


@dataclass(frozen=True)
class Size:
    """The files of a version of a table, and their bytes."""

    version: int
    files: int
    bytes: int


@dataclass(frozen=True)
class Upkeep:
    """What was done to a table.

    Attributes:
        before: its files before it.
        after: its files now.
        rows_removed: spans that are no longer in it.
        files_deleted: files that are no longer on disk; in an object store, those that are long gone may be counted.
        dry_run: whether that is only what would be done.
    """

    before: Size
    after: Size
    rows_removed: int = 0
    files_deleted: int = 0
    dry_run: bool = False


def optimize(sink: DeltaSink) -> Upkeep:
    """Put small files together into files of up to 128 MB, in the order in which they were written.

    Raises:
        DeliveryError: there is no table, it is not one that can be maintained, or somebody else does so now.
    """
    with _maintaining(sink.location):
        table = _opened(sink)
        before = _size(table)
        if sum(size < TARGET_BYTES for size in _sizes(table)) < 2:
            return Upkeep(before, before)
        with turn(table, sink.location, _COMMAND_TURN_S, wait_s=_WAIT_S):
            _compact(table, TARGET_BYTES)
        return _done(table, sink.location, before)


def remove_older(sink: DeltaSink, cutoff_ns: int, *, dry_run: bool = False) -> Upkeep:
    """Remove the spans that started before a time: whole files where all in them did, else by writing the rest anew.

    Raises:
        DeliveryError: as `optimize`, or the table takes no deletes.
    """
    from deltalake.exceptions import CommitFailedError

    with _maintaining(sink.location):
        table = _opened(sink)
        before = _size(table)
        older = f"{tables.START_TIME} < {cutoff_ns:d}"
        rows = _count(table, older)
        if dry_run or not rows:
            return Upkeep(before, before, rows, dry_run=dry_run)
        if table.metadata().configuration.get("delta.appendOnly", "").lower() == "true":
            raise PermanentDeliveryError(
                f"The table {sink.location} takes no deletes: its property delta.appendOnly is true. Unset it to "
                "remove old spans."
            )
        with turn(table, sink.location, _COMMAND_TURN_S, wait_s=_WAIT_S):
            for attempt in range(_TRIES):
                try:
                    done = table.delete(
                        older, writer_properties=writer_properties(ROW_GROUP_ROWS), post_commithook_properties=_hooks()
                    )
                    break
                except CommitFailedError:
                    # Spans that are as old arrived meanwhile.
                    if attempt + 1 == _TRIES:
                        raise
                    table.update_incremental()
        after = _done(table, sink.location, before)
        return Upkeep(before, after.after, int(done.get("num_deleted_rows") or rows))


def vacuum(sink: DeltaSink, hours: int = VACUUM_HOURS, *, dry_run: bool = False, force: bool = False) -> Upkeep:
    """Delete files that the table has not needed for so many hours; among them, those of batches that were given up.

    Raises:
        DeliveryError: as `optimize`, or the hours are too few, or there are files that are not the table's.
    """
    with _maintaining(sink.location):
        table = _opened(sink)
        _check_hours(hours, force=force)
        before = _size(table)
        found = table.vacuum(hours, dry_run=True, enforce_retention_duration=False, full=True)
        if os.path.isabs(sink.location):
            # Files that were deleted before are named, too, as long as the log knows of them.
            found = [path for path in found if os.path.exists(os.path.join(sink.location, path))]
        partitioned = bool(table.metadata().partition_columns)
        for path in found:
            directory, name = os.path.split(path)
            if not fnmatch.fnmatch(name, _DATA_FILE) or (directory and not partitioned):
                raise PermanentDeliveryError(
                    f"The table {sink.location} has a file among its own that is none of it, and vacuum would delete "
                    f"it: {one_line(path, 200)}. Move it elsewhere, then run this again."
                )
        if found and not dry_run:
            table.vacuum(hours, dry_run=False, enforce_retention_duration=False, full=True)
        after = _done(table, sink.location, before).after
        return Upkeep(before, after, files_deleted=len(found), dry_run=dry_run)


def compact_small_files(table: DeltaTable, location: str) -> None:
    """Put the small files of a table together where its property `delta.autoOptimize.autoCompact` asks for it.

    For a shipper, after a commit: what fails is logged, since the batch is in the table all the same.
    """
    from deltalake.exceptions import DeltaError

    if table.metadata().configuration.get(AUTO_COMPACT, "").lower() not in ("true", "auto"):
        return
    try:
        small = sum(size < _SMALL_BYTES for size in _sizes(table))
        if small < _MANY_FILES or _unsupported(table):
            return
        before = table.version()
        try:
            with turn(table, location, _SHIPPER_TURN_S):
                _compact(table, _SMALL_BYTES)
        finally:
            table.update_incremental()
            sync_commits(location, before, table.version())
    except (DeltaError, DeliveryError, OSError) as error:
        _log.info("%s keeps its small files for now: %s", location, one_line(str(error)))


def _compact(table: DeltaTable, target_bytes: int) -> None:
    table.optimize.compact(
        target_size=target_bytes,
        max_concurrent_tasks=_COMPACTIONS_AT_ONCE,
        min_commit_interval=_COMMIT_EVERY,
        writer_properties=writer_properties(ROW_GROUP_ROWS),
        post_commithook_properties=_hooks(),
    )


def _opened(sink: DeltaSink) -> DeltaTable:
    table = sink.table()
    if table is None:
        raise PermanentDeliveryError(
            f"There is no table at {sink.location}. Look with `tracelake status` whether spans still wait for "
            "delivery, or name another table."
        )
    sink.version(table)
    unsupported = _unsupported(table)
    if unsupported:
        raise PermanentDeliveryError(
            f"The table {sink.location} is left alone: it has {unsupported}, which tracelake does not know how to "
            "keep whole. Maintain it with the engine that made it: OPTIMIZE, VACUUM and DELETE in Spark or Databricks."
        )
    return table


def _unsupported(table: DeltaTable) -> str:
    """Return what the table has that tells which rows or files count, and that is not looked at here."""
    protocol = table.protocol()
    if protocol.min_writer_version < _FEATURES_VERSION:
        return f"writer version {protocol.min_writer_version}" * (protocol.min_writer_version > _PLAIN_VERSION)
    unknown = {*(protocol.writer_features or ()), *(protocol.reader_features or ())} - _FEATURES
    return ", ".join(sorted(unknown))


def _check_hours(hours: int, *, force: bool) -> None:
    if hours < LEAST_VACUUM_HOURS:
        raise PermanentDeliveryError(
            f"{hours} hours would delete files of batches that are being written now. Give at least "
            f"{LEAST_VACUUM_HOURS}, and {VACUUM_HOURS} where the table is in use."
        )
    if hours < VACUUM_HOURS and not force:
        raise PermanentDeliveryError(
            f"{hours} hours are less than the {VACUUM_HOURS} that Delta asks for: whoever reads an older version of "
            "the table, or writes to it for longer, would find files gone. Add --force if nobody does."
        )


def _done(table: DeltaTable, location: str, before: Size) -> Upkeep:
    table.update_incremental()
    sync_commits(location, before.version, table.version())
    if passes_checkpoint(table, before.version):
        shorten(table, location)
    return Upkeep(before, _size(table))


def _size(table: DeltaTable) -> Size:
    sizes = _sizes(table)
    return Size(table.version(), len(sizes), sum(sizes))


def _sizes(table: DeltaTable) -> list[int]:
    import pyarrow as pa

    sizes: list[int] = pa.table(table.get_add_actions()).column("size_bytes").to_pylist()
    return sizes


def _count(table: DeltaTable, predicate: str) -> int:
    import pyarrow as pa
    from deltalake import QueryBuilder

    statement = f"SELECT count(*) AS n FROM spans WHERE {predicate}"  # noqa: S608 - of a column of ours and a number
    rows = pa.table(QueryBuilder().register("spans", table).execute(statement))
    return int(rows.column("n")[0].as_py())


def _hooks() -> Any:
    from deltalake import PostCommitHookProperties

    return PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)


@contextlib.contextmanager
def _maintaining(location: str) -> Iterator[None]:
    """Turn what delta-rs, pyarrow and the system raise into a DeliveryError that says what to do at a prompt."""
    need_delta(location)
    from deltalake.exceptions import CommitFailedError, DeltaError
    from pyarrow import ArrowException

    try:
        yield
    except PermanentDeliveryError:
        raise
    except CommitFailedError as error:
        raise PermanentDeliveryError(
            f"Others changed the table {location} again and again meanwhile: {_text(error)}. What was committed "
            "before stays. Run this again when less arrives."
        ) from error
    except DeliveryError as error:
        raise PermanentDeliveryError(_failed(location, error.__cause__ or error)) from error
    except TracelakeError:
        raise
    except BaseException as error:
        # A panic of delta-rs is a BaseException of no public type.
        panic = type(error).__name__ == "PanicException"
        if not panic and not isinstance(error, (DeltaError, ArrowException, OSError)):
            raise
        raise PermanentDeliveryError(_failed(location, error)) from error


def _failed(location: str, error: BaseException) -> str:
    return (
        f"The table {location} could not be maintained: {_text(error)}. Its spans are as they were. Check that this "
        "user may write to it, then run this again."
    )


def _text(error: BaseException) -> str:
    return one_line(" ".join(str(error).split())) or type(error).__name__
