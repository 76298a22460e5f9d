"""How long after its end a span can be queried: from `end()` to the first query that finds it.

Each try waits for the one before it, so that every span comes alone, which is the worst case for a shipper that gathers
a batch. tracelake's table is asked by `tracelake sql`'s function, MLflow's server by its REST interface, both again and
again; where spans take seconds, several apps with spools and tables of their own try at the same time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from statistics import median, quantiles

from benchmarks.compare import mlflow_app, mlflow_server
from benchmarks.compare.harness import Options, Table, Values, environment, program, say, served, workplace

TRIES = 40
APPS = 4
WAITING = {"tracelake, default settings": "5", "tracelake, TRACELAKE_BATCH_MAX_AGE=1": "1"}
FLUSHED = "tracelake, after flush()"
MLFLOW = "MLflow's server on SQLite, default settings"

TABLE = Table(
    "freshness",
    "From the end of a span to a query that finds it, the median",
    "ms",
    {"p50_ms": "p50, ms", "p99_ms": "p99, ms"},
    chart="p50_ms",
)
TABLES = (TABLE,)

# Between two queries that find nothing: more often would take the time of those who deliver.
_PAUSE_S = 0.05
_TIMEOUT_S = 60.0
# By then a flush that was asked for is over, and delivers none of the spans that come.
_SPENT_S = 1.0


def run(options: Options) -> dict[str, Values]:
    """Try each way some tens of times."""
    tries = options.spans or TRIES
    took: dict[str, list[float]] = {}
    with workplace() as root:
        for label, age in WAITING.items():
            say(label)
            apps = range(min(APPS, tries))
            took[label] = _at_once("waiting", tries, [_environ(f"{root}/{age}-{app}", age) for app in apps])
        say(FLUSHED)
        took[FLUSHED] = _took("flushed", tries, _environ(f"{root}/flushed"))
    with workplace() as root, served("benchmarks.compare.mlflow_server", root) as url:
        say(MLFLOW)
        environ = environment(root) | mlflow_app.settings("server", root, url)
        took[MLFLOW] = _at_once("mlflow", tries, [environ] * min(APPS, tries))
    return {TABLE.name: {label: {"p50_ms": [median(each)], "p99_ms": [_p99(each)]} for label, each in took.items()}}


def _environ(directory: str, age: str = "5") -> dict[str, str]:
    os.makedirs(directory)
    shipping = {"TRACELAKE_BATCH_MAX_AGE": age, "TRACELAKE_SHIPPER_IDLE": "10"}
    return environment(directory, TRACELAKE_DESTINATION=f"{directory}/spans", **shipping)


def _at_once(way: str, tries: int, environs: list[dict[str, str]]) -> list[float]:
    """Share tries among apps that run at the same time."""
    with ThreadPoolExecutor(len(environs)) as pool:
        return list(chain.from_iterable(pool.map(partial(_took, way, -(-tries // len(environs))), environs)))


def _took(way: str, tries: int, environ: dict[str, str]) -> list[float]:
    found: list[float] = program("benchmarks.compare.freshness", way, tries, environ=environ)["took_ms"]
    return found


def _p99(times: list[float]) -> float:
    return quantiles(times, n=100, method="inclusive")[-1] if len(times) > 1 else times[0]


def tracelake_program(way: str, tries: int) -> list[float]:
    """End spans one by one, and return the ms until DuckDB found each."""
    import tracelake
    from tracelake.destinations.targets import parse_target
    from tracelake.query.sql import sql

    target = os.environ["TRACELAKE_DESTINATION"]

    def is_there(trace_id: str) -> bool:
        query = f"SELECT 1 FROM spans WHERE trace_id = '{trace_id}'"
        return len(sql(query, parse_target(target))) == 1

    def one() -> float:
        with tracelake.start_span("answer", span_type="AGENT") as span:
            trace_id = span.trace_id
        ended_s = time.perf_counter()
        if way == "flushed":
            tracelake.flush()
        return _until(lambda: is_there(trace_id), ended_s)

    with tracelake.start_span("the first one makes the table, and starts the shipper"):
        pass
    tracelake.flush()
    time.sleep(_SPENT_S)
    return [one() for _ in range(tries)]


def mlflow_program(tries: int) -> list[float]:
    """End spans one by one, and return the ms until MLflow's server gave each out."""
    import mlflow

    def one() -> float:
        with mlflow.start_span("answer", span_type="AGENT") as span:
            trace_id = span.trace_id.removeprefix("tr-")
        ended_s = time.perf_counter()
        return _until(lambda: mlflow_server.trace_spans(os.environ["MLFLOW_TRACKING_URI"], trace_id) == 1, ended_s)

    one()
    return [one() for _ in range(tries)]


def _until(is_there: Callable[[], bool], ended_s: float) -> float:
    while not is_there():
        if time.perf_counter() - ended_s > _TIMEOUT_S:
            raise RuntimeError(f"A span could not be found for {_TIMEOUT_S:.0f} s.")
        time.sleep(_PAUSE_S)
    return (time.perf_counter() - ended_s) * 1000


if __name__ == "__main__":
    way, tries = sys.argv[1], int(sys.argv[2])
    print(json.dumps({"took_ms": mlflow_program(tries) if way == "mlflow" else tracelake_program(way, tries)}))
