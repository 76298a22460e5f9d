"""Catalogs, schemas and tables as Unity Catalog's API gives them, read leniently.

https://docs.databricks.com/api/workspace/tables and https://docs.unitycatalog.io/swagger-docs/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tracelake.databricks.columns import columns_of, schema_of
from tracelake.databricks.credentials import Credentials, storage_credentials
from tracelake.databricks.names import TableName, in_url
from tracelake.databricks.workspace import Workspace
from tracelake.errors import RefusedError, TransientDeliveryError

_BASE = "/api/2.1/unity-catalog"
# Either says that commits of a table are decided by its catalog, the second in the feature's preview:
# https://github.com/delta-io/delta/blob/master/protocol_rfcs/catalog-managed.md
CATALOG_MANAGED = ("catalogManaged", "catalogOwned-preview", "catalogOwned")


@dataclass(frozen=True)
class TableInfo:
    """A table as the catalog describes it; what the catalog does not say is empty.

    Attributes:
        name: the three parts.
        table_id: the same as long as the table is there, another when it is made anew.
        table_type: `MANAGED`, `EXTERNAL`, `VIEW`, or what else there may be some day.
        data_source_format: `DELTA` or another.
        location: the URL of its files.
        owner: who owns it.
        properties: its table properties, which say nothing of whether it is the same table: there may be the time of
            its last commit among them.
        schema: its columns, as a Delta schema in the dict of its JSON.
    """

    name: TableName
    table_id: str = ""
    table_type: str = ""
    data_source_format: str = ""
    location: str = ""
    owner: str = field(default="", compare=False)
    properties: Mapping[str, str] = field(default_factory=dict, compare=False)
    schema: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def catalog_managed(self) -> bool:
        """Whether commits are decided by the catalog: one behind its back would be lost, or break the table."""
        return any(self.properties.get(f"delta.feature.{name}") == "supported" for name in CATALOG_MANAGED)


class Catalog:
    """Asks a catalog. Every method raises what `Workspace.call` does."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._region: str | None = None

    def metastore(self) -> Mapping[str, Any]:
        """Return the summary of the metastore."""
        return self.workspace.get(f"{_BASE}/metastore_summary")

    def catalog(self, name: TableName) -> Mapping[str, Any]:
        """Return what there is to know of the catalog of a table."""
        return self.workspace.get(f"{_BASE}/catalogs/{in_url(name.catalog)}")

    def schema(self, name: TableName) -> Mapping[str, Any]:
        """Return what there is to know of the schema of a table."""
        return self.workspace.get(f"{_BASE}/schemas/{in_url(name.catalog, name.schema)}")

    def table(self, name: TableName) -> TableInfo:
        """Return a table."""
        found = self.workspace.get(f"{_BASE}/tables/{in_url(name.catalog, name.schema, name.table)}")
        texts = ("table_id", "table_type", "data_source_format", "owner")
        columns, properties = found.get("columns"), found.get("properties")
        return TableInfo(
            name,
            **{text: str(found.get(text) or "") for text in texts},
            location=str(found.get("storage_location") or ""),
            properties={str(key): str(value) for key, value in properties.items()}
            if isinstance(properties, Mapping)
            else {},
            schema=schema_of(columns if isinstance(columns, list) else []),
        )

    def has_table(self, name: TableName) -> bool:
        """Say whether there is a table of this name that whoever calls may see."""
        try:
            self.table(name)
        except RefusedError as error:
            if error.status != 404:
                raise
            return False
        return True

    def create_external_table(
        self, name: TableName, location: str, schema: Mapping[str, Any], properties: Mapping[str, str], comment: str
    ) -> None:
        """Register a Delta table at a location; writes nothing there."""
        self.workspace.post(
            f"{_BASE}/tables",
            name=name.table,
            catalog_name=name.catalog,
            schema_name=name.schema,
            table_type="EXTERNAL",
            data_source_format="DELTA",
            storage_location=location,
            columns=columns_of(schema),
            properties=dict(properties),
            comment=comment,
        )

    def change_grants(self, kind: str, name: str, principal: str, privileges: list[str]) -> None:
        """Grant privileges on the `catalog`, `schema` or `table` of this full name."""
        self.workspace.call(
            "PATCH",
            f"{_BASE}/permissions/{kind}/{in_url(name)}",
            body={"changes": [{"principal": principal, "add": privileges}]},
        )

    def vend(self, table: TableInfo, *, write: bool) -> Credentials:
        """Return temporary credentials for the files of a table.

        Raises:
            PermanentDeliveryError: those are of a kind that is not known.
        """
        operation = "READ_WRITE" if write else "READ"
        answer = self.workspace.post(
            f"{_BASE}/temporary-table-credentials", table_id=table.table_id, operation=operation
        )
        return storage_credentials(answer, table.location, region=self._metastore_region(table.location))

    def principals(self) -> list[str]:
        """Return the name of whoever calls, then those of its groups; none where nobody has to say who they are."""
        if self.workspace.open_source:
            try:
                return [str(self.workspace.get("/api/1.0/unity-control/scim2/Me").get("userName") or "")]
            except TransientDeliveryError:
                return []  # so it answers where authorization is off
        me = self.workspace.get("/api/2.0/preview/scim/v2/Me")
        groups = [str(group.get("display", "")) for group in me.get("groups") or [] if isinstance(group, Mapping)]
        return [str(me.get("userName") or me.get("applicationId") or ""), *filter(None, groups), "account users"]

    def privileges(self, kind: str, name: str, principal: str) -> set[str]:
        """Return the privileges that a principal has on the `catalog`, `schema` or `table` of this full name.

        Inherited ones are among them, those of its groups are not. An open-source server knows of no inheritance.
        """
        if self.workspace.open_source:
            answer = self.workspace.get(f"{_BASE}/permissions/{kind}/{in_url(name)}")
        else:
            answer = self.workspace.get(f"{_BASE}/effective-permissions/{kind}/{in_url(name)}", principal=principal)
        held = [
            privilege.get("privilege") if isinstance(privilege, Mapping) else privilege
            for assignment in answer.get("privilege_assignments") or []
            if assignment.get("principal") == principal
            for privilege in assignment.get("privileges") or []
        ]
        return {str(privilege).replace(" ", "_") for privilege in held}

    def _metastore_region(self, location: str) -> str:
        """Return the region of the metastore, which is that of its buckets; asked for once, where it matters."""
        if not location.startswith("s3") or self.workspace.open_source:
            return ""
        if self._region is None:
            self._region = str(self.metastore().get("region") or "")
        return self._region
