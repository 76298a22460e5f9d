"""Which bytes go into a batch, and the spans and bad lines in them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.numbered import add_segment, line, lines, record
from tracelake.destinations.base import Rejection
from tracelake.shipper.batch import BatchReader, plan_batch
from tracelake.spool.lane import Lane
from tracelake.spool.ledger import Ledger, Range
from tracelake.spool.segment import new_writer_name, open_segment

LARGE = 10**9


class OpenSegment:
    """A segment whose writer is alive."""

    def __init__(self, lane: Lane) -> None:
        self.descriptor, self.path = open_segment(lane.segments_dir, new_writer_name(), 1)
        self.name = os.path.basename(self.path)

    def write(self, data: bytes) -> None:
        os.write(self.descriptor, data)


@pytest.fixture
def alive(lane: Lane) -> Iterator[OpenSegment]:
    """A segment that its writer holds."""
    segment = OpenSegment(lane)
    yield segment
    os.close(segment.descriptor)


def plan_of(lane: Lane, max_bytes: int = LARGE, **offsets: int) -> list[tuple[int, int]]:
    plan = plan_batch(lane, Ledger("a", offsets=offsets), max_bytes)
    assert plan.size == sum(item.end - item.start for item in plan.ranges)
    return [(item.start, item.end) for item in plan.ranges]


def test_empty_lane_has_no_batch(lane: Lane) -> None:
    """Nothing is planned, finished or cut."""
    plan = plan_batch(lane, Ledger("a"), LARGE)
    assert (plan.ranges, plan.size, plan.full, plan.finished, plan.cut) == ([], 0, False, [], {})


def test_batch_holds_every_segment_from_its_offset(lane: Lane, alive: OpenSegment) -> None:
    """What is delivered already is passed over, whoever wrote it."""
    alive.write(lines([1, 2]))
    path = add_segment(lane, lines([3, 4, 5]))
    plan = plan_batch(lane, Ledger("a", offsets={alive.name: len(line(1))}), LARGE)
    assert [(item.segment, item.start, item.end) for item in plan.ranges] == [
        (alive.name, len(line(1)), len(lines([1, 2]))),
        (os.path.basename(path), 0, len(lines([3, 4, 5]))),
    ]


def test_line_under_way_waits(lane: Lane, alive: OpenSegment) -> None:
    """A living writer's line without its newline is not written yet."""
    alive.write(line(1) + line(2)[:-1])
    assert plan_of(lane) == [(0, len(line(1)))]
    assert plan_of(lane, **{alive.name: len(line(1))}) == []
    alive.write(b"\n")
    assert plan_of(lane, **{alive.name: len(line(1))}) == [(len(line(1)), len(lines([1, 2])))]


def test_torn_line_of_a_dead_writer_is_taken_after_the_whole_ones(lane: Lane) -> None:
    """It is never going to be finished, so it is taken, to be set aside."""
    name = os.path.basename(add_segment(lane, line(1) + b'{"trace'))
    assert plan_of(lane) == [(0, len(line(1)))]
    assert plan_of(lane, **{name: len(line(1))}) == [(len(line(1)), len(line(1)) + 7)]


def test_batch_is_bounded_by_bytes_at_a_line(lane: Lane) -> None:
    """A batch ends with the last line that fits, says that there is more, and the next begins there."""
    size = len(line(1))
    name = os.path.basename(add_segment(lane, lines(range(10))))
    plan = plan_batch(lane, Ledger("a"), 3 * size + 5)
    assert [(item.start, item.end) for item in plan.ranges] == [(0, 3 * size)]
    assert plan.full
    assert plan_of(lane, 3 * size + 5, **{name: 9 * size}) == [(9 * size, 10 * size)]
    assert not plan_batch(lane, Ledger("a"), 10 * size).full


def test_line_longer_than_a_batch_is_a_batch(lane: Lane) -> None:
    """A span of megabytes is delivered by itself."""
    long = line(1, "x" * 5000)
    add_segment(lane, long + line(2))
    assert plan_of(lane, 1024) == [(0, len(long))]


def test_many_segments_fill_one_batch_up_to_its_bytes(lane: Lane) -> None:
    """The small segments of short processes are delivered together."""
    for number in range(10):
        add_segment(lane, line(number))
    assert len(plan_of(lane)) == 10
    assert len(plan_of(lane, 4 * len(line(1)))) == 4


