"""Run commands as their users do, in a directory with a spool."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.pages import PROGRESS
from tracelake.cli import main
from tracelake.destinations.targets import parse_target
from tracelake.spans.line import encode_line
from tracelake.spans.record import SpanRecord
from tracelake.spool.lane import Lane, Spool
from tracelake.spool.writer import LaneWriter


@dataclass(frozen=True)
class Result:
    """What a command did; that it goes on, as it says on a slow machine, is not in `err`."""

    code: int
    out: str
    err: str


class Place:
    """A directory with a spool in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spool = Spool(str(path / "spool"))

    def run(self, *arguments: str) -> Result:
        """Run `tracelake` to its end; it never shows a traceback."""
        done = subprocess.run(
            [sys.executable, "-m", "tracelake", *arguments], capture_output=True, text=True, timeout=60, cwd=self.path
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Result(done.returncode, done.stdout, PROGRESS.sub("", done.stderr))

    def call(self, *arguments: str) -> Result:
        """As `run`, in this process, which is quicker; the current directory is the test's."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(arguments)
            except SystemExit as ended:
                code = int(ended.code or 0)
        return Result(code, out.getvalue(), PROGRESS.sub("", err.getvalue()))

    def record(
        self, target: str, records: Sequence[SpanRecord], identity: Mapping[str, str] | None = None
    ) -> tuple[Lane, LaneWriter]:
        """Put spans into the lane of a target; without an identity given, with the one it has here.

        The writer keeps its segment open until it is closed.
        """
        if identity is None:
            destination = parse_target(target)
            target, identity = destination.target, destination.identity
        known = dict(identity)
        lane = self.spool.lane(target, known)

        def prepare() -> None:
            self.spool.create()
            lane.create(target, known)

        writer = LaneWriter(lane, prepare=prepare, max_bytes=2**30, segment_max_bytes=2**24)
        for record in records:
            assert writer.append(encode_line(record)), writer.last_reason
        return lane, writer

    def recorded(self, target: str, records: Sequence[SpanRecord], identity: Mapping[str, str] | None = None) -> Lane:
        """As `record`, by a writer that is gone."""
        lane, writer = self.record(target, records, identity)
        writer.close()
        return lane
