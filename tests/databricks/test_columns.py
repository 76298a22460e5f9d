"""Columns of tables in Unity Catalog's words: read leniently, written exactly."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracelake.databricks.catalog import TableInfo
from tracelake.databricks.columns import columns_of, schema_of, type_text
from tracelake.databricks.names import TableName
from tracelake.spans import tables


@pytest.mark.parametrize("version", [1, 2])
def test_span_table_comes_back_as_it_was(version: tables.Version) -> None:
    """All types of a span table, with VARIANT."""
    schema = tables.delta_schema(version)
    assert schema_of(columns_of(schema)) == schema


@pytest.mark.parametrize("version", [1, 2])
def test_column_is_what_the_catalog_says_of_one(version: tables.Version) -> None:
    """Its name, type in three spellings, position, and whether it may be null."""
    columns = {str(column["name"]): column for column in columns_of(tables.delta_schema(version))}
    assert [column["position"] for column in columns.values()] == list(range(len(columns)))
    start = columns["start_time_unix_nano"]
    assert (start["type_text"], start["type_name"], start["nullable"]) == ("bigint", "LONG", True)
    assert json.loads(str(start["type_json"]))["type"] == "long"
    kind = columns["attributes"]
    assert (kind["type_text"], kind["type_name"]) == (
        ("variant", "VARIANT") if version == 2 else ("map<string,string>", "MAP")
    )
    assert str(columns["events"]["type_text"]).startswith("array<struct<time_unix_nano:bigint,name:string,attributes:")


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ({"type_json": '"string"'}, "string"),
        ({"type_json": '{"name":"c","type":"long","nullable":true,"metadata":{}}'}, "long"),
        ({"type_json": '{"type":"array","elementType":"long","containsNull":true}'}, {"type": "array"}),
        ({"type_text": "bigint"}, "long"),
        ({"type_text": "VARIANT"}, "variant"),
        ({"type_name": "INT"}, "integer"),
        ({"type_text": "geography(4326)"}, "geography(4326)"),
        ({"type_json": "{broken", "type_text": "tinyint"}, "byte"),
        ({"type_json": None, "type_text": None, "type_name": "INTERVAL"}, "interval"),
        ({"type_json": "7"}, 7),
        ({"type_json": "null", "type_text": "string"}, "string"),
        ({}, "unknown"),
    ],
)
def test_type_is_read_from_whatever_says_it(column: dict[str, Any], kind: Any) -> None:
    """A type that nobody knows here is kept as it is written: it must not break what does not need it."""
    (field,) = schema_of([{"name": "c", **column}])["fields"]
    found = field["type"]
    assert (found if isinstance(kind, (str, int)) else {"type": found["type"]}) == kind
    assert field["name"] == "c"
    assert field["nullable"] is True


def test_what_is_no_column_is_left_out() -> None:
    """Garbage in a list of columns hides none of the others."""
    assert schema_of([None, 7, "x", [], {"name": "a", "type_text": "string", "nullable": False}])["fields"] == [
        {"name": "a", "type": "string", "nullable": False, "metadata": {}}
    ]


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)
column_like = st.dictionaries(
    st.sampled_from(["name", "type_json", "type_text", "type_name", "nullable", "position", "other"]),
    st.one_of(json_values, json_values.map(json.dumps)),
)


@given(st.lists(st.one_of(json_values, column_like), max_size=4))
def test_no_answer_of_a_catalog_breaks_the_reader(columns: list[Any]) -> None:
    """Whatever the columns are, there is a schema with names."""
    for field in schema_of(columns)["fields"]:
        assert isinstance(field["name"], str)
        assert isinstance(field["nullable"], bool)


@pytest.mark.parametrize(
    "kind",
    ["text", "struct", {"type": "set"}, {"type": "array", "elementType": "x"}, {"type": "map", "keyType": "string",
     "valueType": "x"}, {"type": "struct", "fields": [{"name": "a", "type": "x"}]}],
)  # fmt: skip
def test_type_that_delta_has_not_is_not_written(kind: Any) -> None:
    """What makes a table has to be right."""
    with pytest.raises(ValueError, match="is no type of Delta"):
        type_text(kind)


@pytest.mark.parametrize("name", ["catalogManaged", "catalogOwned-preview", "catalogOwned"])
def test_commits_of_the_catalog_are_recognised(name: str) -> None:
    """By the feature, in all its spellings, and only where it is supported."""
    table = TableName("main", "obs", "spans")
    assert TableInfo(table, properties={f"delta.feature.{name}": "supported"}).catalog_managed
    assert not TableInfo(table, properties={f"delta.feature.{name}": "disabled"}).catalog_managed
    assert not TableInfo(table).catalog_managed
