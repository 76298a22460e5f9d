from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import Place
from tests.cli.test_main import DOCS
from tests.mlflow_server import MlflowServer, run_mlflow_server
from tests.spans.samples import span
from tracelake.cli import doctor, main
from tracelake.spool.ledger import Delivery, write_delivery
from tracelake.testing import MockWorkspace
from tracelake.testing.unity import catalog_api

AGENT = "agent@example.com"
SPANS = "main.obs.spans"


@pytest.fixture
def workspace(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[MockWorkspace]:
    """A workspace in which this process is a user who may do what writing takes."""
    assert place.path
    with MockWorkspace() as made:
        made.create_schema("main.obs")
        made.add_user(AGENT)
        made.grant("USE CATALOG", "USE SCHEMA", "SELECT", "MODIFY", "EXTERNAL USE SCHEMA", on="main", to=AGENT)
        for name, value in made.environment(AGENT).items():
            monkeypatch.setenv(name, value)
        yield made


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code of `doctor --json`, and what it prints."""
    code = main(["doctor", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def found(reported: dict[str, Any], *severities: str) -> list[tuple[str, str]]:
    """Return severities and codes of what was found at all destinations."""
    every = [finding for item in reported["destinations"] for finding in item["findings"]]
    return [(each["severity"], each["code"]) for each in every if not severities or each["severity"] in severities]


def test_checklist_for_people(workspace: MockWorkspace, capsys: pytest.CaptureFixture[str]) -> None:
    """One thing after another, aligned, within 100 columns; what repairs it can be copied."""
    workspace.create_table(SPANS)
    assert main(["doctor", SPANS]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "uc://main.obs.spans  (named on the command line)"
    assert lines[-1] == "All is well."
    checks = [line for line in lines[2:-2] if line]
    assert {line[:11] for line in checks} == {"  ok       ", " " * 11}
    assert all(line[27] == " " and line[28] != " " for line in checks)
    workspace.revoke("MODIFY", on="main", from_=AGENT)
    assert main(["doctor", SPANS]) == 1
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("  ERROR    privileges       You do not have MODIFY on the table main.obs.spans.")
    assert lines[at + 1].strip() == "Without it, granted by its name, no span is taken."
    assert lines[at + 2].strip() == f"-> GRANT MODIFY ON TABLE `main`.`obs`.`spans` TO `{AGENT}`;"
    assert lines[-1] == "1 error: spans wait in the spool until it is repaired."
    # What is there to be copied is not broken, and a path neither.
    assert max(len(line) for line in lines if "->" not in line and "/" not in line) <= 100


def test_json_has_the_documented_fields(workspace: MockWorkspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is listed in docs/cli.md, and nothing else is on stdout."""
    workspace.create_table(SPANS)
    code, reported = report(capsys, SPANS)
    assert code == 0
    section = DOCS.split("\n## `tracelake doctor", 1)[1].split("\n## ", 1)[0]
    (destination,) = reported["destinations"]
    for name in [*reported, *destination, *destination["findings"][0]]:
        assert f"`{name}`" in section, name
    assert reported["source"] == "named on the command line"
    assert destination["target"] == "uc://main.obs.spans"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("external", [False, True], ids=["managed", "external"])
def test_write_test_goes_all_the_way(
    workspace: MockWorkspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], version: Any, external: bool
) -> None:
    """One span, marked as what it is, that leaves nothing in the spool."""
    workspace.create_table(SPANS, schema_version=version, location=str(tmp_path / "table") if external else "")
    code, reported = report(capsys, SPANS, "--write-test")
    assert code == 0
    last = reported["destinations"][0]["findings"][-1]
    assert (last["code"], last["severity"]) == ("write-test", "ok")
    (written,) = workspace.table(SPANS).spans()
    assert written.trace_id in last["seen"]
    assert written.name == "tracelake doctor"
    assert "tracelake.write_test" in written.attributes
    assert not (tmp_path / "spool").exists()


