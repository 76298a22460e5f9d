"""Which destination holds when the code names none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tracelake import TargetError
from tracelake.destinations.resolve import resolve_environment
from tracelake.destinations.targets import registered_schemes

TABLE = {"TRACELAKE_DESTINATION": "/data/ours"}


def resolved(**environ: str) -> tuple[list[str], str]:
    found = resolve_environment(environ)
    return [destination.target for destination in found.destinations], found.source


def test_default_is_a_table_beside_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where MLflow's tracking URI is a local store, or a variable is empty."""
    monkeypatch.chdir(tmp_path)
    default = [f"{os.getcwd()}/tracelake/spans"]
    assert resolved() == (default, "the default")
    assert resolved(TRACELAKE_DESTINATION="  ", MLFLOW_TRACING_DESTINATION="") == (default, "the default")
    for uri in ("sqlite:///mlflow.db", "./mlruns", "file:///mlruns", "postgresql://host/db"):
        assert resolved(MLFLOW_TRACKING_URI=uri) == (default, "the default")


def test_own_variable_comes_first() -> None:
    """Whatever MLflow's variables say, right or wrong."""
    expected = (["/data/ours"], "TRACELAKE_DESTINATION")
    assert resolved(**TABLE, MLFLOW_TRACING_DESTINATION="123", MLFLOW_TRACKING_URI="databricks") == expected
    assert resolved(**TABLE, MLFLOW_TRACKING_URI="http://localhost:5000") == expected


def test_own_variable_may_name_several() -> None:
    """Separated by commas, each once."""
    assert resolved(TRACELAKE_DESTINATION="/a, s3://b/c,/a")[0] == ["/a", "s3://b/c"]


@pytest.mark.parametrize(
    ("text", "means"), [("main.obs", "'main.obs'"), ("main.obs.agent", "'main.obs.agent_otel_spans'")]
)
def test_mlflow_destination_is_a_schema_or_a_table_prefix(text: str, means: str) -> None:
    """Two parts and three, in MLflow's own meaning; it comes before the tracking URI."""
    if "uc" in registered_schemes():
        targets, source = resolved(MLFLOW_TRACING_DESTINATION=text, MLFLOW_TRACKING_URI="http://localhost:5000")
        assert source == "MLFLOW_TRACING_DESTINATION"
        assert targets[0].removeprefix("uc://").startswith(means.strip("'"))
        return
    with pytest.raises(TargetError, match=rf"^MLFLOW_TRACING_DESTINATION: The target {means} names a Unity Catalog"):
        resolved(MLFLOW_TRACING_DESTINATION=text, MLFLOW_TRACKING_URI="http://localhost:5000")


@pytest.mark.parametrize(("text", "said"), [("123456", "names an MLflow experiment"), ("a.b.c.d", "too many parts")])
def test_mlflow_destination_that_is_no_table(text: str, said: str) -> None:
    """An experiment id, the third form, is refused, and the message says what to set."""
    with pytest.raises(TargetError, match=rf"^MLFLOW_TRACING_DESTINATION: '{text}' .*{said}.*Set TRACELAKE_DEST"):
        resolved(MLFLOW_TRACING_DESTINATION=text)


@pytest.mark.parametrize("uri", ["databricks", "databricks://profile", "databricks-uc", "Databricks"])
def test_databricks_needs_a_table(uri: str) -> None:
    """And the message says how to name one."""
    with pytest.raises(TargetError, match=r"^MLFLOW_TRACKING_URI: .*Unity Catalog table. Set TRACELAKE_DESTINATION="):
        resolved(MLFLOW_TRACKING_URI=uri)


@pytest.mark.parametrize("uri", ["http://localhost:5000", "https://mlflow.example.com", "HTTP://localhost:5000"])
def test_tracking_server_is_where_spans_go(uri: str) -> None:
    """Spans follow the runs."""
    if "http" in registered_schemes():
        assert resolved(MLFLOW_TRACKING_URI=uri)[1] == "MLFLOW_TRACKING_URI"
        return
    with pytest.raises(TargetError, match=r"^MLFLOW_TRACKING_URI: .*an MLflow tracking server"):
        resolved(MLFLOW_TRACKING_URI=uri)


@pytest.mark.parametrize("variable", ["TRACELAKE_DESTINATION", "MLFLOW_TRACING_DESTINATION", "MLFLOW_TRACKING_URI"])
def test_error_begins_with_its_variable_and_shows_no_secret(variable: str) -> None:
    """What is wrong may be a URL with a password."""
    with pytest.raises(TargetError, match=f"^{variable}: ") as raised:
        resolved(**{variable: "databricks://user:hunter2hunter2@host"})
    assert "hunter2" not in str(raised.value)


def test_environment_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless another is given."""
    monkeypatch.setenv("TRACELAKE_DESTINATION", "/data/here")
    assert [item.target for item in resolve_environment().destinations] == ["/data/here"]
