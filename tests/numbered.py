"""Spans that are told apart by a number: as records, as lines of a segment, and as rows of a table."""

from __future__ import annotations

import os
from collections.abc import Iterable

from deltalake import DeltaTable

from tracelake.spans.line import encode_line
from tracelake.spans.record import SpanRecord
from tracelake.spool.lane import Lane
from tracelake.spool.segment import new_writer_name

TRACE_ID = "5" * 32
START_NS = 1_760_000_000_000_000_000


def record(number: int, text: str = "") -> SpanRecord:
    """Return a span whose id is the number."""
    return SpanRecord(TRACE_ID, f"{number:016x}", f"span {number}", START_NS, START_NS + 1, attributes={"text": text})


def line(number: int, text: str = "") -> bytes:
    """Return the line of `record`."""
    return encode_line(record(number, text))


def lines(numbers: Iterable[int]) -> bytes:
    """Return the lines of several spans."""
    return b"".join(map(line, numbers))


def ids(table: str) -> list[tuple[str, str]]:
    """Return (trace_id, span_id) of every row of a table, sorted; none if there is no table."""
    if not os.path.isdir(os.path.join(table, "_delta_log")):
        return []
    rows = DeltaTable(table).to_pyarrow_table(columns=["trace_id", "span_id"]).to_pylist()
    return sorted((row["trace_id"], row["span_id"]) for row in rows)


def numbers(table: str) -> list[int]:
    """Return the number of every row of a table, sorted."""
    return [int(span_id, 16) for _, span_id in ids(table)]


def add_segment(lane: Lane, data: bytes, *, version: int = 1) -> str:
    """Write a segment as a writer leaves it that is gone, and return its path."""
    path = os.path.join(lane.segments_dir, f"{new_writer_name()}-000001.v{version}.jsonl")
    # Named once it is whole: a shipper that runs would take an empty one for delivered, and remove it.
    with open(f"{path}.part", "wb") as file:
        file.write(data)
    os.rename(f"{path}.part", path)
    return path
