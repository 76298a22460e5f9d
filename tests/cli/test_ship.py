from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from deltalake import DeltaTable

from tests.cli.commands import Place
from tests.lake import wait_until
from tests.spans.samples import span
from tracelake.spool.ledger import read_delivery, read_ledger

UNRESOLVED = ("unresolved (TRACELAKE_DESTINATION)", {"unresolved": "TRACELAKE_DESTINATION"})


def rows(place: Place, name: str = "table") -> int:
    path = str(place.path / name)
    return DeltaTable(path).to_pyarrow_table().num_rows if DeltaTable.is_deltatable(path) else 0


def test_ship_once_delivers_what_is_there(place: Place) -> None:
    """And says how much."""
    lane = place.recorded("./table", [span(1), span(2)])
    result = place.run("ship", "--once")
    assert result.code == 0, result.err
    assert result.out == f"{lane.name}: 2 spans delivered, 0 left\n"
    assert rows(place) == 2


def test_ship_once_with_nothing_to_deliver_is_done(place: Place) -> None:
    """From cron, that is the usual case."""
    result = place.run("ship", "--once")
    assert (result.code, result.out) == (0, "")
    assert "nothing waits" in result.err


def test_ship_once_fails_with_the_reason_where_spans_are_left(place: Place) -> None:
    """One lane's failure holds up no other."""
    (place.path / "broken").mkdir()
    broken = place.recorded("./broken/table", [span(1)])
    (place.path / "broken").rmdir()
    (place.path / "broken").write_text("a file")
    place.recorded("./table", [span(1)])
    result = place.run("ship", "--once")
    assert result.code == 1
    assert f"{broken.name}: 0 spans delivered, 1 left" in result.out
    assert read_delivery(broken).error in result.err
    assert rows(place) == 1


def test_ship_once_fails_where_not_even_the_reason_can_be_noted(place: Place, small_disk: Path) -> None:
    """A disk without a byte left: nothing is delivered, and nobody is told that all is well."""
    full = Place(small_disk)
    lane = full.recorded(str(place.path / "table"), [span(1)])
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            continue
    result = full.run("ship", "--once", "--spool", full.spool.path)
    assert result.code == 1
    assert result.out == f"{lane.name}: 0 spans delivered, 1 left\n"
    assert f"Is the disk of {lane.path} full?" in result.err
    filler.unlink()
    assert full.run("ship", "--once", "--spool", full.spool.path).code == 0
    assert rows(place) == 1


def test_ship_leaves_lanes_of_another_access_alone_and_says_so(place: Place) -> None:
    """It has not the right credentials for them."""
    other = place.recorded("s3://bucket/table", [span(1)], {"store": "s3", "AWS_PROFILE": "other"})
    place.recorded("./table", [span(1)])
    result = place.run("ship", "--once")
    assert result.code == 0, result.err
    assert f"leaving lane {other.name} alone: it belongs to the access AWS_PROFILE=other" in result.err
    assert other.name not in result.out
    assert rows(place) == 1


def test_ship_leaves_lanes_without_a_destination_alone_and_says_so(place: Place) -> None:
    """With the command that gives them one."""
    lane = place.recorded(UNRESOLVED[0], [span(1)], UNRESOLVED[1])
    result = place.run("ship", "--once")
    assert result.code == 0
    assert f"tracelake redirect {lane.name} TARGET" in result.err


def test_ship_leaves_lanes_of_a_running_shipper_alone_and_says_so(place: Place) -> None:
    """One shipper an access."""
    lane = place.recorded("./table", [span(1)])
    with open(place.spool.lock_path(lane.note().identity), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = place.run("ship", "--once")
    assert result.code == 0
    assert "another shipper delivers it" in result.err
    assert rows(place) == 0


def test_ship_once_says_that_a_newer_format_is_left(place: Place) -> None:
    """A newer tracelake has to deliver it."""
    segment = place.recorded("./table", [span(1)]).segments()[0]
    os.rename(segment.path, segment.path.replace(".v1.", ".v2."))
    result = place.run("ship", "--once")
    assert result.code == 0
    assert "Update tracelake" in result.err


def test_ship_once_fails_for_a_damaged_lane(place: Place) -> None:
    """Nobody else will deliver it."""
    lane = place.recorded("./table", [span(1)])
    with open(lane.note_path, "w") as file:
        file.write("{")
    result = place.run("ship", "--once")
    assert result.code == 1
    assert "docs/spool-format.md" in result.err


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_ship_delivers_until_it_is_ended_and_then_what_is_there(place: Place, number: signal.Signals) -> None:
    """As a sidecar; spans that came last are not left behind."""
    lane, writer = place.record("./table", [span(1)])
    command = [sys.executable, "-m", "tracelake", "ship"]
    environ = {**os.environ, "TRACELAKE_BATCH_MAX_AGE": "0.2"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=place.path, env=environ) as process:
        try:
            wait_until(lambda: read_ledger(lane).delivered == 1, "the first span is delivered")
            place.recorded("./table", [span(2)])
            process.send_signal(number)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    writer.close()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert rows(place) == 2
