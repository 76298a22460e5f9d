"""Grants over REST: what is granted on a securable, what holds on it by inheritance, and changes to it.

Shapes: https://docs.databricks.com/api/workspace/grants
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracelake.testing.state import Securable
from tracelake.testing.unity.catalog import Catalog, GrantChange
from tracelake.testing.web.http import ApiError, Request, Route, required

_BASE = "/api/2.1/unity-catalog"
_INVALID = "INVALID_PARAMETER_VALUE"
_PARTS = {"CATALOG": 1, "SCHEMA": 2, "TABLE": 3}
_METASTORE = "METASTORE"
# Securables of Unity Catalog that this workspace does not have.
_OTHERS = frozenset(
    {
        *("CLEAN_ROOM", "CONNECTION", "CREDENTIAL", "EXTERNAL_LOCATION", "EXTERNAL_METADATA", "FUNCTION", "PIPELINE"),
        *("PROVIDER", "RECIPIENT", "SHARE", "STAGING_TABLE", "STORAGE_CREDENTIAL", "VOLUME"),
    }
)


class GrantsApi:
    """Answers what is granted, and changes it."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("GET", f"{_BASE}/permissions/{{kind}}/{{name}}", self._get),
            Route("PATCH", f"{_BASE}/permissions/{{kind}}/{{name}}", self._update),
            Route("GET", f"{_BASE}/effective-permissions/{{kind}}/{{name}}", self._effective),
        ]

    def _get(self, request: Request, kind: str, name: str) -> dict[str, Any]:
        securable = self._securable(kind, name)
        self._require_showing(request, securable)
        return _assignments({who: sorted(held) for who, held in self._grants(securable).items()}, request)

    def _effective(self, request: Request, kind: str, name: str) -> dict[str, Any]:
        securable = self._securable(kind, name)
        self._require_showing(request, securable)
        found: dict[str, list[dict[str, str]]] = {}
        for above in self._catalog.access.lineage(securable) if securable else [None]:
            # What is granted on the metastore holds for nothing in it.
            origin = {} if above is None or above is securable else _origin(above)
            for who, held in self._grants(above).items():
                found.setdefault(who, []).extend({"privilege": privilege, **origin} for privilege in sorted(held))
        return _assignments(found, request)

    def _update(self, request: Request, kind: str, name: str) -> dict[str, Any]:
        securable = self._securable(kind, name)
        body = request.json()
        changes = [_change(change) for change in body.get("changes") or []]
        self._catalog.change_grants(request.principal, securable, changes)
        if body.get("omit_permissions_in_response"):
            return {}
        return _assignments(self._grants(securable))

    def _securable(self, kind: str, name: str) -> Securable | None:
        """Return the securable that a path names; None for the metastore."""
        # The enum of databricks-sdk writes itself as `SecurableType.TABLE` into a path.
        kind = kind.rpartition(".")[2].upper()
        if kind == _METASTORE:
            if name != self._catalog.store.state.metastore_id:
                raise ApiError(404, "METASTORE_DOES_NOT_EXIST", f"Metastore '{name}' does not exist.")
            return None
        if kind in _OTHERS:
            raise ApiError(501, "NOT_IMPLEMENTED", f"The mocked workspace does not imitate grants of the type {kind}.")
        if kind not in _PARTS:
            raise ApiError(400, _INVALID, f"SECURABLE_TYPE {kind} is not a valid securable type.")
        if name.count(".") + 1 != _PARTS[kind]:
            raise ApiError(400, _INVALID, f"'{name}' is not a valid name of a {kind}.")
        return self._catalog.find(name)

    def _grants(self, securable: Securable | None) -> Mapping[str, list[str]]:
        return dict(securable.grants if securable else self._catalog.store.state.metastore_grants)

    def _require_showing(self, request: Request, securable: Securable | None) -> None:
        """Raise unless the principal may see the grants that it asks for: its own, or all of what it manages."""
        access, principal = self._catalog.access, request.principal
        if request.text("principal") in access.names(principal):
            return
        if securable is None:
            access.require_metastore_admin(principal)
        else:
            access.require_owner(principal, securable)


def _assignments(found: Mapping[str, list[Any]], request: Request | None = None) -> dict[str, Any]:
    wanted = request.text("principal") if request else ""
    assignments = [
        {"principal": who, "privileges": held} for who, held in sorted(found.items()) if not wanted or who == wanted
    ]
    return {"privilege_assignments": assignments} if assignments else {}


def _origin(above: Securable) -> dict[str, str]:
    return {"inherited_from_type": above.kind.upper(), "inherited_from_name": above.full_name}


def _change(change: Any) -> GrantChange:
    if not isinstance(change, dict):
        raise ApiError(400, _INVALID, f"A change of grants is of type {type(change).__name__} and no object.")
    return GrantChange(required(change, "principal"), _privileges(change, "add"), _privileges(change, "remove"))


def _privileges(change: Mapping[str, Any], name: str) -> list[str]:
    privileges = change.get(name) or []
    if not isinstance(privileges, list) or not all(isinstance(each, str) for each in privileges):
        raise ApiError(400, _INVALID, f"The field {name} of a change of grants is no list of privileges.")
    return privileges
