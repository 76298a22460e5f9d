"""OAuth for service principals: where a workspace's token endpoint is, and the access tokens that it gives.

Client credentials: https://www.rfc-editor.org/rfc/rfc6749#section-4.4, and as Databricks has them:
https://docs.databricks.com/aws/en/dev-tools/auth/oauth-m2m
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import msgspec

from tracelake.testing.state import Principal
from tracelake.testing.web.http import Request, Response, Route

_GRANT = "client_credentials"
_NO_STORE = {"Cache-Control": "no-store"}


class AccessTokens:
    """Access tokens that nobody has to remember: each says for whom and until when it is, under a seal.

    The key of the seal is in memory only, so that no token outlives the process.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._generation = 0

    def issue(self, principal: str, lifetime_s: float) -> str:
        """Return a new token."""
        content = [principal, time.monotonic() + lifetime_s, self._generation, secrets.token_hex(8)]
        payload = base64.urlsafe_b64encode(msgspec.json.encode(content))
        return f"{payload.decode()}.{self._seal(payload)}"

    def expire(self) -> None:
        """Let all tokens expire that were issued so far."""
        self._generation += 1

    def read(self, token: str) -> tuple[str, bool] | None:
        """Return whom a token is for, and whether it has expired; None for what is no token of these."""
        payload, _, seal = token.rpartition(".")
        if not payload or not hmac.compare_digest(seal.encode(), self._seal(payload.encode()).encode()):
            return None
        principal, deadline_s, generation, _ = msgspec.json.decode(base64.urlsafe_b64decode(payload))
        return principal, generation != self._generation or time.monotonic() >= deadline_s

    def _seal(self, payload: bytes) -> str:
        return hmac.digest(self._key, payload, "sha256").hex()


class OAuthApi:
    """Answers what OAuth clients ask before they have a token."""

    def __init__(self, tokens: AccessTokens, workspace_id: int, client_of: Callable[[str], Principal | None]) -> None:
        """`client_of` returns the principal of a client id, if it may log in."""
        self._tokens = tokens
        self._workspace_id = workspace_id
        self._client_of = client_of

    def routes(self) -> list[Route]:
        """Return the routes, which need no authentication."""
        return [
            Route("GET", "/.well-known/databricks-config", self._workspace, is_open=True),
            Route("GET", "/oidc/.well-known/oauth-authorization-server", self._server, is_open=True),
            Route("POST", "/oidc/v1/token", self._token, is_open=True),
        ]

    def _workspace(self, request: Request) -> dict[str, Any]:
        return {"oidc_endpoint": f"{request.base_url}/oidc", "workspace_id": str(self._workspace_id)}

    def _server(self, request: Request) -> dict[str, Any]:
        oidc = f"{request.base_url}/oidc"
        return {
            "issuer": oidc,
            "authorization_endpoint": f"{oidc}/v1/authorize",
            "token_endpoint": f"{oidc}/v1/token",
            "grant_types_supported": [_GRANT],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        }

    def _token(self, request: Request) -> Response:
        # Fields beside these, as Zerobus' clients send to have a token for one table only, narrow nothing here.
        form = {name: values[0] for name, values in parse_qs(request.body.decode("latin-1")).items()}
        if "grant_type" not in form:
            return _refused(400, "invalid_request", "The parameter grant_type is missing.")
        if form["grant_type"] != _GRANT:
            return _refused(400, "unsupported_grant_type", f"Of grant types, only {_GRANT} is supported.")
        name, secret = _client(request, form)
        client = self._client_of(name)
        # Compared in any case, so that an unknown client takes as long as a known one.
        known = client.secret if client else ""
        if not hmac.compare_digest(known.encode(), secret.encode()) or not client or not known:
            return _refused(401, "invalid_client", "Client authentication failed")
        answer = {
            "access_token": self._tokens.issue(client.name, client.token_lifetime_s),
            "token_type": "Bearer",
            "scope": form.get("scope", "all-apis"),
            "expires_in": client.token_lifetime_s,
        }
        return Response.of(answer, headers=_NO_STORE)


def _client(request: Request, form: dict[str, str]) -> tuple[str, str]:
    """Return the id and secret that a client gives: in the header Authorization, or as delta-rs does in the form."""
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            name, _, secret = base64.b64decode(encoded).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "", ""
        return name, secret
    return form.get("client_id", ""), form.get("client_secret", "")


def _refused(status: int, error: str, description: str) -> Response:
    return Response.of({"error": error, "error_description": description}, status, _NO_STORE)
