"""A schedule is what its seed says, everywhere and always; together they have everything in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest

from tests.torture.schedule import FAULTS, SERVERS, draw

_PRINT = """
import json
from dataclasses import asdict
from tests.torture.schedule import draw
print(json.dumps([asdict(draw(7, number)) for number in range(20)]))
"""


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_schedule_is_of_its_seed_alone(hash_seed: str) -> None:
    """Another process, whose hashes differ, draws the same."""
    drawn = json.loads(
        subprocess.run(
            [sys.executable, "-c", _PRINT],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        ).stdout
    )
    assert drawn == json.loads(json.dumps([asdict(draw(7, number)) for number in range(20)]))


def test_schedules_differ() -> None:
    """Each seed has rounds of its own, and so has each number."""
    assert len({draw(seed, number) for seed in range(10) for number in range(10)}) == 100


def test_every_fault_and_destination_is_drawn() -> None:
    """Nothing is left out; and every destination is in any run of as many rounds as there are kinds."""
    schedules = [draw(seed, number) for seed in range(20) for number in range(7)]
    assert {event.fault for schedule in schedules for event in schedule.events} == set(FAULTS)
    assert {kind for number in range(7) for kind in draw(3, number).destinations} == set(SERVERS)
    assert {plan.mode for schedule in schedules for plan in schedule.apps} == {"process", "thread", "external"}
    assert any(plan.forks for schedule in schedules for plan in schedule.apps)
    assert any(plan.workers for schedule in schedules for plan in schedule.apps)


def test_faults_can_happen_to_something() -> None:
    """A round without a server has no network, and a disk that is filled is there."""
    for number in range(200):
        schedule = draw(1, number)
        kinds = {event.fault.partition("-")[0] for event in schedule.events}
        assert schedule.servers or not kinds & {"net", "server"}
        assert "workspace" in schedule.servers or "workspace" not in kinds
        assert schedule.disk or "disk" not in kinds
        assert all(0 < event.at_s < schedule.length_s for event in schedule.events)
