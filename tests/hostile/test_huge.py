"""Spans of any size: recorded, delivered and read with memory that is a small multiple of them, beside sound spans."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.lake import Lake
from tests.numbered import TRACE_ID, record
from tests.query.samples import write_table
from tracelake.spool.ledger import read_ledger

ROOT = str(Path(__file__).parents[2])
MB = 10**6

APP = """
import json, sys
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.trace import SpanContext
from tests.hostile.memory import peak_bytes
from tracelake import SpanRecorder, flush

many = 10_000_000
limits = SpanLimits(max_span_attributes=many, max_events=many, max_links=many)
provider = TracerProvider(span_limits=limits, shutdown_on_exit=False)
provider.add_span_processor(SpanRecorder())
tracer = provider.get_tracer("huge")

def events(span, count):
    for number in range(count):
        span.add_event("event", {"number": number})

def links(span, count):
    for number in range(count):
        span.add_link(SpanContext(1 + number, 1, True), {"number": number})

FILL = {
    "text": lambda span, size: span.set_attribute("huge", "x" * size),
    "controls": lambda span, size: span.set_attribute("huge", "\\0" * size),
    "bytes": lambda span, size: span.set_attribute("huge", b"\\xff" * size),
    "attributes": lambda span, count: span.set_attributes({f"key {n}": n for n in range(count)}),
    "keys": lambda span, size: [span.set_attribute("k" * size + str(n), n) for n in range(20)],
    "events": events,
    "links": links,
}

tracer.start_span("before").end()
before = peak_bytes()
span = tracer.start_span("huge")
FILL[sys.argv[1]](span, int(sys.argv[2]))
span.end()
tracer.start_span("after").end()
print(json.dumps([peak_bytes() - before, str(flush(0))]))
"""

SHIP = """
import json, sys
from tests.hostile.memory import peak_bytes
from tests.numbered import record
from tests.query.samples import write_table
from tracelake.settings import read_settings
from tracelake.shipper.service import Shipper
from tracelake.spool.lane import Spool

write_table(sys.argv[2], [record(1)])
before = peak_bytes()  # with the libraries, of which as much is in memory as the system likes
shipper = Shipper(Spool(sys.argv[1]), read_settings()[0], serves=lambda *_: True)
shipper.drain()
shipper.release()
print(json.dumps(peak_bytes() - before))
"""

READ = """
import json, sys
from tests.hostile.memory import peak_bytes
from tracelake import cli

_, trace_id, small, huge_id, huge = sys.argv
cli.main(["show", trace_id, "--target", small])
before = peak_bytes()  # with the libraries, of which as much is in memory as the system likes
cli.main(["show", huge_id, "--target", huge])
print(json.dumps(peak_bytes() - before))
"""


class Huge:
    """A span of this kind and size between two sound ones, and what it took to record and to deliver them."""

    def __init__(self, lake: Lake, kind: str, size: int, **environ: str) -> None:
        self.lake = lake
        lake.environ |= {"TRACELAKE_SHIPPER": "external", "PYTHONPATH": ROOT, "TRACELAKE_EXIT_TIMEOUT": "0", **environ}
        printed = lake.run(APP, kind, str(size))
        self.app_peak, self.report = json.loads(next(line for line in printed.splitlines() if line.startswith("[")))
        (self.lane,) = lake.spool.lanes()
        self.line = max(len(line) for segment in self.lane.segments() for _, line in segment.lines(0, segment.size()))

    def ship(self) -> int:
        """Deliver, and return the shipper's peak memory."""
        return int(self.lake.run(SHIP, self.lake.spool.path, str(self.lake.root / "small")).splitlines()[-1])

    def names(self) -> list[str]:
        """Return the names of the spans that are in the table."""
        return [row["name"] for row in self.lake.rows()]


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("text", 5 * MB),
        pytest.param("text", 100 * MB, marks=pytest.mark.slow),
        pytest.param("controls", 20 * MB, marks=pytest.mark.slow),
        pytest.param("bytes", 50 * MB, marks=pytest.mark.slow),
        pytest.param("keys", MB, marks=pytest.mark.slow),
        pytest.param("attributes", 1_000_000, marks=pytest.mark.slow),
        pytest.param("events", 100_000, marks=pytest.mark.slow),
        pytest.param("links", 100_000, marks=pytest.mark.slow),
    ],
)
def test_huge_span_is_delivered_between_its_neighbours(lake: Lake, kind: str, size: int, version: str) -> None:
    """The app and the shipper take a small multiple of its line, or of the Python objects that the app itself has."""
    huge = Huge(lake, kind, size, TRACELAKE_SCHEMA_VERSION=version)
    shipper_peak = huge.ship()
    print(f"line {huge.line / MB:.0f} MB, app {huge.app_peak / huge.line:.1f}, shipper {shipper_peak / huge.line:.1f}")
    assert huge.names() == ["before", "huge", "after"]
    assert read_ledger(huge.lane).quarantined == 0
    # A small value is a Python object of ten times the size of its text; a key comes into Parquet's dictionary as well.
    many = kind in {"attributes", "events", "links"}
    assert huge.app_peak < (40 if many else 8) * huge.line + 20 * MB
    assert shipper_peak < (40 if many else 12 if kind == "keys" else 8) * huge.line + 20 * MB


@pytest.mark.slow
def test_huge_text_is_read_back_whole(lake: Lake) -> None:
    """As MAP<STRING,STRING>, every character; `tracelake show` prints none of it that nobody can read."""
    huge = Huge(lake, "text", 10 * MB)
    huge.ship()
    row = huge.lake.rows()[1]
    assert row["attributes"]["huge"] == "x" * 10 * MB
    small = write_table(lake.root / "small", [record(1)])
    shown = lake.run(READ, TRACE_ID, small.target, row["trace_id"], lake.table)
    assert len(shown) < 3_000
    assert int(shown.splitlines()[-1]) < 5 * huge.line


@pytest.mark.slow
def test_line_beyond_the_batch_size_is_a_batch_of_its_own(lake: Lake) -> None:
    """A line is never cut."""
    huge = Huge(lake, "text", 2 * MB, TRACELAKE_BATCH_MAX_BYTES="10KB")
    huge.ship()
    assert huge.names() == ["before", "huge", "after"]


def test_line_beyond_the_bound_of_the_spool(lake: Lake) -> None:
    """It is refused, counted and told; those before and after it have room."""
    huge = Huge(lake, "text", 2 * MB, TRACELAKE_SPOOL_MAX_BYTES="1MB")
    assert "1 dropped" in huge.report, huge.report
    assert "larger than TRACELAKE_SPOOL_MAX_BYTES" in huge.report, huge.report
    huge.ship()
    assert huge.names() == ["before", "after"]
