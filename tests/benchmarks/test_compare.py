"""Each comparison runs, at a size that proves nothing but that its figures add up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from benchmarks.compare import burst, delivery, disk, freshness, growth, recording, spans
from benchmarks.compare.__main__ import PARTS
from benchmarks.compare.harness import Options, Table, Values, environment, in_turn, program, served
from benchmarks.compare.mlflow_server import REQUEST_SPANS
from tests.pages import ROOT
from tracelake.spans.otlp import to_otlp

TINY = Options(spans=300, rounds=1, sizes=(500, 2000), fill_s=60)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of the benchmarks are started by their module's name."""
    monkeypatch.chdir(ROOT)


def measured(table: Table, tables: dict[str, Values]) -> Values:
    """Return the figures of a table, all of which are there for the page."""
    values = tables[table.name]
    for label, row in values.items():
        for column, rounds in row.items():
            assert rounds, (label, column)
    return values


def test_texts_of_spans_differ() -> None:
    """No two spans have the same texts, the same number has the same ones, and traces are whole."""
    made = spans.records(20)
    assert len({record.attributes["mlflow.spanInputs"] for record in made}) == 20
    assert spans.attributes(7) == spans.attributes(7) == made[7].attributes
    roots = [record for record in made if record.parent_span_id is None]
    assert len(roots) == len({record.trace_id for record in made}) == 20 // spans.TRACE_SPANS
    assert {record.parent_span_id for record in made} - {None} == {root.span_id for root in roots}
    assert all(record.start_time_unix_nano < record.end_time_unix_nano for record in made)


def test_renewed_spans_are_others() -> None:
    """The same texts come again under new ids, which depend on the seed alone."""
    made = spans.records(10)
    spans.renew(made, 1)
    first = [(record.trace_id, record.span_id) for record in made]
    spans.renew(made, 2)
    assert not set(first) & {(record.trace_id, record.span_id) for record in made}
    spans.renew(made, 1)
    assert [(record.trace_id, record.span_id) for record in made] == first


def test_contenders_take_turns() -> None:
    """A round has each contender once, so that what disturbs the machine disturbs all of them."""
    order: list[str] = []

    def run(name: str) -> dict[str, Any]:
        order.append(name)
        return {"us": float(len(order))}

    assert in_turn(("a", "b"), 2, run) == {"a": {"us": [1.0, 3.0]}, "b": {"us": [2.0, 4.0]}}
    assert order == ["a", "b", "a", "b"]


