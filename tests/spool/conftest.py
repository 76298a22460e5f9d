"""A lane, and a disk small enough to fill."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.lake import Lake
from tracelake.spool.lane import Lane
from tracelake.spool.writer import LaneWriter

MIB = 2**20


@pytest.fixture
def lane(lake: Lake) -> Lane:
    """The directories of a lane."""
    lake.spool.create()
    lane = lake.spool.lane(lake.table, {})
    lane.create(lake.table, {})
    return lane


@pytest.fixture
def new_writer(lake: Lake) -> Iterator[Callable[..., LaneWriter]]:
    """Makes writers of a lane, and closes them after the test."""
    writers: list[LaneWriter] = []

    def make(lane: Lane, **options: object) -> LaneWriter:
        def prepare() -> None:
            lake.spool.create()
            lane.create(lake.table, {})

        options = {"prepare": prepare, "max_bytes": 64 * MIB, "segment_max_bytes": 16 * MIB, **options}
        writers.append(LaneWriter(lane, **options))  # type: ignore[arg-type]
        return writers[-1]

    yield make
    for writer in writers:
        writer.close()
