"""Which bytes of a lane go into the next batch, and the spans in them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field

from tracelake.destinations.base import Batch, Rejection
from tracelake.errors import LineError
from tracelake.spans.line import decode_line, decode_lines
from tracelake.spans.record import SpanRecord
from tracelake.spool.lane import Lane
from tracelake.spool.ledger import Ledger, Quarantined, Range
from tracelake.spool.segment import FORMAT_VERSION, Segment

# Spans are decoded by this much of the spool, or little more, at a time. It bounds the shipper's memory, and what was
# freed a moment ago is made use of again: several times as much takes half as long again.
_CHUNK_BYTES = 2**19

_TORN = "the line is torn: its writer ended, or its disk failed, while it was written"


@dataclass
class Plan:
    """What one look at a lane found.

    Attributes:
        ranges: the bytes of the next batch, whole lines but for the torn last one of a writer that is gone.
        size: their sum.
        full: whether the lane holds more than fits into this batch.
        finished: segments that are delivered to the end and whose writers are gone.
        cut: segments shorter than what was delivered from them, with their present size.
    """

    ranges: list[Range] = field(default_factory=list)
    size: int = 0
    full: bool = False
    finished: list[Segment] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)


def plan_batch(lane: Lane, ledger: Ledger, max_bytes: int) -> Plan:
    """Look at a lane and plan a batch of at most `max_bytes`, or of one line if that is longer. Changes nothing."""
    plan = Plan()
    for segment in lane.segments():
        if segment.version != FORMAT_VERSION:
            continue
        start = ledger.offsets.get(segment.name, 0)
        size = segment.size()
        if size < start:
            plan.cut[segment.name] = size
            start = size
        if size == start:
            # Asked for its size again after its lock: what was appended in between must not be taken for delivered.
            if not segment.is_open() and segment.size() == start:
                plan.finished.append(segment)
            continue
        room = max_bytes - plan.size
        end = _end(segment, start, size, room, empty=not plan.ranges)
        if end > start:
            plan.ranges.append(Range(segment.name, start, end))
            plan.size += end - start
        if size - start > room:
            plan.full = True
            break
    return plan


def _end(segment: Segment, start: int, size: int, room: int, *, empty: bool) -> int:
    if size - start > room:
        end = segment.end_of_lines(start, start + room)
        if end == start and empty:
            end = segment.end_of_line(start, size)
    else:
        end = segment.end_of_lines(start, size)
    if end == start and (empty or size - start <= room) and not segment.is_open():
        return segment.size()  # nothing but a torn line is left
    return end


class BatchReader:
    """The spans of a batch, read from its ranges.

    Attributes:
        bad: lines that are no spans, and are left out.
        missing: ranges whose segments somebody removed.
        spans: how many there are, by writer.
    """

    def __init__(self, lane: Lane, ranges: list[Range]) -> None:
        segments = {segment.name: segment for segment in lane.segments()}
        self._segments = [(segments[item.segment], item) for item in ranges if item.segment in segments]
        self.missing = [item for item in ranges if item.segment not in segments]
        self.bad: list[Quarantined] = []
        self.spans: dict[str, int] = {}
        self._read = False

    def batch(self, app_id: str, number: int, *, retried: bool) -> Batch:
        """Return the batch as a sink takes it."""
        size = sum(item.end - item.start for _, item in self._segments)
        return Batch(app_id, number, size, self.chunks, retried)

    def chunks(self) -> Iterator[list[SpanRecord]]:
        """Yield the spans in pieces; counts them by writer in `spans`."""
        self.bad = []
        self.spans = {}
        self._read = False
        chunk: list[SpanRecord] = []
        chunk_bytes = 0
        for segment, item in self._segments:
            for offset, block in segment.blocks(item.start, item.end):
                records = decode_lines(block)
                if records is None:
                    records = self._one_by_one(segment, offset, block)
                if records:
                    self.spans[segment.writer] = self.spans.get(segment.writer, 0) + len(records)
                    chunk += records
                chunk_bytes += len(block)
                if chunk_bytes >= _CHUNK_BYTES:
                    yield chunk
                    chunk, chunk_bytes = [], 0
        if chunk:
            yield chunk
        self._read = True

    def _one_by_one(self, segment: Segment, offset: int, block: bytes) -> list[SpanRecord]:
        records = []
        for line in io.BytesIO(block):
            try:
                if not line.endswith(b"\n"):
                    raise LineError(_TORN)
                records.append(decode_line(line))
            except LineError as error:
                self.bad.append(Quarantined(segment.name, offset, str(error), line))
            offset += len(line)
        return records

    def count(self) -> None:
        """Fill `bad` and `spans`, if the sink did not read to the end because it had the batch already."""
        if not self._read:
            for _ in self.chunks():
                continue

    def set_aside(self, rejections: list[Rejection]) -> None:
        """Move spans that the sink rejected to the bad lines."""
        reasons = {rejection.index: rejection.reason for rejection in rejections}
        if not reasons:
            return
        bad_lines = {(line.segment, line.offset) for line in self.bad}
        good = (item for item in self._lines() if (item[0].name, item[1]) not in bad_lines)
        for index, (segment, offset, line) in enumerate(good):
            if index in reasons:
                self.bad.append(Quarantined(segment.name, offset, reasons[index], line))
                self.spans[segment.writer] -= 1

    def _lines(self) -> Iterator[tuple[Segment, int, bytes]]:
        for segment, item in self._segments:
            for offset, line in segment.lines(item.start, item.end):
                yield segment, offset, line
