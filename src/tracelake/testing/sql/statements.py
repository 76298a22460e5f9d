"""Statement execution: https://docs.databricks.com/api/workspace/statementexecution

Each statement runs in a thread of its own. Results are JSON_ARRAY and INLINE, in chunks; the last statements are kept.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
import uuid
from collections import OrderedDict
from typing import Any

from tracelake.redaction import redact
from tracelake.testing.sql.commands import Commands
from tracelake.testing.sql.results import Result
from tracelake.testing.sql.sqlerrors import SqlError
from tracelake.testing.sql.warehouses import Warehouses
from tracelake.testing.web.http import ApiError, Request, Route, required

_log = logging.getLogger(__name__)

_PATH = "/api/2.0/sql/statements"
_DEFAULT_WAIT = "10s"
# Seconds that a call may wait, unless it does not wait at all.
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 5, 50
_INTERRUPT_S = 0.05
_MAX_STATEMENTS = 1000
_MAX_KEPT_BYTES = 256 * 2**20
# Larger results are refused, as the service refuses them with the disposition INLINE.
_MAX_RESULT_BYTES = 25 * 2**20
_MAX_CHUNK_ROWS = 5000
_MAX_CHUNK_BYTES = 2 * 2**20
_ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "CLOSED"}


class Statement:
    """A statement that runs or has run.

    Attributes:
        principal: who sent it; nobody else sees it.
        byte_count: the size of its result, as JSON.
    """

    def __init__(self, principal: str) -> None:
        self.id = str(uuid.uuid4())
        self.principal = principal
        self.byte_count = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._stopped = threading.Event()
        self._state = "PENDING"
        self._error: SqlError | None = None
        self._chunks: list[list[list[str | None]]] = []
        self._manifest: dict[str, Any] = {}
        self._connection: Any = None

    def execute(self, commands: Commands, body: dict[str, Any]) -> None:
        """Run it, and keep what comes of it; nothing is raised."""
        with self._lock:
            if self._state != "PENDING":
                self._stopped.set()
                return
            self._state = "RUNNING"
        try:
            result = commands.run(
                body["statement"],
                self.principal,
                catalog=body.get("catalog") or "",
                schema=body.get("schema") or "",
                parameters=body.get("parameters") or (),
                row_limit=body.get("row_limit"),
                started=self._started,
            )
            self._keep(result, body.get("byte_limit"))
            self._end("SUCCEEDED")
        except SqlError as error:
            self._end("FAILED", error)
        except Exception as error:  # noqa: BLE001 - a fault of the workspace itself; the client sees it in the status
            if not self._ended.is_set():
                _log.exception("The mocked workspace failed at a statement")
            self._end("FAILED", SqlError("INTERNAL_ERROR", f"{type(error).__name__}: {redact(str(error))}"))
        finally:
            self._stopped.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended, and say whether it has."""
        return self._ended.wait(timeout_s)

    def cancel(self) -> None:
        """End it, unless it has ended."""
        self._end("CANCELED")
        if not self._stopped.is_set():
            threading.Thread(target=self._interrupt, name=f"cancel-{self.id}", daemon=True).start()

    def _interrupt(self) -> None:
        """Interrupt the query until it stops: an interrupt is lost that comes before it runs."""
        import duckdb

        while not self._stopped.wait(_INTERRUPT_S):
            with self._lock, contextlib.suppress(duckdb.Error):
                if self._connection is not None:
                    self._connection.interrupt()

    def json(self) -> dict[str, Any]:
        """Return it as the API answers: its state, and with SUCCEEDED the first chunk of its result."""
        with self._lock:
            status: dict[str, Any] = {"state": self._state}
            if self._error is not None and self._state == "FAILED":
                code = "NOT_FOUND" if self._error.condition == "TABLE_OR_VIEW_NOT_FOUND" else "BAD_REQUEST"
                status["error"] = {"error_code": code, "message": str(self._error)}
                status["sql_state"] = self._error.sqlstate
            answer: dict[str, Any] = {"statement_id": self.id, "status": status}
            if self._state == "SUCCEEDED":
                answer |= {"manifest": self._manifest, "result": self._chunk(0) if self._chunks else {}}
            return answer

    def chunk(self, index: int) -> dict[str, Any]:
        """Return a chunk of the result.

        Raises:
            ApiError: 404, there is no such chunk; 400, there is no result.
        """
        with self._lock:
            if self._state != "SUCCEEDED":
                raise ApiError(400, "INVALID_STATE", f"The statement {self.id} is {self._state} and has no result.")
            if not 0 <= index < len(self._chunks):
                raise ApiError(
                    404,
                    "NOT_FOUND",
                    f"The statement {self.id} has no chunk {index}; its chunks are 0 to {len(self._chunks) - 1}.",
                )
            return self._chunk(index)

    def _chunk(self, index: int) -> dict[str, Any]:
        answer = {**self._manifest["chunks"][index], "data_array": self._chunks[index]}
        if index + 1 < len(self._chunks):
            link = f"{_PATH}/{self.id}/result/chunks/{index + 1}"
            answer |= {"next_chunk_index": index + 1, "next_chunk_internal_link": link}
        return answer

    def _started(self, connection: Any) -> None:
        with self._lock:
            self._connection = connection

    def _end(self, state: str, error: SqlError | None = None) -> None:
        with self._lock:
            if self._state not in _ENDED:
                self._state, self._error = state, error
        self._ended.set()

    def _keep(self, result: Result, byte_limit: int | None) -> None:
        chunks: list[list[list[str | None]]] = []
        sizes: list[int] = []
        is_truncated = result.is_truncated
        for row in result.rows():
            size = len(json.dumps(row))
            if byte_limit is not None and self.byte_count + size > byte_limit:
                is_truncated = True
                break
            if self.byte_count + size > _MAX_RESULT_BYTES:
                raise SqlError(
                    "RESULT_TOO_LARGE",
                    f"Inline byte limit exceeded: the result has more than {_MAX_RESULT_BYTES} bytes. Ask for fewer "
                    "rows or columns.",
                )
            if not chunks or len(chunks[-1]) == _MAX_CHUNK_ROWS or sizes[-1] + size > _MAX_CHUNK_BYTES:
                chunks.append([])
                sizes.append(0)
            chunks[-1].append(row)
            sizes[-1] += size
            self.byte_count += size
        offsets = [sum(map(len, chunks[:index])) for index in range(len(chunks))]
        self._manifest = {
            "format": "JSON_ARRAY",
            "schema": {
                "column_count": len(result.columns),
                "columns": [column.json(position) for position, column in enumerate(result.columns)],
            },
            "total_row_count": sum(map(len, chunks)),
            "total_byte_count": self.byte_count,
            "total_chunk_count": len(chunks),
            "truncated": is_truncated,
            "chunks": [
                {"chunk_index": index, "row_offset": offset, "row_count": len(rows), "byte_count": size}
                for index, (rows, offset, size) in enumerate(zip(chunks, offsets, sizes, strict=True))
            ],
        }
        self._chunks = chunks


