"""A short run of the fault runs: each kind of destination at least once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.torture.schedule import SERVERS


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_short_run() -> None:
    """What it prints has the seed, and what failed."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.torture", "--rounds", str(len(SERVERS)), "--seed", "1"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (reached,) = [line for line in run.stdout.splitlines() if "to each destination" in line]
    assert all(f" {kind} " in reached for kind in SERVERS)
