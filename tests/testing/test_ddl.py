"""Statements that change the workspace, by databricks-sdk; what they make is seen by the workspace's other APIs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.query.samples import full_span
from tests.testing.sql import Sql
from tracelake.spans import rows, tables
from tracelake.testing import MockWorkspace

_MAP = "MAP<STRING, STRING>"
_COLUMNS = """
    trace_id STRING, span_id STRING, trace_state STRING, parent_span_id STRING, flags INT, name STRING, kind STRING,
    start_time_unix_nano LONG, end_time_unix_nano BIGINT, attributes {a}, dropped_attributes_count INT,
    events ARRAY<STRUCT<time_unix_nano: LONG, name: STRING, attributes: {a}, dropped_attributes_count: INT>>,
    dropped_events_count INT,
    links ARRAY<STRUCT<trace_id: STRING, span_id: STRING, trace_state: STRING, attributes: {a},
      dropped_attributes_count: INT, flags: INT>>,
    dropped_links_count INT, status STRUCT<message: STRING, code: STRING>,
    resource STRUCT<attributes: {a}, dropped_attributes_count: INT>, resource_schema_url STRING,
    instrumentation_scope STRUCT<name: STRING, version: STRING, attributes: {a}, dropped_attributes_count: INT>,
    span_schema_url STRING
"""
_V2_FIRST = "record_id STRING, time TIMESTAMP, date DATE, service_name STRING,"


@pytest.fixture
def sql(workspace: MockWorkspace) -> Sql:
    return Sql(workspace)


@pytest.mark.parametrize("version", [1, 2])
def test_a_span_table_made_by_sql_is_one(workspace: MockWorkspace, sql: Sql, version: tables.Version) -> None:
    """Exactly the columns of the schema version, and spans go into it."""
    columns = _COLUMNS.format(a="VARIANT" if version == 2 else _MAP)
    first = _V2_FIRST if version == 2 else ""
    sql.rows(
        f"CREATE TABLE spans ({first} {columns}) USING DELTA CLUSTER BY (trace_id) "
        f"TBLPROPERTIES ('{tables.VERSION_PROPERTY}' = '{version}', 'delta.x' = 'y')"
    )
    table = workspace._catalog.table("main.obs.spans")
    assert workspace._lakehouse.schema(table) == tables.span_schema(version)
    assert table.properties[tables.VERSION_PROPERTY] == str(version)
    converted, _ = rows.convert([full_span(1)], workspace._lakehouse.schema(table))
    workspace._lakehouse.append(table, converted)
    assert sql.row("SELECT attributes['mlflow.spanType']::string FROM spans") == ["TOOL"]
    assert [span.name for span in workspace.table("main.obs.spans").spans()] == ["span 1"]


def test_a_table_has_what_create_table_says(sql: Sql, tmp_path: Path) -> None:
    """Types, NOT NULL, comments, properties and the location; IF NOT EXISTS leaves the one that is there."""
    sql.rows(
        f"CREATE TABLE IF NOT EXISTS t (id BIGINT NOT NULL COMMENT 'key', d DECIMAL(10,2), v VARIANT, n TIMESTAMP_NTZ) "
        f"LOCATION '{tmp_path / 'external'}' COMMENT 'all of it' TBLPROPERTIES ('a' = 'b')"
    )
    sql.rows("CREATE TABLE IF NOT EXISTS t (other INT)")
    assert "[TABLE_OR_VIEW_ALREADY_EXISTS]" in sql.fault("CREATE TABLE t (other INT)")
    found = sql.client.tables.get("main.obs.t")
    assert found.table_type is not None
    assert found.table_type.value == "EXTERNAL"
    assert found.comment == "all of it"
    assert (found.properties or {})["a"] == "b"
    assert [(each.name, each.type_text, each.nullable) for each in found.columns or []] == [
        ("id", "bigint", False),
        ("d", "decimal(10,2)", True),
        ("v", "variant", True),
        ("n", "timestamp_ntz", True),
    ]
    assert sql.rows("DESCRIBE TABLE t")[0] == ["id", "bigint", "key"]
    sql.rows("ALTER TABLE t SET TBLPROPERTIES ('c' = 'd')")
    properties = sql.client.tables.get("main.obs.t").properties or {}
    assert (properties["a"], properties["c"]) == ("b", "d")
    sql.rows("DROP TABLE t")
    sql.rows("DROP TABLE IF EXISTS t")
    assert "[TABLE_OR_VIEW_NOT_FOUND]" in sql.fault("DROP TABLE t")


def test_rows_are_inserted_by_values_and_by_query(sql: Sql) -> None:
    """By position and by name; what is not given is NULL, and NOT NULL holds."""
    sql.rows("CREATE TABLE t (id BIGINT NOT NULL, name STRING, d DECIMAL(10,2), v VARIANT)")
    assert sql.row("INSERT INTO t VALUES (1, 'a', 2.5, parse_json('{\"k\": 1}')), (2, 'b', NULL, NULL)") == ["2", "2"]
    assert sql.row("INSERT INTO t (name, id) SELECT upper(name), id + 10 FROM t") == ["2", "2"]
    assert sql.rows("SELECT id, name, d, v:k::int, v FROM t ORDER BY id") == [
        ["1", "a", "2.50", "1", '{"k":1}'],
        ["2", "b", None, None, None],
        ["11", "A", None, None, None],
        ["12", "B", None, None, None],
    ]
    assert "[DELTA_NOT_NULL_CONSTRAINT_VIOLATED]" in sql.fault("INSERT INTO t (name) VALUES ('x')")
    assert "[INSERT_COLUMN_ARITY_MISMATCH]" in sql.fault("INSERT INTO t VALUES (1)")
    assert "[UNRESOLVED_COLUMN" in sql.fault("INSERT INTO t (id, nope) VALUES (1, 2)")
    assert "[DATATYPE_MISMATCH]" in sql.fault("INSERT INTO t (id) VALUES ('x')")
    assert sql.row("SELECT count(*) FROM t") == ["4"]


def test_views_are_made_replaced_and_dropped(workspace: MockWorkspace, sql: Sql) -> None:
    """Names in a view mean what they meant where it was made; its columns are Unity Catalog's."""
    workspace.create_schema("main.other")
    sql.rows("CREATE TABLE t (id INT, v VARIANT)")
    sql.rows('INSERT INTO t VALUES (1, parse_json(\'{"a.b": {"it\\\'s": "x"}}\'))')
    sql.rows(
        "CREATE VIEW main.other.v COMMENT 'c' AS WITH c AS (SELECT * FROM t) "
        "SELECT id, v:`a.b`['it\\'s']::string AS s FROM c"
    )
    assert sql.row("SELECT * FROM main.other.v") == ["1", "x"]
    assert sql.rows("DESCRIBE main.other.v") == [["id", "int", None], ["s", "string", None]]
    assert "main" in (sql.client.tables.get("main.other.v").view_definition or "")
    assert "[TABLE_OR_VIEW_ALREADY_EXISTS]" in sql.fault("CREATE VIEW main.other.v AS SELECT 1 AS a")
    sql.rows("CREATE OR REPLACE VIEW main.other.v AS SELECT 2 AS a")
    assert sql.row("SELECT * FROM main.other.v") == ["2"]
    assert "[EXPECT_VIEW_NOT_TABLE]" in sql.fault("CREATE OR REPLACE VIEW t AS SELECT 2 AS a")
    assert sql.row("SELECT id FROM t") == ["1"]
    assert "[TABLE_OR_VIEW_NOT_FOUND]" in sql.fault("CREATE VIEW w AS SELECT * FROM nope")
    assert "[WRONG_COMMAND_FOR_OBJECT_TYPE]" in sql.fault("DROP TABLE main.other.v")
    sql.rows("DROP VIEW main.other.v")
    assert sql.rows("SHOW TABLES IN main.other") == []


