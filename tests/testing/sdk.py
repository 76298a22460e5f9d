"""databricks-sdk against a workspace."""

from __future__ import annotations

from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config

from tracelake.testing import MockWorkspace


def client(workspace: MockWorkspace, principal: str = "", *, host: str = "") -> WorkspaceClient:
    """Return a client that is a principal of the workspace, by whatever credential that has."""
    variables = workspace.environment(principal, host=host)
    settings = {
        name: variables[f"DATABRICKS_{name.upper()}"]
        for name in ("token", "client_id", "client_secret", "config_file")
        if f"DATABRICKS_{name.upper()}" in variables
    }
    return client_with(variables["DATABRICKS_HOST"], **settings)


def client_with(host: str, **settings: str) -> WorkspaceClient:
    """Return a client of a host, which gives up soon."""
    return WorkspaceClient(config=Config(host=host, retry_timeout_seconds=5, **settings))
