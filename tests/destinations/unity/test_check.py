"""What stands between a span and a table: each finding, and that its remedy repairs it."""

from __future__ import annotations

import shlex
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlglot import exp, parse_one

from tests.destinations.contract import batch, spans
from tests.testing.sql import Sql
from tracelake import Finding
from tracelake.cli import main
from tracelake.databricks.columns import columns_of
from tracelake.destinations.targets import parse_target
from tracelake.spans import tables
from tracelake.testing import MockWorkspace
from tracelake.testing.state import Table
from tracelake.testing.unity import catalog_api

from .conftest import AGENT

NOBODY = "nobody@example.com"
SPANS = "main.obs.spans"


def findings(name: str = SPANS) -> list[Finding]:
    return parse_target(name).check()


def problems(name: str = SPANS) -> list[Finding]:
    return [finding for finding in findings(name) if finding.severity != "ok"]


def codes(found: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.severity, finding.code) for finding in found]


def act(workspace: MockWorkspace, remedy: str) -> None:
    """Do what a remedy says, as the workspace's administrator: SQL, or a command of tracelake's."""
    if remedy.startswith("tracelake "):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in workspace.environment().items():
                patch.setenv(name, value)
            assert main(shlex.split(remedy)[1:]) == 0
        return
    assert remedy.endswith(";")
    Sql(workspace).rows(remedy.removesuffix(";"))


