"""Open the table of a destination for reading; the one place of this room that knows delta-rs' errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from tracelake.destinations.base import Destination
from tracelake.destinations.delta import DeltaDestination
from tracelake.destinations.unity.statements import WarehouseTable
from tracelake.errors import (
    DeliveryError,
    MissingDependencyError,
    MissingTableError,
    PermanentDeliveryError,
    QueryError,
    TracelakeError,
)
from tracelake.redaction import one_line
from tracelake.spans import tables

if TYPE_CHECKING:
    from deltalake import DeltaTable


@runtime_checkable
class ReadableDestination(Protocol):
    """A destination whose spans can be read back, beside the Delta tables that are read by their location."""

    def open_table(self) -> DeltaTable | WarehouseTable:
        """Open the table for reading: its files, or by a SQL warehouse. Blocks.

        Raises:
            DeliveryError, QueryError: it cannot be opened.
        """


def open_table(destination: Destination) -> DeltaTable | WarehouseTable:
    """Open the span table of a destination at its newest version, with the environment's credentials.

    A table in Unity Catalog whose files are closed to us is one that a SQL warehouse reads.

    Raises:
        MissingTableError: there is no table yet.
        QueryError: it is not a span table, it cannot be read, or the destination is not a table.
        MissingDependencyError: delta-rs or pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: F401
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError
    except ImportError as error:
        raise MissingDependencyError(
            f"Reading {destination.target} needs the package {error.name!r}, which is not installed here. "
            "Run: pip install 'tracelake[delta]'"
        ) from error
    with reading(destination.target):
        if isinstance(destination, DeltaDestination):
            try:
                table: DeltaTable | WarehouseTable = DeltaTable(destination.location)
            except TableNotFoundError as error:
                raise MissingTableError(
                    f"There is no table at {destination.target}. Look with `tracelake status` whether spans still "
                    "wait for delivery, or name another table with `--target`."
                ) from error
        elif isinstance(destination, ReadableDestination):
            table = destination.open_table()
        else:
            raise QueryError(
                f"The destination {destination.target} is not a table that tracelake can read. "
                "Look there with its own tools, or name a table with `--target`."
            )
        try:
            version_of(table)
        except PermanentDeliveryError as error:
            raise QueryError(f"The table {destination.target} cannot be read as spans. {error}") from error
        return table


def version_of(table: DeltaTable | WarehouseTable) -> tables.Version:
    """Return the schema version of a span table.

    Raises:
        PermanentDeliveryError: it is no span table.
    """
    if isinstance(table, WarehouseTable):
        return tables.schema_version(table.info.schema, table.info.properties)
    return tables.schema_version(json.loads(table.schema().to_json()), table.metadata().configuration)


@contextmanager
def reading(target: str) -> Iterator[None]:
    """Turn what delta-rs, pyarrow and the file system raise in the with-body into a QueryError that names the table."""
    from deltalake.exceptions import DeltaError
    from pyarrow import ArrowException

    try:
        yield
    except DeliveryError as error:
        raise QueryError(str(error)) from error
    except TracelakeError:
        raise
    except BaseException as error:
        # A panic of delta-rs is a BaseException of no public type.
        panic = type(error).__name__ == "PanicException"
        if not panic and not isinstance(error, (DeltaError, ArrowException, OSError)):
            raise
        text = one_line(str(error)) or type(error).__name__
        raise QueryError(f"The table {target} cannot be read: {text}. {_advice(text)}") from error


def _advice(text: str) -> str:
    if "Forked process" in text:
        return (
            "delta-rs reads nothing in a child that was forked after it had read something in the parent: start the "
            "child by spawn, as multiprocessing.get_context('spawn') does, or read in one of the two alone."
        )
    if "nsupported" in text or "not supported" in text:
        return "If a newer writer made it, try pip install -U deltalake; or read it with Spark (docs/spark.md)."
    return "Check the path and this user's access to it, then try again."
