from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commands import Place
from tests.testing.sql import Sql
from tracelake.cli import main
from tracelake.testing import MockWorkspace


@pytest.fixture
def workspace(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[MockWorkspace]:
    """A workspace whose administrator this process is."""
    assert place.path
    with MockWorkspace() as made:
        made.create_schema("main.obs")
        for name, value in made.environment().items():
            monkeypatch.setenv(name, value)
        yield made


def test_table_is_made_and_what_was_done_is_printed(
    workspace: MockWorkspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line a statement, and what to do next, as a shell takes it."""
    workspace.add_user("svc@example.com")
    name = "main.obs.`my-spans`"
    arguments = ["create-table", name, "--location", str(tmp_path / "table"), "--grant-to", "svc@example.com"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "CREATE TABLE IF NOT EXISTS `main`.`obs`.`my-spans`",
        "GRANT USE CATALOG ON CATALOG `main` TO `svc@example.com`",
        "GRANT USE SCHEMA ON SCHEMA `main`.`obs` TO `svc@example.com`",
        "GRANT EXTERNAL USE SCHEMA ON SCHEMA `main`.`obs` TO `svc@example.com`",
        "GRANT SELECT, MODIFY ON TABLE `main`.`obs`.`my-spans` TO `svc@example.com`",
        "",
        "Check it: tracelake doctor 'main.obs.`my-spans`'",
    ]
    assert workspace.table("main.obs.my-spans").spans() == []
    assert main(arguments) == 0  # once more


def test_table_of_mlflow_is_made_by_its_schema(workspace: MockWorkspace) -> None:
    """As `set_destination("main.obs")` means it; version 2 if asked for."""
    assert main(["create-table", "main.obs", "--schema-version", "2"]) == 0
    made = workspace._catalog.table("main.obs.mlflow_experiment_trace_otel_spans")
    assert made.properties["otel.schemaVersion"] == "v2"


@pytest.mark.parametrize(
    "more", [[], ["--schema-version", "2"], ["--location", "/data/it's"], ["--grant-to", "a", "--grant-to", "b"]]
)
def test_printed_sql_needs_no_access_and_runs(
    place: Place, more: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Statements that end with semicolons, and nothing else on stdout."""
    more = [str(tmp_path / "it's") if item == "/data/it's" else item for item in more]
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "none"))
    result = place.call("create-table", "main.obs.spans", "--print-sql", *more)
    assert (result.code, result.err) == (0, "")
    statements = [text.strip() for text in result.out.split(";\n") if text.strip()]
    assert len(statements) == 1 + 3 * more.count("--grant-to")
    with MockWorkspace() as workspace:
        workspace.create_schema("main.obs")
        for principal in ("a", "b"):
            workspace.add_group(principal)
        for statement in statements:
            Sql(workspace).rows(statement)
        assert workspace.table("main.obs.spans").spans() == []


@pytest.mark.parametrize("target", ["./traces", "http://127.0.0.1:5000"])
def test_target_of_another_kind_is_refused(place: Place, target: str) -> None:
    """With how such a place is made."""
    result = place.run("create-table", target)
    assert (result.code, result.out) == (1, "")
    assert "is not in Unity Catalog" in result.err
    assert "catalog.schema.table" in result.err


@pytest.mark.parametrize(
    "arguments", [["main.obs.a b"], ["main"], ["main.obs.spans", "--schema-version", "3"], []], ids=range(4)
)
def test_wrong_usage(place: Place, arguments: list[str]) -> None:
    """Exit code 2, before anybody is asked."""
    result = place.call("create-table", *arguments)
    assert (result.code, result.out) == (2, "")


def test_table_that_cannot_be_made(workspace: MockWorkspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, with what the warehouse says."""
    assert workspace.url
    assert main(["create-table", "main.nowhere.spans"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "main.nowhere" in printed.err
    assert "Traceback" not in printed.err
