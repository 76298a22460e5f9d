"""What delivery takes: spans a second, CPU a span and memory, from where the app leaves spans to where they stay.

The servers that are sent to are processes of their own and not counted, but they share the machine's cores. tracelake
starts from the lines of its spool, OpenTelemetry's exporter from finished spans in memory, the floors from finished
bytes or Arrow batches.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack

from benchmarks.compare import mlflow_app
from benchmarks.compare.harness import Measured, Options, Table, Values, environment, in_turn, program, served

ROUNDS, MLFLOW_ROUNDS = 3, 2
SPANS = 100_000
# What a server on SQLite takes in some seconds.
MLFLOW_SPANS = 300
SHIPPED_TO_MLFLOW = 1_000

TABLE = Table(
    "delivery",
    "Delivery, CPU of the process that delivers",
    "us a span",
    {"cpu_us": "CPU us a span", "spans_s": "spans a second", "peak_mb": "peak memory, MB"},
    chart="cpu_us",
    reference="tracelake to a Delta table, version 1",
)
TABLES = (TABLE,)

_DELTA = {"tracelake to a Delta table, version 1": "1", "tracelake to a Delta table, version 2": "2"}
_OTLP = {
    "tracelake to an OTLP receiver": ("ship", "none"),
    "OpenTelemetry's exporter to the same": ("export", "none"),
    "tracelake to an OTLP receiver, gzip": ("ship", "gzip"),
    "OpenTelemetry's exporter to the same, gzip": ("export", "gzip"),
}
_TO_MLFLOW = "tracelake to MLflow's server on SQLite"
_MLFLOW = "MLflow's exporter to the same"
_FLOORS = {
    "floor: the same lines by plain write()": "write",
    "floor: the same rows as Parquet by pyarrow": "parquet",
    "floor: the same rows to Delta by delta-rs": "delta",
}


def run(options: Options) -> dict[str, Values]:
    """Measure all ways in turn."""
    spans = options.spans or SPANS
    few = min(spans, SHIPPED_TO_MLFLOW)

    def measure(label: str) -> Measured:
        with tempfile.TemporaryDirectory() as directory, ExitStack() as servers:
            environ = environment(directory, TRACELAKE_DESTINATION=f"{directory}/spans", TRACELAKE_SHIPPER="external")
            environ["TRACELAKE_EXIT_TIMEOUT"] = "0"
            if label in _DELTA:
                environ["TRACELAKE_SCHEMA_VERSION"] = _DELTA[label]
                return _shipped(spans, environ)
            if label in _OTLP:
                way, compression = _OTLP[label]
                store = f"{directory}/received"
                url = servers.enter_context(served("benchmarks.compare.receiver", "--store", store)) + "/v1/traces"
                environ |= {
                    "TRACELAKE_DESTINATION": f"otlp+{url}",
                    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url,
                    "OTEL_EXPORTER_OTLP_COMPRESSION": compression,
                }
                return _shipped(spans, environ) if way == "ship" else _delivered(way, spans, environ)
            if label in _FLOORS:
                if _FLOORS[label] == "write":
                    _fed(spans, environ)
                return _delivered(_FLOORS[label], spans, environ)
            url = servers.enter_context(served("benchmarks.compare.mlflow_server", directory))
            if label == _TO_MLFLOW:
                return _shipped(few, environ | {"TRACELAKE_DESTINATION": url})
            del environ["TRACELAKE_DESTINATION"]
            environ |= mlflow_app.settings("server", directory, url)
            found = program("benchmarks.compare.mlflow_app", "server", min(few, MLFLOW_SPANS), environ=environ)
            del found["app_s"]
            return found

    values = in_turn([*_DELTA, *_OTLP, *_FLOORS], options.rounds or ROUNDS, measure)
    return {TABLE.name: values | in_turn([_TO_MLFLOW, _MLFLOW], options.rounds or MLFLOW_ROUNDS, measure)}


def _fed(spans: int, environ: dict[str, str]) -> None:
    program("benchmarks.compare.feed", 0, spans, environ=environ)


def _shipped(spans: int, environ: dict[str, str]) -> Measured:
    _fed(spans, environ)
    return _delivered("ship", spans, environ)


def _delivered(way: str, spans: int, environ: dict[str, str]) -> Measured:
    return program("benchmarks.compare.deliver", way, spans, environ=environ)
