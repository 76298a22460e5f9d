"""Signal handlers that record, or raise, in the middle of another span's recording: at each line of it."""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import tracelake
from tests.lake import Lake
from tests.numbered import record
from tracelake.destinations.targets import parse_target
from tracelake.recorder.recorder import Recorder
from tracelake.settings import Settings

SOURCES = os.path.dirname(tracelake.__file__)

HANDLER = """
import signal, tracelake
from opentelemetry.sdk.trace import TracerProvider

provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(tracelake.SpanRecorder())
tracer = provider.get_tracer("t")

def handle(*_):
    tracer.start_span("handler").end()
    signal.setitimer(signal.ITIMER_REAL, 0.001)

signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001)
for number in range(3000):
    tracer.start_span("main").end()
signal.signal(signal.SIGALRM, signal.SIG_IGN)
report = tracelake.flush(30)
print(report.recorded, report.delivered)
"""


def test_signal_handler_may_record(lake: Lake) -> None:
    """In the middle of another span's recording, from the first one on, while the recorder is being made."""
    recorded, delivered = map(int, lake.run(HANDLER).split())
    assert recorded == delivered
    names = [row["name"] for row in lake.rows()]
    assert names.count("main") == 3000
    assert len(names) == recorded


class Points:
    """Calls a function, and an action at one point of what of ours runs in it.

    Args:
        point: which one, from 1.
        events: what is a point: "line", before each line; or what `sys.setprofile` calls "call" and "c_return", after
            which Python itself runs signal handlers, and never between the taking of a lock and its `with` block.
    """

    def __init__(self, point: int, action: Callable[[], None], *events: str) -> None:
        self.point = point
        self.action = action
        self.events = events
        self.passed = 0

    def call(self, function: Callable[[], None]) -> None:
        set_trace, before = (
            (sys.settrace, sys.gettrace()) if "line" in self.events else (sys.setprofile, sys.getprofile())
        )
        set_trace(self._trace)
        try:
            function()
        finally:
            set_trace(before)

    @property
    def is_reached(self) -> bool:
        return self.passed >= self.point

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(SOURCES):
            return None
        if event in self.events:
            self.passed += 1
            if self.passed == self.point:
                self.action()
        return self._trace


class Spans:
    """A recorder, the first of its spool, that only records; `is_full` if its segment has no room for a second span."""

    def __init__(self, root: Path, *, is_full: bool) -> None:
        root.mkdir()
        self.lake = Lake(root)
        self.recorder = Recorder(
            Settings(shipper="external", segment_max_bytes=400 if is_full else 2**20), self.lake.spool
        )
        self.destinations = (parse_target(self.lake.table),)
        self.names = ["span 0"] if is_full else []
        for _ in self.names:
            self.add(0)

    def add(self, number: int) -> None:
        """As for a span whose destination is not known before."""
        self.recorder.record(record(number), self.recorder.route(self.destinations).writers)

    def recorded(self) -> list[str]:
        return sorted(span.name for span in self.lake.records())

    def close(self) -> None:
        for writer in self.recorder.route(self.destinations).writers:
            writer.close()


@pytest.mark.parametrize("is_full", [False, True])
def test_handler_records_at_each_line(tmp_path: Path, is_full: bool) -> None:
    """Neither span is lost, both are counted, whatever of the other's recording is done already."""
    for line in itertools.count(1):
        spans = Spans(tmp_path / str(line), is_full=is_full)
        points = Points(line, functools.partial(spans.add, 2), "line")
        points.call(functools.partial(spans.add, 1))
        spans.add(3)
        report = spans.recorder.report()
        expected = [*spans.names, "span 1", *(["span 2"] if points.is_reached else []), "span 3"]
        assert (line, spans.recorded()) == (line, expected)
        assert (report.recorded, report.pending, report.dropped) == (len(expected), len(expected), 0)
        assert len(spans.lake.spool.lanes()) == 1
        spans.close()
        if not points.is_reached:
            break
    assert line > 100


@pytest.mark.parametrize("is_full", [False, True])
def test_interrupt_at_each_call(tmp_path: Path, is_full: bool) -> None:
    """The app's KeyboardInterrupt reaches the app, and recording goes on: at most the span that it hit is missing."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    for call in itertools.count(1):
        spans = Spans(tmp_path / str(call), is_full=is_full)
        points = Points(call, interrupt, "call", "c_return")
        is_interrupted = False
        try:
            points.call(functools.partial(spans.add, 1))
        except KeyboardInterrupt:
            is_interrupted = True
        assert is_interrupted == points.is_reached
        spans.add(3)
        report = spans.recorder.report()
        there = spans.recorded()
        assert (call, [name for name in there if name != "span 1"]) == (call, [*spans.names, "span 3"])
        # A line that was written and not yet counted is, once it is delivered.
        assert report.recorded in {len(there), len(there) - there.count("span 1")}
        assert report.dropped == 0
        spans.close()
        if not is_interrupted:
            break
    assert call > 50
