"""Catalogs, schemas and tables, as databricks-sdk and plain HTTP clients see them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests
from databricks.sdk import errors
from databricks.sdk.errors import BadRequest, InvalidParameterValue, NotFound, PermissionDenied
from databricks.sdk.service.catalog import ColumnInfo, ColumnTypeName, DataSourceFormat, TableType
from deltalake import DeltaTable

from tracelake import ConfigurationError
from tracelake.testing import MockWorkspace

from .sdk import client

BASE = "/api/2.1/unity-catalog"
# What delta-rs refuses a table without.
REQUIRED = {
    *("name", "catalog_name", "schema_name", "table_type", "columns", "table_id", "properties"),
    *("created_at", "updated_at", "storage_location"),
}


def ask(workspace: MockWorkspace, method: str, path: str, **keywords: Any) -> requests.Response:
    token = workspace.environment()["DATABRICKS_TOKEN"]
    return requests.request(
        method, f"{workspace.url}{BASE}{path}", headers={"Authorization": f"Bearer {token}"}, timeout=10, **keywords
    )


def column(name: str, kind: str = "string", position: int = 0) -> ColumnInfo:
    return ColumnInfo(
        name=name, type_name=ColumnTypeName.STRING, type_text=kind, type_json=json.dumps(kind), position=position
    )


def test_catalogs_and_schemas(workspace: MockWorkspace) -> None:
    asking = client(workspace)
    made = asking.catalogs.create("lab", comment="trials", properties={"a": "1"})
    assert (made.name, made.full_name, made.owner, made.comment) == ("lab", "lab", workspace.user, "trials")
    assert (made.properties, made.created_by, made.updated_at) == ({"a": "1"}, workspace.user, made.created_at)
    schema = asking.schemas.create("runs", "lab", comment="of the lab")
    assert (schema.full_name, schema.catalog_name, schema.comment) == ("lab.runs", "lab", "of the lab")
    assert asking.schemas.get("lab.runs") == schema
    assert asking.catalogs.get("lab") == made
    assert [each.name for each in asking.catalogs.list()] == ["lab", "main"]
    assert [each.full_name for each in asking.schemas.list("lab")] == ["lab.runs"]

    ann = workspace.add_user("ann@example.com").name
    assert asking.catalogs.update("lab", comment="", owner=ann).owner == ann
    assert asking.schemas.update("lab.runs", comment="other").comment == "other"
    assert asking.catalogs.get("lab").comment is None
    with pytest.raises(NotFound, match="Could not find principal"):
        asking.schemas.update("lab.runs", owner="nobody@example.com")

    with pytest.raises(BadRequest, match=r"lab.runs is in it"):
        asking.catalogs.delete("lab")
    asking.catalogs.delete("lab", force=True)
    with pytest.raises(NotFound):
        asking.schemas.get("lab.runs")
    asking.schemas.delete("main.obs")
    assert list(asking.schemas.list("main")) == []


def test_names_are_kept_in_lower_case(workspace: MockWorkspace) -> None:
    asking = client(workspace)
    asking.catalogs.create("Lab")
    asking.schemas.create("Runs", "LAB")
    assert asking.schemas.get("lab.RUNS").full_name == "lab.runs"
    workspace.create_table("LAB.runs.Spans")
    assert asking.tables.get("Lab.Runs.SPANS").full_name == "lab.runs.spans"
    assert [table.name for table in asking.tables.list("LAB", "RUNS")] == ["spans"]
    assert asking.tables.exists("LAB.RUNS.SPANS").table_exists
    workspace.grant("SELECT", on="LAB.RUNS.Spans", to=workspace.user)
    assert asking.grants.get("table", "lab.runs.SPANS").privilege_assignments is not None
    assert workspace.table("Lab.Runs.Spans").name == "lab.runs.spans"
    with pytest.raises(BadRequest, match="already exists"):
        asking.catalogs.create("lab")
    with pytest.raises(BadRequest, match="already exists"):
        asking.schemas.create("runs", "Lab")
    with pytest.raises(ConfigurationError, match="already exists"):
        workspace.create_table("lab.runs.SPANS")
    asking.tables.delete("LAB.runs.spans")
    assert not asking.tables.exists("lab.runs.spans").table_exists


@pytest.mark.parametrize("name", ["a b", "a/b", "x" * 256, "a.b", "\x7f"])
def test_names_that_cannot_be(workspace: MockWorkspace, name: str) -> None:
    asking = client(workspace)
    with pytest.raises(InvalidParameterValue):
        asking.schemas.create(name, "main")
    with pytest.raises(InvalidParameterValue):
        asking.catalogs.create(name)


def test_what_is_missing(workspace: MockWorkspace) -> None:
    asking = client(workspace)
    with pytest.raises(NotFound, match="Catalog 'no' does not exist") as missing:
        asking.tables.get("no.obs.spans")
    assert missing.value.error_code == "CATALOG_DOES_NOT_EXIST"
    with pytest.raises(NotFound, match=r"Schema 'main.no' does not exist"):
        asking.tables.exists("main.no.spans")
    with pytest.raises(NotFound, match=r"Table 'main.obs.no' does not exist") as missing:
        asking.tables.get("main.obs.no")
    assert missing.value.error_code == "TABLE_DOES_NOT_EXIST"
    assert asking.tables.exists("main.obs.no").table_exists is False
    with pytest.raises(NotFound):
        asking.tables.delete("main.obs.no")
    with pytest.raises(NotFound):
        list(asking.tables.list("main", "no"))
    with pytest.raises(InvalidParameterValue):
        asking.tables.get("main.obs")
    with pytest.raises(InvalidParameterValue, match="catalog_name is missing"):
        list(asking.schemas.list(""))


def test_a_managed_span_table(workspace: MockWorkspace) -> None:
    made = workspace.create_table("main.obs.spans")
    table = client(workspace).tables.get("main.obs.spans", include_delta_metadata=True, include_browse=True)
    assert (table.table_type, table.data_source_format) == (TableType.MANAGED, DataSourceFormat.DELTA)
    assert (table.storage_location, table.owner) == (made.location, workspace.user)
    assert table.properties == {"otel.schemaVersion": "v2"}
    kinds = {each.name: each.type_name for each in table.columns}
    assert kinds["trace_id"] is ColumnTypeName.STRING
    assert kinds["events"] is ColumnTypeName.ARRAY
    assert kinds["start_time_unix_nano"] is ColumnTypeName.LONG
    raw = ask(workspace, "GET", "/tables/main.obs.spans").json()
    assert raw.keys() >= REQUIRED
    assert all(isinstance(raw[name], int) for name in ("created_at", "updated_at"))
    assert [each["position"] for each in raw["columns"]] == list(range(len(raw["columns"])))


def test_tables_of_other_kinds(workspace: MockWorkspace, tmp_path: Path) -> None:
    workspace.create_table("main.obs.view", view_definition="SELECT 1 AS one", columns={"one": "integer"})
    workspace.create_table(
        *("main.obs.foreign",), table_type="FOREIGN", data_source_format="SNOWFLAKE_FORMAT", columns={"id": "long"}
    )
    pairs = {"type": "map", "keyType": "string", "valueType": "double", "valueContainsNull": True}
    workspace.create_table("main.obs.other", columns={"ID": "long", "pairs": pairs}, location=str(tmp_path / "other"))
    view, foreign, other = (client(workspace).tables.get(f"main.obs.{name}") for name in ("view", "foreign", "other"))
    assert (view.table_type, view.view_definition) == (TableType.VIEW, "SELECT 1 AS one")
    assert (view.storage_location, view.data_source_format) == (None, None)
    assert (foreign.table_type, foreign.data_source_format) == (TableType.FOREIGN, DataSourceFormat.SNOWFLAKE_FORMAT)
    assert foreign.storage_location is None
    assert (other.table_type, other.storage_location) == (TableType.EXTERNAL, f"file://{tmp_path}/other")
    assert [(each.name, each.type_text) for each in other.columns] == [
        ("ID", "bigint"),
        ("pairs", "map<string,double>"),
    ]
    with pytest.raises(ConfigurationError, match="'bigint' is no type of Delta"):
        workspace.create_table("main.obs.bad", columns={"id": "bigint"})


def test_an_external_table_has_the_columns_of_the_delta_table_that_is_there(
    workspace: MockWorkspace, tmp_path: Path
) -> None:
    first = workspace.create_table("main.obs.first", columns={"id": "long"}, location=str(tmp_path / "a"))
    workspace.drop("main.obs.first")
    assert DeltaTable(first.location).version() == 0
    workspace.create_table("main.obs.second", location=str(tmp_path / "a"))
    assert [each.name for each in client(workspace).tables.get("main.obs.second").columns] == ["id"]


def test_lists_come_in_pages(workspace: MockWorkspace) -> None:
    for name in ("b", "c", "a"):
        workspace.create_table(f"main.obs.{name}", columns={"id": "long"})
    asking = client(workspace)
    assert [table.name for table in asking.tables.list("main", "obs", max_results=2)] == ["a", "b", "c"]
    assert len(workspace.requests(f"{BASE}/tables")) == 2
    bare = list(asking.tables.list("main", "obs", omit_columns=True, omit_properties=True, omit_username=True))
    assert [(table.columns, table.properties, table.owner) for table in bare] == [([], None, None)] * 3
    page = ask(workspace, "GET", "/tables?catalog_name=main&schema_name=obs&max_results=3").json()
    assert "next_page_token" not in page
    assert len(ask(workspace, "GET", "/tables?catalog_name=main&schema_name=obs").json()["tables"]) == 3
    summaries = asking.tables.list_summaries("main", table_name_pattern="_", schema_name_pattern="o%", max_results=2)
    assert [(each.full_name, each.table_type) for each in summaries] == [
        (f"main.obs.{name}", TableType.MANAGED) for name in "abc"
    ]
    assert list(asking.tables.list_summaries("main", table_name_pattern="b_")) == []
    for wrong in ("max_results=-1", "max_results=x", "page_token=%25", "page_token=YQ%3D"):
        answer = ask(workspace, "GET", f"/tables?catalog_name=main&schema_name=obs&{wrong}")
        assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), wrong


def test_an_external_table_is_registered(workspace: MockWorkspace, tmp_path: Path) -> None:
    workspace.grant("EXTERNAL USE SCHEMA", on="main.obs", to=workspace.user)
    asking = client(workspace)
    location = f"file://{tmp_path}/new"
    made = asking.tables.create(
        *("new", "main", "obs", TableType.EXTERNAL, DataSourceFormat.DELTA, location),
        columns=[column("b", "long", 1), column("a", position=0)],
        properties={"otel.schemaVersion": "2"},
    )
    assert (made.full_name, made.storage_location) == ("main.obs.new", location)
    assert [(each.name, each.type_name) for each in made.columns] == [
        ("a", ColumnTypeName.STRING),
        ("b", ColumnTypeName.LONG),
    ]
    # It is for the client to write there.
    assert not (tmp_path / "new").exists()
    for taken in (location, location + "/deeper", f"file://{tmp_path}"):
        with pytest.raises(InvalidParameterValue, match=r"overlaps with other external tables.*main\.obs\.new"):
            asking.tables.create("more", "main", "obs", TableType.EXTERNAL, DataSourceFormat.DELTA, taken)
    beside = asking.tables.create("more", "main", "obs", TableType.EXTERNAL, DataSourceFormat.DELTA, location + "2")
    assert beside.columns in (None, [])
    managed = workspace.create_table("main.obs.managed").location
    with pytest.raises(InvalidParameterValue, match="overlaps with managed storage"):
        asking.tables.create("x", "main", "obs", TableType.EXTERNAL, DataSourceFormat.DELTA, managed)
    with pytest.raises(BadRequest, match="already exists") as taken_name:
        asking.tables.create("new", "main", "obs", TableType.EXTERNAL, DataSourceFormat.DELTA, f"{location}3")
    assert taken_name.value.error_code == "TABLE_ALREADY_EXISTS"


def test_only_external_delta_tables_are_created_over_rest(workspace: MockWorkspace, tmp_path: Path) -> None:
    asking = client(workspace)
    for kind, form in (
        (TableType.MANAGED, DataSourceFormat.DELTA),
        (TableType.EXTERNAL, DataSourceFormat.PARQUET),
        (TableType.VIEW, DataSourceFormat.DELTA),
    ):
        with pytest.raises(InvalidParameterValue, match="from outside of Databricks"):
            asking.tables.create("t", "main", "obs", kind, form, f"file://{tmp_path}/t")


@pytest.mark.parametrize(
    "change",
    [
        {"storage_location": ""},
        {"storage_location": "relative/path"},
        {"storage_location": "s3://bucket/t"},
        {"name": "a.b"},
        {"name": 3},
        {"columns": "id"},
        {"columns": ["id"]},
        {"columns": [{"name": "id"}]},
        {"columns": [{"name": "id", "type_json": '"bigint"'}]},
        {"columns": [{"name": "id", "type_json": '{"type":"set"}'}]},
        {"columns": [{"name": "id", "type_json": '"long"'}, {"name": "ID", "type_json": '"long"'}]},
        {"columns": [{"name": "id", "type_json": '"long"', "position": "first"}]},
        {"columns": [{"name": "", "type_json": '"long"'}]},
        {"properties": ["a"]},
        {"properties": {"a": 1}},
        {"comment": 1},
    ],
)
def test_tables_that_cannot_be(workspace: MockWorkspace, tmp_path: Path, change: dict[str, Any]) -> None:
    workspace.grant("EXTERNAL USE SCHEMA", on="main.obs", to=workspace.user)
    body = {
        "name": "t",
        "catalog_name": "main",
        "schema_name": "obs",
        "table_type": "EXTERNAL",
        "data_source_format": "DELTA",
        "storage_location": f"file://{tmp_path}/t",
        **change,
    }
    answer = ask(workspace, "POST", "/tables", json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


def test_a_field_that_is_not_imitated_is_named(workspace: MockWorkspace) -> None:
    with pytest.raises(
        errors.NotImplemented, match=r"does not imitate the field storage_root of /api/2\.1/unity-catalog"
    ):
        client(workspace).catalogs.create("lab", storage_root="s3://bucket/lab")
    with pytest.raises(errors.NotImplemented, match="new_name"):
        client(workspace).catalogs.update("main", new_name="other")


def test_what_a_principal_may_see(workspace: MockWorkspace) -> None:
    workspace.create_table("main.obs.spans")
    ann = workspace.add_user("ann@example.com").name
    asking = client(workspace, ann)

    assert list(asking.catalogs.list()) == []
    for call in (
        lambda: asking.catalogs.get("main"),
        lambda: asking.schemas.get("main.obs"),
        lambda: asking.tables.get("main.obs.spans"),
        lambda: asking.tables.get("main.obs.missing"),
        lambda: asking.tables.exists("main.obs.missing"),
        lambda: list(asking.schemas.list("main")),
        lambda: list(asking.tables.list("main", "obs")),
    ):
        with pytest.raises(PermissionDenied, match="User does not have USE CATALOG on Catalog 'main'") as denied:
            call()
        assert denied.value.error_code == "PERMISSION_DENIED"
    with pytest.raises(PermissionDenied, match="CREATE CATALOG on Metastore"):
        asking.catalogs.create("lab")

    workspace.grant("USE CATALOG", on="main", to=ann)
    assert [each.name for each in asking.catalogs.list()] == ["main"]
    assert list(asking.schemas.list("main")) == []
    with pytest.raises(PermissionDenied, match=r"USE SCHEMA on Schema 'main\.obs'"):
        asking.tables.get("main.obs.spans")
    with pytest.raises(PermissionDenied, match="CREATE SCHEMA on Catalog"):
        asking.schemas.create("other", "main")

    workspace.grant("USE SCHEMA", on="main.obs", to=ann)
    assert [each.name for each in asking.schemas.list("main")] == ["obs"]
    assert list(asking.tables.list("main", "obs")) == []
    assert list(asking.tables.list_summaries("main")) == []
    with pytest.raises(PermissionDenied, match=r"SELECT on Table 'main\.obs\.spans'"):
        asking.tables.get("main.obs.spans")

    workspace.grant("MODIFY", on="main.obs.spans", to=ann)
    assert asking.tables.get("main.obs.spans").table_id
    assert [each.name for each in asking.tables.list("main", "obs")] == ["spans"]
    with pytest.raises(PermissionDenied, match="MANAGE on Table"):
        asking.tables.delete("main.obs.spans")
    with pytest.raises(PermissionDenied, match="MANAGE on Catalog"):
        asking.catalogs.update("main", comment="mine")


def test_browsing(workspace: MockWorkspace) -> None:
    workspace.create_table("main.obs.spans")
    ann = workspace.add_user("ann@example.com").name
    workspace.grant("BROWSE", on="main", to=ann)
    asking = client(workspace, ann)
    with pytest.raises(PermissionDenied):
        asking.tables.get("main.obs.spans")
    table = asking.tables.get("main.obs.spans", include_browse=True)
    assert (table.browse_only, table.name, table.storage_location) == (True, "spans", None)
    assert asking.catalogs.get("main", include_browse=True).browse_only
    assert [each.browse_only for each in asking.tables.list("main", "obs", include_browse=True)] == [True]
    assert client(workspace).tables.get("main.obs.spans", include_browse=True).browse_only is None


def test_owners_see_what_is_in_what_they_own(workspace: MockWorkspace) -> None:
    ann, ben = workspace.add_user("ann@example.com").name, workspace.add_user("ben@example.com").name
    workspace.grant("USE CATALOG", "CREATE SCHEMA", on="main", to="account users")
    client(workspace, ann).schemas.create("ann", "main")
    workspace.create_table("main.obs.spans")
    with pytest.raises(PermissionDenied):
        client(workspace, ben).schemas.get("main.ann")
    assert client(workspace).schemas.get("main.ann").owner == ann
    client(workspace).catalogs.update("main", owner=ben)
    assert client(workspace, ben).tables.get("main.obs.spans").owner == workspace.user
    client(workspace, ben).tables.update("main.obs.spans", owner=ann)
    table = client(workspace, ben).tables.get("main.obs.spans")
    assert (table.owner, table.created_by, table.updated_by) == (ann, workspace.user, ben)


def test_the_metastore(workspace: MockWorkspace) -> None:
    asking = client(workspace, workspace.add_user("ann@example.com").name)
    current, summary = asking.metastores.current(), asking.metastores.summary()
    assert current.metastore_id == summary.metastore_id
    assert current.workspace_id == asking.get_workspace_id()
    assert current.default_catalog_name == "main"
    assert (summary.owner, summary.external_access_enabled) == (workspace.user, True)
    workspace.set_external_access(False)
    assert asking.metastores.summary().external_access_enabled is False


def test_what_a_table_lets_other_engines_do(workspace: MockWorkspace, tmp_path: Path) -> None:
    workspace.create_table("main.obs.managed")
    workspace.create_table("main.obs.external", location=str(tmp_path / "t"))
    asking = client(workspace)
    managed, external = (
        asking.tables.get(f"main.obs.{name}", include_manifest_capabilities=True).securable_kind_manifest.capabilities
        for name in ("managed", "external")
    )
    assert managed == ["HAS_DIRECT_EXTERNAL_ENGINE_READ_SUPPORT"]
    assert external == [*managed, "HAS_DIRECT_EXTERNAL_ENGINE_WRITE_SUPPORT"]
    assert asking.tables.get("main.obs.managed").securable_kind_manifest is None


def test_it_survives_a_restart(tmp_path: Path) -> None:
    with MockWorkspace(str(tmp_path)) as before:
        before.create_schema("main.obs")
        before.create_table("main.obs.spans")
        was = client(before).tables.get("main.obs.spans")
    with MockWorkspace(str(tmp_path)) as after:
        assert client(after).tables.get("main.obs.spans") == was
        assert after.table("main.obs.spans").rows() == []
