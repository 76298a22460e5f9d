"""Which destination holds when the code names none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tracelake import TargetError
from tracelake.destinations.resolve import resolve_environment, resolve_named

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
    assert resolved(**TABLE, MLFLOW_TRACING_DESTINATION="a.b.c.d") == expected
    assert resolved(**TABLE, MLFLOW_TRACKING_URI="http://localhost:5000") == expected


def test_own_variable_may_name_several() -> None:
    """Separated by commas, each once."""
    assert resolved(TRACELAKE_DESTINATION="/a, s3://b/c,/a")[0] == ["/a", "s3://b/c"]


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("main.obs", "uc://main.obs.mlflow_experiment_trace_otel_spans"),
        ("main.obs.agent", "uc://main.obs.agent_otel_spans"),
    ],
)
def test_mlflow_destination_is_a_schema_or_a_table_prefix(text: str, means: str) -> None:
    """Two parts and three, in MLflow's own meaning; it comes before the tracking URI."""
    found = resolved(MLFLOW_TRACING_DESTINATION=text, MLFLOW_TRACKING_URI="http://localhost:5000")
    assert found == ([means], "MLFLOW_TRACING_DESTINATION")


@pytest.mark.parametrize("text", ["a.b.c.d", "a..b.c.d", "databricks://host", "an experiment"])
def test_mlflow_destination_of_no_form(text: str) -> None:
    """The message says which forms there are."""
    with pytest.raises(TargetError, match=r"^MLFLOW_TRACING_DESTINATION: '.*is neither an experiment id.*Write one"):
        resolved(MLFLOW_TRACING_DESTINATION=text)


def test_mlflow_destination_is_an_experiment() -> None:
    """The third form: of the server that the tracking URI names, whatever experiment is set besides."""
    server = {"MLFLOW_TRACKING_URI": "http://localhost:5000", "MLFLOW_EXPERIMENT_ID": "7"}
    found = resolved(MLFLOW_TRACING_DESTINATION="123456", **server)
    assert found == (["http://localhost:5000?experiment_id=123456"], "MLFLOW_TRACING_DESTINATION")
    # An experiment of a local store is none of a server's.
    assert resolved(MLFLOW_TRACING_DESTINATION="123456", MLFLOW_TRACKING_URI="sqlite:///a.db")[1] == "the default"
    with pytest.raises(TargetError, match=r"needs a Unity Catalog table .*no destination is set"):
        resolved(MLFLOW_TRACING_DESTINATION="123456", MLFLOW_TRACKING_URI="databricks")


@pytest.mark.parametrize("uri", ["databricks", "databricks://profile", "databricks-uc", "Databricks"])
def test_databricks_needs_a_table(uri: str) -> None:
    """And the message names the rule, what is set, and what to set."""
    with pytest.raises(
        TargetError, match=rf"^MLFLOW_TRACKING_URI: .*{uri}.*needs a Unity Catalog table.*no dest"
    ) as one:
        resolved(MLFLOW_TRACKING_URI=uri)
    with pytest.raises(TargetError, match=rf"^TRACELAKE_DESTINATION: .*{uri}.*the destination is '/data/ours'") as two:
        resolved(MLFLOW_TRACKING_URI=uri, **TABLE)
    for raised in (one, two):
        assert "Set TRACELAKE_DESTINATION=catalog.schema.table, or call tracelake.set_destination" in str(raised.value)


@pytest.mark.parametrize("uri", ["http://localhost:5000", "https://mlflow.example.com", "HTTP://localhost:5000"])
def test_tracking_server_is_where_spans_go(uri: str) -> None:
    """Spans follow the runs, into the experiment that is set, by id or by name."""
    server = uri.replace("HTTP", "http")
    assert resolved(MLFLOW_TRACKING_URI=uri) == ([server], "MLFLOW_TRACKING_URI")
    assert resolved(MLFLOW_TRACKING_URI=uri, MLFLOW_EXPERIMENT_ID="7")[0] == [f"{server}?experiment_id=7"]
    named = resolved(MLFLOW_TRACKING_URI=uri, MLFLOW_EXPERIMENT_NAME="/Shared/my agent")[0]
    assert named == [f"{server}?experiment=%2FShared%2Fmy%20agent"]
    both = resolved(MLFLOW_TRACKING_URI=uri, MLFLOW_EXPERIMENT_ID="7", MLFLOW_EXPERIMENT_NAME="agent")[0]
    assert both == [f"{server}?experiment_id=7"]


def test_auto_leaves_it_to_the_rest_of_the_environment() -> None:
    """For a job whose variable has to say something, and where MLflow's settings name the place."""
    assert resolved(TRACELAKE_DESTINATION="auto")[1] == "the default"
    found = resolved(TRACELAKE_DESTINATION="auto", MLFLOW_TRACKING_URI="http://localhost:5000")
    assert found == (["http://localhost:5000"], "MLFLOW_TRACKING_URI")


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


def test_location_of_mlflow_is_what_mlflow_means_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment of the server of the tracking URI, a schema's default table, or a table by its prefix."""
    locations = pytest.importorskip("mlflow.entities.trace_location")
    experiment = locations.MlflowExperimentLocation("7")
    with pytest.raises(TargetError, match=r"experiment_id='7'\) names no place.*Set the tracking URI"):
        resolve_named(experiment)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert [item.target for item in resolve_named([experiment, "/data/ours"])] == [
        "http://localhost:5000?experiment_id=7",
        "/data/ours",
    ]
    assert [item.target for item in resolve_named(locations.UCSchemaLocation("main", "obs"))] == [
        "uc://main.obs.mlflow_experiment_trace_otel_spans"
    ]
    if hasattr(locations, "UnityCatalog"):
        with pytest.raises(TargetError, match=r"names no place for spans\. Give it a table_prefix"):
            resolve_named(locations.UnityCatalog("main", "obs"))