def test_segment_of_a_newer_format_is_left_alone(lane: Lane) -> None:
    """It is neither delivered, nor set aside, nor removed."""
    add_segment(lane, b"something new\n", version=2)
    plan = plan_batch(lane, Ledger("a"), LARGE)
    assert (plan.ranges, plan.finished) == ([], [])


def test_delivered_segment_is_finished_once_its_writer_is_gone(lane: Lane, alive: OpenSegment) -> None:
    """A living writer's segment may grow at any moment."""
    alive.write(line(1))
    ledger = Ledger("a", offsets={alive.name: len(line(1))})
    assert plan_batch(lane, ledger, LARGE).finished == []
    name = os.path.basename(add_segment(lane, line(2)))
    ledger.offsets[name] = len(line(2))
    assert [segment.name for segment in plan_batch(lane, ledger, LARGE).finished] == [name]


def test_segment_shorter_than_its_offset_is_told(lane: Lane) -> None:
    """Somebody cut a segment below what is delivered of it; what is left of it is not delivered again."""
    name = os.path.basename(add_segment(lane, line(1)))
    plan = plan_batch(lane, Ledger("a", offsets={name: 5000}), LARGE)
    assert plan.cut == {name: len(line(1))}
    assert plan.ranges == []


@pytest.mark.parametrize(
    "bad",
    [b"garbage\n", b"\n", b"\x00\xff\xfe" * 1000 + b"\n", b"[1,2]\n", line(1)[:50] + b"\n", b"{" * 100_000 + b"\n"],
    ids=["text", "empty", "binary", "list", "cut", "nested"],
)
def test_bad_lines_are_set_aside_and_the_others_read(lane: Lane, bad: bytes) -> None:
    """A line that is no span is listed with segment, offset and reason, and changes nothing for its neighbours."""
    name = os.path.basename(add_segment(lane, line(1) + bad + line(2)))
    reader = BatchReader(lane, [Range(name, 0, len(line(1) + bad + line(2)))])
    assert [item for chunk in reader.chunks() for item in chunk] == [record(1), record(2)]
    [found] = reader.bad
    assert (found.segment, found.offset, found.line) == (name, len(line(1)), bad)
    assert found.reason.startswith("Not a span")
    assert list(reader.spans.values()) == [2]


def test_torn_line_is_set_aside_with_its_reason(lane: Lane) -> None:
    """Even if its JSON happens to be whole."""
    name = os.path.basename(add_segment(lane, line(1)[:-1]))
    reader = BatchReader(lane, [Range(name, 0, len(line(1)) - 1)])
    reader.count()
    assert "torn" in reader.bad[0].reason


def test_batch_reads_the_same_each_time(lane: Lane) -> None:
    """A sink may read a batch again, and half-way: counts are those of one reading."""
    data = lines(range(5000)) + b"bad\n"
    name = os.path.basename(add_segment(lane, data))
    reader = BatchReader(lane, [Range(name, 0, len(data))])
    batch = reader.batch("a", 1, retried=False)
    next(batch.chunks())
    first = [item.span_id for chunk in batch.chunks() for item in chunk]
    assert first == [item.span_id for chunk in batch.chunks() for item in chunk]
    assert len(first) == 5000
    assert (sum(reader.spans.values()), len(reader.bad)) == (5000, 1)
    assert batch.size == len(data)


def test_rejected_spans_are_set_aside_by_their_place_in_the_batch(lane: Lane) -> None:
    """A sink counts spans, not lines: bad lines in between do not shift what it rejects."""
    data = line(0) + b"bad\n" + line(1) + line(2)
    name = os.path.basename(add_segment(lane, data))
    reader = BatchReader(lane, [Range(name, 0, len(data))])
    reader.count()
    reader.set_aside([Rejection(1, "too odd")])
    assert [(bad.line, bad.reason) for bad in reader.bad[1:]] == [(line(1), "too odd")]
    assert list(reader.spans.values()) == [2]


def test_range_of_a_removed_segment_is_told(lane: Lane) -> None:
    """The rest of the batch is read, and the missing range listed."""
    name = os.path.basename(add_segment(lane, line(1)))
    gone = Range("0" * 16 + "-1-00000000-000001.v1.jsonl", 0, 100)
    reader = BatchReader(lane, [gone, Range(name, 0, len(line(1)))])
    assert [item.span_id for chunk in reader.chunks() for item in chunk] == [record(1).span_id]
    assert reader.missing == [gone]
