"""Making tables: what is made is a span table, also under names that mean something else where they are not quoted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.destinations.contract import batch, spans
from tests.testing.sql import Sql
from tracelake import ConfigurationError, QueryError, RefusedError
from tracelake.databricks import sql
from tracelake.databricks.catalog import Catalog
from tracelake.databricks.names import TableName, quoted, readable
from tracelake.databricks.workspace import connect
from tracelake.destinations.targets import parse_target
from tracelake.destinations.unity.create import TableRequest, create
from tracelake.spans import tables
from tracelake.testing import MockWorkspace

from .conftest import AGENT

WRITER = "writer@example.com"
SPANS = TableName("main", "obs", "spans")
# Each can be a part of a name, and is kept as it is by the workspace, which lowers letters.
WEIRD = [
    "it's",
    "back`tick",
    "a--b",
    "a;drop",
    "größe",
    "你好",
    "%2e%2e",
    "a%2fb",
    "a?b#c",
    "$(id)",
    "a\\b",
    'a"b',
    "a:b",
]


@pytest.fixture
def admin(workspace: MockWorkspace, monkeypatch: pytest.MonkeyPatch) -> MockWorkspace:
    """The workspace, to which the environment gives access as its administrator."""
    for name, value in workspace.environment().items():
        monkeypatch.setenv(name, value)
    workspace.add_user(WRITER)
    return workspace


def made(request: TableRequest) -> list[str]:
    return create(Catalog(connect()), request)


def columns(workspace: MockWorkspace, name: TableName) -> list[tuple[object, object]]:
    return [(column["name"], column["type_text"]) for column in workspace._catalog.table(str(name)).columns]


def takes_spans_of(workspace: MockWorkspace, principal: str, name: TableName) -> None:
    """See that a principal has nothing to mend, and that its spans arrive."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in workspace.environment(principal).items():
            patch.setenv(variable, value)
        destination = parse_target(name.sql)
        assert [finding for finding in destination.check() if finding.severity != "ok"] == []
        assert destination.open().write(batch(1, spans(1, 2))) == []
    assert len(workspace.table(str(name)).spans()) == 2


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("external", [False, True], ids=["managed", "external"])
def test_table_takes_spans_of_its_writers(
    admin: MockWorkspace, tmp_path: Path, version: tables.Version, external: bool
) -> None:
    """It is whole, says its version, and the grants are all that a writer needs."""
    location = str(tmp_path / "table") if external else ""
    done = made(TableRequest(SPANS, version, location, [WRITER]))
    assert [step.split()[0] for step in done] == ["CREATE", *["GRANT"] * (4 if external else 3)]
    table = admin._catalog.table(str(SPANS))
    assert table.table_type == ("EXTERNAL" if external else "MANAGED")
    assert table.comment == "OpenTelemetry spans, one row each"
    assert table.properties["otel.schemaVersion"] == f"v{version}"
    assert table.properties["delta.checkpointPolicy"] == "classic"
    assert ("delta.enableDeletionVectors" in table.properties) == external
    assert [name for name, _ in columns(admin, SPANS)] == [
        field["name"] for field in tables.delta_schema(version)["fields"]
    ]
    takes_spans_of(admin, WRITER, SPANS)


def test_managed_tables_of_version_2_are_clustered() -> None:
    """As Databricks lays them out; engines that write files directly need not know how."""
    (statement,) = TableRequest(SPANS, 2).statements()
    assert "CLUSTER BY (time, service_name, trace_id)" in statement
    for request in (TableRequest(SPANS, 1), TableRequest(SPANS, 2, "s3://lake/spans")):
        assert "CLUSTER BY" not in next(request.statements())


def test_table_that_is_there_stays(admin: MockWorkspace) -> None:
    """With its rows and its schema; grants are added."""
    made(TableRequest(SPANS, 2))
    takes_spans_of(admin, AGENT, SPANS)
    made(TableRequest(SPANS, 1, writers=[WRITER]))
    assert admin._catalog.table(str(SPANS)).properties["otel.schemaVersion"] == "v2"
    assert len(admin.table(str(SPANS)).spans()) == 2
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in admin.environment(WRITER).items():
            patch.setenv(variable, value)
        assert all(finding.severity == "ok" for finding in parse_target("main.obs.spans").check())


