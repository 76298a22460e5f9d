"""What every comparison needs: programs in processes of their own, servers that end with us, rounds in turn."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What was measured: a list of all rounds for each column of each row.
Values = dict[str, dict[str, list[float]]]
Measured = dict[str, Any]

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)

# Variables of the machine that would change what a contender does.
_FOREIGN = re.compile(r"TRACELAKE_|OTEL_|MLFLOW_|DATABRICKS_|AWS_|AZURE_|GOOGLE_|XDG_|.*_proxy$", re.IGNORECASE)
_ERROR_CHARACTERS = 2000


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        spans: spans of a run, in place of what a part has; None leaves that.
        rounds: rounds of all contenders in turn, likewise.
        sizes: spans that a table holds when it is looked at.
        fill_s: for how long MLflow's server is given spans, in seconds.
    """

    spans: int | None = None
    rounds: int | None = None
    sizes: tuple[int, ...] = SIZES
    fill_s: float = 600.0


@dataclass(frozen=True)
class Table:
    """A table of the page, and its chart of the same name.

    Attributes:
        columns: headings, by the name of the figure; empty where a column is a size.
        chart: the figure that bars are drawn of; empty for lines by size.
        reference: the row that the others are compared with, round by round; empty for no comparison.
    """

    name: str
    title: str
    unit: str
    columns: Mapping[str, str]
    chart: str = ""
    log: bool = True
    reference: str = ""


def environment(directory: str, **more: str) -> dict[str, str]:
    """Return an environment without the machine's settings, whose spool is in `directory`."""
    kept = {key: value for key, value in os.environ.items() if not _FOREIGN.match(key)}
    return kept | {"HOME": directory, "TRACELAKE_SPOOL_DIR": f"{directory}/spool", "NO_PROXY": "127.0.0.1"} | more


@contextmanager
def workplace() -> Iterator[str]:
    """Give a directory, which is removed when the shippers of the spools in it have ended: by then they are idle."""
    with tempfile.TemporaryDirectory() as directory:
        yield directory
        for lock in Path(directory).rglob("shippers/*.lock"):
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX)


def program(module: str, *arguments: object, environ: Mapping[str, str]) -> Measured:
    """Run a module to its end, and return the figures of its last line with the peak of its memory.

    Raises:
        RuntimeError: it failed; the message has the end of what it printed.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        peak_mb = ended(process)
        output.seek(0)
        text = output.read()
    lines = [line for line in text.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {text[-_ERROR_CHARACTERS:]}")
    found: Measured = json.loads(lines[-1])
    return found | {"peak_mb": peak_mb}


def ended(process: subprocess.Popen[bytes]) -> float:
    """Wait for a process to end, and return the peak of its memory in MB."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss / (1024 if sys.platform == "linux" else 2**20)


@contextmanager
def served(module: str, *arguments: object) -> Iterator[str]:
    """Run a server, and give the address that it prints; it ends when its input does, so also with this process."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()
            server.wait()


def in_turn(contenders: Sequence[str], rounds: int, run: Callable[[str], Measured]) -> Values:
    """Run each contender once a round, so that a noisy machine is noisy for all of them."""
    values: Values = {name: {} for name in contenders}
    for number in range(1, rounds + 1):
        for name in contenders:
            say(f"round {number} of {rounds}: {name}")
            for column, value in run(name).items():
                values[name].setdefault(column, []).append(value)
    return values


def say(text: str) -> None:
    """Tell whoever waits what is under way."""
    print(f"  {text}", file=sys.stderr, flush=True)


def bytes_below(directory: str) -> int:
    """Return the bytes of all files there."""
    return sum(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file())
