"""Unity Catalog's objects: made, found, dropped and granted on; whoever asks, by REST, SQL or code.

Every method that takes a `principal` checks that it may, as Unity Catalog does. Names are in any case, and are kept in
lower case: https://docs.databricks.com/aws/en/sql/language-manual/sql-ref-names
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tracelake.databricks.columns import columns_of
from tracelake.testing.state import Securable, Store, Table, TableType, now_ms
from tracelake.testing.storage.lakehouse import Lakehouse
from tracelake.testing.unity.access import ACCOUNT_USERS, EXTERNAL_USE_SCHEMA, PRIVILEGES, Access, spoken
from tracelake.testing.web.http import ApiError

# What Unity Catalog forbids in names: https://docs.databricks.com/aws/en/sql/language-manual/sql-ref-names
_FORBIDDEN = re.compile(r"[. /\x00-\x1f\x7f]")
_MAX_NAME = 255
_INVALID = "INVALID_PARAMETER_VALUE"


class GrantChange(NamedTuple):
    """What one principal is to have more and less; privileges as `USE CATALOG` or `USE_CATALOG`."""

    principal: str
    add: Iterable[str] = ()
    remove: Iterable[str] = ()


class Catalog:
    """The catalogs, schemas and tables of a workspace."""

    def __init__(self, store: Store, access: Access, lakehouse: Lakehouse) -> None:
        self.store = store
        self.access = access
        self.lakehouse = lakehouse

    def find(self, full_name: str) -> Securable:
        """Return the catalog, schema or table of a name.

        Raises:
            ApiError: 404, it or what it would be in does not exist.
        """
        full_name = canonical(full_name)
        state, parts = self.store.state, full_name.split(".")
        if not 1 <= len(parts) <= 3 or not all(parts):
            raise ApiError(400, "INVALID_PARAMETER_VALUE", f"'{full_name}' is not a valid name.")
        found: Securable | None = state.catalogs.get(parts[0])
        if found is None:
            raise _missing("catalog", parts[0])
        if len(parts) > 1:
            found = state.schemas.get(".".join(parts[:2]))
            if found is None:
                raise _missing("schema", ".".join(parts[:2]))
        if len(parts) > 2:
            found = state.tables.get(full_name)
            if found is None:
                raise _missing("table", full_name)
        return found

    def table(self, full_name: str) -> Table:
        """Return a table or view.

        Raises:
            ApiError: 404, it does not exist; 400, the name has not three parts.
        """
        if full_name.count(".") != 2:
            raise ApiError(
                400, "INVALID_PARAMETER_VALUE", f"'{full_name}' is not a valid name: a table has catalog.schema.table."
            )
        found = self.find(full_name)
        assert isinstance(found, Table)
        return found

    def see(self, principal: str, full_name: str, *, browse: bool = False) -> tuple[Securable, bool]:
        """Return a catalog, schema or table, and whether the principal sees no more than that it is there.

        Args:
            browse: whether BROWSE is enough.

        Raises:
            ApiError: 404, it does not exist; 403, the principal may not see it, or what it would be in.
        """
        try:
            found = self.find(full_name)
        except ApiError:
            # Whoever may not use what it would be in does not learn that it is missing.
            sought = Securable(full_name=canonical(full_name), owner="")
            if sought.full_name.count(".") <= 2 and not self.access.manages(principal, sought):
                self.access.require_use(principal, sought)
            raise
        try:
            self.access.require_seeing(principal, found)
        except ApiError:
            if browse and self.access.browses(principal, found):
                return found, True
            raise
        return found, False

    def create_catalog(
        self, principal: str, name: str, *, comment: str = "", properties: Mapping[str, str] | None = None
    ) -> Securable:
        """Make a catalog, owned by the principal."""
        self.access.require_metastore(principal, "CREATE_CATALOG")
        made = _new(canonical(name), principal, comment, properties)
        with self.store.changing() as state:
            if made.full_name in state.catalogs:
                raise _exists("catalog", made.full_name)
            state.catalogs[made.full_name] = made
        return made

    def create_schema(
        self, principal: str, full_name: str, *, comment: str = "", properties: Mapping[str, str] | None = None
    ) -> Securable:
        """Make a schema, owned by the principal."""
        catalog, name = _split(full_name, 2)
        made = _new(name, principal, comment, properties, parent=catalog)
        with self.store.changing() as state:
            self.access.require(principal, "CREATE_SCHEMA", self.find(catalog))
            if made.full_name in state.schemas:
                raise _exists("schema", made.full_name)
            state.schemas[made.full_name] = made
        return made

    def create_table(
        self,
        principal: str,
        full_name: str,
        schema: Mapping[str, Any],
        *,
        table_type: TableType = "MANAGED",
        location: str = "",
        properties: Mapping[str, str] | None = None,
        comment: str = "",
        view_definition: str = "",
        data_source_format: str = "DELTA",
        register_only: bool = False,
    ) -> Table:
        """Make a table, owned by the principal, with an empty Delta table at its location if there is none yet.

        An EXTERNAL table whose location has a Delta table has the columns of that one.

        Args:
            schema: the Delta schema, as the dict of its JSON.
            table_type: MANAGED tables get a location of the workspace's; EXTERNAL ones need one; others have no data.
            location: a directory, a `file://` URL or an object store's.
            view_definition: the SQL of a VIEW.
            register_only: leaves the location as it is, and takes the columns as they are given.
        """
        parent, name = _split(full_name, 3)
        table_id = str(uuid.uuid4())
        if table_type == "MANAGED":
            location = self.lakehouse.managed_location(table_id)
        elif table_type == "EXTERNAL":
            if not location:
                raise ApiError(400, _INVALID, "An EXTERNAL table needs a storage_location.")
            location = self.lakehouse.external_location(location)
        try:
            columns = columns_of(schema)
        except ValueError as error:
            raise ApiError(400, _INVALID, f"{error}.") from error
        base = _new(name, principal, comment, properties, parent=parent)
        table = Table(
            full_name=base.full_name,
            owner=principal,
            comment=comment,
            created_at=base.created_at,
            created_by=principal,
            updated_at=base.updated_at,
            updated_by=principal,
            properties=base.properties,
            table_id=table_id,
            table_type=table_type,
            data_source_format="" if table_type == "VIEW" else data_source_format,
            storage_location=location,
            columns=columns,
            view_definition=view_definition,
        )
        with self.store.changing() as state:
            self.access.require(principal, "CREATE_TABLE", self.find(parent))
            if table.full_name in state.tables:
                raise _exists("table", table.full_name)
            if table_type == "EXTERNAL":
                self.require_free(location, "CreateTable")
            if table_type in {"MANAGED", "EXTERNAL"} and data_source_format == "DELTA" and not register_only:
                self.lakehouse.create(table, schema)
                if table_type == "EXTERNAL":
                    table.columns = columns_of(json.loads(self.lakehouse.open(table).schema().to_json()))
            state.tables[table.full_name] = table
        return table

    def require_free(self, location: str, call: str) -> None:
        """Raise if a location is that of a table or of the managed ones, or within it, or around it.

        Args:
            call: what it is wanted for, in Unity Catalog's words.

        Raises:
            ApiError: 400 INVALID_PARAMETER_VALUE.
        """
        tables = list(self.store.state.tables.values())
        taken = [table for table in tables if overlap(location, table.storage_location)]
        managed = overlap(location, self.lakehouse.managed_location(""))
        if not taken and not managed:
            return
        if managed:
            message = f"overlaps with managed storage within '{call}' call."
        else:
            names = ", ".join(table.full_name for table in taken)
            message = (
                f"overlaps with other external tables or volumes within '{call}' call. "
                f"Conflicting tables/volumes: {names}."
            )
        raise ApiError(400, _INVALID, f"Input path url '{location}' {message}", reason="LOCATION_OVERLAP")

    def update(
        self,
        principal: str,
        full_name: str,
        *,
        owner: str | None = None,
        comment: str | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> Securable:
        """Change the owner, comment or properties of a catalog, schema or table; None leaves one as it is."""
        with self.store.changing():
            securable = self.find(full_name)
            self.access.require_owner(principal, securable)
            if owner is not None:
                self._require_principal(owner)
                securable.owner = owner
            if comment is not None:
                securable.comment = comment
            if properties is not None:
                securable.properties = dict(properties)
            securable.updated_at, securable.updated_by = now_ms(), principal
        return securable

    def add_columns(self, principal: str, table: Table, fields: Sequence[Mapping[str, Any]]) -> None:
        """Add columns to a table, given as Delta fields."""
        self.access.require(principal, "MODIFY", table)
        schema = self.lakehouse.add_columns(table, fields)
        with self.store.changing():
            table.columns = columns_of(schema)
            table.updated_at, table.updated_by = now_ms(), principal

    def drop(self, principal: str, full_name: str, *, force: bool = False) -> None:
        """Drop a catalog, schema or table; with `force`, with all that is in it."""
        with self.store.changing() as state:
            securable = self.find(full_name)
            full_name = securable.full_name
            self.access.require_owner(principal, securable)
            below = [name for name in (*state.schemas, *state.tables) if name.startswith(f"{full_name}.")]
            if below and not force:
                raise ApiError(
                    400,
                    "INVALID_STATE",
                    f"{securable.kind.capitalize()} '{full_name}' is not empty: {below[0]} is in it.",
                )
            for name in (full_name, *below):
                table = state.tables.pop(name, None)
                if table is not None:
                    self.lakehouse.forget(table)
                state.schemas.pop(name, None)
                state.catalogs.pop(name, None)

    def grant(self, principal: str, full_name: str, to: str, privileges: Iterable[str]) -> None:
        """Grant privileges on a catalog, schema or table; `USE CATALOG` and `USE_CATALOG` mean the same."""
        self.change_grants(principal, self.find(full_name), [GrantChange(to, add=privileges)])

    def revoke(self, principal: str, full_name: str, from_: str, privileges: Iterable[str]) -> None:
        """Take privileges on a catalog, schema or table back; what was granted above it stays."""
        self.change_grants(principal, self.find(full_name), [GrantChange(from_, remove=privileges)])

    def change_grants(self, principal: str, securable: Securable | None, changes: Sequence[GrantChange]) -> None:
        """Change what is granted on a securable, None for the metastore: all of it, or nothing where one is wrong.

        Raises:
            ApiError: 400, there is no such privilege on it; 403, the principal may not grant it; 404, there is no such
                principal to grant it to.
        """
        changes = [GrantChange(each.principal, _names(each.add), _names(each.remove)) for each in changes]
        if securable is None:
            self.access.require_metastore_admin(principal)
        else:
            self.access.require_owner(principal, securable)
            if any(EXTERNAL_USE_SCHEMA in each.add for each in changes):
                self.access.require_catalog_owner(principal, securable)
        kind = securable.kind if securable else "metastore"
        for name in (name for each in changes for name in (*each.add, *each.remove)):
            if name not in PRIVILEGES[kind]:
                where = securable.full_name if securable else self.store.state.metastore_id
                message = f"Privilege {spoken(name)} is not applicable to this entity [{where}:{kind.upper()}]."
                raise ApiError(400, _INVALID, message, reason="PRIVILEGE_NOT_APPLICABLE_TO_ENTITY")
        with self.store.changing() as state:
            for each in changes:
                self._require_principal(each.principal)
            grants = securable.grants if securable else state.metastore_grants
            for each in changes:
                # In one step, as others look at it meanwhile.
                held = {*grants.get(each.principal, ()), *each.add} - {*each.remove}
                if held:
                    grants[each.principal] = sorted(held)
                else:
                    grants.pop(each.principal, None)

    def _require_principal(self, name: str) -> None:
        if name not in self.store.state.principals and name != ACCOUNT_USERS:
            raise ApiError(404, "PRINCIPAL_DOES_NOT_EXIST", f"Could not find principal with name {name}.")


def canonical(full_name: str) -> str:
    """Return a name as it is kept."""
    return full_name.lower()


def overlap(location: str, other: str) -> bool:
    """Say whether two locations are the same, or one is within the other; an empty one is nowhere."""
    if not location or not other:
        return False
    return f"{location}/".startswith(f"{other}/") or f"{other}/".startswith(f"{location}/")


def _names(privileges: Iterable[str]) -> list[str]:
    return [privilege.upper().replace(" ", "_") for privilege in privileges]


def _split(full_name: str, count: int) -> tuple[str, str]:
    parts = canonical(full_name).split(".")
    if len(parts) != count or not all(parts):
        raise ApiError(400, "INVALID_PARAMETER_VALUE", f"'{full_name}' is not a valid name: it needs {count} parts.")
    return ".".join(parts[:-1]), parts[-1]


def _new(
    name: str, owner: str, comment: str, properties: Mapping[str, str] | None = None, *, parent: str = ""
) -> Securable:
    if not name or _FORBIDDEN.search(name) or len(name) > _MAX_NAME:
        raise ApiError(400, "INVALID_PARAMETER_VALUE", f"{name!r} is not a valid name.")
    now = now_ms()
    full_name = f"{parent}.{name}" if parent else name
    return Securable(
        full_name=full_name,
        owner=owner,
        comment=comment,
        created_at=now,
        created_by=owner,
        updated_at=now,
        updated_by=owner,
        properties=dict(properties or {}),
    )


def _missing(kind: str, full_name: str) -> ApiError:
    return ApiError(404, f"{kind.upper()}_DOES_NOT_EXIST", f"{kind.capitalize()} '{full_name}' does not exist.")


def _exists(kind: str, full_name: str) -> ApiError:
    return ApiError(400, f"{kind.upper()}_ALREADY_EXISTS", f"{kind.capitalize()} '{full_name}' already exists")
