"""What a span takes on the disk: the same spans in each form. Nothing is timed, so there is one round."""

from __future__ import annotations

import gzip
import os
import tempfile

from benchmarks.compare import mlflow_server
from benchmarks.compare import spans as made
from benchmarks.compare.harness import Options, Table, Values, bytes_below, environment, program, say, served

SPANS = 100_000
MLFLOW_SPANS = 5_000

TABLE = Table(
    "disk",
    "A span on the disk",
    "bytes",
    {"bytes": "bytes a span"},
    chart="bytes",
    log=False,
    reference="tracelake's Delta table, version 1",
)
TABLES = (TABLE,)


def run(options: Options) -> dict[str, Values]:
    """Write the same spans in each form, and look how large it is."""
    from tracelake.spans.otlp import to_otlp

    count = options.spans or SPANS
    sizes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        for version in ("1", "2"):
            say(f"Delta table, version {version}")
            place = f"{directory}/{version}"
            os.makedirs(place)
            environ = environment(
                place,
                TRACELAKE_DESTINATION=f"{place}/spans",
                TRACELAKE_SHIPPER="external",
                TRACELAKE_EXIT_TIMEOUT="0",
                TRACELAKE_SCHEMA_VERSION=version,
            )
            program("benchmarks.compare.feed", 0, count, environ=environ)
            sizes["tracelake's spool, until delivered"] = bytes_below(environ["TRACELAKE_SPOOL_DIR"]) / count
            program("benchmarks.compare.deliver", "ship", count, environ=environ)
            sizes[f"tracelake's Delta table, version {version}"] = bytes_below(f"{place}/spans") / count
    say("OTLP")
    records = made.records(min(count, 20_000))
    # What a collector writes: a request of the batch processor after the other, packed one by one.
    requests = [to_otlp(records[first : first + 512]) for first in range(0, len(records), 512)]
    sizes["OTLP protobuf, as a collector's file"] = sum(map(len, requests)) / len(records)
    sizes["the same, each request with gzip"] = sum(len(gzip.compress(each)) for each in requests) / len(records)
    say("MLflow's server")
    sizes["MLflow's server on SQLite"] = _mlflow(min(count, MLFLOW_SPANS))
    return {TABLE.name: {label: {"bytes": [size]} for label, size in sizes.items()}}


def _mlflow(count: int) -> float:
    """Return the bytes that its database grows by for each span."""
    with tempfile.TemporaryDirectory() as directory, served("benchmarks.compare.mlflow_server", directory) as url:
        database = f"{directory}/mlflow.db"
        empty = os.path.getsize(database)
        records = made.records(count)
        for first in range(0, count, mlflow_server.REQUEST_SPANS):
            mlflow_server.send(url, records[first : first + mlflow_server.REQUEST_SPANS])
        return (os.path.getsize(database) - empty) / count
