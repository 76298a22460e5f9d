"""Access that no variable holds, repeated by a server: that of a file, or made of two variables; and by a proxy."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest

from .server import EchoServer
from .test_connections import Client, talk

SECRET = "correct-horse-battery"
BASIC = b64encode(f"ana:{SECRET}".encode()).decode()


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without anybody's access."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


def mlflow_file(home: Path, url: str) -> str:
    (home / ".mlflow").mkdir()
    (home / ".mlflow" / "credentials").write_text(
        f"[mlflow]\nmlflow_tracking_username = ana\nmlflow_tracking_password = {SECRET}\n"
    )
    return url


def databricks_profile(home: Path, url: str) -> str:
    (home / ".databrickscfg").write_text(f"[DEFAULT]\nhost = {url}\ntoken = {SECRET}\n")
    return "main.obs.spans"


def databricks_password(home: Path, url: str) -> str:
    (home / ".databrickscfg").write_text(f"[DEFAULT]\nhost = {url}\nusername = ana\npassword = {SECRET}\n")
    return "main.obs.spans"


@pytest.mark.parametrize("access", [mlflow_file, databricks_profile, databricks_password])
@pytest.mark.parametrize("status", [401, 403, 500])
def test_access_of_a_file_is_not_repeated(
    home: Path, monkeypatch: pytest.MonkeyPatch, access: Callable[[Path, str], str], status: int
) -> None:
    """Nothing in the text says that it is one, as a name before it would."""
    body = json.dumps({"error_code": "NO", "message": f"not {BASIC}, nor {SECRET} of {BASIC.rstrip('=')}"})
    with EchoServer(status, body=body).serve() as url:
        said = talk(Client(access(home, url), {}), url, monkeypatch.setenv)
    assert "***" in said, said
    assert SECRET not in said
    # A workspace never sees a token in this form.
    assert BASIC.rstrip("=") not in said or access is databricks_profile
