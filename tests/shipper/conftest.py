"""A lane with a table, and what fills it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.lake import Lake
from tracelake.settings import Settings
from tracelake.shipper.backoff import Backoff
from tracelake.shipper.lane import LaneShipper
from tracelake.spool.lane import Lane


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """The clock of the shippers of a test."""
    return Clock()


@pytest.fixture
def lane(lake: Lake) -> Lane:
    """The directories of a lane."""
    return make_lane(lake, lake.table)


@pytest.fixture
def new_shipper(clock: Clock) -> Callable[..., LaneShipper]:
    """Makes a shipper of a lane, by keyword with other settings."""

    def make(lane: Lane, **settings: object) -> LaneShipper:
        return LaneShipper(lane, Settings(**settings), clock=clock, backoff=Backoff(random.Random(1)))  # type: ignore[arg-type]

    return make


def make_lane(lake: Lake, target: str, identity: dict[str, str] | None = None) -> Lane:
    """Make the lane of a target."""
    lake.spool.create()
    lane = lake.spool.lane(target, identity or {})
    lane.create(target, identity or {})
    return lane
