from __future__ import annotations

import base64
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import Place
from tests.cli.test_main import DOCS
from tests.spans.samples import span
from tracelake.shipper.status import read_status
from tracelake.spool.ledger import (
    Delivery,
    InFlight,
    Refusals,
    read_ledger,
    write_delivery,
    write_in_flight,
    write_ledger,
)
from tracelake.spool.notes import write_note


def lanes(place: Place) -> list[dict[str, Any]]:
    result = place.run("status", "--json")
    found: list[dict[str, Any]] = json.loads(result.out)["lanes"]
    assert result.code == int(any(lane["needs_action"] for lane in found))
    return found


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_spool_that_is_not_there_has_no_lanes(place: Place) -> None:
    """And is not made."""
    result = place.call("status")
    assert result.code == 0
    assert "Nothing has been recorded there yet." in result.out
    assert not (place.path / "spool").exists()


def test_waiting_spans_without_a_shipper_need_one(place: Place) -> None:
    """Counted, with their age, and with what to run."""
    lane, writer = place.record("./table", [span(1), span(2)])
    [found] = lanes(place)
    writer.close()
    assert found["state"] == "no shipper"
    assert found["name"] == lane.name
    assert found["target"] == str(place.path / "table")
    assert (found["pending_spans"], found["segments"], found["open_segments"]) == (2, 1, 1)
    assert found["pending_bytes"] == lane.segments()[0].size()
    assert found["oldest_pending_unix_nano"] == span(1).end_time_unix_nano
    assert "tracelake ship" in found["remedy"]


def test_a_running_shipper_is_seen_by_its_lock(place: Place) -> None:
    """Nothing needs to be done."""
    lane = place.recorded("./table", [span(1)])
    with open(place.spool.lock_path(lane.note().identity), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        [found] = lanes(place)
        assert (found["state"], found["shipper_running"], found["needs_action"]) == ("delivering", True, False)
        write_delivery(lane, Delivery("retrying", "The network is down. It is tried again.", 3))
        [found] = lanes(place)
        assert (found["state"], found["error"]) == ("retrying", "The network is down. It is tried again.")


def test_a_stopped_lane_says_why_and_what_to_do(place: Place) -> None:
    """Also in the table for people, within 80 columns."""
    lane = place.recorded("./table", [span(1)])
    write_delivery(lane, Delivery("stopped", "The table cannot be written: access denied. Repair the access. " * 3, 1))
    [found] = lanes(place)
    assert found["state"] == "stopped"
    assert "tracelake ship --once" in found["remedy"]
    result = place.call("status")
    assert result.code == 1
    assert "access denied" in result.out
    assert "tracelake redirect" in result.out
    assert max(len(line) for line in result.out.splitlines() if str(place.path) not in line) <= 80


def test_a_lane_whose_environment_named_no_destination_is_unresolved(place: Place) -> None:
    """With the command that sends its spans somewhere."""
    lane = place.recorded("unresolved (TRACELAKE_DESTINATION)", [span(1)], {"unresolved": "TRACELAKE_DESTINATION"})
    [found] = lanes(place)
    assert found["state"] == "unresolved"
    assert f"tracelake redirect {lane.name} TARGET" in found["remedy"]


def test_delivered_spans_are_no_longer_pending(place: Place) -> None:
    """An idle lane keeps its totals."""
    lane = place.recorded("./table", [span(1), span(2)])
    ledger = read_ledger(lane)
    first_line = len(next(iter(lane.segments()[0].lines(0, 10**6)))[1])
    ledger.offsets[lane.segments()[0].name] = first_line
    ledger.delivered, ledger.last_commit_unix_nano = 1, 5
    write_ledger(lane, ledger)
    write_in_flight(lane, InFlight(ledger.app_id, 1, [], 1))
    [found] = lanes(place)
    assert (found["pending_spans"], found["delivered"], found["last_commit_unix_nano"]) == (1, 1, 5)
    assert found["oldest_pending_unix_nano"] == span(2).end_time_unix_nano
    assert found["batch_in_flight"]
    ledger.offsets[lane.segments()[0].name] = lane.segments()[0].size()
    write_ledger(lane, ledger)
    [found] = lanes(place)
    assert (found["state"], found["pending_spans"], found["oldest_pending_unix_nano"]) == ("idle", 0, 0)


def test_refused_and_quarantined_spans_are_counted_with_the_reason(place: Place) -> None:
    """Over all writers."""
    lane = place.recorded("./table", [span(1)])
    write_note(os.path.join(lane.refusals_dir, "a.json"), Refusals(2, "older", 1))
    write_note(os.path.join(lane.refusals_dir, "b.json"), Refusals(3, "disk full", 2))
    line = {"segment": "s", "offset": 0, "reason": "no span", "line": base64.b64encode(b"x").decode()}
    path = os.path.join(lane.quarantine_dir, "app-000000001.jsonl")
    Path(path).write_text(json.dumps(line) + "\n")
    ledger = read_ledger(lane)
    ledger.quarantined = 1
    write_ledger(lane, ledger)
    [found] = lanes(place)
    assert (found["refused"], found["refusal"]) == (5, "disk full")
    assert (found["quarantined"], found["quarantine_files"]) == (1, [path])
    text = place.call("status").out
    assert "disk full" in text
    assert lane.quarantine_dir in text


def test_segments_of_a_newer_format_are_said_to_be_there(place: Place) -> None:
    """Only a newer tracelake can deliver them."""
    lane = place.recorded("./table", [span(1)])
    old = lane.segments()[0]
    os.rename(old.path, old.path.replace(".v1.", ".v2."))
    [found] = lanes(place)
    assert (found["newer_segments"], found["pending_spans"], found["needs_action"]) == (1, 1, True)
    assert "newer tracelake" in place.call("status").out


@pytest.mark.parametrize("name", ["lane.json", "ledger.json", "in-flight.json", "delivery.json"])
def test_damaged_bookkeeping_is_named_and_hides_nothing_else(place: Place, name: str) -> None:
    """The waiting spans are still counted."""
    lane = place.recorded("./table", [span(1)])
    Path(lane.path, name).write_bytes(b"{broken")
    [found] = lanes(place)
    assert found["state"] == "damaged"
    assert found["pending_spans"] == 1
    assert name in found["damage"][0]
    assert lane.path in found["remedy"]


def test_reading_the_status_changes_nothing(place: Place) -> None:
    """No file is made, written or touched."""
    place.recorded("./table", [span(1)])
    before = snapshot(place.path)
    read_status(place.spool)
    assert snapshot(place.path) == before


def test_status_json_has_the_documented_fields(place: Place) -> None:
    """Each is listed in docs/cli.md."""
    place.recorded("./table", [span(1)])
    found = json.loads(place.call("status", "--json").out)
    section = DOCS.split("\n## `tracelake status", 1)[1].split("\n## ", 1)[0]
    for name in [*found, *found["lanes"][0]]:
        assert f"`{name}`" in section, name


def test_another_spool_is_read_on_demand(place: Place) -> None:
    """As an operator does."""
    place.recorded("./table", [span(1)])
    assert "Nothing" in place.call("status", "--spool", str(place.path / "other")).out