def test_catalogs_and_schemas_come_and_go(sql: Sql) -> None:
    sql.rows("CREATE CATALOG IF NOT EXISTS sales COMMENT 'c'")
    sql.rows("CREATE CATALOG IF NOT EXISTS sales")
    sql.rows("CREATE SCHEMA IF NOT EXISTS sales.emea COMMENT 'x'")
    sql.rows("CREATE SCHEMA IF NOT EXISTS sales.emea")
    sql.rows("CREATE TABLE sales.emea.t (id INT)")
    assert sql.client.schemas.get("sales.emea").comment == "x"
    assert ["sales"] in sql.rows("SHOW CATALOGS")
    assert ["emea"] in sql.rows("SHOW SCHEMAS IN sales")
    assert ["emea", "t", "false"] in sql.rows("SHOW TABLES IN sales.emea")
    assert "[CATALOG_ALREADY_EXISTS]" in sql.fault("CREATE CATALOG sales")
    assert "[SCHEMA_ALREADY_EXISTS]" in sql.fault("CREATE SCHEMA sales.emea")
    assert "[SCHEMA_NOT_EMPTY]" in sql.fault("DROP SCHEMA sales.emea")
    sql.rows("DROP SCHEMA sales.emea CASCADE")
    sql.rows("DROP CATALOG sales CASCADE")
    sql.rows("DROP CATALOG IF EXISTS sales")
    assert "[CATALOG_NOT_FOUND]" in sql.fault("SHOW SCHEMAS IN sales")


