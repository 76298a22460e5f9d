"""A table, a spool and the processes of one test: apps run in them, and their rows are read back."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from deltalake import DeltaTable

from tracelake.spans.line import decode_line
from tracelake.spans.record import SpanRecord
from tracelake.spool.lane import Spool
from tracelake.spool.ledger import pending_bytes, read_delivery

# Variables of the machine that would change what an app under test does.
FOREIGN = re.compile(
    r"TRACELAKE_|OTEL_|MLFLOW_|DATABRICKS_|AWS_|AZURE_|GOOGLE_|XDG_|PYTEST_|TRACEPARENT|http.*_proxy$",
    re.IGNORECASE,
)
_STARTED = re.compile(r"(\d+) INFO shipper of .* started")

T = TypeVar("T")


def wait_until(look: Callable[[], T], what: str, timeout_s: float = 30.0) -> T:
    """Return what `look` returns as soon as it is true."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)
    return found


class Lake:
    """Everything of a test under one directory.

    Attributes:
        table: path of the table that `TRACELAKE_DESTINATION` names.
        environ: environment of the processes started here; a test may add to it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.table = str(root / "table")
        self.spool = Spool(str(root / "spool"))
        self.environ = {key: value for key, value in os.environ.items() if not FOREIGN.match(key)}
        self.environ |= {
            "HOME": str(root),
            "TRACELAKE_DESTINATION": self.table,
            "TRACELAKE_SPOOL_DIR": self.spool.path,
            "TRACELAKE_SHIPPER_IDLE": "0.3",
            "TRACELAKE_BATCH_MAX_AGE": "0.2",
            "TRACELAKE_EXIT_TIMEOUT": "20",
            "PYTHONFAULTHANDLER": "1",
        }
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, *command: str, **environ: str) -> subprocess.Popen[str]:
        """Start a process; what it prints is in `output`, and `close` ends it."""
        with open(self.root / f"output-{len(self._processes)}", "w") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**self.environ, **environ},
                cwd=self.root,
                text=True,
            )
        self._processes.append(process)
        return process

    def output(self, process: subprocess.Popen[str]) -> str:
        """Return what a started process printed so far."""
        return (self.root / f"output-{self._processes.index(process)}").read_text()

    def run(self, source: str, *arguments: str, **environ: str) -> str:
        """Run a program to its end, which has to be a good one, and return what it printed."""
        script = self.root / "program.py"
        script.write_text(source)
        process = self.start(sys.executable, str(script), *arguments, **environ)
        code = process.wait(60)
        output = self.output(process)
        assert code == 0, output
        return output

    def settle(self) -> None:
        """Wait until every shipper process ended by itself, and see that it left nothing behind."""
        for lock in self._locks():
            with open(lock) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
        left = {lane.name: (pending_bytes(lane), read_delivery(lane)) for lane in self.spool.lanes()}
        assert not any(pending for pending, _ in left.values()), (left, self.log())

    def rows(self, table: str | None = None, **options: str) -> list[dict[str, Any]]:
        """Return the rows of the table once all is delivered, by start time."""
        self.settle()
        rows = DeltaTable(table or self.table, storage_options=options or None).to_pyarrow_table().to_pylist()
        for row in rows:
            row["attributes"] = dict(row["attributes"])
        return sorted(rows, key=lambda row: row["start_time_unix_nano"])

    def records(self) -> list[SpanRecord]:
        """Return the spans in the segments of the spool, delivered or not."""
        return [
            decode_line(line)
            for lane in self.spool.lanes()
            for segment in lane.segments()
            for _, line in segment.lines(0, segment.size())
        ]

    def log(self) -> str:
        """Return what the shippers wrote into their logs."""
        return "".join(path.read_text() for path in sorted(Path(self.spool.shippers_dir).glob("*.log*")))

    def shippers(self) -> list[int]:
        """Return the process ids of all shippers that ever started."""
        return [int(found[1]) for found in _STARTED.finditer(self.log())]

    def close(self) -> None:
        """End what still runs, by its id."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
            if process.poll() is None:
                process.kill()
                process.wait()
        for pid in self.shippers() if any(map(_is_locked, self._locks())) else ():
            if self.spool.path in _command(pid):  # ids come round again
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    def _locks(self) -> list[str]:
        return [str(path) for path in Path(self.spool.shippers_dir).glob("*.lock")]


def _command(pid: int) -> str:
    return subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True).stdout


def _is_locked(path: str) -> bool:
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@contextlib.contextmanager
def open_lake(root: Path) -> Iterator[Lake]:
    """Give a lake to a fixture."""
    lake = Lake(root)
    try:
        yield lake
    finally:
        lake.close()
