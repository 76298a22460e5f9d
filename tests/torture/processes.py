"""The processes of a round: all of them have its directory in their command."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.lake import wait_until


@dataclass(frozen=True)
class Process:
    """A process as `ps` shows it."""

    pid: int
    memory_kib: int
    command: str

    @property
    def is_shipper(self) -> bool:
        return "tracelake.shipper" in self.command or " ship " in self.command

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; fine if the process is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def processes_of(root: Path) -> list[Process]:
    """Return apps, their children and shippers, by process id; not the shells that start shippers."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,rss=,command="], capture_output=True, text=True, check=True)
    found = (line.split(None, 2) for line in listed.stdout.splitlines() if f"{root}/" in line)
    return sorted(
        (Process(int(pid), int(rss), command) for pid, rss, command in found if not command.startswith("/bin/sh ")),
        key=lambda process: process.pid,
    )


def apps_of(root: Path) -> list[Process]:
    return [process for process in processes_of(root) if not process.is_shipper]


def shippers_of(root: Path) -> list[Process]:
    return [process for process in processes_of(root) if process.is_shipper]


def end(root: Path, *, shippers: bool, timeout_s: float) -> list[str]:
    """Let apps or shippers end by SIGTERM; return what did not, and was killed then."""
    look = shippers_of if shippers else apps_of
    for process in look(root):
        process.signal(signal.SIGTERM)
    try:
        wait_until(lambda: not look(root), "they end", timeout_s)
    except AssertionError:
        left = look(root)
        for process in left:
            process.signal(signal.SIGKILL)
        return [f"process {each.pid} did not end within {timeout_s:g} s of SIGTERM: {each.command}" for each in left]
    return []
