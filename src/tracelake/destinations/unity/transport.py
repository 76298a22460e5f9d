"""Which way spans go into a table: to its files, through Databricks' OTLP endpoint, or through Zerobus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tracelake.errors import PermanentDeliveryError
from tracelake.settings import Transport

if TYPE_CHECKING:
    from tracelake.databricks.catalog import TableInfo

ChosenTransport = Literal["delta", "otlp", "zerobus"]

_CATALOG_COMMITS = "catalog-managed commits (delta.feature.catalogManaged)"
_OTHER_TABLE = "Name a Delta table, or make one: `tracelake create-table`"


def choose(table: TableInfo, wanted: Transport, *, open_source: bool) -> ChosenTransport:
    """Return how spans get into a table.

    Raises:
        PermanentDeliveryError: they do not, or not in the way that is wanted; the message says why, and what else.
    """
    if table.table_type not in ("MANAGED", "EXTERNAL"):
        raise PermanentDeliveryError(
            f"{table.name} is of the type {table.table_type or '(none)'}, and no spans are written to one. "
            f"{_OTHER_TABLE}."
        )
    if table.data_source_format != "DELTA":
        raise PermanentDeliveryError(
            f"{table.name} has the format {table.data_source_format or '(none)'}. {_OTHER_TABLE}."
        )
    managed = table.table_type == "MANAGED"
    if wanted == "auto":
        wanted = "otlp" if managed and not open_source else "delta"
    if wanted == "delta":
        _see_whether_files_are_open(table, managed=managed, open_source=open_source)
    elif open_source:
        raise PermanentDeliveryError(
            f"TRACELAKE_TRANSPORT={wanted} is a service of Databricks, and {table.name} is in an open-source Unity "
            "Catalog server. Set TRACELAKE_TRANSPORT=delta, or unset it."
        )
    elif wanted == "zerobus" and (table.catalog_managed or not managed):
        kind = f"has {_CATALOG_COMMITS}" if managed else "is external"
        raise PermanentDeliveryError(
            f"Zerobus writes to managed tables without catalog-managed commits, and {table.name} {kind}. "
            "Unset TRACELAKE_TRANSPORT."
        )
    return wanted


def _see_whether_files_are_open(table: TableInfo, *, managed: bool, open_source: bool) -> None:
    if not managed and not table.catalog_managed:
        return
    reason = "it is managed"
    if table.catalog_managed:
        # The open-source server hands out keys for such a table all the same.
        reason = f"it has {_CATALOG_COMMITS}"
    others = (
        "Make an external table: `tracelake create-table NAME --location URL`"
        if open_source
        else "Unset TRACELAKE_TRANSPORT, or set it to otlp or zerobus"
    )
    raise PermanentDeliveryError(f"{table.name} takes no writes to its files: {reason}. {others}.")