def be(workspace: MockWorkspace, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the environment be another principal's."""
    for variable, value in workspace.environment(name).items():
        monkeypatch.setenv(variable, value)


def registered(workspace: MockWorkspace, name: str = SPANS) -> Table:
    """Return what the catalog keeps of a table, to be changed as no client can."""
    return workspace._catalog.table(name)


def tell(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    """Let the workspace tell something else of its tables."""
    of_table = catalog_api.table_info
    monkeypatch.setattr(catalog_api, "table_info", lambda *args, **options: {**of_table(*args, **options), **fields})


# --- all is well -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("external", [False, True], ids=["managed", "external"])
def test_table_that_takes_spans(
    workspace: MockWorkspace, tmp_path: Path, version: tables.Version, external: bool
) -> None:
    """Every stage says that it is as it should be, and nothing is written."""
    location = str(tmp_path / "table") if external else ""
    workspace.create_table(SPANS, schema_version=version, location=location)
    found = findings()
    assert {finding.severity for finding in found} == {"ok"}
    way = ["credentials", "files", "transport", "privileges"] if external else ["transport", "privileges", "ingestion"]
    assert [finding.code for finding in found] == [
        *("host", "authentication", "metastore", "catalog", "schema", "table", "schema-version", "columns"),
        *way,
    ]
    said = {finding.code: finding.seen for finding in found}
    assert said["host"] == f"The workspace is {workspace.url}, access is by pat."
    assert said["authentication"] == f"You are {AGENT}."
    assert said["table"] == f"The table {SPANS} is there: {'EXTERNAL' if external else 'MANAGED'}, DELTA."
    assert said["schema-version"] == f"otel.schemaVersion is v{version}."
    assert said["columns"] == f"The {20 if version == 1 else 24} columns are those of version {version}."
    assert ("exactly once" in said["transport"]) == external
    assert ("EXTERNAL USE SCHEMA" in said["privileges"]) == external
    assert workspace.table(SPANS).spans() == []


# --- following the remedies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("external", [False, True], ids=["managed", "external"])
def test_remedies_lead_from_nothing_to_a_delivered_span(
    workspace: MockWorkspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, external: bool
) -> None:
    """One after another, as printed: a user without any privilege, for whom nothing is there."""
    workspace.add_user(NOBODY)
    be(workspace, monkeypatch, NOBODY)
    name = "new.traces.`my-spans`"
    done: list[str] = []
    while found := problems(name):
        assert len(done) < 20, done
        assert all(finding.why for finding in found)
        remedy = next(finding.remedy for finding in found if finding.remedy)
        assert remedy not in done, found
        act(workspace, remedy + (f" --location {tmp_path / 'table'}" if external and "create-table" in remedy else ""))
        done.append(remedy)
    assert any("create-table" in remedy for remedy in done)
    assert any("EXTERNAL USE SCHEMA" in remedy for remedy in done) == external
    sink = parse_target(name).open()
    assert sink.write(batch(1, spans(1))) == []
    assert len(workspace.table("new.traces.my-spans").spans()) == 1


@pytest.mark.parametrize(
    ("privilege", "code"),
    [
        ("USE CATALOG", "catalog"),
        ("USE SCHEMA", "schema"),
        ("SELECT", "privileges"),
        ("MODIFY", "privileges"),
        ("EXTERNAL USE SCHEMA", "credentials"),
    ],
)
def test_missing_privilege_is_named_and_granted(
    workspace: MockWorkspace, tmp_path: Path, privilege: str, code: str
) -> None:
    """With the very statement, for the very principal."""
    workspace.create_table(SPANS, location=str(tmp_path / "table"))
    workspace.revoke(privilege, on="main", from_=AGENT)
    found = problems()
    assert code in [finding.code for finding in found]
    remedies = [finding.remedy for finding in found if f"GRANT {privilege} ON" in finding.remedy]
    assert remedies
    assert remedies[0].endswith(f" TO `{AGENT}`;")
    act(workspace, remedies[0])
    assert problems() == []


@pytest.mark.parametrize("how", ["group", "owner", "everybody"])
def test_privilege_may_be_held_in_other_ways(
    workspace: MockWorkspace, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """By a group, by everybody's group, or as the owner."""
    workspace.create_table(SPANS)
    workspace.add_group("tracers")
    workspace.add_user(NOBODY, groups=["tracers"])
    holder = "account users" if how == "everybody" else "tracers"
    workspace.grant("USE CATALOG", "USE SCHEMA", on="main", to=holder)
    if how == "owner":
        registered(workspace).owner = NOBODY
    else:
        workspace.grant("SELECT", "MODIFY", on=SPANS, to=holder)
    be(workspace, monkeypatch, NOBODY)
    assert problems() == []


def test_all_privileges_is_not_enough_for_the_endpoint(
    workspace: MockWorkspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a managed table, where it does not count; of an external one it does, but for EXTERNAL USE SCHEMA."""
    workspace.add_user(NOBODY)
    workspace.grant("ALL PRIVILEGES", on="main", to=NOBODY)
    workspace.create_table(SPANS)
    workspace.create_table("main.obs.external", location=str(tmp_path / "table"))
    be(workspace, monkeypatch, NOBODY)
    found = problems()
    assert codes(found) == [("error", "privileges"), ("error", "privileges")]
    assert "only ALL PRIVILEGES, which does not count here" in found[0].seen
    for finding in found:
        act(workspace, finding.remedy)
    assert problems() == []
    workspace.grant("EXTERNAL USE SCHEMA", on="main.obs", to=NOBODY)
    assert problems("main.obs.external") == []


def test_privileges_that_cannot_be_read_are_a_warning(workspace: MockWorkspace) -> None:
    """Whether they suffice is seen otherwise."""
    workspace.create_table(SPANS)
    workspace.faults.fail(None, status=403, path="/api/2.1/unity-catalog/effective-permissions")
    (finding,) = problems()
    assert codes([finding]) == [("warning", "privileges")]
    assert "cannot be read" in finding.seen
    assert finding.why


# --- access and the host ---------------------------------------------------------------------------------------------


def test_databricks_sdk_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that installs it."""
    for name in [name for name in sys.modules if name.startswith("databricks.sdk")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "databricks.sdk", None)
    (finding,) = findings()
    assert codes([finding]) == [("error", "setting")]
    assert "pip install 'tracelake[databricks]'" in finding.seen


def test_no_access(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What to set is the remedy, once."""
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "none"))
    (finding,) = findings()
    assert codes([finding]) == [("error", "authentication")]
    assert finding.seen.startswith("There is no access: ")
    assert finding.remedy.startswith("Set DATABRICKS_HOST with DATABRICKS_TOKEN")
    assert finding.remedy not in finding.seen
    assert finding.why == "Until then spans wait in the spool."


def test_token_of_nobody(workspace: MockWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host is there, and does not know who calls."""
    assert workspace.url
    monkeypatch.setenv("DATABRICKS_TOKEN", "dapi-of-nobody-at-all")
    found = findings()
    assert codes(found) == [("ok", "host"), ("error", "authentication")]
    assert found[1].remedy.startswith("Set DATABRICKS_HOST")
    assert "dapi-of-nobody" not in str(found)


def test_host_that_is_not_there(workspace: MockWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans wait for it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        monkeypatch.setenv("DATABRICKS_HOST", f"http://127.0.0.1:{held.getsockname()[1]}")
    (finding,) = findings()
    assert codes([finding]) == [("error", "host-unreachable")]
    assert finding.remedy
    assert finding.why == "Until then spans wait in the spool."
    assert workspace.requests("/api/2.1") == []


@pytest.mark.parametrize("variable", ["TRACELAKE_TRANSPORT", "TRACELAKE_CATALOG_URL"])
def test_setting_of_the_way_in_that_is_none(
    workspace: MockWorkspace, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A finding, as everything that is wrong."""
    workspace.create_table(SPANS)
    monkeypatch.setenv(variable, "pigeon")
    (finding,) = findings()
    assert codes([finding]) == [("error", "setting")]
    assert f"{variable}='pigeon' is not usable" in finding.seen


# --- what is not there, or is something else -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "code", "remedy"),
    [
        ("nowhere.obs.spans", "catalog", "CREATE CATALOG `nowhere`;"),
        ("main.nowhere.spans", "schema", "CREATE SCHEMA `main`.`nowhere`;"),
        ("main.obs.nowhere", "table", "tracelake create-table main.obs.nowhere"),
        ("main.obs.`it's`", "table", "tracelake create-table 'main.obs.`it'\"'\"'s`'"),
    ],
)
def test_missing_is_told_from_hidden(
    workspace: MockWorkspace, monkeypatch: pytest.MonkeyPatch, name: str, code: str, remedy: str
) -> None:
    """To whoever may see it; the remedy makes it."""
    workspace.grant("MANAGE", on="main", to=AGENT)
    be(workspace, monkeypatch, workspace.user)
    found = problems(name)
    assert codes(found) == [("error", code)]
    assert found[0].seen.startswith(f"There is no {code} ")
    assert found[0].remedy == remedy
    act(workspace, remedy)
    assert not [finding for finding in findings(name) if finding.code == code and finding.severity == "error"]


@pytest.mark.parametrize(
    ("table_type", "data_source_format"),
    [
        ("VIEW", ""),
        ("MATERIALIZED_VIEW", "DELTA"),
        ("STREAMING_TABLE", "DELTA"),
        ("METRIC_VIEW", ""),
        ("FOREIGN", "SNOWFLAKE_FORMAT"),
        ("OF_THE_FUTURE", "DELTA"),
        ("EXTERNAL", "PARQUET"),
        ("MANAGED", "ICEBERG"),
        ("", ""),
    ],
)
def test_table_of_another_kind_takes_no_spans(
    workspace: MockWorkspace, monkeypatch: pytest.MonkeyPatch, table_type: str, data_source_format: str
) -> None:
    """Known to the client library or not."""
    workspace.create_table(SPANS)
    tell(monkeypatch, table_type=table_type, data_source_format=data_source_format)
    (finding,) = problems()
    assert codes([finding]) == [("error", "transport")]
    assert (table_type if table_type not in {"MANAGED", "EXTERNAL"} else data_source_format) in finding.seen
    assert "tracelake create-table" in f"{finding.seen} {finding.remedy}"


def column(name: str, kind: Any, *, nullable: bool = True) -> dict[str, Any]:
    return {"name": name, "type": kind, "nullable": nullable, "metadata": {}}


def _changed(
    workspace: MockWorkspace,
    change: Callable[[list[dict[str, Any]]], None],
    version: tables.Version,
    location: str = "",
) -> None:
    """Make a table of which the catalog tells other columns."""
    workspace.create_table(SPANS, schema_version=version, location=location)
    schema = tables.delta_schema(version)
    change(schema["fields"])
    registered(workspace).columns = columns_of(schema)  # type: ignore[assignment]


def _drop(name: str) -> Callable[[list[dict[str, Any]]], None]:
    return lambda fields: fields.remove(next(field for field in fields if field["name"] == name))


def _replace(name: str, kind: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda fields: next(field for field in fields if field["name"] == name).update(type=kind)


def _add(name: str, kind: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda fields: fields.append(column(name, kind, nullable=False))


STATUS = {"type": "struct", "fields": [column("message", "string"), column("code", "long")]}


CHANGES = [
    (_drop("trace_id"), "error", "column trace_id is missing", "ADD COLUMN `trace_id` string;"),
    (_drop("flags"), "warning", "column flags is missing", "ADD COLUMN `flags` int;"),
    (_drop("links"), "warning", "column links is missing", "ADD COLUMN `links` array<struct<"),
    (_replace("name", "long"), "error", "name is bigint, and in version 2 it is string", "spans_v2 --schema-version 2"),
    (
        _replace("status", STATUS),
        "error",
        "status is struct<message:string,code:bigint>",
        "create-table main.obs.spans_v2",
    ),
    (_replace("attributes", "string"), "error", "attributes is string, and in version 2 it is variant", "create-table"),
    (_replace("events", "binary"), "error", "events is binary", "create-table"),
    (_add("tenant", "string"), "error", "tenant is none of a span's, and must not be null", "`tenant` DROP NOT NULL;"),
]


@pytest.mark.parametrize(("change", "severity", "said", "remedy"), CHANGES)
def test_column_that_differs(
    workspace: MockWorkspace,
    tmp_path: Path,
    change: Callable[[list[dict[str, Any]]], None],
    severity: str,
    said: str,
    remedy: str,
) -> None:
    """Each by its name, with what it is, and what it has to be."""
    _changed(workspace, change, 2, str(tmp_path / "table"))
    found = [finding for finding in problems() if finding.code == "columns"]
    assert [finding.severity for finding in found] == [severity]
    assert said in found[0].seen
    assert remedy in found[0].remedy
    assert found[0].why
    if remedy.endswith(";"):
        assert isinstance(parse_one(found[0].remedy.removesuffix(";"), dialect="databricks"), exp.Alter)


@pytest.mark.parametrize("external", [False, True], ids=["managed", "external"])
@pytest.mark.parametrize("name", ["span_id", "flags", "links"])
def test_missing_column_is_added(workspace: MockWorkspace, tmp_path: Path, name: str, external: bool) -> None:
    """By the statement that is printed. Without it, Databricks' own engine takes no span."""
    columns = {field["name"]: field["type"] for field in tables.delta_schema(1)["fields"] if field["name"] != name}
    workspace.create_table(SPANS, columns=columns, location=str(tmp_path / "table") if external else "")
    registered(workspace).properties = tables.version_property(1)
    (finding,) = [finding for finding in problems() if finding.code == "columns"]
    assert finding.severity == ("warning" if external and name != "span_id" else "error")
    act(workspace, finding.remedy)
    assert problems() == []
    assert parse_target(SPANS).open().write(batch(1, spans(1))) == []
    assert len(workspace.table(SPANS).spans()) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.reverse(),
        lambda fields: fields.append(column("tenant", "string")),
        lambda fields: fields.append(column("place", {"type": "array", "elementType": "long", "containsNull": True})),
    ],
    ids=["order", "more", "array"],
)
def test_column_that_does_not_matter(workspace: MockWorkspace, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Others than a span's, and in another order."""
    _changed(workspace, change, 2)
    assert [finding for finding in problems() if finding.code == "columns"] == []


@pytest.mark.parametrize("type_name", ["GEOGRAPHY", "OF_THE_FUTURE", ""])
def test_extra_column_of_an_unknown_type_breaks_nothing(workspace: MockWorkspace, type_name: str) -> None:
    """What a client library does not know."""
    workspace.create_table(SPANS)
    extra = {"name": "x", "type_name": type_name, "type_text": "of the future", "type_json": "{", "position": 24}
    registered(workspace).columns.append(extra)
    assert [finding for finding in problems() if finding.code in {"columns", "transport"}] == []


@pytest.mark.parametrize("version", [1, 2])
def test_table_without_its_schema_version(workspace: MockWorkspace, version: tables.Version) -> None:
    """Is known by its columns; others read the property, and the remedy sets it."""
    workspace.create_table(SPANS, schema_version=version)
    registered(workspace).properties = {}
    (finding,) = problems()
    assert codes([finding]) == [("warning", "schema-version")]
    assert f"of version {version}" in finding.seen
    act(workspace, finding.remedy)
    assert problems() == []


@pytest.mark.parametrize("stated", ["9", "v3", "", "two"])
def test_table_with_an_unknown_schema_version(workspace: MockWorkspace, stated: str) -> None:
    """Is not guessed at."""
    workspace.create_table(SPANS)
    registered(workspace).properties = {tables.VERSION_PROPERTY: stated}
    found = [finding for finding in problems() if finding.code == "columns"]
    assert [finding.severity for finding in found] == ["error"]
    assert repr(stated) in found[0].seen
    assert "Upgrade tracelake" in found[0].seen


def test_schema_version_that_the_columns_contradict(workspace: MockWorkspace) -> None:
    """Spans written by it would not fit."""
    workspace.create_table(SPANS, schema_version=1)
    registered(workspace).properties = {tables.VERSION_PROPERTY: "v2"}
    found = [finding for finding in problems() if finding.severity == "error"]
    assert found
    assert any("attributes is map<string,string>, and in version 2 it is variant" in finding.seen for finding in found)


def test_table_that_is_none_of_spans(workspace: MockWorkspace) -> None:
    """Says what it has, and how to make another."""
    workspace.create_table(SPANS, columns={"id": "long"})
    found = [finding for finding in problems() if finding.code == "columns"]
    assert [finding.severity for finding in found] == ["error"]
    assert "it has the columns id" in found[0].seen
    assert found[0].remedy == "tracelake create-table main.obs.spans_v1"


GARBAGE = [
    {},
    {"columns": None, "properties": None},
    {"columns": "x", "properties": "y"},
    {"columns": [None, 3, {"name": None}], "properties": {"a": None}, "owner": 7, "table_type": 8},
    {"columns": [{"name": "trace_id", "type_json": "{"}], "table_type": {"a": 1}, "storage_location": []},
    {
        "columns": [
            {"name": "trace_id", "type_text": "string"},
            {"name": "attributes", "type_json": '{"type":"map"}'},
            {"name": "events", "type_json": '{"type":"array"}'},
            {"name": "status", "type_json": '{"type":"struct","fields":[7]}'},
            {"name": "resource", "type_json": "[1]"},
        ],
        "properties": {"otel.schemaVersion": "v1", "delta.feature.catalogManaged": None},
    },
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_no_table_that_a_catalog_tells_of_breaks_the_check(
    workspace: MockWorkspace, monkeypatch: pytest.MonkeyPatch, garbage: dict[str, Any]
) -> None:
    """Missing, unknown and wrong fields are findings."""
    workspace.create_table(SPANS)
    monkeypatch.setattr(catalog_api, "table_info", lambda *_, **__: garbage)
    found = problems()
    assert found
    assert all(finding.seen and finding.code for finding in found)


# --- the way in ------------------------------------------------------------------------------------------------------


def test_external_access_is_off(workspace: MockWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Databricks' own engine takes the spans meanwhile; where only the files will do, it is an error."""
    workspace.create_table(SPANS, location=str(tmp_path / "table"))
    workspace.set_external_access(False)
    found = findings()
    assert codes([finding for finding in found if finding.severity != "ok"]) == [("warning", "external-access")]
    assert "metastore admin" in problems()[0].remedy
    assert [finding.code for finding in found][-3:] == ["transport", "privileges", "ingestion"]
    monkeypatch.setenv("TRACELAKE_TRANSPORT", "delta")
    assert codes(problems()) == [("error", "external-access")]
    workspace.set_external_access(True)
    assert problems() == []


def test_credentials_are_refused(workspace: MockWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As external access that is off, with the privilege that gives them."""
    workspace.create_table(SPANS, location=str(tmp_path / "table"))
    workspace.revoke("EXTERNAL USE SCHEMA", on="main", from_=AGENT)
    (finding,) = problems()
    assert codes([finding]) == [("warning", "credentials")]
    assert finding.remedy == f"GRANT EXTERNAL USE SCHEMA ON SCHEMA `main`.`obs` TO `{AGENT}`;"
    monkeypatch.setenv("TRACELAKE_TRANSPORT", "delta")
    assert codes(problems()) == [("error", "credentials"), ("error", "privileges")]
    act(workspace, finding.remedy)
    assert problems() == []


@pytest.mark.parametrize(("transport", "code"), [("otlp", "ingestion"), ("delta", "files"), ("auto", "files")])
def test_external_table_goes_the_way_that_is_wanted(
    workspace: MockWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str, code: str
) -> None:
    """Either will do."""
    workspace.create_table(SPANS, location=str(tmp_path / "table"))
    monkeypatch.setenv("TRACELAKE_TRANSPORT", transport)
    found = findings()
    assert {finding.severity for finding in found} == {"ok"}
    assert code in [finding.code for finding in found]


def test_managed_table_is_not_written_directly(workspace: MockWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where that is wanted."""
    workspace.create_table(SPANS)
    monkeypatch.setenv("TRACELAKE_TRANSPORT", "delta")
    (finding,) = problems()
    assert codes([finding]) == [("error", "transport")]
    assert "takes no writes to its files: it is managed" in finding.seen
    assert "otlp" in f"{finding.seen} {finding.remedy}"


@pytest.mark.parametrize("table_type", ["MANAGED", "EXTERNAL"])
def test_table_whose_commits_the_catalog_manages(
    workspace: MockWorkspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, table_type: str
) -> None:
    """Is written through Databricks' engine, and never behind the catalog's back."""
    workspace.create_table(SPANS, location=str(tmp_path / "table") if table_type == "EXTERNAL" else "")
    registered(workspace).properties["delta.feature.catalogManaged"] = "supported"
    if table_type == "MANAGED":
        assert problems() == []
    monkeypatch.setenv("TRACELAKE_TRANSPORT", "delta")
    (finding,) = problems()
    assert codes([finding]) == [("error", "transport")]
    assert "catalogManaged" in finding.seen


@pytest.mark.parametrize(("status", "said"), [(403, "refuses (403"), (404, "refuses (404"), (501, "501"), (503, "503")])
def test_endpoint_that_takes_no_spans(workspace: MockWorkspace, status: int, said: str) -> None:
    """Its answer, and what it means for spans."""
    workspace.create_table(SPANS)
    workspace.faults.fail(None, status=status, path="/api/2.0/otel")
    (finding,) = problems()
    assert codes([finding]) == [("error", "ingestion")]
    assert said in finding.seen
    assert "tracelake doctor" not in finding.seen
    assert finding.why == "Until then spans wait in the spool."


def test_managed_table_that_no_header_can_name(workspace: MockWorkspace) -> None:
    """The endpoint is told the table by an HTTP header, which has ASCII only."""
    workspace.create_table("main.obs.größe")
    (finding,) = problems("main.obs.größe")
    assert codes([finding]) == [("error", "ingestion")]
    assert "Use an external table, or another name" in finding.seen


def test_table_that_is_registered_and_not_begun(workspace: MockWorkspace, tmp_path: Path) -> None:
    """The first delivery begins it, in the schema that is registered."""
    workspace.create_table(SPANS, location=str(tmp_path / "table"))
    for path in sorted((tmp_path / "table").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert problems() == []
    assert "the first delivery begins the table" in {finding.code: finding.seen for finding in findings()}["files"]
    assert parse_target(SPANS).open().write(batch(1, spans(1))) == []


def test_files_that_cannot_be_read(workspace: MockWorkspace, tmp_path: Path) -> None:
    """The catalog gives access, and the store does not."""
    workspace.create_table(SPANS, location=str(tmp_path / "table"))
    (log,) = (tmp_path / "table" / "_delta_log").glob("*.json")
    log.write_text("{broken")
    (finding,) = problems()
    assert codes([finding]) == [("error", "files")]
    assert str(tmp_path) in finding.seen
    assert finding.remedy


def test_nothing_is_written_by_a_check(workspace: MockWorkspace, tmp_path: Path) -> None:
    """Neither to the catalog nor to the files; the endpoint gets a request without spans."""
    workspace.create_table(SPANS)
    workspace.create_table("main.obs.external", location=str(tmp_path / "table"))
    before = workspace.table(SPANS).spans(), sorted(tmp_path.rglob("*"))
    findings()
    findings("main.obs.external")
    assert (workspace.table(SPANS).spans(), sorted(tmp_path.rglob("*"))) == before
    sent = [item.request for item in workspace.requests("/api/2.0/otel")]
    assert len(sent) == 1
    assert sum(len(request.body) for request in sent) < 100
