"""The annotations table beside a span table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from tests.destinations.unity.conftest import prepare
from tests.query.samples import write_table
from tests.spans.samples import span
from tracelake.databricks.names import TableName
from tracelake.destinations.annotation_table import annotations_name, annotations_table
from tracelake.destinations.annotations import open_annotations
from tracelake.destinations.targets import parse_target
from tracelake.query.sql import sql
from tracelake.spans import tables
from tracelake.spans.annotations import Clock, annotations_schema, tag, to_arrow, to_rows
from tracelake.testing import MockWorkspace

SCHEMA = tables.arrow_schema(annotations_schema())


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch) -> Iterator[MockWorkspace]:
    with MockWorkspace() as made:
        prepare(made, monkeypatch)
        yield made


@pytest.mark.parametrize(
    ("spans", "annotations"),
    [
        ("agents_otel_spans", "agents_otel_annotations"),
        ("mlflow_experiment_trace_otel_spans", "mlflow_experiment_trace_otel_annotations"),
        ("/data/spans", "/data/annotations"),
        ("s3://bucket/spans/", "s3://bucket/annotations"),
        ("/data/traces", "/data/traces_annotations"),
    ],
)
def test_name(spans: str, annotations: str) -> None:
    """That of Databricks for its tables, and one beside any other."""
    assert annotations_name(spans) == annotations


def test_name_in_unity_catalog() -> None:
    """Only the last part of it changes."""
    assert str(annotations_table(TableName("spans", "spans", "a_spans"))) == "spans.spans.a_annotations"


def test_annotations_of_a_directory(tmp_path: Path) -> None:
    """They are read with the spans, value and all; without a table of them there are none."""
    destination = write_table(tmp_path / "spans", [span(1)])
    assert open_annotations(destination) is None
    rows = to_arrow(
        to_rows([tag("0" * 32, "team", "search"), tag("0" * 32, "gone", deleted=True)], "me", Clock()), SCHEMA
    )
    write_deltalake(str(tmp_path / "annotations"), pa.Table.from_batches([rows]))
    query = "SELECT name, value::VARCHAR AS value, deleted_at IS NOT NULL AS gone FROM annotations ORDER BY updated_at"
    assert sql(query, destination).to_pylist() == [
        {"name": "team", "value": "search", "gone": False},
        {"name": "gone", "value": "", "gone": True},
    ]


def test_annotations_in_unity_catalog(workspace: MockWorkspace) -> None:
    """None if there is no such table, and none of one that is empty."""
    workspace.create_table("main.obs.a_otel_spans")
    destination = parse_target("main.obs.a_otel_spans")
    assert open_annotations(destination) is None
    workspace.create_trace_location("main.obs.b")
    assert sql("SELECT * FROM annotations", parse_target("main.obs.b_otel_spans")).num_rows == 0


def test_destination_that_has_none() -> None:
    """An MLflow server keeps what it knows to itself."""
    assert open_annotations(parse_target("http://127.0.0.1:1")) is None


def test_versions_of_an_annotation_are_told_apart() -> None:
    """However short after each other they are made."""
    rows = to_arrow(to_rows([tag("0" * 32, "team", str(number)) for number in range(100)], "me", Clock()), SCHEMA)
    times = rows.column("updated_at").to_pylist()
    assert times == sorted(set(times))
    assert len(set(rows.column("annotation_id").to_pylist())) == 1
