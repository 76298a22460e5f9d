"""Tests of the table schemas: as Delta, as Arrow, and told apart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Schema

from tracelake.errors import PermanentDeliveryError
from tracelake.spans import tables

from .samples import create_table, table_schema

V1_COLUMNS = [
    "trace_id",
    "span_id",
    "trace_state",
    "parent_span_id",
    "flags",
    "name",
    "kind",
    "start_time_unix_nano",
    "end_time_unix_nano",
    "attributes",
    "dropped_attributes_count",
    "events",
    "dropped_events_count",
    "links",
    "dropped_links_count",
    "status",
    "resource",
    "resource_schema_url",
    "instrumentation_scope",
    "span_schema_url",
]


def test_columns_are_those_of_the_published_schemas() -> None:
    """Names and order are what Databricks documents; version 2 puts four columns before them."""
    assert tables.span_schema(1).names == V1_COLUMNS
    assert tables.span_schema(2).names == ["record_id", "time", "date", "service_name", *V1_COLUMNS]


def test_attribute_types_are_those_of_the_version() -> None:
    """Attributes are MAP<STRING,STRING> in version 1 and VARIANT in version 2, nested ones too."""
    for version, fits in ((1, pa.types.is_map), (2, tables.is_variant)):
        schema = tables.span_schema(version)
        assert fits(schema.field("attributes").type)
        assert fits(schema.field("events").type.value_type.field("attributes").type)
        assert fits(schema.field("links").type.value_type.field("attributes").type)
        assert fits(schema.field("resource").type.field("attributes").type)
        assert fits(schema.field("instrumentation_scope").type.field("attributes").type)


@pytest.mark.parametrize("version", [1, 2])
def test_table_has_the_schema_that_we_say(tmp_path: Path, version: tables.Version) -> None:
    """What delta-rs makes of our Delta JSON is the Arrow schema that we make of it, and the log holds the property."""
    create_table(tmp_path, version)
    table = DeltaTable(str(tmp_path))
    assert json.loads(table.schema().to_json()) == tables.delta_schema(version)
    assert pa.schema(table.schema().to_arrow()) == tables.span_schema(version) == table_schema(table)
    assert table.metadata().configuration == {"otel.schemaVersion": f"v{version}"}


def test_any_delta_type_becomes_the_arrow_type_that_delta_rs_gives() -> None:
    """The converter agrees with delta-rs on every type, nullability included."""
    types = [
        "string",
        "long",
        "integer",
        "short",
        "byte",
        "float",
        "double",
        "boolean",
        "binary",
        "date",
        "timestamp",
        "timestamp_ntz",
        "variant",
        "decimal(10,2)",
        "decimal(38,0)",
        {"type": "array", "elementType": "long", "containsNull": False},
        {"type": "map", "keyType": "string", "valueType": "double", "valueContainsNull": False},
        {"type": "struct", "fields": [{"name": "x", "type": "variant", "nullable": False, "metadata": {}}]},
    ]
    delta = {
        "type": "struct",
        "fields": [
            {"name": f"c{number}", "type": kind, "nullable": bool(number % 2), "metadata": {}}
            for number, kind in enumerate(types)
        ],
    }
    assert tables.arrow_schema(delta) == pa.schema(Schema.from_json(json.dumps(delta)).to_arrow())


@pytest.mark.parametrize("kind", ["interval", {"type": "tensor"}])
def test_unknown_delta_type_names_the_column(kind: object) -> None:
    """A type from the future is refused with its column's full name."""
    inner = {"type": "struct", "fields": [{"name": "odd", "type": kind, "nullable": True, "metadata": {}}]}
    delta = {"fields": [{"name": "outer", "type": inner}]}
    with pytest.raises(PermanentDeliveryError, match=r"Column outer\.odd has the Delta type .+ Upgrade tracelake"):
        tables.arrow_schema(delta)


@pytest.mark.parametrize("version", [1, 2])
def test_version_is_told_by_property_or_by_column_types(version: tables.Version) -> None:
    """A table without the property is taken by the type of its attributes."""
    assert tables.schema_version(tables.delta_schema(version)) == version
    assert tables.schema_version(tables.delta_schema(version), {"delta.appendOnly": "true"}) == version
    for stated in (str(version), f"v{version}"):
        assert tables.schema_version(tables.delta_schema(1), {"otel.schemaVersion": stated}) == version


def test_version_that_is_not_known_is_refused() -> None:
    """A newer table, and a table of something else, say what to do."""
    with pytest.raises(PermanentDeliveryError, match=r"is '3', and tracelake knows versions 1 and 2\. Upgrade"):
        tables.schema_version(tables.delta_schema(2), {"otel.schemaVersion": "3"})
    other = {"fields": [{"name": "id", "type": "string"}, {"name": "attributes", "type": "string"}]}
    with pytest.raises(PermanentDeliveryError, match=r"not a span table.+columns id, attributes\. Name a table"):
        tables.schema_version(other)


def test_import_of_spans_loads_no_heavy_package() -> None:
    """The recorder imports these modules in the app, where only msgspec may come along."""
    script = (
        "import sys, tracelake.spans.line, tracelake.spans.tables, tracelake.spans.variant, tracelake.spans.rows, "
        "tracelake.spans.otlp\n"
        "print([name for name in ('pyarrow', 'deltalake', 'google.protobuf') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
