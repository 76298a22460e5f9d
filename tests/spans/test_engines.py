"""Tests that engines other than ours read the rows that delta-rs wrote: DuckDB always, Spark when it is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from deltalake import DeltaTable

from tracelake.spans import tables, values

from .samples import SPANS, STACK_TRACE, VALUES, land

JSON_VALUES = [
    name for name in VALUES if name not in ("nan", "infinity", "minus_infinity", "bytes", "empty_bytes", "list")
]


@pytest.fixture(scope="module", params=[1, 2])
def table(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tables.Version, DeltaTable]:
    """All samples in a table of each version."""
    return request.param, land(tmp_path_factory.mktemp("table"), list(SPANS.values()), request.param)


@pytest.fixture(scope="module")
def version_2(tmp_path_factory: pytest.TempPathFactory) -> DeltaTable:
    """All samples in a version 2 table."""
    return land(tmp_path_factory.mktemp("table"), list(SPANS.values()), 2)


def duck_rows(table: DeltaTable, select: str, where: str = "true") -> list[tuple[Any, ...]]:
    """Return what DuckDB selects from the Parquet files of a table."""
    files = ", ".join(f"'{uri.removeprefix('file://')}'" for uri in table.file_uris())
    with duckdb.connect() as connection:
        return connection.execute(f"SELECT {select} FROM read_parquet([{files}]) WHERE {where}").fetchall()


def variant(column: str) -> str:
    """Return the SQL of a VARIANT column's value."""
    return f"variant_bytes_to_variant({column}.metadata || {column}.value)"


@pytest.fixture(scope="module")
def duck_values(version_2: DeltaTable) -> dict[str, tuple[str | None, str]]:
    """The JSON and the type that DuckDB finds for each sample value, by span id."""
    value = f"variant_extract({variant('attributes')}, 'value')"
    found = duck_rows(
        version_2, f"span_id, {value}::JSON::VARCHAR, variant_typeof({value})", "span_id >= repeat('0', 14) || '64'"
    )
    return {span_id: (text, kind) for span_id, text, kind in found}


@pytest.mark.parametrize("name", JSON_VALUES)
def test_duckdb_reads_the_variant_of_a_value(duck_values: dict[str, tuple[str | None, str]], name: str) -> None:
    """DuckDB sees every value that JSON has a text for."""
    text, kind = duck_values[SPANS[name].span_id]
    assert (kind == "VARIANT_NULL") == (VALUES[name] is None)
    # DuckDB 2 gives SQL's null for a null inside a VARIANT, DuckDB 1 that of JSON.
    assert json.loads("null" if text is None else text) == VALUES[name]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("nan", "DOUBLE"), ("infinity", "DOUBLE"), ("float", "DOUBLE"), ("bytes", "BLOB"), ("empty_bytes", "BLOB")],
)
def test_duckdb_sees_the_type_of_a_value(duck_values: dict[str, tuple[str | None, str]], name: str, kind: str) -> None:
    """What JSON has no text for has its own type in a VARIANT."""
    assert duck_values[SPANS[name].span_id][1] == kind


def test_duckdb_reads_nested_variants(version_2: DeltaTable) -> None:
    """Attributes of events, links, resource and scope are VARIANTs as well."""
    ((stack, codes),) = duck_rows(
        version_2,
        f"variant_extract({variant('events[1].attributes')}, 'exception.stacktrace')::VARCHAR, "
        f"{variant('events[1].attributes')}::JSON->'$.detail.codes'",
        "name = 'span 9'",
    )
    assert (stack, json.loads(codes)) == (STACK_TRACE, [1, 2])
    ((link,),) = duck_rows(version_2, f"{variant('links[1].attributes')}::JSON::VARCHAR", "name = 'span 10'")
    assert json.loads(link) == {"why": "batch", "index": 3}
    ((resource, scoped),) = duck_rows(
        version_2,
        f"{variant('resource.attributes')}::JSON::VARCHAR, "
        f"variant_typeof(variant_extract({variant('instrumentation_scope.attributes')}, 'scoped'))",
        "service_name = 'shop'",
    )
    assert json.loads(resource) == {"service.name": "shop", "process.pid": 7, "tags": ["a", 1]}
    assert scoped == "BLOB"


