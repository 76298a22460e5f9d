"""How cost grows with the table: one table fed by a recorder and `tracelake ship`, looked at when it has each size.

What is asked: a trace by its id, the latest 100 traces of a service, and the 95th percentile of what spans took by
name. Beside tracelake's own functions stand DuckDB on the very same Parquet files, without the table's log; and
MLflow's server on SQLite, which is sent spans for some minutes, and asked the nearest that it knows.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from benchmarks.compare import mlflow_server, spans
from benchmarks.compare.feed import POOL
from benchmarks.compare.harness import (
    Measured,
    Options,
    Table,
    Values,
    bytes_below,
    ended,
    environment,
    program,
    say,
    served,
)

TRIES = 11
LATEST = 100

BY_ID = Table("trace-by-id", "A trace by its id", "ms", {})
LATEST_TRACES = Table("latest-traces", f"The latest {LATEST} traces of a service", "ms", {})
SEARCH = Table("search", f"The latest {LATEST} traces of a service, with tokens, previews, tags and feedback", "ms", {})
LATENCY = Table("latency", "The 95th percentile of what spans took, by name", "ms", {})
MEMORY = Table("memory", "Peak memory", "MB", {}, log=False)
SHIPPED = Table("shipped", "Spans a second, from the recorder to the table", "spans a second", {}, log=False)
TABLES = (BY_ID, LATEST_TRACES, SEARCH, LATENCY, MEMORY, SHIPPED)

OURS, FILES, MLFLOW = "tracelake", "DuckDB on the same Parquet files", "MLflow's server on SQLite"
FIRST = "tracelake, the first question of a process"
_READER = {
    "by_id": "tracelake, a trace by its id",
    "latest": "tracelake, the latest traces",
    "p95": "tracelake, the percentile",
}
_QUESTIONS = {"by_id": BY_ID, "latest": LATEST_TRACES, "p95": LATENCY}
_ROWS = {"tracelake": OURS, "files": FILES}


def run(options: Options) -> dict[str, Values]:
    """Grow a table and a server's database, and look at each at all sizes that it reaches."""
    values: dict[str, Values] = {table.name: {} for table in TABLES}
    _grow_table(sorted(options.sizes), values)
    _grow_mlflow(sorted(options.sizes), options.fill_s, values)
    return values


def _note(values: dict[str, Values], table: Table, row: str, size: int, found: list[float]) -> None:
    values[table.name].setdefault(row, {})[str(size)] = found


