from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from tests.query.samples import write_table
from tests.spans.samples import TRACE_ID, span
from tracelake.destinations.base import Finding, Sink
from tracelake.errors import MissingDependencyError, QueryError
from tracelake.query.sql import sql
from tracelake.query.traces import get_trace


@dataclass(frozen=True)
class Elsewhere:
    """A destination that is no table."""

    target: str = "elsewhere://x"
    identity: Any = None

    def check(self) -> list[Finding]:
        return []

    def open(self) -> Sink:
        raise NotImplementedError


@dataclass(frozen=True)
class Readable(Elsewhere):
    """A destination of a plugin, whose table can be read."""

    path: str = ""

    def open_table(self) -> DeltaTable:
        return DeltaTable(self.path)


@pytest.mark.parametrize(("package", "extra"), [("deltalake", "delta"), ("pyarrow", "delta"), ("duckdb", "sql")])
def test_a_missing_package_is_answered_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    """Reading is optional, recording is not."""
    destination = write_table(tmp_path / "table", [span(1)])
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"'{package}'.*pip install 'tracelake\[{extra}\]'"):
        sql("FROM spans", destination)


def test_a_destination_that_is_no_table_is_not_read() -> None:
    """The message says where to look."""
    with pytest.raises(QueryError, match=r"elsewhere://x is not a table.*--target"):
        get_trace(TRACE_ID, Elsewhere())


def test_a_destination_that_opens_its_own_table_is_read(tmp_path: Path) -> None:
    """As one in a catalog does, with credentials of its own."""
    write_table(tmp_path / "table", [span(1)])
    assert len(get_trace(TRACE_ID, Readable(path=str(tmp_path / "table"))).spans) == 1
    assert sql("FROM spans", Readable(path=str(tmp_path / "table"))).num_rows == 1
