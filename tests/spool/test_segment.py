"""Segments: names, whose they are, and whole and torn lines in them."""

from __future__ import annotations

import os
import stat
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from tests.lake import Lake, wait_until
from tests.numbered import add_segment
from tracelake.spool.lane import Lane
from tracelake.spool.segment import (
    FORMAT_VERSION,
    Segment,
    list_segments,
    new_writer_name,
    open_segment,
    remove_unfinished,
)


def segment_of(path: Path, data: bytes) -> Segment:
    path.write_bytes(data)
    return Segment(str(path), path.name, "writer", FORMAT_VERSION)


def test_segment_is_open_as_long_as_its_writer(tmp_path: Path) -> None:
    """A segment is named and locked at once, is its owner's only, and ends with its descriptor."""
    descriptor, path = open_segment(str(tmp_path), new_writer_name(), 1)
    [segment] = list_segments(str(tmp_path))
    assert segment.path == path
    assert segment.is_open()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    os.close(descriptor)
    assert not segment.is_open()


def test_segment_of_a_killed_writer_is_not_open(lake: Lake, lane: Lane) -> None:
    """A process need not say good-bye."""
    writer = lake.start(
        sys.executable,
        "-c",
        "import sys, time; from tracelake.spool.segment import open_segment, new_writer_name\n"
        "open_segment(sys.argv[1], new_writer_name(), 1); time.sleep(60)",
        lane.segments_dir,
    )
    [segment] = wait_until(lane.segments, "the segment is there")
    assert segment.is_open()
    writer.kill()
    writer.wait()
    assert not segment.is_open()


def test_segments_are_listed_oldest_first_and_nothing_else(lane: Lane) -> None:
    """Names sort by the time their writers started; files of other names, and unfinished ones, are no segments."""
    paths = [add_segment(lane, b"") for _ in range(3)]
    newer = add_segment(lane, b"", version=2)
    for name in ("notes.txt", os.path.basename(paths[0]) + ".new", "-000001.v1.jsonl"):
        Path(lane.segments_dir, name).touch()
    assert [segment.path for segment in lane.segments()] == [*paths, newer]
    assert [segment.version for segment in lane.segments()] == [1, 1, 1, 2]


def test_missing_directory_has_no_segments(tmp_path: Path) -> None:
    """A lane that is not made yet is empty."""
    assert list_segments(str(tmp_path / "none")) == []


def test_segment_that_is_gone_is_empty_and_closed(tmp_path: Path) -> None:
    """Between a look and the next, the shipper may have removed it."""
    segment = Segment(str(tmp_path / "gone"), "gone", "writer", FORMAT_VERSION)
    assert (segment.size(), segment.is_open(), segment.count_lines(0, 10)) == (0, False, 0)


@pytest.mark.parametrize(
    ("start", "limit", "end"),
    [(0, 3, 3), (0, 5, 3), (0, 6, 6), (0, 8, 6), (3, 8, 6), (6, 8, 6), (0, 2, 0)],
)
def test_end_of_lines_is_after_the_last_whole_line(tmp_path: Path, start: int, limit: int, end: int) -> None:
    """Neither a torn line nor one beyond the limit is taken."""
    assert segment_of(tmp_path / "s", b"aa\nbb\ncc").end_of_lines(start, limit) == end


def test_end_of_lines_finds_a_newline_far_from_the_end(tmp_path: Path) -> None:
    """A torn line may be longer than one look back."""
    segment = segment_of(tmp_path / "s", b"a\n" + b"x" * 300_000)
    assert segment.end_of_lines(0, segment.size()) == 2


def test_end_of_line_is_after_one_line(tmp_path: Path) -> None:
    """A line of megabytes is found to its end; an unfinished one is not there yet."""
    segment = segment_of(tmp_path / "s", b"x" * 3_000_000 + b"\nyy")
    assert segment.end_of_line(0, segment.size()) == 3_000_001
    assert segment.end_of_line(3_000_001, segment.size()) == 3_000_001


def test_lines_come_with_their_offsets(tmp_path: Path) -> None:
    """Empty lines are lines; the torn last one is told by its missing newline."""
    segment = segment_of(tmp_path / "s", b"aa\n\nbb\ncc")
    assert list(segment.lines(0, 9)) == [(0, b"aa\n"), (3, b"\n"), (4, b"bb\n"), (7, b"cc")]
    assert list(segment.lines(4, 7)) == [(4, b"bb\n")]
    assert segment.count_lines(0, 9) == 3
    assert segment.count_lines(4, 9) == 1


def test_blocks_are_whole_lines(tmp_path: Path) -> None:
    """They are all there is between two offsets; each begins where the last one ended, and none is much too large."""
    data = b"".join(bytes([97 + number % 26]) * (number * 7919 % 300_000) + b"\n" for number in range(40))
    data = data[:2_000_000] + b"\n" + b"x" * 3_500_000 + b"\n" + data[2_000_000:] + b"torn"
    segment = segment_of(tmp_path / "s", data)
    start = data.index(b"\n") + 1
    blocks = list(segment.blocks(start, len(data)))
    assert b"".join(block for _, block in blocks) == data[start:]
    for (offset, block), (following, _) in pairwise(blocks):
        assert offset + len(block) == following
        assert block.endswith(b"\n")
        assert len(block) <= 2**21 or b"x" * 3_500_000 in block
    assert blocks[-1][1] == b"torn"
    assert list(segment.blocks(start, start)) == []
    end = data.index(b"\n", 500_000) + 1
    assert b"".join(block for _, block in segment.blocks(0, end)) == data[:end]


def test_writer_names_are_all_different() -> None:
    """Processes of several containers with the same ids may share a spool."""
    assert len({new_writer_name() for _ in range(1000)}) == 1000


def test_unfinished_segment_of_a_killed_writer_is_removed(lane: Lane) -> None:
    """What was made and never named holds nothing; one that is being made is left alone."""
    Path(lane.segments_dir, "dead.new").touch()
    descriptor, path = open_segment(lane.segments_dir, new_writer_name(), 1)
    os.rename(path, path + ".new")
    remove_unfinished(lane.segments_dir)
    assert os.listdir(lane.segments_dir) == [os.path.basename(path) + ".new"]
    os.close(descriptor)


def test_segments_are_opened_while_unfinished_ones_are_removed(lane: Lane) -> None:
    """A shipper that starts cleans up at the very moment at which a writer makes its segment: nothing fails."""
    stop = threading.Event()

    def clean() -> None:
        while not stop.is_set():
            remove_unfinished(lane.segments_dir)

    cleaners = [threading.Thread(target=clean) for _ in range(2)]
    for cleaner in cleaners:
        cleaner.start()
    try:
        writer = new_writer_name()
        for sequence in range(300):
            descriptor, path = open_segment(lane.segments_dir, writer, sequence)
            assert os.path.exists(path)
            os.close(descriptor)
            os.unlink(path)
    finally:
        stop.set()
        for cleaner in cleaners:
            cleaner.join()


def test_segment_in_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    """The caller hears of it, and makes the directory."""
    with pytest.raises(FileNotFoundError):
        open_segment(str(tmp_path / "none"), new_writer_name(), 1)
