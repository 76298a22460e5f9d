"""A table as a SQL warehouse reads it: where its files are closed to us, and for views, which have none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tracelake.databricks.catalog import Catalog, TableInfo
from tracelake.databricks.sql import Result, Value, Warehouse
from tracelake.errors import ConfigurationError, QueryError, RefusedError


@dataclass(frozen=True)
class WarehouseTable:
    """A table, and a warehouse that reads it."""

    catalog: Catalog
    info: TableInfo
    warehouse: Warehouse

    def query(
        self,
        statement: str,
        relations: Mapping[str, str],
        parameters: Mapping[str, Value] | None = None,
    ) -> Result:
        """Return what one query finds, in which each of these tables, named in SQL, is a relation of the given name.

        Raises:
            QueryError: it fails.
            DeliveryError: the workspace refuses, or is not reached.
        """
        named = ", ".join(f"{name} AS (SELECT * FROM {table})" for name, table in relations.items())  # noqa: S608 - the names are quoted
        # In parentheses it may have relations of its own, and its order is that of the result.
        return self.warehouse.query(f"WITH {named} ({statement})", parameters)


def closed_files(catalog: Catalog, table: TableInfo) -> str:
    """Return why the files of a table say nothing, or not all of it; empty if they may."""
    if catalog.workspace.open_source:
        return ""
    if table.table_type not in ("MANAGED", "EXTERNAL"):
        return f"it is of the type {table.table_type or '(none)'}"
    if table.data_source_format != "DELTA":
        return f"its format is {table.data_source_format or '(none)'}"
    return "its newest commits are known to its catalog only" if table.catalog_managed else ""


def open_warehouse(
    catalog: Catalog, table: TableInfo, reason: str, refusal: RefusedError | None = None
) -> WarehouseTable:
    """Return a table as a warehouse reads it.

    Args:
        reason: why that has to be.
        refusal: how the catalog refused its files.

    Raises:
        QueryError: there is no warehouse that this access may use.
        DeliveryError: the workspace is not reached.
    """
    try:
        return WarehouseTable(catalog, table, Warehouse.find(catalog.workspace))
    except ConfigurationError as error:
        raise QueryError(
            f"The files of {table.name} cannot be read here: {reason}. Ask for EXTERNAL USE SCHEMA on its schema, or "
            "for a SQL warehouse, and set DATABRICKS_WAREHOUSE_ID to its id."
        ) from refusal or error
