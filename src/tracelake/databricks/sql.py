"""Run SQL on a warehouse of a Databricks workspace.

https://docs.databricks.com/api/workspace/statementexecution
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from tracelake.databricks.workspace import Workspace
from tracelake.errors import ConfigurationError, QueryError
from tracelake.redaction import one_line

_STATEMENTS = "/api/2.0/sql/statements"
_WAIT = "30s"  # how long the first call waits for the result; 50 s is the most there is
_POLL_S = 1.0
_TIMEOUT_S = 1200.0  # a stopped warehouse takes minutes to start


# A bool is an int, too.
_TYPES = ((bool, "BOOLEAN"), (int, "BIGINT"), (float, "DOUBLE"), (str, "STRING"))

Value = str | int | float | bool | None


class Result(NamedTuple):
    """What a statement finds.

    Attributes:
        columns: name and kind of each: `STRING`, `LONG`, `MAP`, ... as the API's `type_name`.
        rows: the cells as text, None for a NULL; of a MAP, STRUCT, ARRAY or VARIANT it is JSON.
    """

    columns: list[tuple[str, str]]
    rows: list[list[str | None]]


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

    def run(self, statement: str, parameters: Mapping[str, Value] | None = None) -> list[list[str | None]]:
        """Run a statement and return the rows of its result, as text; `parameters` are those it writes as `:name`.

        Raises:
            QueryError: it fails.
            DeliveryError: the workspace refuses, or is not reached.
        """
        return self.query(statement, parameters).rows

    def query(self, statement: str, parameters: Mapping[str, Value] | None = None) -> Result:
        """Run a statement and return its result; raises as `run` does."""
        answer = self._workspace.post(
            _STATEMENTS,
            statement=statement,
            warehouse_id=self._id,
            wait_timeout=_WAIT,
            on_wait_timeout="CONTINUE",
            format="JSON_ARRAY",
            disposition="INLINE",
            parameters=[_parameter(name, value) for name, value in (parameters or {}).items()],
        )
        deadline_s = time.monotonic() + _TIMEOUT_S
        while (state := self._state(answer)) in ("PENDING", "RUNNING"):
            if time.monotonic() > deadline_s:
                raise QueryError(
                    f"A statement goes on after {_TIMEOUT_S:.0f} s on the warehouse {self._id} of "
                    f"{self._workspace.url}. See there what it waits for."
                )
            time.sleep(_POLL_S)  # there is nothing to wait on: the service answers polls only
            answer = self._workspace.get(f"{_STATEMENTS}/{quote(str(answer['statement_id']), safe='')}")
        if state != "SUCCEEDED":
            error = answer.get("status", {}).get("error") or {}
            raise QueryError(
                f"The warehouse {self._id} of {self._workspace.url} does not run the statement ({state}): "
                f"{one_line(str(error.get('message', 'no reason given')), 1000)}"
            )
        manifest = answer.get("manifest") or {}
        if manifest.get("truncated"):
            raise QueryError("The result of the statement is more than a warehouse answers with. Ask for fewer rows.")
        rows: list[list[str | None]] = []
        chunk = answer.get("result") or {}
        while True:
            rows += chunk.get("data_array") or []
            following = chunk.get("next_chunk_index")
            if following is None:
                break
            statement_id = quote(str(answer["statement_id"]), safe="")
            chunk = self._workspace.get(f"{_STATEMENTS}/{statement_id}/result/chunks/{int(following)}")
        columns = (manifest.get("schema") or {}).get("columns") or []
        return Result([(str(each.get("name")), str(each.get("type_name"))) for each in columns], rows)

    @staticmethod
    def _state(answer: Mapping[str, Any]) -> str:
        return str(answer.get("status", {}).get("state", "FAILED"))


def _parameter(name: str, value: Value) -> dict[str, Any]:
    if value is None:
        return {"name": name, "type": "STRING"}
    kind = next(kind for known, kind in _TYPES if isinstance(value, known))
    return {"name": name, "value": str(value).lower() if kind == "BOOLEAN" else str(value), "type": kind}
