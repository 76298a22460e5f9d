"""Which part of a table's time has about so many spans."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.query.samples import write_table
from tests.spans.samples import span
from tracelake.destinations.targets import parse_target
from tracelake.query.extents import Extent, Extents
from tracelake.query.table import open_table

DISJOINT = Extents([Extent(first, first + 9, 10) for first in range(0, 100, 10)])


@pytest.mark.parametrize(
    ("rows", "before", "found"),
    [(1, None, 90), (10, None, 90), (11, None, 80), (95, None, 0), (10, 50, 40), (10, 45, 40), (10, 5, 0), (1, 0, 0)],
)
def test_recent(rows: int, before: int | None, found: int) -> None:
    """The start of the file with which there are enough; the end of the one before it, to be exact."""
    assert DISJOINT.recent(rows, before) == found


@pytest.mark.parametrize(
    ("rows", "after", "found"), [(1, 0, 10), (11, 0, 20), (95, 0, None), (10, 50, 60), (10, 95, None), (1, 200, None)]
)
def test_earliest(rows: int, after: int, found: int | None) -> None:
    """The same from the other end."""
    assert DISJOINT.earliest(rows, after) == found


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30), st.integers(1, 9)), max_size=12),
    st.integers(1, 40),
)
def test_going_on_comes_to_an_end(files: list[tuple[int, int, int]], rows: int) -> None:
    """Each step goes on from the one before, whatever the files are, and after the last there is nothing left."""
    extents = Extents([Extent(first, first + length, count) for first, length, count in files])
    before: int | None = None
    for _ in range(len(files) + 1):
        following = extents.recent(rows, before)
        if following == 0:
            break
        assert before is None or following < before
        before = following
    else:
        pytest.fail("it never ends")
    after: int | None = 0
    for _ in range(len(files) + 1):
        following_end = extents.earliest(rows, after or 0)
        if following_end is None:
            break
        assert following_end > (after or 0)
        after = following_end
    else:
        pytest.fail("it never ends")


def test_file_without_statistics_may_hold_anything() -> None:
    """So the whole table is the part."""
    extents = Extents([Extent(0, 9, 10), Extent(10, 19, 10)], unknown=1)
    assert (extents.recent(1), extents.earliest(1)) == (0, None)


@pytest.mark.parametrize("version", [1, 2])
def test_extents_of_a_table(tmp_path: Path, version: int) -> None:
    """They are in its log."""
    for number in (1, 2, 3):
        records = [span(number * 10 + each, start_time_unix_nano=number * 1000 + each) for each in range(5)]
        write_table(tmp_path / "table", records, version, number)
    extents = Extents.of(open_table(parse_target(str(tmp_path / "table"))))  # type: ignore[arg-type]
    assert (extents.recent(5), extents.recent(6), extents.recent(15)) == (2005, 1005, 0)
    assert extents.earliest(5) == 2000
