"""Who asks: personal access tokens, OAuth access tokens, and the calls that say so."""

from __future__ import annotations

import hashlib
from typing import Any

from tracelake.errors import ConfigurationError
from tracelake.testing.state import Principal, Store
from tracelake.testing.unity.oauth import AccessTokens, OAuthApi
from tracelake.testing.web.http import ApiError, Request, Response, Route


class Identity:
    """The principals of a workspace.

    Attributes:
        tokens: the OAuth access tokens of service principals.
    """

    def __init__(self, store: Store) -> None:
        self.tokens = AccessTokens()
        self._store = store
        # Found by their digests, personal access tokens take equally long to be refused however much of one is right.
        self._by_digest = {
            _digest(principal.token): principal.name for principal in store.state.principals.values() if principal.token
        }

    def principal_of(self, request: Request) -> str:
        """Return the name of who sends a request.

        Raises:
            ApiError: 401, it has no credential; 403, its token is not one of the workspace's, or has expired.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise ApiError(401, 401, "Credential was not sent or was of an unsupported type for this API.")
        name, expired = self.tokens.read(token) or (self._by_digest.get(_digest(token), ""), False)
        if expired:
            # Not 401: https://github.com/databricks/databricks-sdk-go/issues/1061
            raise ApiError(403, 403, "JWT has expired")
        if self._let_in(name) is None:
            raise ApiError(403, 403, "Invalid access token.")
        return name

    def add(self, principal: Principal) -> Principal:
        """Add a principal, with an id of its own, and return it.

        Raises:
            ConfigurationError: there is one of that name, or none of a group's that it is to be in.
        """
        with self._store.changing() as state:
            if principal.name in state.principals:
                raise ConfigurationError(
                    f"The workspace has a principal {principal.name!r} already. Choose another name."
                )
            for group in principal.groups:
                self._group(group)
            principal.id = str(1 + max((int(each.id) for each in state.principals.values()), default=0))
            state.principals[principal.name] = principal
            if principal.token:
                self._by_digest[_digest(principal.token)] = principal.name
        return principal

    def deactivate(self, name: str) -> None:
        """Let a principal in no more.

        Raises:
            ConfigurationError: there is no such principal.
        """
        with self._store.changing():
            self._known(name).active = False

    def remove(self, name: str) -> None:
        """Delete a principal, and what was granted to it; what it owns stays its own.

        Raises:
            ConfigurationError: there is no such principal.
        """
        with self._store.changing() as state:
            removed = self._known(name)
            del state.principals[name]
            self._by_digest.pop(_digest(removed.token), None)
            for each in state.principals.values():
                each.groups = [group for group in each.groups if group != name]
            for securable in (*state.catalogs.values(), *state.schemas.values(), *state.tables.values()):
                securable.grants.pop(name, None)
            state.metastore_grants.pop(name, None)

    def credentials(self, name: str) -> dict[str, str]:
        """Return the variables that Databricks' clients authenticate as a principal with.

        Raises:
            ConfigurationError: there is no such principal, or it has neither a token nor a secret.
        """
        principal = self._store.state.principals.get(name)
        if principal is None or not (principal.token or principal.secret):
            raise ConfigurationError(
                f"The workspace has no principal {name!r} that can log in. Make one with `add_user` or "
                "`add_service_principal`."
            )
        if principal.token:
            return {"DATABRICKS_TOKEN": principal.token}
        return {"DATABRICKS_CLIENT_ID": principal.name, "DATABRICKS_CLIENT_SECRET": principal.secret}

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            *OAuthApi(self.tokens, self._store.state.workspace_id, self._let_in).routes(),
            Route("GET", "/api/2.0/preview/scim/v2/Me", self._me),
        ]

    def _me(self, request: Request) -> Response:
        """Return who asks: https://www.rfc-editor.org/rfc/rfc7643#section-4.1"""
        state = self._store.state
        me = state.principals[request.principal]
        groups = [state.principals[name] for name in me.groups if name in state.principals]
        answer: dict[str, Any] = {
            "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"],
            "id": me.id,
            "userName": me.name,
            "displayName": me.display_name or me.name,
            "active": me.active,
            "groups": [
                {"display": group.name, "value": group.id, "type": "direct", "$ref": f"Groups/{group.id}"}
                for group in groups
            ],
        }
        if me.kind == "user":
            answer["emails"] = [{"value": me.name, "type": "work", "primary": True}]
        # Where databricks-sdk looks the id of the workspace up.
        return Response.of(answer, headers={"X-Databricks-Org-Id": str(state.workspace_id)})

    def _let_in(self, name: str) -> Principal | None:
        found = self._store.state.principals.get(name)
        return found if found and found.active else None

    def _known(self, name: str) -> Principal:
        found = self._store.state.principals.get(name)
        if found is None:
            raise ConfigurationError(f"The workspace has no principal {name!r}. Add it first.")
        return found

    def _group(self, name: str) -> Principal:
        found = self._known(name)
        if found.kind != "group":
            raise ConfigurationError(f"The principal {name!r} is a {found.kind} and no group. Name a group.")
        return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
