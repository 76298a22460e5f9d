"""Apps record, shippers deliver, and the table is maintained meanwhile, by real processes: each span is there once."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import duckdb
import pytest
from deltalake import DeltaTable

from tests.lake import Lake, open_lake

APP = """
import sys, time, tracelake
for number in range(int(sys.argv[1])):
    with tracelake.start_span(f"span {number}"):
        pass
    time.sleep(0.01)
"""
APPS = 3
SPANS = 600
OLD = 40

OLD_SPANS = """
import sys, time
from tests.destinations.contract import batch
from tests.numbered import record
from tracelake.destinations.delta import DeltaSink
from tracelake.errors import TransientDeliveryError
sink = DeltaSink(sys.argv[1], version=1, create=True)
for number in range(1, int(sys.argv[2]) + 1):
    while True:
        try:
            sink.write(batch(number, [record(number)]))
            break
        except TransientDeliveryError:  # a commit that lost against a deletion, say: a shipper tries again
            continue
    time.sleep(0.05)
"""


def command(lake: Lake, *arguments: str) -> tuple[int, str]:
    """Run a command of tracelake to its end; return its exit code and what it printed."""
    process = lake.start(sys.executable, "-m", "tracelake", *arguments)
    return process.wait(120), lake.output(process)


@pytest.mark.slow
def test_tables_are_maintained_beside_shippers(tmp_path: Path) -> None:
    """Three hosts write, one of them spans of long ago; all commands run again and again, two compactions at once."""
    with contextlib.ExitStack() as stack:
        lakes = []
        for host in range(APPS):
            root = tmp_path / str(host)
            root.mkdir()
            lake = stack.enter_context(open_lake(root))
            lake.environ |= {"TRACELAKE_DESTINATION": str(tmp_path / "table"), "TRACELAKE_BATCH_MAX_AGE": "0.05"}
            lake.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
            lakes.append(lake)
        apps = []
        for lake in lakes:
            script = lake.root / "app.py"
            script.write_text(APP)
            apps.append(lake.start(sys.executable, str(script), str(SPANS)))
        table = str(tmp_path / "table")
        apps.append(lakes[0].start(sys.executable, "-c", OLD_SPANS, table, str(OLD)))
        codes: dict[str, list[int]] = {"optimize": [], "retention": [], "vacuum": []}
        deadline_s = time.monotonic() + 120
        while any(app.poll() is None for app in apps) and time.monotonic() < deadline_s:
            both = [lakes[0].start(sys.executable, "-m", "tracelake", "optimize", table) for _ in range(2)]
            codes["optimize"] += [process.wait(120) for process in both]
            codes["retention"].append(command(lakes[1], "retention", "--days", "30", table)[0])
            codes["vacuum"].append(command(lakes[2], "vacuum", table)[0])
        assert [app.wait(60) for app in apps] == [0] * len(apps)
        for lake in lakes:
            lake.settle()
        assert command(lakes[0], "retention", "--days", "30", table)[0] == 0
        assert command(lakes[0], "optimize", table)[0] == 0
        with duckdb.connect() as duck:
            duck.register("spans", DeltaTable(table).to_pyarrow_dataset())
            query = "SELECT count(*), count(DISTINCT concat(trace_id, span_id)), count(DISTINCT name) FROM spans"
            assert duck.sql(query).fetchall() == [(APPS * SPANS, APPS * SPANS, SPANS)]
        assert len(DeltaTable(table).file_uris()) == 1
        assert all(0 in each for each in codes.values()), codes
