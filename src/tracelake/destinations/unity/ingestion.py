"""Spans through Databricks' own engine: the OTLP endpoint of a workspace, which writes to managed tables, too.

https://docs.databricks.com/aws/en/mlflow3/genai/tracing/trace-unity-catalog
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tracelake.databricks.names import TableName
from tracelake.destinations.otlp import OtlpSink
from tracelake.errors import DeliveryError, PermanentDeliveryError, RefusedError

if TYPE_CHECKING:
    from tracelake.databricks.workspace import Workspace

_PATH = "/api/2.0/otel/v1/traces"
_TABLE_HEADER = "X-Databricks-UC-Table-Name"


def open_ingestion(workspace: Workspace, name: TableName) -> OtlpSink:
    """Return a sink that sends spans for one table.

    Raises:
        PermanentDeliveryError: no HTTP header can name the table.
        MissingDependencyError: a package that sending needs is not installed.
    """
    if not str(name).isascii():
        raise PermanentDeliveryError(
            f"{name} has other than ASCII letters in its name, and an HTTP header, which names the table to the OTLP "
            "endpoint, has none. Use an external table, or another name."
        )
    return OtlpSink(DatabricksEndpoint(workspace, name))


class DatabricksEndpoint:
    """The endpoint of a workspace, for one table."""

    def __init__(self, workspace: Workspace, name: TableName) -> None:
        self.url = workspace.url + _PATH
        self._workspace = workspace
        self._name = name

    def headers(self) -> Mapping[str, str]:
        """Return the headers of the next request; they hold a secret."""
        return {**self._workspace.authorization(), _TABLE_HEADER: str(self._name)}

    def error(self, status: int, code: str, reason: str) -> DeliveryError | None:
        """Return what an answer means here, or None if it means what it does everywhere."""
        if status not in (401, 403, 404):
            return None
        error = self._workspace.refusal(status, code, reason)
        if not isinstance(error, RefusedError):
            return error
        if status == 404 and "ENDPOINT" in code:
            remedy = "The workspace has no OTLP ingestion: ask its admin for the preview, or use an external table."
        else:
            remedy = f"`tracelake doctor {self._name.argument}` says what is missing."
        return RefusedError(f"{self._name}: {error} {remedy}", status=status, code=code, reason=reason)
