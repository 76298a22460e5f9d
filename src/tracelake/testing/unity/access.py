"""Who may do what: ownership, grants, and what is inherited from above.

Rules: https://docs.databricks.com/aws/en/data-governance/unity-catalog/manage-privileges/
"""

from __future__ import annotations

from typing import NamedTuple

from tracelake.testing.state import Securable, SecurableType, Store
from tracelake.testing.web.http import ApiError

_DENIED = "PERMISSION_DENIED"
ALL_PRIVILEGES = "ALL_PRIVILEGES"
# Every principal is in it.
ACCOUNT_USERS = "account users"

# By kind of securable, what can be granted on it; what is granted on a catalog or schema holds for all below.
PRIVILEGES: dict[SecurableType, frozenset[str]] = {
    "table": frozenset({"SELECT", "MODIFY", "APPLY_TAG", "MANAGE", ALL_PRIVILEGES}),
    "schema": frozenset(
        {
            *("SELECT", "MODIFY", "APPLY_TAG", "MANAGE", ALL_PRIVILEGES, "USE_SCHEMA", "CREATE_TABLE"),
            *("EXTERNAL_USE_SCHEMA", "CREATE_FUNCTION", "CREATE_MODEL", "CREATE_VOLUME", "CREATE_MATERIALIZED_VIEW"),
            *("EXECUTE", "READ_VOLUME", "WRITE_VOLUME", "REFRESH"),
        }
    ),
    "catalog": frozenset(
        {
            *("SELECT", "MODIFY", "APPLY_TAG", "MANAGE", ALL_PRIVILEGES, "USE_SCHEMA", "CREATE_TABLE"),
            *("EXTERNAL_USE_SCHEMA", "CREATE_FUNCTION", "CREATE_MODEL", "CREATE_VOLUME", "CREATE_MATERIALIZED_VIEW"),
            *("EXECUTE", "READ_VOLUME", "WRITE_VOLUME", "REFRESH", "USE_CATALOG", "CREATE_SCHEMA", "BROWSE"),
        }
    ),
    "metastore": frozenset(
        {
            *("CREATE_CATALOG", "CREATE_CONNECTION", "CREATE_EXTERNAL_LOCATION", "CREATE_PROVIDER"),
            *("CREATE_RECIPIENT", "CREATE_SHARE", "CREATE_STORAGE_CREDENTIAL", "MANAGE_ALLOWLIST"),
        }
    ),
}
EXTERNAL_USE_SCHEMA = "EXTERNAL_USE_SCHEMA"
# ALL_PRIVILEGES does not include these: they let data out of the workspace, or rights be passed on.
NOT_IN_ALL = frozenset({EXTERNAL_USE_SCHEMA, "MANAGE"})
# The privileges that make a securable's details be seen, together with USE on what it is in.
_SEEING: dict[SecurableType, tuple[str, ...]] = {
    "catalog": ("USE_CATALOG",),
    "schema": ("USE_SCHEMA",),
    "table": ("SELECT", "MODIFY", "APPLY_TAG", "MANAGE"),
}


class Held(NamedTuple):
    """A privilege that somebody has on a securable, and the securable that it was granted on."""

    privilege: str
    kind: SecurableType
    full_name: str