def test_environment_has_nothing_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting of whoever runs the benchmarks changes no contender."""
    for name in ("OTEL_BSP_MAX_QUEUE_SIZE", "TRACELAKE_BATCH_MAX_AGE", "MLFLOW_TRACKING_URI", "https_proxy"):
        monkeypatch.setenv(name, "1")
    found = environment(str(tmp_path), TRACELAKE_DESTINATION="x")
    assert {name for name in found if name.startswith(("OTEL_", "MLFLOW_", "https_"))} == set()
    assert {name for name in found if name.startswith("TRACELAKE_")} == {"TRACELAKE_SPOOL_DIR", "TRACELAKE_DESTINATION"}


def test_failed_program_says_why(tmp_path: Path) -> None:
    """A contender that fails ends the run, with what it printed; so does one that delivers less than was recorded."""
    with pytest.raises(RuntimeError, match="KeyError: 'no way'"):
        program("benchmarks.compare.deliver", "no way", 5, environ=environment(str(tmp_path)))
    with pytest.raises(RuntimeError, match="0 spans were delivered of 5"):
        program("benchmarks.compare.deliver", "ship", 5, environ=environment(str(tmp_path)))


@pytest.mark.parametrize("stored", [False, True])
def test_receiver_takes_what_comes(stored: bool, tmp_path: Path) -> None:
    """It counts a span that comes twice once, and stores each request as it came."""
    body = to_otlp(spans.records(10))
    arguments = ("--store", tmp_path / "received") if stored else ()
    with served("benchmarks.compare.receiver", *arguments) as url:
        for _ in range(2):
            request = urllib.request.Request(f"{url}/v1/traces", body, {"Content-Type": "application/x-protobuf"})
            urllib.request.urlopen(request, timeout=10).close()
        with urllib.request.urlopen(f"{url}/counts", timeout=10) as answer:
            assert json.load(answer) == {"spans": 0 if stored else 10}
    if stored:
        assert (tmp_path / "received").read_bytes() == 2 * (len(body).to_bytes(4, "big") + body)


@pytest.mark.parametrize("module", ["benchmarks.compare.receiver", "benchmarks.instant_workspace"])
def test_server_ends_with_its_input(module: str) -> None:
    """So it ends, too, when the benchmark that started it is killed."""
    command = [sys.executable, "-m", module]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        assert server.stdout.readline().startswith(b"http://127.0.0.1:")
        server.stdin.close()
        assert server.wait(10) == 0


def test_every_part_says_its_question() -> None:
    """What is printed while a part runs is the first line of its docstring."""
    for module in PARTS.values():
        assert (module.__doc__ or "").splitlines()[0].endswith(".")
        assert len({table.name for table in module.TABLES}) == len(module.TABLES)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_recording_adds_up() -> None:
    """What a contender adds is its CPU less that of the SDK alone, and the exporters add more than tracelake."""
    tables = recording.run(TINY)
    for table in recording.TABLES:
        (_, alone), *others = measured(table, tables).items()
        for _, row in others:
            assert row["added_us"] == [row["cpu_us"][0] - alone["cpu_us"][0]]
    values = tables[recording.OPENTELEMETRY.name]
    assert values["SimpleSpanProcessor, OTLP/HTTP"]["added_us"] > values["tracelake"]["added_us"]
    values = tables[recording.MLFLOW.name]
    assert values["MLflow's Unity Catalog exporter"]["added_us"] > values["tracelake, for MLflow"]["added_us"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_burst_is_counted_by_the_server() -> None:
    """No server has more than was sent, and all of tracelake's spans arrive."""
    values = measured(burst.TABLE, burst.run(TINY))
    assert all(0 < row["arrived"][0] <= TINY.spans for row in values.values() if TINY.spans)
    assert [row["arrived"] for label, row in values.items() if label.startswith("tracelake")] == [[TINY.spans]] * 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_delivery_has_every_way() -> None:
    """Each way says its CPU, its speed and its memory; to write bytes takes less CPU than to make rows of them."""
    values = measured(delivery.TABLE, delivery.run(TINY))
    assert all(row.keys() == {"cpu_us", "spans_s", "peak_mb"} for row in values.values())
    assert all(rounds[0] > 0 for row in values.values() for rounds in row.values())
    cpu = {label: row["cpu_us"][0] for label, row in values.items()}
    assert cpu["floor: the same lines by plain write()"] < cpu["tracelake to a Delta table, version 1"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_forms_on_the_disk_are_of_the_same_spans() -> None:
    """The packed forms are smaller than the plain ones."""
    sizes = {label: row["bytes"][0] for label, row in measured(disk.TABLE, disk.run(TINY)).items()}
    assert sizes["the same, each request with gzip"] < sizes["OTLP protobuf, as a collector's file"]
    assert sizes["tracelake's Delta table, version 1"] < sizes["tracelake's spool, until delivered"]
    assert sizes["MLflow's server on SQLite"] > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_spans_are_found_in_time() -> None:
    """A batch waits for its age, and not where the app flushes."""
    values = measured(freshness.TABLE, freshness.run(Options(spans=2)))
    p50 = {label: row["p50_ms"][0] for label, row in values.items()}
    ages = list(freshness.WAITING)
    assert p50[ages[0]] > 5000 > p50[ages[1]] > 1000
    assert p50[freshness.FLUSHED] < p50[ages[0]]
    assert all(row["p50_ms"] <= row["p99_ms"] for row in values.values())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_growth_answers_at_each_size() -> None:
    """Each question is asked at each size, of tracelake, of the files, and of MLflow's server."""
    tables = growth.run(TINY)
    sizes = {str(size) for size in TINY.sizes}
    for table in (growth.BY_ID, growth.LATEST_TRACES, growth.LATENCY):
        values = measured(table, tables)
        assert values.keys() == {growth.OURS, growth.FIRST, growth.FILES, growth.MLFLOW}
        assert all(row.keys() == sizes for row in values.values())
        assert all(median(took) > 0 for row in values.values() for took in row.values())
    assert all(row.keys() == sizes for row in measured(growth.MEMORY, tables).values())
    assert measured(growth.SHIPPED, tables)[growth.OURS].keys() == sizes


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_server_that_runs_out_of_time_has_the_size_that_it_reached() -> None:
    """It is asked then, and no larger size is tried."""
    values: dict[str, Values] = {table.name: {} for table in growth.TABLES}
    growth._grow_mlflow([2 * REQUEST_SPANS, 3 * REQUEST_SPANS, 4 * REQUEST_SPANS], 1e-9, values)
    found = [values[table.name][growth.MLFLOW] for table in (growth.BY_ID, growth.LATEST_TRACES, growth.LATENCY)]
    assert [row.keys() for row in found] == [{str(REQUEST_SPANS)}] * 3


def test_command_understands_sizes() -> None:
    """The help names every part, and an unknown one is refused."""
    command = [sys.executable, "-m", "benchmarks.compare"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert all(part in shown.stdout for part in PARTS)
    refused = subprocess.run([*command, "no-part"], capture_output=True, text=True)
    assert refused.returncode == 2