def test_write_test_is_read_back_by_sql_where_files_are_closed(
    workspace: MockWorkspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As those of managed tables often are."""
    workspace.create_table(SPANS, location=str(tmp_path / "table"))
    workspace.set_external_access(False)
    code, reported = report(capsys, SPANS, "--write-test")
    assert code == 0
    assert found(reported, "warning", "error") == [("warning", "external-access")]
    assert found(reported)[-1] == ("ok", "write-test")
    assert workspace.requests("/api/2.0/sql/statements")


def test_write_test_that_cannot_be_read_back_is_a_warning(
    workspace: MockWorkspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """It arrived, and no warehouse may be used to see it."""
    workspace.create_table(SPANS)
    workspace.set_external_access(False)
    workspace.faults.fail(None, status=403, path="/api/2.0/sql")
    code, reported = report(capsys, SPANS, "--write-test")
    assert code == 0
    assert found(reported)[-1] == ("warning", "write-test")
    assert "could not be read back" in reported["destinations"][0]["findings"][-1]["seen"]


def test_write_test_that_is_refused(workspace: MockWorkspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Though all looked well before."""
    workspace.create_table(SPANS)
    workspace.faults.fail(None, status=403, path="/api/2.0/otel", after=1)
    code, reported = report(capsys, SPANS, "--write-test")
    assert code == 1
    assert found(reported, "error") == [("error", "write-test")]
    assert "was not delivered" in reported["destinations"][0]["findings"][-1]["seen"]


def test_write_test_that_nobody_sees(
    workspace: MockWorkspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint that takes a span and loses it."""
    workspace.create_table(SPANS)
    monkeypatch.setattr(doctor, "_VISIBLE_S", 0.0)
    monkeypatch.setattr("tracelake.testing.storage.ingestion.IngestionApi._writer", lambda *_: lambda _: [])
    code, reported = report(capsys, SPANS, "--write-test")
    assert code == 1
    assert found(reported, "error") == [("error", "write-test")]
    assert "is not in the table" in reported["destinations"][0]["findings"][-1]["seen"]


def test_no_span_is_sent_where_there_are_errors(workspace: MockWorkspace, capsys: pytest.CaptureFixture[str]) -> None:
    """It would wait for nothing."""
    code, reported = report(capsys, SPANS, "--write-test")
    assert code == 1
    assert "write-test" not in [name for _, name in found(reported)]
    assert workspace.requests("/api/2.0/otel") == []


def test_table_at_a_path(place: Place) -> None:
    """Without any workspace, as a command; the first delivery makes it."""
    result = place.run("doctor", "./traces")
    assert result.code == 0
    assert "the first delivery makes it" in " ".join(result.out.split())
    assert not (place.path / "traces").exists()
    result = place.run("doctor", "./traces", "--write-test")
    assert result.code == 0
    assert "was read back" in " ".join(result.out.split())
    assert (place.path / "traces" / "_delta_log").is_dir()


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with run_mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.mark.slow
def test_mlflow_server(place: Place, mlflow: MlflowServer) -> None:
    """A span goes there, and is not read back by table."""
    result = place.run("doctor", mlflow.url, "--write-test")
    assert result.code == 0
    assert "MLflow " in result.out
    assert "write-test" in result.out


def test_each_destination_of_the_environment(
    workspace: MockWorkspace, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With where it is named; one that is wrong hides no other."""
    workspace.create_table(SPANS)
    monkeypatch.setenv("TRACELAKE_DESTINATION", "main.obs.nowhere, main.obs.spans, ./traces")
    code, reported = report(capsys)
    assert code == 1
    assert reported["source"] == "named by TRACELAKE_DESTINATION"
    assert [item["target"] for item in reported["destinations"]] == [
        "uc://main.obs.nowhere",
        "uc://main.obs.spans",
        str(place.path / "traces"),
    ]
    assert found(reported, "error") == [("error", "table")]


def test_environment_that_names_no_destination(
    workspace: MockWorkspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or one that is none: the variable, and what to do for spans that wait."""
    assert workspace.url
    for target, variable in (("", "MLFLOW_TRACKING_URI"), ("ftp://x", "TRACELAKE_DESTINATION")):
        monkeypatch.setenv("TRACELAKE_DESTINATION", target)
        code, reported = report(capsys)
        assert code == 1
        (finding,) = reported["findings"]
        assert (finding["code"], finding["severity"]) == ("target", "error")
        assert finding["seen"].startswith(f"{variable}: ")
        assert "tracelake redirect" in finding["remedy"]
        assert reported["destinations"] == []


def test_setting_that_is_none(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holds up no delivery, unless it is one of the way in."""
    assert place.path
    monkeypatch.setenv("TRACELAKE_BATCH_MAX_AGE", "soon")
    code, reported = report(capsys, "./traces")
    assert code == 0
    assert [(each["severity"], each["code"]) for each in reported["findings"]] == [("warning", "setting")]
    monkeypatch.setenv("TRACELAKE_TRANSPORT", "pigeon")
    code, reported = report(capsys, SPANS)
    assert code == 1
    assert found(reported, "error") == [("error", "setting")]


def test_lane_that_cannot_deliver_is_shown(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """With its error, and what to do; those of other destinations are not."""
    lane = place.recorded("./table", [span(1)])
    other = place.recorded("./other", [span(2)])
    for stopped in (lane, other):
        write_delivery(stopped, Delivery("stopped", "The disk is full. Make room.", 1))
    code, reported = report(capsys, "./table")
    assert code == 1
    (finding,) = [each for each in reported["destinations"][0]["findings"] if each["code"] == "spool"]
    assert finding["severity"] == "error"
    assert finding["seen"].startswith(f"1 spans wait in {lane.path} (stopped). The disk is full.")
    assert "tracelake ship" in finding["remedy"]


def test_access_of_a_notebook_is_said(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For there a thread delivers, whatever the shipper mode is."""
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "17.3")
    monkeypatch.setenv("TRACELAKE_SHIPPER", "process")
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(place.path / "none"))
    _, reported = report(capsys, SPANS)
    assert ("ok", "shipper") in found(reported)


def test_databricks_sdk_is_missing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a command, in a Python that has none."""
    (place.path / "sitecustomize.py").write_text("import sys; sys.modules['databricks.sdk'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(place.path))
    result = place.run("doctor", SPANS)
    assert result.code == 1
    assert "pip install 'tracelake[databricks]'" in " ".join(result.out.split())


def test_what_comes_from_elsewhere_is_shown_on_its_line(
    workspace: MockWorkspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No control character of a server's gets to a terminal."""
    monkeypatch.setattr(catalog_api, "table_info", lambda *_, **__: {"table_type": "evil\x1b[2J\nkind"})
    workspace.create_table(SPANS)
    assert main(["doctor", SPANS]) == 1
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "evil [2J kind" in printed
