from __future__ import annotations

import fcntl

import pytest

from tests.cli.commands import Place
from tests.cli.test_ship import UNRESOLVED, rows
from tests.spans.samples import span
from tracelake.spool.ledger import read_in_flight


def test_spans_without_a_destination_are_sent_to_one(place: Place) -> None:
    """And `tracelake ship` then delivers them, exactly once."""
    lane = place.recorded(UNRESOLVED[0], [span(1), span(2)], UNRESOLVED[1])
    result = place.run("redirect", "unresolved", "./table")
    assert result.code == 0, result.err
    assert result.out == f"{lane.name}: 2 pending spans go to {place.path / 'table'}\n"
    assert "tracelake ship --once" in result.err
    assert place.run("ship", "--once").code == 0
    assert rows(place) == 2


def test_spans_that_are_recorded_to_the_lane_afterwards_go_there_as_well(place: Place) -> None:
    """The app with the wrong environment may still run."""
    lane, writer = place.record(UNRESOLVED[0], [span(1)], UNRESOLVED[1])
    assert place.call("redirect", lane.name, "./table").code == 0
    writer.close()
    place.recorded(UNRESOLVED[0], [span(2)], UNRESOLVED[1])
    assert place.run("ship", "--once").code == 0
    assert rows(place) == 2


@pytest.mark.slow
def test_a_lane_whose_table_is_gone_goes_elsewhere_with_its_batch_under_way(place: Place) -> None:
    """And the command says that the batch may be in the old table, too."""
    (place.path / "gone").mkdir()
    lane = place.recorded("./gone/table", [span(1)])
    (place.path / "gone").rmdir()
    (place.path / "gone").write_text("a file")
    assert place.run("ship", "--once").code == 1
    assert read_in_flight(lane) is not None
    result = place.call("redirect", "gone", "./table")
    assert result.code == 0, result.err
    assert "whether it arrived is not known" in result.err
    assert place.call("status").code == 1  # it waits, and no shipper runs
    assert place.run("ship", "--once").code == 0
    assert rows(place) == 1
    assert place.call("status").code == 0


def test_a_lane_that_is_being_delivered_is_not_redirected(place: Place) -> None:
    """The message says how to end its shipper; nothing changed."""
    lane = place.recorded("./table", [span(1)])
    with open(place.spool.lock_path(lane.note().identity), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = place.call("redirect", lane.name, "./other")
    assert result.code == 1
    assert "A shipper of lane" in result.err
    assert "pkill" in result.err
    assert lane.note().target == str(place.path / "table")


def test_a_running_shipper_of_the_new_destination_takes_the_lane_up(place: Place) -> None:
    """There is nothing to end and nothing to start."""
    place.recorded("./table", [span(1)])
    lane = place.recorded(UNRESOLVED[0], [span(2)], UNRESOLVED[1])
    with open(place.spool.lock_path({}), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = place.call("redirect", lane.name, "./table")
    assert result.code == 0
    assert "a shipper of that destination runs" in result.err


def test_a_lane_that_is_not_there_or_not_the_only_one_is_refused_with_the_names(place: Place) -> None:
    """Nothing changed."""
    one = place.recorded("./one", [span(1)])
    two = place.recorded("./two", [span(1)])
    missing = place.call("redirect", "nothing", "./table")
    assert missing.code == 1
    assert "no lanes with 'nothing' in the name" in missing.err
    several = place.call("redirect", one.name[:3], "./table")
    assert several.code == 1
    assert one.name in several.err
    assert two.name in several.err
    assert one.note().target == str(place.path / "one")
