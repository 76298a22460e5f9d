"""Catalogs, schemas and tables as Unity Catalog's API gives them.

Whoever sees by BROWSE only gets names, comments and owners. A TableInfo has all that delta-rs cannot do without.
"""

from __future__ import annotations

import uuid
from typing import Any

from tracelake.testing.state import Securable, State, Table

_CAPABILITIES = {
    "MANAGED": ["HAS_DIRECT_EXTERNAL_ENGINE_READ_SUPPORT"],
    "EXTERNAL": ["HAS_DIRECT_EXTERNAL_ENGINE_READ_SUPPORT", "HAS_DIRECT_EXTERNAL_ENGINE_WRITE_SUPPORT"],
}


def catalog_info(catalog: Securable, state: State, *, browse_only: bool = False) -> dict[str, Any]:
    """Return the CatalogInfo of a catalog."""
    return {
        **_info(catalog, state, browse_only),
        "id": _id(catalog, state),
        "catalog_type": "MANAGED_CATALOG",
        "isolation_mode": "OPEN",
        "securable_type": "CATALOG",
        "securable_kind": "CATALOG_STANDARD",
    }


def schema_info(schema: Securable, state: State, *, browse_only: bool = False) -> dict[str, Any]:
    """Return the SchemaInfo of a schema."""
    return {
        **_info(schema, state, browse_only),
        "schema_id": _id(schema, state),
        "catalog_name": schema.parts[0],
        "catalog_type": "MANAGED_CATALOG",
        "securable_type": "SCHEMA",
        "securable_kind": "SCHEMA_STANDARD",
    }


def table_info(
    table: Table, state: State, *, browse_only: bool = False, with_capabilities: bool = False
) -> dict[str, Any]:
    """Return the TableInfo of a table or view."""
    info = {
        **_info(table, state, browse_only),
        "catalog_name": table.parts[0],
        "schema_name": table.parts[1],
        "table_type": table.table_type,
        "table_id": table.table_id,
        "columns": table.columns,
        "data_source_format": table.data_source_format,
        "securable_type": "TABLE",
        "securable_kind": table.securable_kind,
        "storage_location": table.storage_location,
        "view_definition": table.view_definition,
    }
    if browse_only:
        del info["storage_location"], info["view_definition"]
    if with_capabilities:
        capabilities = _CAPABILITIES.get(table.table_type, []) if table.data_source_format == "DELTA" else []
        info["securable_kind_manifest"] = {"securable_type": "TABLE", "capabilities": capabilities}
    return {key: value for key, value in info.items() if value != ""}


def table_summary(table: Table) -> dict[str, Any]:
    """Return the TableSummary of a table or view."""
    return {"full_name": table.full_name, "table_type": table.table_type}


def _info(securable: Securable, state: State, browse_only: bool) -> dict[str, Any]:
    info: dict[str, Any] = {
        "name": securable.parts[-1],
        "full_name": securable.full_name,
        "owner": securable.owner,
        "metastore_id": state.metastore_id,
        "created_at": securable.created_at,
        "created_by": securable.created_by,
        "updated_at": securable.updated_at,
        "updated_by": securable.updated_by,
        "properties": {} if browse_only else securable.properties,
    }
    if securable.comment:
        info["comment"] = securable.comment
    if browse_only:
        info["browse_only"] = True
    return info


def _id(securable: Securable, state: State) -> str:
    """Return the id of a catalog or schema: the same as long as it is there, another when it is made anew."""
    return str(uuid.uuid5(uuid.UUID(state.metastore_id), f"{securable.full_name}@{securable.created_at}"))
