"""A lane, and a disk small enough to fill."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB, mounted for the test."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a file system can be mounted by root only, and not in every container")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)
