"""SQL statements as users send them: by databricks-sdk, to the workspace over HTTP."""

from __future__ import annotations

from typing import Any

from databricks.sdk.service.sql import StatementParameterListItem, StatementResponse, StatementState

from tests.testing.sdk import client
from tracelake.testing import MockWorkspace


class Sql:
    """Runs statements as one user, in the schema `main.obs`."""

    def __init__(self, workspace: MockWorkspace, principal: str = "") -> None:
        self.client = client(workspace, principal)
        self.warehouse_id = next(iter(self.client.warehouses.list())).id or ""

    def send(self, statement: str, **fields: Any) -> StatementResponse:
        """Return the answer to a statement."""
        values = {"catalog": "main", "schema": "obs", "wait_timeout": "30s", **fields}
        return self.client.statement_execution.execute_statement(statement, self.warehouse_id, **values)

    def rows(self, statement: str, **parameters: tuple[str, str | None]) -> list[list[str | None]]:
        """Return the rows of a statement that succeeds; parameters are types and values by name."""
        items = [StatementParameterListItem(name, type=kind, value=value) for name, (kind, value) in parameters.items()]
        answer = self.send(statement, parameters=items)
        assert answer.status is not None
        assert answer.status.state is StatementState.SUCCEEDED, answer.status.error
        return (answer.result and answer.result.data_array) or []

    def row(self, statement: str, **parameters: tuple[str, str | None]) -> list[str | None]:
        """Return the one row of a statement."""
        (row,) = self.rows(statement, **parameters)
        return row

    def fault(self, statement: str, **fields: Any) -> str:
        """Return the message of a statement that fails."""
        answer = self.send(statement, **fields)
        assert answer.status is not None
        assert answer.status.state is StatementState.FAILED, answer.result
        assert answer.status.error is not None
        return str(answer.status.error.message)
