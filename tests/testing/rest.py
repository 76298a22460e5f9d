"""Plain REST calls of a principal of a workspace."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

import requests

from tracelake.spans.otlp import to_otlp
from tracelake.spans.record import SpanRecord
from tracelake.testing import MockWorkspace

START_NS = 1_795_359_000_000_000_000


class Rest:
    """Calls as one principal, the first user unless told otherwise."""

    def __init__(self, workspace: MockWorkspace, principal: str = "") -> None:
        variables = workspace.environment(principal, host=workspace.url)
        self._url = workspace.url
        self._session = requests.Session()
        self._session.headers["Authorization"] = f"Bearer {variables['DATABRICKS_TOKEN']}"

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> tuple[int, dict[str, Any]]:
        """Return the status and the body of an answer."""
        # Also what strict JSON has not, as NaN.
        sent = None if body is None else json.dumps(body)
        answer = self._session.request(method, f"{self._url}/api/{path}", data=sent, params=query, timeout=30)
        return answer.status_code, answer.json()

    def ok(self, method: str, path: str, body: Any = None, **query: Any) -> dict[str, Any]:
        """Return the body of an answer, which has to be a good one."""
        status, answer = self.call(method, path, body, **query)
        assert status == 200, answer
        return answer

    def refused(self, method: str, path: str, body: Any = None, **query: Any) -> tuple[int, str, str]:
        """Return the status, error code and message of an answer, which has to be an error."""
        status, answer = self.call(method, path, body, **query)
        assert status >= 400, answer
        return status, answer["error_code"], answer["message"]

    def send(self, table: str, *records: SpanRecord) -> None:
        """Send spans to a table, as OpenTelemetry does."""
        answer = self._session.post(
            f"{self._url}/api/2.0/otel/v1/traces",
            data=to_otlp(records),
            headers={"Content-Type": "application/x-protobuf", "X-Databricks-UC-Table-Name": table},
            timeout=30,
        )
        assert answer.status_code == 200, answer.text

    def locate(self, name: str) -> dict[str, Any]:
        """Make a trace location, and return it."""
        return self.ok("POST", "5.0/mlflow/tracing/locations", located(name))

    def put_info(self, location: str, trace_id: str, **fields: Any) -> None:
        """Post the info of a trace."""
        body = {"trace_id": trace_id, "request_time": "2026-11-22T14:50:00Z", "state": "OK", **fields}
        self.ok("POST", f"4.0/mlflow/traces/{location}/{trace_id}/info", body)

    def search(self, *locations: str, **more: Any) -> list[str]:
        """Return the bare ids of the traces that a search finds."""
        return [info["trace_id"] for info in self.searched(*locations, **more)["trace_infos"]]

    def searched(self, *locations: str, **more: Any) -> dict[str, Any]:
        """Return what a search answers."""
        body = {"locations": [trace_location(name) for name in locations], **more}
        return self.ok("POST", "4.0/mlflow/traces/search", body)


def located(name: str) -> dict[str, Any]:
    """Return a location as the calls that make and link one have it."""
    location = trace_location(name)
    return {key: value for key, value in location.items() if key != "type"}


def trace_location(name: str) -> dict[str, Any]:
    """Return the TraceLocation of `catalog.schema.prefix`, `catalog.schema` or an experiment id."""
    catalog, *rest = name.split(".")
    if not rest:
        return {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": name}}
    parts = {"catalog_name": catalog, "schema_name": rest[0]}
    if len(rest) == 1:
        return {"type": "UC_SCHEMA", "uc_schema": parts}
    return {"type": "UC_TABLE_PREFIX", "uc_table_prefix": {**parts, "table_prefix": rest[1]}}


def new_trace_id() -> str:
    """Return the id of a trace: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def record(
    trace_id: str, number: int, name: str, *, parent: int = 0, start_ms: int = 0, ms: int = 10, **more: Any
) -> SpanRecord:
    """Return a span; `number` is its id and `parent` that of its parent, 0 for a root."""
    attributes: Mapping[str, Any] = more.pop("attributes", {})
    return SpanRecord(
        trace_id=trace_id,
        span_id=f"{number:016x}",
        name=name,
        start_time_unix_nano=START_NS + start_ms * 10**6,
        end_time_unix_nano=START_NS + (start_ms + ms) * 10**6,
        parent_span_id=f"{parent:016x}" if parent else None,
        attributes=dict(attributes),
        **more,
    )
