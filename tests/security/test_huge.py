"""Huge and hostile values beyond a table: by OTLP, on a small disk, and degraded in sight."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from tests.lake import Lake

from .server import EchoServer

ROOT = Path(__file__).parents[2]

# Delivers what waits, and says what that took.
_SHIP = """
from tests.hostile.memory import peak_bytes
from tracelake.cli import main
assert main(["ship", "--once"]) == 0
print("memory", peak_bytes() // 2**20)
"""
# Of MiB: a shipper with its libraries and a batch; and how many times a line of long texts it may hold.
_SHIPPER_MB, _TIMES = 400, 8


def recorded(lake: Lake, kind: str, destination: str = "", **environ: str) -> dict[str, float]:
    """Have an app record a huge span between two small ones; return what it says of its memory."""
    lake.environ |= {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "TRACELAKE_DESTINATION": destination or lake.table,
        "TRACELAKE_SHIPPER": "external",
        "TRACELAKE_EXIT_TIMEOUT": "0",
        **environ,
    }
    app = lake.start(sys.executable, "-m", "tests.security.apps.huge", kind)
    assert app.wait(120) == 0, lake.output(app)
    said = next(line for line in lake.output(app).splitlines() if line.startswith("{"))
    return json.loads(said)  # type: ignore[no-any-return]


def shipped(lake: Lake) -> int:
    """Deliver what waits; return the memory of that, in MiB."""
    return int(lake.run(_SHIP).rpartition("memory ")[2])


def line_mb(lake: Lake) -> float:
    return sum(path.stat().st_size for path in Path(lake.spool.lanes_dir).rglob("*.jsonl")) / 2**20


def rows(lake: Lake) -> dict[str, dict[str, Any]]:
    """Return the attributes of each span of the table, by its name."""
    table = DeltaTable(lake.table).to_pyarrow_table(columns=["name", "attributes"]).to_pylist()
    return {row["name"]: dict(row["attributes"]) for row in table}


@pytest.mark.slow
def test_huge_span_is_delivered_by_otlp(lake: Lake) -> None:
    """In a request of its own, whatever its size."""
    with EchoServer(200, body="").serve() as url:
        recorded(lake, "text", f"otlp+{url}")
        size = line_mb(lake)
        assert shipped(lake) < _SHIPPER_MB + _TIMES * size
    (lane,) = lake.spool.lanes()
    assert os.listdir(lane.quarantine_dir) == []


@pytest.mark.slow
def test_span_that_is_too_large_for_a_receiver_is_set_aside(lake: Lake) -> None:
    """With what it answered; the small ones are delivered, and the lane is not stuck."""
    receiver = EchoServer(200, body="", limit=2**20)
    with receiver.serve() as url:
        recorded(lake, "text", f"otlp+{url}", OTEL_EXPORTER_OTLP_COMPRESSION="none")
        shipped(lake)
    (lane,) = lake.spool.lanes()
    (name,) = os.listdir(lane.quarantine_dir)
    (line,) = (Path(lane.quarantine_dir) / name).read_text().splitlines()
    reason = json.loads(line)["reason"]
    assert "does not take the span (413)" in reason
    assert lane.segments() == [] or all(segment.size() for segment in lane.segments())


@pytest.mark.parametrize(
    ("kind", "noted"),
    [
        ("deep", "nested deeper than 30 levels"),
        ("numbers", "written as text"),
        ("surrogates", "lone surrogates escaped"),
        ("objects", "contains itself"),
    ],
)
@pytest.mark.slow
def test_hostile_value_is_degraded_and_delivered(lake: Lake, kind: str, noted: str) -> None:
    """Depth, numbers, texts and objects that no row holds: the row says what became of them."""
    memory = recorded(lake, kind)
    assert memory["dropped"] == 0
    assert memory["after"] - memory["before"] < 64
    shipped(lake)
    found = rows(lake)
    (huge,) = (attributes for name, attributes in found.items() if name not in ("first", "last"))
    assert noted in huge["tracelake.degraded"]
    assert set(found) >= {"first", "last"}


def test_huge_line_on_a_small_disk_is_refused(lake: Lake, small_disk: Path) -> None:
    """It is counted, with the reason, and leaves nothing torn; what fits goes on."""
    memory = recorded(lake, "escapes", TRACELAKE_SPOOL_DIR=str(small_disk / "spool"))
    assert memory["dropped"] == 1
    text = "".join(path.read_text() for path in sorted((small_disk / "spool").rglob("*.jsonl")))
    assert [json.loads(line)["name"] for line in text.splitlines()] == ["first", "last"]
