"""The Delta tables of a workspace, which others write, change and remove as well."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Field, Schema, write_deltalake

from tests.testing.otlp_client import numbers, post, spans
from tracelake.errors import TracelakeError
from tracelake.spans import rows, tables
from tracelake.testing import MockTable, MockWorkspace
from tracelake.testing.storage import lakehouse

NAME = "main.obs.spans"


@pytest.fixture
def table(workspace: MockWorkspace, tmp_path: Path) -> Iterator[MockTable]:
    """An external table: others write to those."""
    return workspace.create_table(NAME, location=str(tmp_path / "spans"))


def append(location: str, first: int, count: int = 1, version: tables.Version = 2, **options: Any) -> None:
    """Write spans as somebody else."""
    batch = rows.to_arrow(spans(first, count), tables.span_schema(version))
    reader = pa.RecordBatchReader.from_batches(batch.schema, [batch])
    write_deltalake(location, reader, **{"mode": "append", **options})


def make(location: str, version: tables.Version = 2, mode: Literal["error", "overwrite"] = "error") -> None:
    """Make a table as somebody else."""
    DeltaTable.create(
        location, Schema.from_json(tables.delta_schema_json(version)), mode=mode, raise_if_key_not_exists=False
    )


def test_others_write_at_the_same_time(workspace: MockWorkspace, table: MockTable) -> None:
    wrote = threading.Thread(target=lambda: [append(table.location, 1000 + number) for number in range(20)])
    wrote.start()
    statuses = [post(workspace, NAME, number).status_code for number in range(1, 21)]
    wrote.join()
    assert statuses == [200] * 20
    assert numbers(table.location) == [*range(1, 21), *range(1000, 1020)]


def test_a_column_that_others_add_is_null(workspace: MockWorkspace, table: MockTable) -> None:
    assert post(workspace, NAME, 1).status_code == 200
    DeltaTable(table.location).alter.add_columns(Field("extra", "string"))
    assert [post(workspace, NAME, number).status_code for number in (2, 3)] == [200, 200]
    assert [row["extra"] for row in table.rows()] == [None] * 3
    assert numbers(table.location) == [1, 2, 3]


def test_another_schema_is_taken_up(workspace: MockWorkspace, table: MockTable) -> None:
    """The spans that are under way are asked for again, and nothing is written into columns of another type."""
    assert post(workspace, NAME, 1).status_code == 200
    make(table.location, version=1, mode="overwrite")
    append(table.location, 2, version=1)
    first = post(workspace, NAME, 3)
    assert (first.status_code, first.json()["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
    assert post(workspace, NAME, 4).status_code == 200
    assert numbers(table.location) == [2, 4]
    assert table.spans()[1].attributes["number"] == "4"


@pytest.mark.parametrize("commits", [0, 1, 5])
def test_a_table_that_others_replace(workspace: MockWorkspace, table: MockTable, commits: int) -> None:
    """The new one may have as many commits as the old one, or fewer, or more."""
    assert post(workspace, NAME, 1).status_code == 200
    directory = table.location.removeprefix("file://")
    shutil.rmtree(directory)
    make(directory)
    for number in range(commits):
        append(directory, 100 + number)
    assert post(workspace, NAME, 2).status_code == 200
    assert numbers(directory) == [2, *range(100, 100 + commits)]
    assert DeltaTable(directory).version() == commits + 1


def test_a_table_that_is_gone(workspace: MockWorkspace, table: MockTable) -> None:
    assert post(workspace, NAME, 1).status_code == 200
    directory = table.location.removeprefix("file://")
    shutil.rmtree(directory)
    for _ in range(2):
        response = post(workspace, NAME, 2)
        assert (response.status_code, response.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")
        assert f"The location {table.location} of table '{NAME}' has no Delta table" in response.json()["message"]
        assert not os.path.exists(directory)
    with pytest.raises(TracelakeError, match="has no Delta table"):
        table.spans()
    make(directory)
    assert post(workspace, NAME, 3).status_code == 200
    assert numbers(directory) == [3]


def test_others_compact_and_vacuum(workspace: MockWorkspace, table: MockTable) -> None:
    for number in range(1, 6):
        assert post(workspace, NAME, number).status_code == 200
    theirs = DeltaTable(table.location)
    theirs.optimize.compact()
    theirs.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    assert post(workspace, NAME, 6).status_code == 200
    assert numbers(table.location) == list(range(1, 7))


def test_small_files_are_put_together(workspace: MockWorkspace, table: MockTable) -> None:
    """What was written stays as it was, VARIANTs included, and the log gets a checkpoint."""
    for number in range(1, 61):
        assert post(workspace, NAME, number).status_code == 200
    assert len(DeltaTable(table.location).file_uris()) <= 25
    log = os.listdir(os.path.join(table.location.removeprefix("file://"), "_delta_log"))
    assert "_last_checkpoint" in log
    assert numbers(table.location) == list(range(1, 61))
    assert [record.attributes for record in table.spans()] == [record.attributes for record in spans(1, 60)]


def test_tables_survive_the_workspace(tmp_path: Path) -> None:
    for turn in (1, 2, 3):
        with MockWorkspace(str(tmp_path / "data")) as workspace:
            if turn == 1:
                workspace.create_schema("main.obs")
                workspace.create_table(NAME)
            assert post(workspace, NAME, turn).status_code == 200
            assert numbers(workspace.table(NAME).location) == list(range(1, turn + 1))


def test_a_dropped_table_takes_its_data_along_if_it_is_managed(workspace: MockWorkspace, table: MockTable) -> None:
    managed = workspace.create_table("main.obs.managed")
    assert post(workspace, "main.obs.managed", 1).status_code == 200
    assert post(workspace, NAME, 1).status_code == 200
    workspace.drop("main.obs.managed")
    workspace.drop(NAME)
    assert not os.path.exists(managed.location.removeprefix("file://"))
    assert numbers(table.location) == [1]


@pytest.mark.slow
def test_a_table_in_an_object_store(workspace: MockWorkspace, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others write there as well, and small files are put together."""
    monkeypatch.setattr(lakehouse, "_COMPACT_EVERY", 5)
    workspace.use_s3(s3, "AKIALAKE", "0nlyF0rTheW0rkspace")
    table = workspace.create_table(NAME, location="s3://lake/ingested/spans")
    theirs = {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "AKIATHEIRS",
        "AWS_SECRET_ACCESS_KEY": "theirs",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    for number in range(1, 9):
        assert post(workspace, NAME, number).status_code == 200
        if number == 3:
            append(table.location, 100, storage_options=theirs)
            DeltaTable(table.location, storage_options=theirs).alter.add_columns(Field("extra", "string"))
    assert numbers(table.location, theirs) == [*range(1, 9), 100]
    assert len(DeltaTable(table.location, storage_options=theirs).file_uris()) <= 5
    assert "0nlyF0rTheW0rkspace" not in repr(workspace.requests())
