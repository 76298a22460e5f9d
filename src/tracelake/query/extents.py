"""When the spans of a table's files started, by the statistics in the table's log: which part of it holds how many."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from tracelake.query.relations import Times
from tracelake.spans import tables

if TYPE_CHECKING:
    from deltalake import DeltaTable


class Extent(NamedTuple):
    """Of one file: start times of its first and last span, nanoseconds since the Unix epoch, and how many it has.

    Attributes:
        name: of the file, without its directory.
    """

    first_ns: int
    last_ns: int
    rows: int
    name: str = ""


class Extents:
    """The extents of a table's files.

    `recent` and `earliest` count whole files, so that few of them are opened for a part of the table, and there may be
    fewer spans in it than were asked for.
    """

    def __init__(self, extents: Iterable[Extent], unknown: int = 0) -> None:
        """Take those that are known, and how many files have none: those may hold anything."""
        self._extents = list(extents)
        self._unknown = unknown
        # A name that two directories have says nothing.
        counts = Counter(each.name for each in self._extents)
        self._by_name = {each.name: each for each in self._extents if counts[each.name] == 1}

    @classmethod
    def of(cls, table: DeltaTable) -> Extents:
        """Return those of a table's version; reads no file."""
        import pyarrow as pa

        actions = pa.table(table.get_add_actions(flatten=True))
        names = [f"min.{tables.START_TIME}", f"max.{tables.START_TIME}", "num_records"]
        if not set(names) <= set(actions.column_names):
            return cls((), actions.num_rows)
        files = [os.path.basename(unquote(path)) for path in actions["path"].to_pylist()]
        found = list(zip(*(actions[name].to_pylist() for name in names), files, strict=True))
        known = [Extent(*each) for each in found if None not in each]
        return cls(known, len(found) - len(known))

    def within(self, paths: Iterable[str], times: Times) -> list[str]:
        """Return those of these files that may have spans which started in a time."""
        start, end = times
        if start is None and end is None:
            return list(paths)
        found = []
        for path in paths:
            known = self._by_name.get(os.path.basename(path))
            is_out = known and (
                (start is not None and known.last_ns < start) or (end is not None and known.first_ns >= end)
            )
            if not is_out:
                found.append(path)
        return found

    def recent(self, rows: int, before_ns: int | None = None) -> int:
        """Return a time such that about so many spans started from then until `before_ns`; 0 if there are no more."""
        if self._unknown:
            return 0
        wanted = [each for each in self._extents if before_ns is None or each.first_ns < before_ns]
        wanted.sort(key=lambda each: each.last_ns, reverse=True)
        count = 0
        for each, older in pairwise(wanted):
            count += each.rows
            # From the end of the next file on, only those before it have anything.
            if count >= rows and (before_ns is None or older.last_ns < before_ns - 1):
                return older.last_ns + 1
        return 0

    def earliest(self, rows: int, after_ns: int = 0) -> int | None:
        """Return a time such that about so many spans started from `after_ns` until then; None if there are no more."""
        if self._unknown:
            return None
        wanted = [each for each in self._extents if each.last_ns >= after_ns]
        wanted.sort(key=lambda each: each.first_ns)
        count = 0
        for each, newer in pairwise(wanted):
            count += each.rows
            if count >= rows and newer.first_ns > after_ns:
                return newer.first_ns
        return None
