"""A table of the workspace as assertions see it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tracelake.errors import QueryError
from tracelake.query.sql import rows_of
from tracelake.query.traces import Trace, traces_of
from tracelake.spans import rows
from tracelake.spans.record import SpanRecord
from tracelake.testing.state import Table
from tracelake.testing.storage.lakehouse import Lakehouse
from tracelake.testing.unity.catalog import canonical
from tracelake.testing.web.app import Exchange

_POLL_S = 0.05


class MockTable:
    """A table, read anew with each call, whoever wrote it.

    Attributes:
        name: its full name.
        location: where its Delta table is, a `file://` or `s3://` URL.
    """

    def __init__(self, table: Table, lakehouse: Lakehouse, requests: Callable[[], list[Exchange]]) -> None:
        self.name = table.full_name
        self.location = table.storage_location
        self._table = table
        self._lakehouse = lakehouse
        self._requests = requests

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows as plain values by column: a MAP is a dict, a VARIANT what it holds."""
        return list(rows_of(self._lakehouse.open(self._table).to_pyarrow_table()))

    def spans(self) -> list[SpanRecord]:
        """Return the spans of a span table, by start time; a span that was delivered twice is there twice.

        Values of a version 1 table are text, as they are in the table.

        Raises:
            QueryError: it is no span table.
        """
        records = rows.from_arrow(self._lakehouse.open(self._table).to_pyarrow_table())
        return sorted(records, key=lambda record: (record.start_time_unix_nano, record.end_time_unix_nano))

    def traces(self) -> list[Trace]:
        """Return the traces of a span table, by the start of their first span."""
        return traces_of(self.spans())

    def wait_for_spans(self, count: int, timeout_s: float = 10.0) -> list[SpanRecord]:
        """Wait until a span table has `count` spans or more, and return them.

        Raises:
            QueryError: it has fewer when the time is up.
        """
        deadline_s = time.monotonic() + timeout_s
        while len(found := self.spans()) < count:
            if time.monotonic() > deadline_s:
                raise QueryError(
                    f"{self.name} has {len(found)} spans after {timeout_s:g} s, and {count} were waited for. "
                    "See what was sent, and what was answered, with `requests()`."
                )
            time.sleep(_POLL_S)
        return found

    def requests(self) -> list[Exchange]:
        """Return the OTLP requests that named this table, in the order they were answered."""
        return [
            each
            for each in self._requests()
            if canonical(each.request.headers.get("x-databricks-uc-table-name", "")) == self.name
        ]
