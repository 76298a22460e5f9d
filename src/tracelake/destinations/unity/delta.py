"""Write to the files of a table by temporary credentials that its catalog gives, each batch exactly once.

We ask for the credentials ourselves and open the location: delta-rs can open `uc://` URLs, but sometimes never returns.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tracelake.destinations.base import Batch, Rejection
from tracelake.destinations.delta import DeltaSink
from tracelake.destinations.maintenance import Elsewhere
from tracelake.errors import BatchExistsError, DeliveryError, MissingTableError
from tracelake.spans import tables

if TYPE_CHECKING:
    from deltalake import DeltaTable

    from tracelake.databricks.catalog import Catalog, TableInfo
    from tracelake.databricks.credentials import Credentials

# Credentials are replaced before a batch when they have less left than this, or than half of what they were given:
# delta-rs cannot change them while it uploads, and an upload takes seconds.
_LEFT_S = 600.0
# They are not replaced sooner, whatever the clock of this machine makes of the time at which they expire.
_LEAST_S = 60.0

# What stores say of credentials that have run out, or were taken back; S3 says so with status 400.
_ACCESS = re.compile(r"expire|token|denied|forbidden|authori[sz]|authenticat|\b40[0137]\b", re.IGNORECASE)


class UnityDeltaSink:
    """Appends batches to the files of one table."""

    def __init__(self, catalog: Catalog, table: TableInfo, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._catalog = catalog
        self._table = table
        self._clock = clock
        self._credentials: Credentials | None = None
        self._renew_at_s = 0.0

    def write(self, batch: Batch) -> list[Rejection]:
        """Commit a batch, unless the table holds it already; once more with new credentials if these have run out."""
        credentials = self._credentials
        if credentials is not None and self._clock() < self._renew_at_s:
            try:
                return delta_sink(self._table, credentials).write(batch)
            except BatchExistsError:
                raise
            except DeliveryError as error:
                if not _ACCESS.search(str(error)):
                    raise
            batch = replace(batch, retried=True)
        return delta_sink(self._table, self.renew()).write(batch)

    def close(self) -> None:
        """Forget the credentials."""
        self._credentials = None

    def renew(self) -> Credentials:
        """Ask for credentials and return them.

        Raises:
            DeliveryError: the catalog gives none.
        """
        self._credentials = credentials = self._catalog.vend(self._table, write=True)
        left_s = max(0.0, credentials.expires_at - time.time())
        self._renew_at_s = self._clock() + max(left_s / 2, left_s - _LEFT_S, _LEAST_S)
        return credentials


def delta_sink(table: TableInfo, credentials: Credentials) -> DeltaSink:
    """Return what writes to the files of a table; one that is registered and has none yet is begun as registered.

    Raises:
        PermanentDeliveryError: the columns are not those of a span table.
    """
    # One can be registered without its columns; what the files have is what counts, but there have to be some.
    described = bool(table.schema.get("fields"))
    return DeltaSink(
        credentials.location,
        options=credentials.options,
        version=tables.schema_version(table.schema, table.properties) if described else 1,
        create=described,
    )


def open_for_reading(catalog: Catalog, table: TableInfo) -> DeltaTable:
    """Open a table for reading.

    Raises:
        MissingTableError: nothing has been written to it yet.
        DeliveryError: the catalog gives no access to the files, or they cannot be read.
    """
    found = opened_files(catalog, table)
    if found is None:
        raise MissingTableError(f"Nothing has been written to {table.name} yet: there is no table at {table.location}.")
    return found


def opened_files(catalog: Catalog, table: TableInfo) -> DeltaTable | None:
    """Return the files of a table, to be read; None if nothing has been written yet.

    Raises:
        DeliveryError: the catalog gives no access to the files, or they cannot be read.
    """
    credentials = catalog.vend(table, write=False)
    return DeltaSink(credentials.location, options=credentials.options, version=1, create=False).table()


def open_for_maintenance(catalog: Catalog, table: TableInfo) -> DeltaSink | Elsewhere:
    """Return what opens the files of a table, or who maintains them instead of us.

    Raises:
        DeliveryError: the catalog gives no access to the files.
    """
    if table.table_type not in ("MANAGED", "EXTERNAL"):
        return Elsewhere(f"it is of the type {table.table_type or '(none)'} and has no files of its own")
    if table.data_source_format != "DELTA":
        return Elsewhere(f"its format is {table.data_source_format or '(none)'}, and whoever provides it maintains it")
    if table.table_type == "MANAGED" or table.catalog_managed:
        kind = "is managed" if table.table_type == "MANAGED" else "has catalog-managed commits"
        keeper = "its catalog" if catalog.workspace.open_source else "Databricks (predictive optimization)"
        return Elsewhere(f"it {kind}, and {keeper} maintains it; old spans are removed by DELETE in SQL")
    return delta_sink(table, catalog.vend(table, write=True))
