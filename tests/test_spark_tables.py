"""Span tables that Spark wrote, with the table features that Databricks turns on, read by tracelake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from tests.query.samples import write_table
from tests.query.test_search import RECORDS, trace_id
from tests.spans.test_engines import spark  # noqa: F401 - a fixture
from tracelake.destinations.targets import parse_target
from tracelake.errors import QueryError, TraceNotFoundError
from tracelake.query import annotate
from tracelake.query.reader import open_reader
from tracelake.query.search import Search, search_traces
from tracelake.query.sql import sql
from tracelake.query.traces import get_trace

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

# Properties, and what stands before them in the statement that makes the table.
FEATURES = {
    "deletion vectors": ("", {"delta.enableDeletionVectors": "true"}),
    "column mapping": ("", {"delta.columnMapping.mode": "name"}),
    "column mapping by id": ("", {"delta.columnMapping.mode": "id"}),
    "clustering": ("CLUSTER BY (trace_id, name)", {}),
    "partitions": ("PARTITIONED BY (name)", {"delta.enableDeletionVectors": "false"}),
    "row tracking": ("", {"delta.enableRowTracking": "true"}),
    "v2 checkpoints": ("", {"delta.checkpointPolicy": "v2", "delta.checkpointInterval": "2"}),
    "in-commit timestamps": ("", {"delta.enableInCommitTimestamps": "true"}),
    "all of Databricks": (
        "CLUSTER BY (trace_id, name)",
        {
            "delta.enableDeletionVectors": "true",
            "delta.enableRowTracking": "true",
            "delta.checkpointPolicy": "v2",
            "delta.checkpointInterval": "2",
            "delta.enableInCommitTimestamps": "true",
        },
    ),
}


@pytest.mark.parametrize(
    ("version", "feature"), [(1, "deletion vectors"), (1, "all of Databricks"), *((2, feature) for feature in FEATURES)]
)
def test_table_of_spark(spark: Any, tmp_path: Path, version: int, feature: str) -> None:  # noqa: F811
    """All that reads finds its rows, and none that was deleted."""
    written = write_table(tmp_path / "written", RECORDS, version)
    layout, properties = FEATURES[feature]
    table = str(tmp_path / "spans")
    listed = ", ".join(f"'{name}' = '{value}'" for name, value in properties.items())
    spark.sql(
        f"CREATE TABLE delta.`{table}` USING DELTA {layout} {f'TBLPROPERTIES ({listed})' if listed else ''} "
        f"AS SELECT * FROM delta.`{written.target}`"
    )
    spark.sql(f"DELETE FROM delta.`{table}` WHERE trace_id = '{trace_id(2)}' AND span_id = '{2:016x}'")
    spark.sql(f"DELETE FROM delta.`{table}` WHERE trace_id = '{trace_id(1)}'")
    if properties.get("delta.enableDeletionVectors") == "true":
        assert "deletionVectors" in (DeltaTable(table).protocol().reader_features or ())
    destination = parse_target(table)

    expected = [each for each in RECORDS if each.trace_id == trace_id(3)]
    found = get_trace(trace_id(3), destination)
    assert [(each.span_id, each.name, each.parent_span_id, each.end_time_unix_nano) for each in found.spans] == [
        (each.span_id, each.name, each.parent_span_id, each.end_time_unix_nano) for each in expected
    ]
    assert found == get_trace(trace_id(3), written)
    assert [each.span_id for each in get_trace(trace_id(2), destination).spans] == [f"{1:016x}"]

    if "column mapping" in feature:
        with pytest.raises(QueryError, match=r"column mapping.*tracelake show.*Spark"):
            sql("SELECT 1 FROM spans", destination)
        return
    rows = sql("SELECT trace_id, span_id FROM spans ORDER BY ALL", destination).to_pylist()
    gone = {(trace_id(1), f"{1:016x}"), (trace_id(1), f"{2:016x}"), (trace_id(2), f"{2:016x}")}
    assert [tuple(row.values()) for row in rows] == sorted({(each.trace_id, each.span_id) for each in RECORDS} - gone)
    with open_reader(destination) as reader:
        assert reader.run("SELECT count(*) AS n FROM spans WHERE name = 'ask'").to_pylist() == [{"n": 1}]
    page = search_traces(destination, Search())
    assert [info.trace_id for info in page] == [trace_id(number) for number in (4, 3, 2)]
    assert page[1] == search_traces(written, Search(name="ask"))[0]
    assert [info.trace_id for info in search_traces(destination, Search(text="hello"))] == [trace_id(3)]


def test_deletion_vectors_that_duckdb_cannot_read(spark: Any, tmp_path: Path) -> None:  # noqa: F811
    """Of spans that is an error, but for a trace by its id; what is annotated is small, and read another way."""
    destination = write_table(tmp_path / "spans", RECORDS)
    for number in (1, 3):
        annotate.set_tags(destination, trace_id(number), {"number": str(number)})
    for name in ("annotations", "spans"):
        table = str(tmp_path / name)
        (tmp_path / name).rename(tmp_path / f"{name}-before")
        spark.sql(
            f"CREATE TABLE delta.`{table}` USING DELTA PARTITIONED BY (name) "
            f"TBLPROPERTIES ('delta.enableDeletionVectors' = 'true') AS SELECT * FROM delta.`{table}-before`"
        )
        spark.sql(f"DELETE FROM delta.`{table}` WHERE trace_id = '{trace_id(3)}'")
        if name == "annotations":
            tags = {info.trace_id: info.tags.get("number") for info in search_traces(destination, Search())}
            assert tags == {trace_id(1): "1", **{trace_id(number): None for number in (2, 3, 4)}}
    with pytest.raises(QueryError, match=r"partitions with deletion vectors.*tracelake show"):
        search_traces(destination, Search())
    assert len(get_trace(trace_id(1), destination).spans) == 2
    with pytest.raises(TraceNotFoundError):
        get_trace(trace_id(3), destination)