def _grow_table(sizes: list[int], values: dict[str, Values]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        location = f"{directory}/spans"
        environ = environment(
            directory, TRACELAKE_DESTINATION=location, TRACELAKE_SHIPPER="external", TRACELAKE_EXIT_TIMEOUT="0"
        )
        trace_ids: list[str] = []
        for before, size in zip([0, *sizes], sizes, strict=False):
            say(f"a table of {size:,} spans")
            shipped = _shipped(before, size, environ)
            trace_ids += shipped["trace_ids"]
            asked = _spread(trace_ids)
            _note(values, SHIPPED, OURS, size, [shipped["spans_s"]])
            _note(values, MEMORY, "tracelake's shipper", size, [shipped["peak_mb"]])
            for reader, row in _ROWS.items():
                for question, table in (_QUESTIONS | ({"search": SEARCH} if reader == "tracelake" else {})).items():
                    arguments = (reader, question, location, size, *asked)
                    found = program("benchmarks.compare.growth", *arguments, environ=environ)
                    _note(values, table, row, size, found["took_ms"][1:])
                    if reader == "tracelake":
                        _note(values, table, FIRST, size, found["took_ms"][:1])
                    if reader == "tracelake" and question in _READER:
                        _note(values, MEMORY, _READER[question], size, [found["peak_mb"]])
            say(f"{bytes_below(location) / size:.0f} bytes a span in the table's directory")


def _shipped(before: int, size: int, environ: dict[str, str]) -> Measured:
    """Have a recorder and a shipper bring the table to a size; return what the shipper took, its start included."""
    begun_s = time.perf_counter()
    shipper = subprocess.Popen(
        [sys.executable, "-m", "tracelake", "ship"],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert shipper.stderr is not None
    try:
        shipper.stderr.readline()  # it says that it delivers, and from then on ends as it should
        fed = program("benchmarks.compare.feed", before, size, environ=environ)
    finally:
        shipper.send_signal(signal.SIGTERM)  # it delivers what is there, and ends
        peak_mb = ended(shipper)
        shipper.stderr.close()
    spans_s = (size - before) / (time.perf_counter() - begun_s)
    return {"spans_s": spans_s, "peak_mb": peak_mb, "trace_ids": fed["trace_ids"]}


def _spread(trace_ids: list[str]) -> list[str]:
    """Return one for each try, from all over the table."""
    return [trace_ids[at * len(trace_ids) // TRIES] for at in range(TRIES)]


def _grow_mlflow(sizes: list[int], fill_s: float, values: dict[str, Values]) -> None:
    with tempfile.TemporaryDirectory() as directory, served("benchmarks.compare.mlflow_server", directory) as url:
        pool = spans.records(min(POOL, sizes[-1]))
        count, spent_s = 0, 0.0
        ids: list[str] = []
        for before, size in zip([0, *sizes], sizes, strict=False):
            if count < before:
                return  # its time was over before
            say(f"MLflow's server, {size:,} spans")
            begun_s, from_s = time.perf_counter(), spent_s
            while count < size and spent_s < fill_s:
                at = count % len(pool)
                if at == 0:
                    spans.renew(pool, count)
                piece = pool[at : at + min(mlflow_server.REQUEST_SPANS, size - count)]
                mlflow_server.send(url, piece)
                ids.append(piece[0].trace_id)
                count += len(piece)
                spent_s = from_s + time.perf_counter() - begun_s
            if count < size:
                say(f"it took {count:,} spans in {fill_s:.0f} s")
            if count == before:
                return  # no time was left for any
            _note(values, SHIPPED, f"{MLFLOW}, by OTLP", count, [(count - before) / (spent_s - from_s)])
            for table, took in zip(_QUESTIONS.values(), _asked_of_mlflow(url, count, _spread(ids)), strict=True):
                _note(values, table, MLFLOW, count, took[1:])


def _asked_of_mlflow(url: str, size: int, trace_ids: list[str]) -> tuple[list[float], ...]:
    asked = iter(trace_ids)
    latest = min(LATEST, size // spans.TRACE_SPANS)
    return (
        _tried(lambda: mlflow_server.trace_spans(url, next(asked)) == spans.TRACE_SPANS),
        _tried(lambda: mlflow_server.latest_traces(url, LATEST) == latest),
        _tried(lambda: mlflow_server.latency_p95(url).keys() == set(spans.NAMES)),
    )


def _tried(ask: Callable[[], bool]) -> list[float]:
    """Ask some times, and return the ms of each; the first loads what it needs."""
    took = []
    for _ in range(TRIES):
        begun = time.perf_counter()
        if not ask():
            raise RuntimeError("The answer is not that of the spans which were sent.")
        took.append((time.perf_counter() - begun) * 1000)
    return took


def read(reader: str, question: str, location: str, size: int, trace_ids: list[str]) -> list[float]:
    """Ask one question again and again, and return the ms of each answer."""
    if question == "search":
        return _tried(lambda: _searched(location) == min(LATEST, size // spans.TRACE_SPANS // len(spans.SERVICES)))
    (ask_sql, ask_trace) = {"tracelake": _tracelake, "files": _duckdb}[reader](location)
    if question == "by_id":
        asked = iter(trace_ids)
        return _tried(lambda: ask_trace(next(asked)) == spans.TRACE_SPANS)
    roots = size // spans.TRACE_SPANS // len(spans.SERVICES)
    rows = {"latest": min(LATEST, roots), "p95": len(set(spans.NAMES))}[question]
    return _tried(lambda: ask_sql(_SQL[question]) == rows)


_Ask = Callable[[str], int]
_SQL = {
    "latest": f"""
        SELECT trace_id FROM spans
        WHERE resource.attributes['service.name'] = '{spans.SERVICES[2]}' AND parent_span_id IS NULL
        ORDER BY start_time_unix_nano DESC LIMIT {LATEST}""",
    "p95": "SELECT name, quantile_cont(end_time_unix_nano - start_time_unix_nano, 0.95) FROM spans GROUP BY name",
}


def _tracelake(location: str) -> tuple[_Ask, _Ask]:
    """Return what counts the rows of a query, and the spans of a trace; each reads the table's log anew."""
    from tracelake.destinations.targets import parse_target
    from tracelake.query.sql import sql
    from tracelake.query.traces import get_trace

    destination = parse_target(location)
    return lambda query: sql(query, destination).num_rows, lambda wanted: len(get_trace(wanted, destination).spans)


def _searched(location: str) -> int:
    """Return how many whole traces of a service `search_traces` finds."""
    from tracelake.destinations.targets import parse_target
    from tracelake.query.search import Search, search_traces

    found = search_traces(parse_target(location), Search(service=spans.SERVICES[2], max_results=LATEST))
    return sum(info.span_count == spans.TRACE_SPANS for info in found)


def _duckdb(location: str) -> tuple[_Ask, _Ask]:
    import duckdb
    from deltalake import DeltaTable

    # Those that count: files that were put together into others lie beside them until they are removed.
    files = DeltaTable(location).file_uris()
    connection = duckdb.connect()
    connection.execute(f"CREATE VIEW spans AS FROM read_parquet({files!r}, hive_partitioning = false)")

    def rows(query: str) -> int:
        return len(connection.sql(query).to_arrow_table())

    return rows, lambda wanted: rows(f"SELECT * FROM spans WHERE trace_id = '{wanted}'")


if __name__ == "__main__":
    reader, question, location, size, *trace_ids = sys.argv[1:]
    print(json.dumps({"took_ms": read(reader, question, location, int(size), trace_ids)}))
