"""Spans as they land in a table."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from deltalake import DeltaTable

from tests.destinations.unity.conftest import prepare
from tests.query.deletion import delete_rows
from tests.query.samples import full_span, write_table
from tests.query.test_warehouse import NAME, close_files
from tests.spans.samples import span
from tracelake.destinations.base import Batch
from tracelake.destinations.targets import parse_target
from tracelake.errors import QueryError
from tracelake.query import arrivals as arrivals_module
from tracelake.query.arrivals import Arrivals
from tracelake.testing import MockWorkspace

VERSIONS = pytest.mark.parametrize("version", [1, 2])


def numbers(arrivals: Arrivals) -> list[int]:
    return [int(each.span_id, 16) for each in arrivals.poll()]


@VERSIONS
def test_only_what_lands_from_now_on(tmp_path: Path, version: int) -> None:
    """Once each, with all of its columns."""
    destination = write_table(tmp_path / "table", [span(1)], version)
    arrivals = Arrivals(destination)
    assert numbers(arrivals) == []
    write_table(tmp_path / "table", [full_span(2), span(3)], version, number=2)
    write_table(tmp_path / "table", [span(4)], version, number=3)
    found = list(arrivals.poll())
    assert [int(each.span_id, 16) for each in found] == [2, 3, 4]
    assert found[0].attributes["count"] == (3 if version == 2 else "3")
    assert numbers(arrivals) == []


def test_rows_that_are_rewritten_or_delivered_again_are_not_new(tmp_path: Path) -> None:
    """By compaction, by a deletion vector, or by a writer that asks again; vacuum takes nothing away."""
    destination = write_table(tmp_path / "table", [span(1)])
    arrivals = Arrivals(destination)
    write_table(tmp_path / "table", [span(2)], number=2)
    assert numbers(arrivals) == [2]
    table = DeltaTable(tmp_path / "table")
    table.optimize.compact()
    table.vacuum(0, dry_run=False, enforce_retention_duration=False)
    write_table(tmp_path / "table", [span(2), span(3)], number=3)
    assert numbers(arrivals) == [3]
    delete_rows(tmp_path / "table", [0])
    assert numbers(arrivals) == []


def test_file_that_is_gone_before_it_is_read(tmp_path: Path) -> None:
    """What has been put together meanwhile is passed over, and the rest is not."""
    destination = write_table(tmp_path / "table", [span(1)])
    arrivals = Arrivals(destination)
    write_table(tmp_path / "table", [span(2)], number=2)
    table = DeltaTable(tmp_path / "table")
    table.optimize.compact()
    table.vacuum(0, dry_run=False, enforce_retention_duration=False)
    write_table(tmp_path / "table", [span(3)], number=3)
    assert numbers(arrivals) == [3]


def test_table_that_comes_later_and_one_that_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both from their beginning."""
    monkeypatch.setattr(arrivals_module, "_REOPEN_S", 0.0)
    arrivals = Arrivals(parse_target(str(tmp_path / "table")))
    assert not arrivals.is_there
    assert numbers(arrivals) == []
    write_table(tmp_path / "table", [span(1)])
    assert numbers(arrivals) == [1]
    shutil.rmtree(tmp_path / "table")
    assert numbers(arrivals) == []
    write_table(tmp_path / "table", [span(2)])
    write_table(tmp_path / "table", [span(3)], number=2)
    assert numbers(arrivals) == [2, 3]


def test_log_whose_beginning_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on with what comes next."""
    monkeypatch.setattr(arrivals_module, "_REOPEN_S", 0.0)
    destination = write_table(tmp_path / "table", [span(1)])
    arrivals = Arrivals(destination)
    for number in (2, 3):
        write_table(tmp_path / "table", [span(number)], number=number)
    table = DeltaTable(tmp_path / "table")
    table.create_checkpoint()
    for log in sorted((tmp_path / "table" / "_delta_log").glob("*.json"))[:-1]:
        log.unlink()
    assert numbers(arrivals) == []
    write_table(tmp_path / "table", [span(4)], number=4)
    assert numbers(arrivals) == [4]


def test_table_in_unity_catalog(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an object store, by the credentials that the catalog gives; where it gives none, the message says so."""
    with MockWorkspace() as workspace:
        prepare(workspace, monkeypatch)
        workspace.use_s3(s3, "AKIALAKE", "0nlyF0rTheW0rkspace")
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        workspace.create_table(NAME, schema_version=2)
        arrivals = Arrivals(parse_target(NAME))
        assert not parse_target(NAME).open().write(Batch("tests", 1, 1_000, lambda: iter([[full_span(1), span(2)]])))
        assert numbers(arrivals) == [1, 2]
        assert numbers(arrivals) == []
        close_files(workspace)
        with pytest.raises(QueryError, match="EXTERNAL USE SCHEMA"):
            Arrivals(parse_target(NAME))