def test_duckdb_reads_the_maps_of_version_1(table: tuple[tables.Version, DeltaTable]) -> None:
    """Every sample value is its text in a version 1 table, and kinds and times are the same in both."""
    version, written = table
    attributes = "attributes['value']" if version == 1 else "NULL"
    found = duck_rows(written, f"span_id, kind, start_time_unix_nano, {attributes}")
    by_id = {row[0]: row[1:] for row in found}
    assert len(by_id) == len(SPANS)
    for record in SPANS.values():
        kind, start, text = by_id[record.span_id]
        assert (kind, start) == (tables.SPAN_KINDS[record.kind], record.start_time_unix_nano)
        if version == 1 and "value" in record.attributes:
            assert text == values.json_text(record.attributes["value"])


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A local Spark with Delta; the first run downloads its packages from Maven Central."""
    sql = pytest.importorskip("pyspark.sql", reason="pyspark is not installed: pip install 'tracelake[spark]'")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java 17, and there is no java command")
    settings = {
        "spark.jars.packages": "io.delta:delta-spark_2.13:4.0.0",
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": "2g",
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse")),
    }
    builder = sql.SparkSession.builder.master("local[1]").appName("tracelake tests")
    for key, value in settings.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    yield session
    session.stop()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_spark_reads_the_variants_of_version_2(spark: Any, version_2: DeltaTable) -> None:
    """Spark finds every value in its own type, and the nested attributes."""
    frame = spark.read.format("delta").load(version_2.table_uri)
    assert frame.count() == len(SPANS)
    found = {
        row.span_id: row
        for row in frame.selectExpr(
            "span_id",
            "variant_get(attributes, '$.value', 'string') AS text",
            "to_json(variant_get(attributes, '$.value', 'variant')) AS json",
            "schema_of_variant(variant_get(attributes, '$.value', 'variant')) AS kind",
        )
        .where("name != 'span 1'")
        .collect()
    }
    for name, value in VALUES.items():
        row = found[SPANS[name].span_id]
        if name in JSON_VALUES:
            assert json.loads(row.json) == value, name
        if isinstance(value, str):
            assert row.text == value, name
    assert found[SPANS["nan"].span_id].kind == "DOUBLE"
    assert found[SPANS["infinity"].span_id].text == "Infinity"
    assert found[SPANS["bytes"].span_id].kind == "BINARY"
    (error,) = (
        frame.where("name = 'span 9'")
        .selectExpr(
            "variant_get(events[0].attributes, '$[\"exception.stacktrace\"]', 'string') AS stack",
            "variant_get(events[0].attributes, '$.detail.codes[1]', 'int') AS code",
            "events[0].name AS name",
            "status.code AS status",
        )
        .collect()
    )
    assert tuple(error) == (STACK_TRACE, 2, "exception", "STATUS_CODE_ERROR")
    (shop,) = (
        frame.where("service_name = 'shop'")
        .selectExpr(
            "variant_get(resource.attributes, '$[\"process.pid\"]', 'long') AS pid",
            "variant_get(instrumentation_scope.attributes, '$.scoped', 'binary') AS scoped",
            "CAST(time AS STRING) AS time",
            "parent_span_id IS NULL AS root",
        )
        .collect()
    )
    assert (shop.pid, bytes(shop.scoped), shop.time, shop.root) == (7, b"\x01", "2025-10-09 08:53:20.123456", True)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_spark_reads_the_maps_of_version_1(spark: Any, tmp_path: Path) -> None:
    """Spark finds the text of every value, and the property of the table."""
    written = land(tmp_path, list(SPANS.values()), 1)
    frame = spark.read.format("delta").load(written.table_uri)
    found = {row.span_id: row.text for row in frame.selectExpr("span_id", "attributes['value'] AS text").collect()}
    for name, value in VALUES.items():
        assert found[SPANS[name].span_id] == values.json_text(value), name
    (detail,) = spark.sql(f"DESCRIBE DETAIL delta.`{written.table_uri}`").select("properties").collect()
    assert detail.properties[tables.VERSION_PROPERTY] == "v1"