class StatementsApi:
    """The Statement Execution API."""

    def __init__(self, commands: Commands, warehouses: Warehouses) -> None:
        self._commands = commands
        self._warehouses = warehouses
        self._statements: OrderedDict[str, Statement] = OrderedDict()
        self._lock = threading.Lock()

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("POST", _PATH, self._execute),
            Route("POST", f"{_PATH}/", self._execute),
            Route("GET", f"{_PATH}/{{statement_id}}", self._get),
            Route("POST", f"{_PATH}/{{statement_id}}/cancel", self._cancel),
            Route("GET", f"{_PATH}/{{statement_id}}/result/chunks/{{index}}", self._result_chunk),
        ]

    def _execute(self, request: Request) -> dict[str, Any]:
        body = request.json()
        required(body, "statement")
        wait_s = _checked(body)
        self._warehouses.use(required(body, "warehouse_id"))
        statement = Statement(request.principal)
        with self._lock:
            self._statements[statement.id] = statement
            self._forget()
        threading.Thread(
            target=statement.execute, args=(self._commands, body), name=f"statement-{statement.id}", daemon=True
        ).start()
        if wait_s and not statement.wait(wait_s) and body.get("on_wait_timeout") == "CANCEL":
            statement.cancel()
        return statement.json()

    def _get(self, request: Request, statement_id: str) -> dict[str, Any]:
        return self._find(request, statement_id).json()

    def _cancel(self, request: Request, statement_id: str) -> dict[str, Any]:
        self._find(request, statement_id).cancel()
        return {}

    def _result_chunk(self, request: Request, statement_id: str, index: str) -> dict[str, Any]:
        if not index.isdecimal():
            raise ApiError(400, "INVALID_PARAMETER_VALUE", f"The chunk index {index} is no number.")
        return self._find(request, statement_id).chunk(int(index))

    def _find(self, request: Request, statement_id: str) -> Statement:
        with self._lock:
            found = self._statements.get(statement_id)
        if found is None:
            raise ApiError(404, "NOT_FOUND", f"The statement {statement_id} was not found.")
        if found.principal != request.principal:
            raise ApiError(403, "PERMISSION_DENIED", f"The statement {statement_id} is of another user.")
        return found

    def _forget(self) -> None:
        """Let go of the oldest statements that have ended, beyond the bounds."""
        held = sum(each.byte_count for each in self._statements.values())
        for each in list(self._statements.values())[:-1]:
            if len(self._statements) <= _MAX_STATEMENTS and held <= _MAX_KEPT_BYTES:
                break
            if each.wait(0):
                held -= each.byte_count
                del self._statements[each.id]


