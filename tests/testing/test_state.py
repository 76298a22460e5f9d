"""What a workspace keeps in its directory."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from tracelake.errors import ConfigurationError, MissingDependencyError, QueryError
from tracelake.testing import MockWorkspace


def test_everything_is_there_again(tmp_path: Path) -> None:
    """Principals with their credentials, securables with their grants, and the rows of tables."""
    with MockWorkspace(str(tmp_path), user="owner@example.com") as first:
        assert first.is_new
        first.create_schema("main.obs")
        first.create_table("main.obs.spans", schema_version=1)
        first.create_table("main.obs.sales", columns={"id": "long"})
        user = first.add_user("agent@example.com")
        first.grant("SELECT", on="main.obs.spans", to=user.name)
        before = first.environment(user.name, host="-")
        location = first.table("main.obs.spans").location
    with MockWorkspace(str(tmp_path)) as second:
        assert not second.is_new
        assert second.user == "owner@example.com"
        assert second.environment(user.name, host="-") == before
        assert second.table("main.obs.spans").location == location
        assert second.table("main.obs.spans").spans() == []
        second.revoke("SELECT", on="main.obs.spans", from_=user.name)
        second.drop("main.obs.sales")
    with MockWorkspace(str(tmp_path)) as third, pytest.raises(QueryError, match=r"main\.obs\.sales"):
        third.table("main.obs.sales")


def test_workspace_without_a_directory_leaves_nothing() -> None:
    """Its tables are files all the same, while it lives."""
    with MockWorkspace() as workspace:
        workspace.create_schema("main.obs")
        place = Path(workspace.create_table("main.obs.spans").location.removeprefix("file://"))
        assert (place / "_delta_log").is_dir()
    assert not place.parent.parent.exists()


def test_tokens_are_for_the_owner_of_the_files_only(tmp_path: Path) -> None:
    """Even those of a workspace that guards nothing."""
    with MockWorkspace(str(tmp_path / "kept")) as workspace:
        workspace.add_user("agent@example.com")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "kept").iterdir()}
    assert modes["workspace.json"] == 0o600
    assert stat.S_IMODE(os.stat(tmp_path / "kept").st_mode) == 0o700


def test_directory_is_one_process_and_one_workspace_at_a_time(tmp_path: Path) -> None:
    """Two would overwrite each other's state; closed twice is closed."""
    first = MockWorkspace(str(tmp_path))
    with pytest.raises(ConfigurationError, match="open"):
        MockWorkspace(str(tmp_path))
    first.close()
    first.close()
    MockWorkspace(str(tmp_path)).close()


def test_what_is_no_workspace_is_named_and_let_go(tmp_path: Path) -> None:
    """So that it can be repaired while the process goes on."""
    (tmp_path / "workspace.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="is not one of a workspace"):
        MockWorkspace(str(tmp_path))
    (tmp_path / "workspace.json").unlink()
    MockWorkspace(str(tmp_path)).close()


def test_all_is_within_the_directory_whatever_its_name(tmp_path: Path) -> None:
    """Also what is kept in experiments, though locations of tables are URLs."""
    with MockWorkspace(str(tmp_path / "a #1? b")) as workspace:
        workspace.create_schema("main.obs")
        assert workspace.create_table("main.obs.spans").spans() == []
        workspace.create_experiment("/Shared/agent")
        assert workspace.experiment("/Shared/agent").spans() == []
    assert [path.name for path in tmp_path.iterdir()] == ["a #1? b"]


def test_secrets_are_in_no_repr() -> None:
    """Principals are printed by failing assertions."""
    with MockWorkspace() as workspace:
        user, job = workspace.add_user("agent@example.com"), workspace.add_service_principal("job")
        shown = repr((workspace, user, job))
        assert user.name in shown
        assert job.name in shown
        assert user.token not in shown
        assert job.secret not in shown


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda w: w.create_schema("main.obs"), "ALREADY_EXISTS"),
        (lambda w: w.create_table("main.other.spans"), "SCHEMA_DOES_NOT_EXIST"),
        (lambda w: w.create_table("main.obs"), "not a valid name"),
        (lambda w: w.create_table("main.obs.spans", location="relative/path"), "relative/path"),
        (lambda w: w.create_table("main.obs.spans", location="s3://[lake/spans"), "neither an absolute directory"),
        (lambda w: w.grant("SELCT", on="main.obs", to=w.user), "SELCT"),
        (lambda w: w.grant("SELECT", on="main.obs", to="nobody"), "nobody"),
        (lambda w: w.add_user(w.user), "another name"),
        (lambda w: w.environment("nobody", host="-"), "nobody"),
        (lambda w: w.table("main.obs.spans"), "TABLE_DOES_NOT_EXIST"),
    ],
)
def test_mistakes_of_tests_are_named(workspace: MockWorkspace, wrong: object, message: str) -> None:
    """With what the workspace would answer a client."""
    with pytest.raises((ConfigurationError, QueryError), match=message):
        wrong(workspace)  # type: ignore[operator]


def test_what_cannot_be_written_is_not_there(tmp_path: Path) -> None:
    """The client is told that it failed, and may try again."""
    with MockWorkspace(str(tmp_path)) as workspace:
        workspace.create_catalog("before")
        blocked = tmp_path / "workspace.json.new"
        blocked.mkdir()  # in the place of the file that is written first
        with pytest.raises(OSError, match=r"workspace\.json\.new"):
            workspace.create_catalog("main")
        blocked.rmdir()
        workspace.create_catalog("main")
    with MockWorkspace(str(tmp_path)) as again:
        again.create_schema("before.obs")
        again.create_schema("main.obs")


@pytest.mark.parametrize("package", ["deltalake", "sqlglot", "opentelemetry.proto"])
def test_missing_package_is_named_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str) -> None:
    """Before a client is told of it, and with the command that installs it."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"'{package}'.+pip install 'tracelake\[testing\]'"):
        MockWorkspace(str(tmp_path / "kept"))
    assert not (tmp_path / "kept").exists()
