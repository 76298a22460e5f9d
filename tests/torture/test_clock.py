"""A clock that jumps does so for everything that a process imports, and at once."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from pathlib import Path

_PRINT = """
import sys
from time import time, time_ns
print(time(), time_ns(), flush=True)
sys.stdin.readline()
print(time(), time_ns())
"""


def test_clock_jumps(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_bytes(struct.pack("<q", 3600 * 10**9))
    environ = {"PYTHONPATH": str(Path(__file__).parent / "clock"), "TORTURE_CLOCK": str(clock)}
    before_s = time.time()
    with subprocess.Popen(
        [sys.executable, "-c", _PRINT],
        env=os.environ | environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline().split()
        with clock.open("r+b") as file:
            file.write(struct.pack("<q", -7200 * 10**9))
        second = process.communicate("\n", timeout=20)[0].split()
    for (seconds, nanoseconds), offset_s in ((first, 3600), (second, -7200)):
        assert 0 <= float(seconds) - before_s - offset_s < 60
        assert 0 <= int(nanoseconds) / 1e9 - before_s - offset_s < 60
