"""What names a Unity Catalog table: targets, MLflow's locations and variables, and the rule of Databricks' URIs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lake import Lake
from tracelake import TargetError
from tracelake.destinations.base import digest
from tracelake.destinations.resolve import resolve_environment, resolve_named
from tracelake.destinations.targets import parse_target, registered_schemes


def resolved(**environ: str) -> tuple[list[str], str]:
    found = resolve_environment(environ)
    return [destination.target for destination in found.destinations], found.source


def test_scheme_is_there() -> None:
    """Without a plugin."""
    assert "uc" in registered_schemes()


@pytest.mark.parametrize("uri", ["databricks", "databricks://profile", "databricks-uc", "databricks-uc://profile"])
def test_tracking_uri_of_databricks_is_met_by_a_table(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the environment or in code, alone or beside others; without one it is refused."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert resolved(MLFLOW_TRACKING_URI=uri, TRACELAKE_DESTINATION="main.obs.spans, /data/ours") == (
        ["uc://main.obs.spans", "/data/ours"],
        "TRACELAKE_DESTINATION",
    )
    assert resolved(MLFLOW_TRACKING_URI=uri, MLFLOW_TRACING_DESTINATION="main.obs.agent") == (
        ["uc://main.obs.agent_otel_spans"],
        "MLFLOW_TRACING_DESTINATION",
    )
    assert [item.target for item in resolve_named("main.obs.spans")] == ["uc://main.obs.spans"]
    assert [item.target for item in resolve_named(["/data/ours", "uc://main.obs"])] == [
        "/data/ours",
        "uc://main.obs.mlflow_experiment_trace_otel_spans",
    ]
    with pytest.raises(TargetError, match=r"needs a Unity Catalog table .*the destination is '/data/ours'"):
        resolve_named("/data/ours")


APP = """
import tracelake
tracelake.set_destination("main.obs.spans")
with tracelake.start_span("offline"):
    pass
try:
    tracelake.set_destination("./traces")
except tracelake.TargetError as error:
    print(error)
"""


def test_destination_of_an_app_is_a_table(lake: Lake) -> None:
    """Named by its public function; nobody is asked for it while the app records, and spans wait in the spool."""
    access = {"DATABRICKS_HOST": "http://127.0.0.1:9", "DATABRICKS_TOKEN": "x"}
    output = lake.run(APP, MLFLOW_TRACKING_URI="databricks", TRACELAKE_SHIPPER="external", **access)
    assert "needs a Unity Catalog table" in output
    assert [record.name for record in lake.records()] == ["offline"]
    (lane,) = lake.spool.lanes()
    assert lane.note().target == "uc://main.obs.spans"


@pytest.mark.parametrize(
    ("location", "target"),
    [
        (("UCSchemaLocation", "main", "obs"), "uc://main.obs.mlflow_experiment_trace_otel_spans"),
        (("UnityCatalog", "main", "obs", "agent"), "uc://main.obs.agent_otel_spans"),
        (("UnityCatalog", "main", "my-obs", "größe"), "uc://main.`my-obs`.`größe_otel_spans`"),
        (("UnityCatalog", "ma`in", "obs", "a`"), "uc://`ma``in`.obs.`a``_otel_spans`"),
    ],
)
def test_location_of_mlflow_is_a_table(location: tuple[str, ...], target: str) -> None:
    """A schema's default table, or one by its prefix; whatever the names hold."""
    kind: Any = getattr(pytest.importorskip("mlflow.entities.trace_location"), location[0], None)
    if kind is None:
        pytest.skip("this MLflow has no such location")
    assert [item.target for item in resolve_named(kind(*location[1:]))] == [target]


@pytest.mark.parametrize("name", ["my obs", "a.b", "x/y", ""])
def test_location_of_mlflow_that_is_no_name(name: str) -> None:
    """Is refused like any text."""
    locations = pytest.importorskip("mlflow.entities.trace_location")
    with pytest.raises(TargetError):
        resolve_named(locations.UCSchemaLocation("main", name))


@pytest.mark.parametrize("text", ["main.obs", "main.obs.agent"])
def test_mlflow_variable_and_code_mean_the_same(text: str) -> None:
    """So their digests do, by which services know each other."""
    (named,) = resolve_environment({"MLFLOW_TRACING_DESTINATION": text}).destinations
    target = "main.obs" if text == "main.obs" else "main.obs.agent_otel_spans"
    assert named == parse_target(target)
    assert digest(named) == digest(parse_target(target))


@pytest.mark.parametrize(
    "text",
    ["main.obs.spans'; DROP TABLE x --", "main.obs.spans\nmain.obs.other", "main.obs.`a,b`", "main.obs.../../x"],
)
def test_injection_by_the_environment_is_refused(text: str) -> None:
    """With the name of the variable, on one line."""
    with pytest.raises(TargetError, match=r"^TRACELAKE_DESTINATION: ") as raised:
        resolved(TRACELAKE_DESTINATION=text)
    assert str(raised.value).isprintable()