@pytest.mark.parametrize("part", WEIRD, ids=ascii)
def test_weird_names_are_quoted_wherever_they_go(admin: MockWorkspace, tmp_path: Path, part: str) -> None:
    """In statements, in URLs, in the header of the endpoint; nothing else is made or dropped by them."""
    admin.create_table("main.obs.bystander")
    name = TableName(f"c{part}", f"s{part}", f"t{part}")
    admin.create_schema(name.schema_name)
    writer = f"w{part}@example.com"
    admin.add_user(writer)
    location = str(tmp_path / "table") if not part.isascii() else ""
    made(TableRequest(name, 1, location, [writer]))
    assert columns(admin, name)[0] == ("trace_id", "string")
    takes_spans_of(admin, writer, name)
    assert parse_target(readable(name.catalog, name.schema, name.table)).count_span(*_ids(1)) == 1  # type: ignore[attr-defined]
    assert admin.table("main.obs.bystander").spans() == []


def _ids(number: int) -> tuple[str, str]:
    (record,) = spans(number)
    return record.trace_id, record.span_id


def test_span_is_counted_by_sql(admin: MockWorkspace) -> None:
    """As a warehouse sees it, for whom the files are closed to; ids are values, and no SQL."""
    made(TableRequest(SPANS))
    takes_spans_of(admin, AGENT, SPANS)
    destination = parse_target("main.obs.spans")
    assert destination.count_span(*_ids(2)) == 1  # type: ignore[attr-defined]
    assert destination.count_span(_ids(2)[0], "' OR 1 = 1 --") == 0  # type: ignore[attr-defined]


def test_printed_statements_make_the_same_table(admin: MockWorkspace, tmp_path: Path) -> None:
    """Run elsewhere, by whoever may."""
    one, other = TableName("main", "obs", "one"), TableName("main", "obs", "other")
    made(TableRequest(one, 2, str(tmp_path / "one"), [WRITER]))
    for statement in TableRequest(other, 2, str(tmp_path / "other"), [WRITER]).statements():
        Sql(admin).rows(statement)
    assert columns(admin, one) == columns(admin, other)
    first, second = admin._catalog.table(str(one)), admin._catalog.table(str(other))
    assert (first.properties, first.comment, first.grants, first.table_type) == (
        second.properties,
        second.comment,
        second.grants,
        second.table_type,
    )


@pytest.mark.parametrize("location", ["s3://lake/it's", "s3://lake/a\\' COMMENT 'x", "s3://lake/x';DROP TABLE y;--"])
def test_location_is_a_string_and_no_sql(admin: MockWorkspace, location: str) -> None:
    """Whatever it holds: here there is no S3 server, which is said of the very location."""
    with pytest.raises(QueryError) as raised:
        made(TableRequest(SPANS, 1, location))
    assert location in str(raised.value).replace("\\\\", "\\")
    with pytest.raises(QueryError):
        admin.table(str(SPANS))


def test_statement_that_is_refused(admin: MockWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Says why, and nothing after it is run."""
    for name, value in admin.environment(AGENT).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(QueryError, match=r"does not run the statement \(FAILED\): .*CREATE TABLE"):
        made(TableRequest(SPANS, writers=[WRITER]))
    sent = [item for item in admin.requests("/api/2.0/sql/statements") if item.request.method == "POST"]
    assert len(sent) == 1


def test_writer_of_whom_nobody_knows(admin: MockWorkspace) -> None:
    """The table is there, and the error names who is not."""
    with pytest.raises(QueryError, match=r"stranger@example\.com"):
        made(TableRequest(SPANS, writers=["stranger@example.com"]))
    assert admin.table(str(SPANS)).spans() == []


def test_slow_statement_is_waited_for(admin: MockWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while a warehouse starts."""
    monkeypatch.setattr(sql, "_WAIT", "0s")
    monkeypatch.setattr(sql, "_POLL_S", 0.01)
    made(TableRequest(SPANS, writers=[WRITER]))
    takes_spans_of(admin, WRITER, SPANS)


def test_no_warehouse(admin: MockWorkspace) -> None:
    """What to set, and how to do without."""
    workspace = connect()
    for warehouse in workspace.get("/api/2.0/sql/warehouses")["warehouses"]:
        workspace.call("DELETE", f"/api/2.0/sql/warehouses/{warehouse['id']}")
    with pytest.raises(ConfigurationError, match="--print-sql"):
        made(TableRequest(SPANS))
    with pytest.raises(QueryError):
        admin.table(str(SPANS))


def test_warehouse_that_is_closed_to_us(admin: MockWorkspace) -> None:
    """The workspace's own words."""
    admin.faults.fail(status=403, path="/api/2.0/sql/statements")
    with pytest.raises(RefusedError, match=r"refuses \(403"):
        made(TableRequest(SPANS))


def test_principal_is_quoted() -> None:
    """Whoever it is."""
    *_, grant = TableRequest(SPANS, writers=["a`b; DROP"]).statements()
    assert grant == f"GRANT SELECT, MODIFY ON TABLE `main`.`obs`.`spans` TO {quoted('a`b; DROP')}"