def _checked(body: dict[str, Any]) -> int:
    """Return the seconds that a call waits, of a body with nothing in it that is wrong.

    Raises:
        ApiError: 400, something is wrong; 501, something is not imitated.
    """
    for name, known, taken in (
        ("format", {"JSON_ARRAY", "ARROW_STREAM", "CSV"}, "JSON_ARRAY"),
        ("disposition", {"INLINE", "EXTERNAL_LINKS"}, "INLINE"),
    ):
        value = body.get(name) or taken
        if value not in known:
            raise _invalid(f"{name} is {value!r}, and must be one of {', '.join(sorted(known))}")
        if value != taken:
            raise ApiError(501, "NOT_IMPLEMENTED", f"The mocked workspace does not imitate the {name} {value}.")
    if body.get("on_wait_timeout") not in {None, "", "CONTINUE", "CANCEL"}:
        raise _invalid(f"on_wait_timeout is {body['on_wait_timeout']!r}, and must be CONTINUE or CANCEL")
    for name in ("row_limit", "byte_limit"):
        limit = body.get(name)
        if limit is not None and str(limit).isdecimal() and int(limit) > 0:
            body[name] = int(limit)
        elif limit is not None:
            raise _invalid(f"{name} is {limit!r}, and must be a number above 0")
    parameters = body.get("parameters") or []
    if not isinstance(parameters, list) or not all(isinstance(each, dict) and each.get("name") for each in parameters):
        raise _invalid("parameters must be a list of objects with a name")
    return _wait_s(str(body.get("wait_timeout") or _DEFAULT_WAIT), body)


def _wait_s(text: str, body: dict[str, Any]) -> int:
    match = re.fullmatch(r"(\d+)(?:\.0+)?s", text)
    seconds = int(match[1]) if match else -1
    if seconds != 0 and not _SHORTEST_WAIT_S <= seconds <= _LONGEST_WAIT_S:
        raise _invalid(
            f"wait_timeout is {text!r}, and must be 0s or between {_SHORTEST_WAIT_S}s and {_LONGEST_WAIT_S}s"
        )
    if seconds == 0 and body.get("on_wait_timeout") == "CANCEL":
        raise _invalid("on_wait_timeout cannot be CANCEL with a wait_timeout of 0s")
    return seconds


def _invalid(message: str) -> ApiError:
    return ApiError(400, "INVALID_PARAMETER_VALUE", f"{message}.")
