"""The log of a Delta table: what keeps it short and durable, and lets one at a time work on the table's files."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tracelake.errors import PermanentDeliveryError
from tracelake.redaction import one_line
from tracelake.spool.files import sync_dir

if TYPE_CHECKING:
    from deltalake import DeltaTable

_log = logging.getLogger("tracelake.shipper")

_CHECKPOINT_INTERVAL = "delta.checkpointInterval"
# Delta's own name for small files that are put together after a commit, which other engines honour as well.
AUTO_COMPACT = "delta.autoOptimize.autoCompact"
# A table whose log is read from a checkpoint at most 20 commits old opens as fast after a year as on its first day.
TABLE_PROPERTIES = {
    _CHECKPOINT_INTERVAL: "20",
    "delta.logRetentionDuration": "interval 1 days",
    AUTO_COMPACT: "true",
}

# The transaction identifier of whose turn it is; its number is the time, in ms, until which it is taken.
_TURN = "tracelake-maintenance"
_POLL_S = 0.2


def passes_checkpoint(table: DeltaTable, before: int) -> bool:
    """Say whether the commits since a version passed a multiple of the table's checkpoint interval."""
    interval = int(table.metadata().configuration.get(_CHECKPOINT_INTERVAL, TABLE_PROPERTIES[_CHECKPOINT_INTERVAL]))
    return table.version() // interval != before // interval


def shorten(table: DeltaTable, location: str) -> None:
    """Make a checkpoint, and let go of expired log files."""
    from deltalake.exceptions import DeltaError

    try:
        table.create_checkpoint()
        table.cleanup_metadata()
    except (DeltaError, OSError) as error:
        # What was committed is there all the same; whoever passes the next multiple tries again.
        _log.warning("%s has no new checkpoint: %s", location, one_line(str(error)))


def sync_commits(location: str, first: int, last: int) -> None:
    """Make the commits of a local table survive a power loss: delta-rs leaves them to the page cache.

    The spool lets go of spans that are delivered, so they must not be less durable here than they were there.
    """
    if not os.path.isabs(location):
        return
    log = os.path.join(location, "_delta_log")
    directories = {location, log}
    for version in range(first, last + 1):
        commit = os.path.join(log, f"{version:020d}.json")
        with open(commit, "rb") as file:
            actions = [json.loads(line) for line in file]
            os.fsync(file.fileno())
        for path in (unquote(action["add"]["path"]) for action in actions if "add" in action):
            data = os.path.join(location, path)
            with open(data, "rb") as file:
                os.fsync(file.fileno())
            directories.add(os.path.dirname(data))
    for directory in directories:
        sync_dir(directory)


@contextlib.contextmanager
def turn(table: DeltaTable, location: str, seconds: float, *, wait_s: float = 0.0) -> Iterator[None]:
    """Let nobody else rewrite files of the table in the with-body: no other that asks for a turn, on any machine.

    A delta-rs (1.6.6) that finds the files it compacted gone, because another compacted them, too, commits all the
    same, and each row is there twice. What it does see are two commits with one transaction identifier, so that is
    what a turn is. One that is not given back, since its process was killed, ends after `seconds`.

    Raises:
        PermanentDeliveryError: it is another's turn, and still so after `wait_s`.
    """
    from deltalake.exceptions import DeltaError

    deadline_s = time.monotonic() + wait_s
    while not _taken(table, seconds):
        if time.monotonic() >= deadline_s:
            left_s = max(0.0, (table.transaction_version(_TURN) or 0) / 1000 - time.time())
            raise PermanentDeliveryError(
                f"The table {location} is being maintained by another process, or by one that was killed meanwhile. "
                f"Try again when it is done, or in {1 + left_s // 60:.0f} minutes."
            )
        time.sleep(_POLL_S)
        table.update_incremental()
    table.update_incremental()
    try:
        yield
    finally:
        with contextlib.suppress(DeltaError, OSError):
            table.update_incremental()
            _commit_turn(table, time.time())


def _taken(table: DeltaTable, seconds: float) -> bool:
    """Take the turn if it is nobody's; say whether it is taken."""
    from deltalake.exceptions import CommitFailedError

    now = time.time()
    if (table.transaction_version(_TURN) or 0) / 1000 > now:
        return False
    try:
        _commit_turn(table, now + seconds)
    except CommitFailedError:
        return False  # another was faster
    return True


def _commit_turn(table: DeltaTable, until: float) -> None:
    from deltalake import CommitProperties, PostCommitHookProperties, Transaction

    table.create_write_transaction(
        [],
        mode="append",
        schema=table.schema(),
        partition_by=table.metadata().partition_columns,
        commit_properties=CommitProperties(
            app_transactions=[Transaction(_TURN, int(until * 1000), int(time.time() * 1000))],
            max_commit_retries=100,
        ),
        post_commithook_properties=PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False),
    )
