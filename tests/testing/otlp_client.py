"""What sends spans to the workspace in tests, and what reads its tables without it."""

from __future__ import annotations

import requests
from deltalake import DeltaTable

from tracelake.query import duck
from tracelake.spans import otlp
from tracelake.spans.record import SpanRecord
from tracelake.testing import MockWorkspace
from tracelake.testing.storage.ingestion import PATH

START = 1_700_000_000_000_000_000
TIMEOUT_S = 30


def spans(first: int, count: int = 1) -> list[SpanRecord]:
    """Return spans whose ids are the numbers from `first` on."""
    return [
        SpanRecord(
            f"{number:032x}",
            f"{number:016x}",
            f"span {number}",
            START + number,
            START + number + 1,
            attributes={"number": number, "nested": {"list": [number, "text", None]}},
        )
        for number in range(first, first + count)
    ]


def body(first: int, count: int = 1) -> bytes:
    """Return the request with these spans."""
    return otlp.to_otlp(spans(first, count))


def headers(workspace: MockWorkspace, table: str) -> dict[str, str]:
    """Return the headers of an export by the workspace's user."""
    return headers_of(workspace.environment()["DATABRICKS_TOKEN"], table)


def headers_of(token: str, table: str) -> dict[str, str]:
    """Return the headers of an export."""
    return {
        "Authorization": f"Bearer {token}",
        "X-Databricks-UC-Table-Name": table,
        "Content-Type": "application/x-protobuf",
    }


def post(workspace: MockWorkspace, table: str, first: int, count: int = 1) -> requests.Response:
    """Send spans, and return the answer."""
    return requests.post(workspace.url + PATH, body(first, count), headers=headers(workspace, table), timeout=TIMEOUT_S)


def numbers(location: str, storage_options: dict[str, str] | None = None) -> list[int]:
    """Return the numbers of the spans in a table, doubles included, sorted, as DuckDB reads them."""
    connection = duck.connect({"spans": DeltaTable(location, storage_options=storage_options)})
    try:
        found = connection.execute("SELECT span_id FROM spans").fetchall()
    finally:
        connection.close()
    return sorted(int(span_id, 16) for (span_id,) in found)
