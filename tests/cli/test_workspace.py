from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import requests
from deltalake import DeltaTable
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from tests.cli.commands import Place


@contextmanager
def served(place: Place, *arguments: str) -> Iterator[tuple[dict[str, str], subprocess.Popen[str]]]:
    """Run the command on a free port; gives the variables that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tracelake", "workspace", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=place.path,
    )
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline() for _ in range(2)]
        yield dict(re.fullmatch(r"export (\w+)=(\S+)\n", line).groups() for line in lines), process  # type: ignore[union-attr,misc]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def call(variables: dict[str, str], path: str) -> requests.Response:
    headers = {"Authorization": f"Bearer {variables['DATABRICKS_TOKEN']}"}
    return requests.get(variables["DATABRICKS_HOST"] + path, headers=headers, timeout=10)


def test_workspace_survives_a_restart(place: Place) -> None:
    """Its token, its tables and their rows, which are a Delta table that others read."""
    with served(place, "--data", "kept") as (variables, process):
        assert call(variables, "/api/2.1/unity-catalog/schemas/main.obs").status_code == 200
        headers = {"Authorization": f"Bearer {variables['DATABRICKS_TOKEN']}"}
        made = requests.post(
            f"{variables['DATABRICKS_HOST']}/api/5.0/mlflow/tracing/locations",
            json={"uc_table_prefix": {"catalog_name": "main", "schema_name": "obs", "table_prefix": "agent"}},
            headers=headers,
            timeout=30,
        ).json()["uc_table_prefix"]["spans_table_name"]
        exporter = OTLPSpanExporter(
            f"{variables['DATABRICKS_HOST']}/api/2.0/otel/v1/traces",
            headers={**headers, "X-Databricks-UC-Table-Name": made},
        )
        provider = TracerProvider(resource=Resource({"service.name": "shop"}))
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        with provider.get_tracer("test").start_as_current_span("kept"):
            pass
        provider.shutdown()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    with served(place, "--data", "kept") as (again, _):
        assert again["DATABRICKS_TOKEN"] == variables["DATABRICKS_TOKEN"]
        table = call(again, f"/api/2.1/unity-catalog/tables/{made}").json()
        rows = DeltaTable(table["storage_location"].removeprefix("file://")).to_pyarrow_table().to_pylist()
        assert [(row["name"], row["service_name"]) for row in rows] == [("kept", "shop")]


def test_workspace_says_how_it_is_used_and_ends_by_a_signal(place: Place) -> None:
    """Without a directory, what it has is gone."""
    with served(place) as (variables, process):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", variables["DATABRICKS_HOST"])
        assert call(variables, "/api/2.0/preview/scim/v2/Me").json()["userName"] == "you@example.com"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert variables["DATABRICKS_HOST"] in said
    assert variables["DATABRICKS_TOKEN"] not in said
    assert "Ctrl-C" in said
    assert not list(place.path.iterdir())


def test_directory_is_used_by_one_workspace_at_a_time(place: Place) -> None:
    """Two would overwrite each other's state."""
    with served(place, "--data", "kept"):
        result = place.run("workspace", "--port", "0", "--data", "kept")
    assert result.code == 1
    assert "open in another process" in result.err


def test_port_that_is_taken_is_named(place: Place) -> None:
    """With what to do about it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = place.run("workspace", "--port", port)
    assert result.code == 1
    assert port in result.err


def test_directory_of_something_else_is_refused(place: Place) -> None:
    """And left as it is."""
    (place.path / "kept").mkdir()
    (place.path / "kept" / "workspace.json").write_text("[]")
    result = place.run("workspace", "--port", "0", "--data", "kept")
    assert result.code == 1
    assert "workspace.json" in result.err
    assert (place.path / "kept" / "workspace.json").read_text() == "[]"


def test_other_addresses_come_with_a_warning(place: Place) -> None:
    """Whoever reaches the port can use the workspace. This address is nobody's (RFC 5737), so nothing is opened."""
    result = place.run("workspace", "--port", "0", "--host", "192.0.2.1")
    assert result.code == 1
    assert re.search(r"WARNING .*192\.0\.2\.1", result.err)