class Access:
    """Answers what principals may do in a workspace."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def held(self, principal: str, securable: Securable) -> list[Held]:
        """Return what was granted to a principal or its groups on a securable and on what it is in, as granted."""
        names = self.names(principal)
        return [
            Held(privilege, above.kind, above.full_name)
            for above in self.lineage(securable)
            for name in names
            for privilege in above.grants.get(name, ())
        ]

    def has(self, principal: str, privilege: str, securable: Securable, *, explicitly: bool = False) -> bool:
        """Say whether a principal has a privilege: as owner, by a grant of it, or by ALL_PRIVILEGES.

        With `explicitly`, ALL_PRIVILEGES does not count. EXTERNAL_USE_SCHEMA has to be granted to owners too.
        """
        if privilege != EXTERNAL_USE_SCHEMA and self.owns(principal, securable):
            return True
        held = {each.privilege for each in self.held(principal, securable)}
        return privilege in held or (not explicitly and ALL_PRIVILEGES in held and privilege not in NOT_IN_ALL)

    def owns(self, principal: str, securable: Securable) -> bool:
        """Say whether a principal, or a group that it is in, owns a securable."""
        return securable.owner in self.names(principal)

    def require(self, principal: str, privilege: str, securable: Securable, *, explicitly: bool = False) -> None:
        """Raise unless a principal has a privilege on a securable, and may use the catalog and schema that it is in.

        Raises:
            ApiError: 403 PERMISSION_DENIED, with the privilege that is missing.
        """
        self.require_use(principal, securable)
        if not self.has(principal, privilege, securable, explicitly=explicitly):
            raise _denied(privilege, securable)

    def require_use(self, principal: str, securable: Securable) -> None:
        """Raise unless a principal may use the catalog and schema that a securable is in.

        Raises:
            ApiError: 403 PERMISSION_DENIED, with the privilege that is missing.
        """
        for above in reversed(self.lineage(securable)[1:]):
            use = "USE_CATALOG" if above.kind == "catalog" else "USE_SCHEMA"
            if not self.has(principal, use, above):
                raise _denied(use, above)

    def require_seeing(self, principal: str, securable: Securable) -> None:
        """Raise unless a principal may see the details of a securable.

        The owners of what it is in see it too, though they do not read a table's rows for that.

        Raises:
            ApiError: 403 PERMISSION_DENIED, with the privilege that is missing.
        """
        if self.manages(principal, securable):
            return
        self.require_use(principal, securable)
        seeing = _SEEING[securable.kind]
        if not any(self.has(principal, privilege, securable) for privilege in seeing):
            raise _denied(seeing[0], securable)

    def browses(self, principal: str, securable: Securable) -> bool:
        """Say whether a principal may see that a securable is there, by BROWSE."""
        return any(each.privilege in {"BROWSE", ALL_PRIVILEGES} for each in self.held(principal, securable))

    def require_owner(self, principal: str, securable: Securable) -> None:
        """Raise unless a principal may change a securable itself, or grants on it: its owner, or that of what it is in.

        Raises:
            ApiError: 403 PERMISSION_DENIED.
        """
        if not self.manages(principal, securable):
            raise _denied("MANAGE", securable)

    def manages(self, principal: str, securable: Securable) -> bool:
        """Say whether a principal may change a securable itself: its owner, or that of what it is in, or by MANAGE."""
        return principal == self._store.state.admin or any(
            self.owns(principal, above) or self.has(principal, "MANAGE", above) for above in self.lineage(securable)
        )

    def require_catalog_owner(self, principal: str, securable: Securable) -> None:
        """Raise unless a principal owns the catalog of a securable, which alone may grant EXTERNAL_USE_SCHEMA.

        Raises:
            ApiError: 403 PERMISSION_DENIED.
        """
        catalog = self.lineage(securable)[-1]
        if principal != self._store.state.admin and not self.owns(principal, catalog):
            raise ApiError(403, _DENIED, f"User is not an owner of Catalog '{catalog.full_name}'.", reason=_DENIED)

    def require_metastore_admin(self, principal: str) -> None:
        """Raise unless a principal is the administrator of the metastore.

        Raises:
            ApiError: 403 PERMISSION_DENIED.
        """
        state = self._store.state
        if principal != state.admin:
            message = f"User is not an owner of Metastore '{state.metastore_id}'."
            raise ApiError(403, _DENIED, message, reason=_DENIED)

    def require_metastore(self, principal: str, privilege: str) -> None:
        """Raise unless a principal has a privilege on the metastore.

        Raises:
            ApiError: 403 PERMISSION_DENIED.
        """
        state = self._store.state
        granted = {each for name in self.names(principal) for each in state.metastore_grants.get(name, ())}
        if principal != state.admin and privilege not in granted:
            message = f"User does not have {spoken(privilege)} on Metastore '{state.metastore_id}'."
            raise ApiError(403, _DENIED, message, reason=_DENIED)

    def names(self, principal: str) -> set[str]:
        """Return the names that a grant to a principal may be made to: its own, and those of its groups."""
        known = self._store.state.principals.get(principal)
        return {principal, ACCOUNT_USERS, *(known.groups if known else ())}

    def lineage(self, securable: Securable) -> list[Securable]:
        """Return a securable, the schema that it is in, and the catalog."""
        state, parts = self._store.state, securable.parts
        above = (
            state.schemas.get(".".join(parts[:2])) if len(parts) == 3 else None,
            state.catalogs.get(parts[0]) if len(parts) >= 2 else None,
        )
        return [securable, *(each for each in above if each is not None)]


def _denied(privilege: str, securable: Securable) -> ApiError:
    kind = securable.kind.capitalize()
    message = f"User does not have {spoken(privilege)} on {kind} '{securable.full_name}'."
    return ApiError(403, _DENIED, message, reason=_DENIED)


def spoken(privilege: str) -> str:
    """Return a privilege as SQL and messages write it: `USE CATALOG`."""
    return privilege.replace("_", " ")
