"""Databricks SQL over the workspace's tables; what is expected is what Databricks documents."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.query.samples import full_span
from tests.spans.samples import span
from tests.testing.sql import Sql
from tracelake.spans import rows
from tracelake.testing import MockWorkspace

VERSIONS = pytest.mark.parametrize("spans", ["spans1", "spans2"])


@pytest.fixture(scope="module")
def workspace() -> Iterator[MockWorkspace]:
    """A workspace with a root and a child span, in a table of each schema version."""
    with MockWorkspace() as made:
        made.create_schema("main.obs")
        for version in (1, 2):
            name = f"main.obs.spans{version}"
            made.create_table(name, schema_version=version)  # type: ignore[arg-type]
            table = made._catalog.table(name)
            records = [full_span(1), span(2, parent_span_id=f"{1:016x}")]
            converted, refused = rows.convert(records, made._lakehouse.schema(table))
            assert not refused
            made._lakehouse.append(table, converted)
        yield made


@pytest.fixture(scope="module")
def sql(workspace: MockWorkspace) -> Sql:
    return Sql(workspace)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("attributes:`mlflow.spanType`::string", "TOOL"),
        ("attributes:['mlflow.spanType']::string", "TOOL"),
        ("attributes['mlflow.spanType']::string", "TOOL"),
        ("attributes:`mlflow.spanInputs`.q[0]::int", "1"),
        ("attributes:`mlflow.spanInputs`", '{"q":[1,null]}'),
        ("attributes:`mlflow.spanInputs`::string", '{"q":[1,null]}'),
        ("attributes:missing", None),
        ("variant_get(attributes, '$.count', 'int')", "3"),
        ("variant_get(attributes, '$[\"mlflow.spanInputs\"].q[0]', 'string')", "1"),
        ("try_variant_get(attributes, '$.mlflow', 'int')", None),
        ("try_variant_get(attributes, '$[\"mlflow.spanType\"]', 'int')", None),
        ("events[0].name", "exception"),
        ("events[0].attributes:n::double", "1.5"),
        ("resource.attributes:`service.name`::string", "search"),
        ("status.code", "STATUS_CODE_ERROR"),
        ("main.obs.spans2.status.code", "STATUS_CODE_ERROR"),
    ],
)
def test_what_a_variant_and_its_neighbours_hold_is_read(sql: Sql, expression: str, expected: str | None) -> None:
    """Paths, brackets and variant_get, in attributes, events and structs."""
    assert sql.row(f"SELECT {expression} FROM spans2 WHERE parent_span_id IS NULL") == [expected]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("attributes['mlflow.spanType']", "TOOL"),
        ("attributes['missing']", None),
        ("attributes['mlflow.spanInputs']:q[0]::int", "1"),
        ("attributes['mlflow.spanType'] = 'TOOL'", "true"),
        ("element_at(attributes, 'count')", "3"),
        ("map_contains_key(attributes, 'count')", "true"),
        ("map_from_entries(filter(map_entries(attributes), each -> each.key = 'count'))['count']", "3"),
        ("attributes['count']::int + 1", "4"),
    ],
)
def test_a_map_of_version_1_is_read_by_key_and_its_json_by_path(
    sql: Sql, expression: str, expected: str | None
) -> None:
    assert sql.row(f"SELECT {expression} FROM spans1 WHERE parent_span_id IS NULL") == [expected]


@VERSIONS
@pytest.mark.parametrize(
    "from_",
    [
        "{spans} AS s LATERAL VIEW explode(s.events) AS e",
        "{spans} AS s LATERAL VIEW explode(events) t AS e",
        "{spans} AS s, LATERAL explode(s.events) AS t(e)",
        "{spans} AS s LATERAL VIEW posexplode(events) t AS pos, e",
        "(SELECT name, explode(events) AS e FROM {spans}) AS s",
    ],
)
def test_events_are_exploded(sql: Sql, spans: str, from_: str) -> None:
    """In every way that the service has for arrays."""
    assert sql.rows(f"SELECT s.name, e.name FROM {from_.format(spans=spans)}") == [["span 1", "exception"]]


def test_an_outer_view_keeps_rows_of_nothing_and_a_map_has_two_columns(sql: Sql) -> None:
    assert sql.rows(
        "SELECT name, e.name AS event FROM spans2 LATERAL VIEW OUTER explode(events) AS e ORDER BY name"
    ) == [
        ["span 1", "exception"],
        ["span 2", None],
    ]
    assert ["count", "3"] in sql.rows("SELECT k, v FROM spans1 LATERAL VIEW explode(attributes) t AS k, v")


@VERSIONS
def test_whole_rows_come_with_databricks_types(sql: Sql, spans: str) -> None:
    """Complex values are JSON, in the names and order of the table."""
    answer = sql.send(f"SELECT * FROM {spans} ORDER BY span_id")
    assert answer.manifest is not None
    assert answer.manifest.schema is not None
    assert answer.result is not None
    kinds = {column.name: column.type_text for column in answer.manifest.schema.columns or []}
    assert kinds["attributes"] == ("VARIANT" if spans == "spans2" else "MAP<STRING, STRING>")
    assert kinds["start_time_unix_nano"] == "BIGINT"
    assert kinds["status"] == "STRUCT<message: STRING, code: STRING>"
    first = dict(zip(kinds, (answer.result.data_array or [])[0], strict=True))
    assert first["status"] == '{"message":"failed","code":"STATUS_CODE_ERROR"}'
    assert first["parent_span_id"] is None
    assert first["start_time_unix_nano"] == "1760000000123456790"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1", "1"),
        ("1.5", "1.5"),
        ("1e10", "1.0E10"),
        ("CAST(100 AS DOUBLE)", "100.0"),
        ("1e-5", "1.0E-5"),
        ("true", "true"),
        ("NULL", None),
        ("unhex('41')", "QQ=="),
        ("DATE '2020-01-31'", "2020-01-31"),
        ("TIMESTAMP '2020-01-31 12:00:00'", "2020-01-31T12:00:00.000Z"),
        ("TIMESTAMP '2020-01-31 12:00:00.123456'", "2020-01-31T12:00:00.123456Z"),
        ("array(1, 2)", "[1,2]"),
        ("map('a', 1)", '{"a":1}'),
        ("named_struct('a', 1, 'b', NULL)", '{"a":1,"b":null}'),
        ("parse_json('{\"a\": [1, null]}')", '{"a":[1,null]}'),
        ("CAST(1.7 AS INT)", "1"),
        ("CAST(' 5 ' AS BIGINT)", "5"),
        ("try_cast('1.5' AS INT)", None),
        ("try_cast('x' AS DOUBLE)", None),
        ("CAST(12.345 AS DECIMAL(10, 2))", "12.35"),
        ("CAST(0 AS DECIMAL(10, 9))", "0.000000000"),
        ("CAST(TIMESTAMP '1970-01-01 00:00:05' AS BIGINT)", "5"),
        ("TIMESTAMP '2020-01-31 12:00:00' || '!'", "2020-01-31 12:00:00!"),
        ("7 / 2", "3.5"),
        ("-7 div 2", "-3"),
        ("-7 % 3", "-1"),
        ("try_divide(1, 0)", None),
        ("concat('a', NULL)", None),
        ("concat('a', 1)", "a1"),
        ("concat_ws('-', 'a', NULL, 'b')", "a-b"),
        ("substring('abc', 2)", "bc"),
        ("substr('abc', 0, 1)", "a"),
        ("'a_b' LIKE 'a\\\\_b'", "true"),
        ("'axb' LIKE 'a\\\\_b'", "false"),
        ("'abc' RLIKE '^a.c$'", "true"),
        ("regexp_extract('a1b2', '([a-z])(\\\\d)', 2)", "1"),
        ("NULL <=> NULL", "true"),
        ("if(1 > 2, 'a', 'b')", "b"),
        ("dayofweek(DATE '2020-02-02')", "1"),
        ("date_add(DATE '2020-02-28', 2)", "2020-03-01"),
        ("date_sub(DATE '2020-03-01', 1)", "2020-02-29"),
        ("datediff('2020-03-01', '2020-02-28')", "2"),
        ("dateadd(hour, 2, TIMESTAMP '2020-01-01 00:00:00')", "2020-01-01T02:00:00.000Z"),
        ("timestampdiff(hour, TIMESTAMP '2020-01-01 00:59:00', TIMESTAMP '2020-01-01 02:00:00')", "1"),
        ("date_trunc('MONTH', TIMESTAMP '2020-02-03 04:05:06')", "2020-02-01T00:00:00.000Z"),
        ("date_format(TIMESTAMP '2020-02-03 04:05:06', \"yyyy-MM-dd'T'HH:mm:ss\")", "2020-02-03T04:05:06"),
        ("to_timestamp('03/02/2020', 'dd/MM/yyyy')", "2020-02-03T00:00:00.000Z"),
        ("from_unixtime(5)", "1970-01-01 00:00:05"),
        ("from_unixtime(5, 'HH:mm:ss')", "00:00:05"),
        ("timestamp_millis(1500)", "1970-01-01T00:00:01.500Z"),
        ("timestamp_micros(1500)", "1970-01-01T00:00:00.001500Z"),
        ("unix_timestamp(TIMESTAMP '1970-01-01 00:01:00')", "60"),
        ("TIMESTAMP '2020-01-01 00:00:00' - INTERVAL 1 DAY", "2019-12-31T00:00:00.000Z"),
        ("size(array(1, 2))", "2"),
        ("get(array(1), 5)", None),
        ("array_contains(array(1, 2), 2)", "true"),
        ("transform(array(1, 2), x -> x + 1)", "[2,3]"),
        ("filter(array(1, 2), x -> x > 1)", "[2]"),
        ("exists(array(1, 2), x -> x > 5)", "false"),
        ("sort_array(array(2, NULL, 1), false)", "[2,1,null]"),
        ("current_user()", "you@example.com"),
        ("current_catalog() || '.' || current_schema()", "main.obs"),
    ],
)
def test_an_expression_gives_what_databricks_gives(sql: Sql, expression: str, expected: str | None) -> None:
    """Where DuckDB by itself would round, count, index, format or divide in another way as well."""
    assert sql.row(f"SELECT {expression}") == [expected]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT count(*), sum(dropped_events_count) FROM spans2", [["2", "0"]]),
        ("SELECT kind, count(*) FROM spans2 GROUP BY ALL HAVING count(*) > 1", [["SPAN_KIND_INTERNAL", "2"]]),
        (
            "SELECT collect_list(parent_span_id), max_by(name, span_id) FROM spans2",
            [['["0000000000000001"]', "span 2"]],
        ),
        ("SELECT collect_list(name) FROM spans2 WHERE false", [["[]"]]),
        ("SELECT count(DISTINCT name), count_if(name LIKE '%1') FROM spans2", [["2", "1"]]),
        ("SELECT percentile(x, 0.5), percentile_approx(x, 0.5) FROM VALUES (1), (2) AS t(x)", [["1.5", "1"]]),
        ("SELECT col2 FROM VALUES (1, 'a'), (2, 'b') WHERE col1 = 2", [["b"]]),
        ("SELECT id FROM range(3) ORDER BY id DESC LIMIT 1 OFFSET 1", [["1"]]),
        ("SELECT x FROM VALUES (1), (NULL) AS t(x) ORDER BY x", [[None], ["1"]]),
        ("SELECT x FROM VALUES (1), (NULL) AS t(x) ORDER BY x DESC", [["1"], [None]]),
        ("SELECT name FROM spans2 QUALIFY row_number() OVER (ORDER BY name DESC) = 1", [["span 2"]]),
        ("WITH spans2 AS (SELECT name AS n FROM spans2) SELECT n FROM spans2 ORDER BY n LIMIT 1", [["span 1"]]),
        ("SELECT * EXCEPT (b) FROM (SELECT 1 AS a, 2 AS b)", [["1"]]),
        ("SELECT 1 UNION ALL SELECT 2 ORDER BY 1 DESC", [["2"], ["1"]]),
        ("SELECT a.name FROM spans1 a JOIN spans2 b ON a.span_id = b.parent_span_id", [["span 1"]]),
        ("SELECT name FROM `main`.`obs`.`spans2` WHERE span_id IN (SELECT parent_span_id FROM SPANS1)", [["span 1"]]),
    ],
)
def test_a_query_gives_what_databricks_gives(sql: Sql, query: str, expected: list[list[str | None]]) -> None:
    assert sql.rows(query) == expected


@pytest.mark.parametrize(
    ("query", "names"),
    [
        (
            "SELECT count(*), status.code, attributes:`a.b`.c, upper(name) FROM spans2 GROUP BY ALL",
            ["count(1)", "code", "c", "upper(name)"],
        ),
        ("SELECT name, name FROM spans2", ["name", "name"]),
        ("SELECT CAST(name AS STRING), 1 FROM spans2", ["name", "1"]),
    ],
)
def test_columns_without_a_name_get_databricks_name(sql: Sql, query: str, names: list[str]) -> None:
    manifest = sql.send(query).manifest
    assert manifest is not None
    assert manifest.schema is not None
    assert [column.name for column in manifest.schema.columns or []] == names


def test_parameters_are_values_and_no_sql(sql: Sql) -> None:
    """Of any type, also in LIMIT; NULL without a value."""
    assert sql.row(
        "SELECT :a, :b + 1, :c, :d > TIMESTAMP '2020-01-01 00:00:00' FROM spans2 LIMIT :n",
        a=("STRING", "x' OR 1=1 --"),
        b=("INT", "4"),
        c=("DATE", None),
        d=("TIMESTAMP", "2020-01-02 00:00:00"),
        n=("INT", "1"),
    ) == ["x' OR 1=1 --", "5", None, "true"]
    assert "[UNBOUND_SQL_PARAMETER]" in sql.fault("SELECT :missing")


@pytest.mark.parametrize(
    ("query", "condition", "state", "text"),
    [
        ("SELECT * FROM nope", "TABLE_OR_VIEW_NOT_FOUND", "42P01", "`main`.`obs`.`nope`"),
        ("SELECT nope FROM spans2", "UNRESOLVED_COLUMN.WITH_SUGGESTION", "42703", "`nope`"),
        ("SELECT status.nope FROM spans2", "UNRESOLVED_COLUMN", "42703", "nope"),
        ("SELEC 1", "PARSE_SYNTAX_ERROR", "42601", ""),
        ("SELECT 1; SELECT 2", "PARSE_SYNTAX_ERROR", "42601", "one statement"),
        ("SELECT 1 / 0", "DIVIDE_BY_ZERO", "22012", "try_divide"),
        ("SELECT sort_array(array(1))[1]", "INVALID_ARRAY_INDEX", "22003", "has 1 elements"),
        ("SELECT array(1)[1]", "UNSUPPORTED_FEATURE", "0A000", "Array"),
        ("SELECT CAST('x' AS INT)", "CAST_INVALID_INPUT", "22018", "'x'"),
        ("SELECT CAST(300 AS TINYINT)", "ARITHMETIC_OVERFLOW", "22003", ""),
        ("SELECT 9223372036854775807 + 1", "ARITHMETIC_OVERFLOW", "22003", ""),
        ("SELECT soundex('x')", "UNSUPPORTED_FEATURE", "0A000", "the function soundex"),
        ("SELECT from_json('[1]', 'ARRAY<INT>')", "UNSUPPORTED_FEATURE", "0A000", "from_json"),
        ("SELECT * FROM read_parquet('x')", "UNSUPPORTED_FEATURE", "0A000", "read_parquet"),
        ("SELECT * FROM spans2 VERSION AS OF 1", "UNSUPPORTED_FEATURE", "0A000", "VERSION AS OF 1"),
        ("SELECT * FROM spans2 TABLESAMPLE (5 ROWS)", "UNSUPPORTED_FEATURE", "0A000", "TableSample"),
        ("SELECT * FROM information_schema.tables", "UNSUPPORTED_FEATURE", "0A000", "information_schema"),
        ("SELECT events || 'x' FROM spans2", "UNSUPPORTED_FEATURE", "0A000", "STRING"),
        ("SELECT attributes['mlflow.spanInputs']:q FROM spans1", "UNSUPPORTED_FEATURE", "0A000", "::string"),
        ("SELECT name FROM spans2 WHERE attributes:count = 3", "UNSUPPORTED_FEATURE", "0A000", "::string"),
        ("SELECT name FROM spans2 WHERE attributes['count'] = 3", "DATATYPE_MISMATCH", "42K09", "VARIANT"),
        ("SELECT DATE '2020-01-02' - DATE '2020-01-01'", "UNSUPPORTED_FEATURE", "0A000", "datediff"),
        ("WITH RECURSIVE r AS (SELECT 1 AS n) SELECT * FROM r", "UNSUPPORTED_FEATURE", "0A000", "WITH RECURSIVE"),
        ("SELECT INTERVAL 1 DAY", "UNSUPPORTED_FEATURE", "0A000", "INTERVAL"),
        ("SELECT getvariable('x'), current_setting('y')", "UNSUPPORTED_FEATURE", "0A000", "current_setting"),
    ],
)
def test_what_is_wrong_or_not_imitated_fails_with_its_condition(
    sql: Sql, query: str, condition: str, state: str, text: str
) -> None:
    """Never a made-up result; the message names what it is about."""
    answer = sql.send(query)
    assert answer.status is not None
    assert answer.status.error is not None, answer.result
    message = str(answer.status.error.message)
    assert message.startswith(f"[{condition}] ")
    assert text in message
    assert message.endswith(f"SQLSTATE: {state}")
    assert answer.status.as_dict().get("sql_state", state) == state  # early versions of the SDK leave it out


def test_reading_needs_privileges_and_a_view_lends_its_owners(workspace: MockWorkspace, sql: Sql) -> None:
    """USE CATALOG, USE SCHEMA and SELECT, each named when it is missing."""
    workspace.add_user("ann@example.com")
    ann = Sql(workspace, "ann@example.com")
    query = "SELECT count(*) FROM main.obs.spans2"
    for privilege, kind, on in (
        ("USE CATALOG", "Catalog", "main"),
        ("USE SCHEMA", "Schema", "main.obs"),
        ("SELECT", "Table", "main.obs.spans2"),
    ):
        message = ann.fault(query)
        assert "[INSUFFICIENT_PERMISSIONS]" in message
        assert f"{privilege} on {kind} '{on}'" in message
        assert message.endswith("SQLSTATE: 42501")
        workspace.grant(privilege, on=on, to="ann@example.com")
    assert ann.row(query) == ["2"]

    sql.rows("CREATE VIEW roots AS SELECT name, attributes:count::int AS n FROM spans2 WHERE parent_span_id IS NULL")
    workspace.revoke("SELECT", on="main.obs.spans2", from_="ann@example.com")
    assert "SELECT on" in ann.fault("SELECT * FROM roots")
    workspace.grant("SELECT", on="main.obs.roots", to="ann@example.com")
    assert ann.row("SELECT * FROM main.obs.roots") == ["span 1", "3"]
    assert "[INSUFFICIENT_PERMISSIONS]" in ann.fault(query)
    sql.rows("CREATE VIEW names AS SELECT name FROM roots")
    assert sql.row("SELECT * FROM names JOIN roots ON names.name = roots.name") == [
        "span 1",
        "span 1",
        "3",
    ]
