"""MLflow's tracking server on SQLite, in the directory named; it ends when its input does."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracelake.spans.record import SpanRecord

# In a request: larger ones are no faster.
REQUEST_SPANS = 1_000
# The one that every server has.
_EXPERIMENT = "0"


def send(url: str, records: list[SpanRecord]) -> None:
    """Store spans in the default experiment of a server, in one OTLP request: the fastest way that it has."""
    from tracelake.spans.otlp import to_otlp

    headers = {"Content-Type": "application/x-protobuf", "x-mlflow-experiment-id": _EXPERIMENT}
    request = urllib.request.Request(f"{url}/v1/traces", to_otlp(records), headers)
    urllib.request.urlopen(request, timeout=120).close()


def trace_spans(url: str, trace_id: str) -> int:
    """Return how many spans of a trace the server gives out; 0 if it does not know it."""
    try:
        found = _ask(f"{url}/api/3.0/mlflow/traces/get?trace_id=tr-{trace_id}&allow_partial=true")
    except urllib.error.HTTPError as error:
        if error.code not in (404, 500):  # 500 where it has the trace already, and its spans not yet
            raise
        return 0
    return len(found["trace"].get("spans", ()))


def latest_traces(url: str, count: int) -> int:
    """Ask for the newest traces of the experiment, and return how many came."""
    location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": _EXPERIMENT}}
    query = {"locations": [location], "max_results": count, "order_by": ["timestamp_ms DESC"]}
    return len(_ask(f"{url}/api/3.0/mlflow/traces/search", query).get("traces", ()))


def latency_p95(url: str) -> dict[str, float]:
    """Return the 95th percentile of the time that spans took, in ms, by their name."""
    query = {
        "experiment_ids": [_EXPERIMENT],
        "view_type": "SPANS",
        "metric_name": "latency",
        "aggregations": [{"aggregation_type": "PERCENTILE", "percentile_value": 95.0}],
        "dimensions": ["span_name"],
    }
    points = _ask(f"{url}/api/3.0/mlflow/traces/metrics", query)["data_points"]
    return {point["dimensions"]["span_name"]: point["values"]["P95.0"] for point in points}


def _ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


if __name__ == "__main__":
    from tests.mlflow_server import run_mlflow_server

    with run_mlflow_server(Path(sys.argv[1])) as server:
        print(server.url, flush=True)
        sys.stdin.read()