@pytest.mark.parametrize("form", ["COLUMN x ARRAY<INT>", "COLUMNS (x ARRAY<INT>)", "COLUMN `x` array<int>"])
def test_a_column_is_added(workspace: MockWorkspace, sql: Sql, form: str) -> None:
    """To the table and to what the catalog says of it, by whoever may write there; rows that are there have nulls."""
    sql.rows("CREATE TABLE t (id BIGINT)")
    sql.rows("INSERT INTO t VALUES (1)")
    sql.rows(f"ALTER TABLE t ADD {form}")
    assert sql.rows("SELECT * FROM t") == [["1", None]]
    columns = sql.client.tables.get("main.obs.t").columns or []
    assert [(column.name, column.type_text) for column in columns] == [("id", "bigint"), ("x", "array<int>")]
    workspace.add_user("reader@example.com")
    workspace.grant("USE CATALOG", "USE SCHEMA", "SELECT", on="main", to="reader@example.com")
    assert "MODIFY" in Sql(workspace, "reader@example.com").fault("ALTER TABLE t ADD COLUMN y INT")


def test_a_backtick_in_a_name_is_doubled(workspace: MockWorkspace, sql: Sql) -> None:
    """In all statements that name something."""
    workspace.add_user("a`b@example.com")
    sql.rows("CREATE CATALOG `c``d`")
    sql.rows("CREATE SCHEMA `c``d`.`e`")
    sql.rows("GRANT USE SCHEMA ON SCHEMA `c``d`.`e` TO `a``b@example.com`")
    granted = sql.client.grants.get("SCHEMA", "c`d.e").privilege_assignments or []
    assert [each.principal for each in granted] == ["a`b@example.com"]


def test_grants_are_given_shown_and_taken_back(workspace: MockWorkspace, sql: Sql) -> None:
    """With spaces in privileges and backticks around names; only by those who may."""
    workspace.add_user("ann@example.com")
    ann = Sql(workspace, "ann@example.com")
    sql.rows("CREATE TABLE t (id INT)")
    for statement in (
        "GRANT USE CATALOG ON CATALOG main TO `ann@example.com`",
        "GRANT USE SCHEMA, EXTERNAL USE SCHEMA ON SCHEMA `main`.`obs` TO `ann@example.com`",
        "grant select, modify on table main.obs.t to `ann@example.com`",
        "GRANT CREATE CATALOG ON METASTORE TO `ann@example.com`",
    ):
        sql.rows(statement)
    assert ann.rows("SELECT * FROM t") == []
    ann.rows("CREATE CATALOG hers")
    assert sql.rows("SHOW GRANTS `ann@example.com` ON SCHEMA main.obs") == [
        ["ann@example.com", "EXTERNAL USE SCHEMA", "SCHEMA", "main.obs"],
        ["ann@example.com", "USE SCHEMA", "SCHEMA", "main.obs"],
    ]
    assert "[INSUFFICIENT_PERMISSIONS]" in ann.fault("GRANT SELECT ON TABLE t TO `account users`")
    assert "[INSUFFICIENT_PERMISSIONS]" in ann.fault("DROP TABLE t")
    assert "[INSUFFICIENT_PERMISSIONS]" in ann.fault("CREATE TABLE u (id INT)")
    sql.rows("REVOKE SELECT ON TABLE t FROM `ann@example.com`")
    assert "SELECT on Table" in ann.fault("SELECT * FROM t")
    assert "[PRINCIPAL_NOT_FOUND]" in sql.fault("GRANT SELECT ON TABLE t TO `nobody`")
    assert "[PARSE_SYNTAX_ERROR]" in sql.fault("GRANT SELECT TO nobody")


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("UPDATE t SET id = 1", "UPDATE"),
        ("DELETE FROM t", "DELETE"),
        ("MERGE INTO t USING u ON t.id = u.id WHEN MATCHED THEN DELETE", "MERGE"),
        ("OPTIMIZE t", "OPTIMIZE"),
        ("VACUUM t", "VACUUM"),
        ("USE CATALOG main", "USE"),
        ("SET x = 1", "SET"),
        ("CREATE TABLE u AS SELECT 1", "CREATE TABLE AS SELECT"),
        ("CREATE OR REPLACE TABLE u (id INT)", "CREATE OR REPLACE TABLE"),
        ("CREATE TABLE u (id INT PRIMARY KEY)", "PRIMARY KEY"),
        ("CREATE TABLE u (id INT) USING PARQUET", "PARQUET"),
        ("CREATE FUNCTION f() RETURNS INT RETURN 1", "CREATE FUNCTION"),
        ("ALTER TABLE t DROP COLUMN x", "ALTER"),
        ("INSERT OVERWRITE t SELECT 1", "INSERT"),
        ("SHOW FUNCTIONS", "SHOW FUNCTIONS"),
        ("DESCRIBE TABLE EXTENDED t", "DESCRIBE"),
        ("EXPLAIN SELECT 1", "EXPLAIN"),
    ],
)
def test_what_is_not_imitated_says_so_by_name(sql: Sql, statement: str, name: str) -> None:
    sql.rows("CREATE TABLE t (id INT)")
    message = sql.fault(statement)
    assert message.startswith("[UNSUPPORTED_FEATURE] The mocked workspace does not imitate ")
    assert name in message
