"""Run SQL on a warehouse of a Databricks workspace.

https://docs.databricks.com/api/workspace/statementexecution
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from tracelake.databricks.workspace import Workspace
from tracelake.errors import ConfigurationError, QueryError
from tracelake.redaction import one_line

_WAIT = "30s"  # how long the first call waits for the result; 50 s is the most there is
_POLL_S = 1.0
_TIMEOUT_S = 1200.0  # a stopped warehouse takes minutes to start


class Warehouse:
    """A SQL warehouse, which starts by itself when it is asked."""

    def __init__(self, workspace: Workspace, warehouse_id: str) -> None:
        self._workspace = workspace
        self._id = warehouse_id

    @classmethod
    def find(cls, workspace: Workspace) -> Warehouse:
        """Return the warehouse that the environment names, or else one of the workspace's, a running one first.

        Raises:
            ConfigurationError: there is none that this access may use.
            DeliveryError: the workspace refuses, or is not reached.
        """
        if workspace.warehouse_id:
            return cls(workspace, workspace.warehouse_id)
        found = workspace.get("/api/2.0/sql/warehouses").get("warehouses") or []
        ranked = sorted(
            (each for each in found if each.get("state") not in ("DELETED", "DELETING")),
            key=lambda each: each.get("state") != "RUNNING",
        )
        if not ranked:
            raise ConfigurationError(
                f"{workspace.url} has no SQL warehouse that this access may use. Ask for one, and set "
                "DATABRICKS_WAREHOUSE_ID to its id; `--print-sql` prints the statements to run elsewhere."
            )
        return cls(workspace, str(ranked[0].get("id")))

    def run(self, statement: str, parameters: Mapping[str, str] | None = None) -> list[list[str | None]]:
        """Run a statement and return the rows of its result, as text; `parameters` are those it writes as `:name`.

        Raises:
            QueryError: it fails, or its result is too large for one answer.
            DeliveryError: the workspace refuses, or is not reached.
        """
        answer = self._workspace.post(
            "/api/2.0/sql/statements",
            statement=statement,
            warehouse_id=self._id,
            wait_timeout=_WAIT,
            on_wait_timeout="CONTINUE",
            format="JSON_ARRAY",
            disposition="INLINE",
            parameters=[{"name": name, "value": value, "type": "STRING"} for name, value in (parameters or {}).items()],
        )
        deadline_s = time.monotonic() + _TIMEOUT_S
        while (state := self._state(answer)) in ("PENDING", "RUNNING"):
            if time.monotonic() > deadline_s:
                raise QueryError(
                    f"A statement goes on after {_TIMEOUT_S:.0f} s on the warehouse {self._id} of "
                    f"{self._workspace.url}. See there what it waits for."
                )
            time.sleep(_POLL_S)  # there is nothing to wait on: the service answers polls only
            answer = self._workspace.get(f"/api/2.0/sql/statements/{quote(str(answer['statement_id']), safe='')}")
        if state != "SUCCEEDED":
            error = answer.get("status", {}).get("error") or {}
            raise QueryError(
                f"The warehouse {self._id} of {self._workspace.url} does not run the statement ({state}): "
                f"{one_line(str(error.get('message', 'no reason given')), 1000)}"
            )
        if int(answer.get("manifest", {}).get("total_chunk_count") or 1) > 1:
            raise QueryError("The result of the statement is too large. Ask for fewer rows.")
        rows: list[list[str | None]] = answer.get("result", {}).get("data_array") or []
        return rows

    @staticmethod
    def _state(answer: Mapping[str, Any]) -> str:
        return str(answer.get("status", {}).get("state", "FAILED"))
