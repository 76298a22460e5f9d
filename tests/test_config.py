"""What config/ holds does what it says: each file is parsed, and run as far as this machine can."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lake import Lake, wait_until
from tests.spans.samples import land
from tests.spans.test_engines import spark  # noqa: F401 - a fixture
from tests.testing.rest import START_NS, Rest, record
from tests.testing.sql import Sql
from tracelake.destinations.targets import parse_target
from tracelake.settings import Settings, read_settings
from tracelake.spans.tables import Version
from tracelake.testing import MockWorkspace

CONFIG = Path(__file__).resolve().parent.parent / "config"
BUNDLE = CONFIG / "databricks-bundle"
SQL = CONFIG / "sql"


@pytest.fixture
def workspace() -> Iterator[MockWorkspace]:
    """A workspace with the schema `main.obs`."""
    with MockWorkspace() as made:
        made.create_schema("main.obs")
        yield made


# --- the bundle ------------------------------------------------------------------------------------------------------

# What its users give by --var, and its deployment knows.
GIVEN = {
    "bundle.name": "tracelake",
    "bundle.target": "dev",
    "resources.schemas.traces.name": "obs",
    "var.catalog": "main",
    "var.warehouse_id": "0123456789abcdef",
    "var.writer": "job@example.com",
}

# What a cluster of Databricks has in its Python, as far as databricks-sdk asks it for the access of the job.
DBRUNTIME = """
class UserNamespaceInitializer:
    @classmethod
    def getOrCreate(cls):
        return cls()

    def get_namespace_globals(self):
        return {}
"""
PROVIDER = """
import os

def init_runtime_native_auth():
    return os.environ["CLUSTER_HOST"], lambda: {"Authorization": "Bearer " + os.environ["CLUSTER_TOKEN"]}
"""


def bundle() -> dict[str, Any]:
    """Return the bundle, as it is written."""
    parsed: dict[str, Any] = yaml.safe_load((BUNDLE / "databricks.yml").read_text())
    return parsed


def deployed(target: str = "dev") -> dict[str, Any]:
    """Return the bundle with its variables in place, and with what a target adds to the job."""
    whole = bundle()
    defaults = {f"var.{name}": about["default"] for name, about in whole["variables"].items() if "default" in about}
    values = {**defaults, **GIVEN, "bundle.target": target}
    text = re.sub(r"\$\{([\w.]+)\}", lambda found: values[found[1]], json.dumps(whole))
    resolved: dict[str, Any] = json.loads(text)
    more = resolved["targets"][target].get("resources", {}).get("jobs", {}).get("traced_job", {})
    resolved["resources"]["jobs"]["traced_job"] |= more
    return resolved


@pytest.mark.parametrize("target", ["dev", "prod"])
def test_bundle_is_one_for_databricks_own_classes(target: str) -> None:
    """They refuse a field, a kind of value and a privilege that they do not know."""
    from databricks.bundles.jobs import Job
    from databricks.bundles.schemas import Schema

    found = deployed(target)
    assert set(found) == {"bundle", "variables", "resources", "targets"}
    job = Job.from_dict(found["resources"]["jobs"]["traced_job"])
    schema = Schema.from_dict(found["resources"]["schemas"]["traces"])
    assert (schema.catalog_name, schema.name) == ("main", "obs")
    assert (job.run_as is None) == (target == "dev")
    with pytest.raises(ValueError, match="Unexpected field"):
        Job.from_dict(found["resources"]["jobs"]["traced_job"] | {"run_at": {}})


def test_bundle_names_what_is_there() -> None:
    """Variables have a meaning and are used, the clusters of tasks are the job's, and files are beside the bundle."""
    whole = bundle()
    used = set(re.findall(r"\$\{var\.(\w+)\}", json.dumps(whole)))
    assert used == set(whole["variables"])
    assert all(about["description"] for about in whole["variables"].values())
    job = whole["resources"]["jobs"]["traced_job"]
    clusters = {each["job_cluster_key"] for each in job["job_clusters"]}
    assert {each["job_cluster_key"] for each in job["tasks"]} == clusters
    assert (BUNDLE / job["tasks"][1]["spark_python_task"]["python_file"]).is_file()


class Cluster:
    """Runs the tasks of the bundle's job, as processes with the environment that its cluster has."""

    def __init__(self, lake: Lake, host: str, token: str) -> None:
        (lake.root / "dbruntime").mkdir()
        (lake.root / "dbruntime" / "__init__.py").write_text(DBRUNTIME)
        (lake.root / "dbruntime" / "sdk_credential_provider.py").write_text(PROVIDER)
        self._lake = lake
        self._job = deployed()["resources"]["jobs"]["traced_job"]
        variables = self._job["job_clusters"][0]["new_cluster"]["spark_env_vars"]
        settings, problems = read_settings(variables)
        assert (settings.destination, problems) == ("main.obs.spans", [])
        del lake.environ["TRACELAKE_DESTINATION"]
        lake.environ |= {
            "CLUSTER_HOST": host,
            "CLUSTER_TOKEN": token,
            "DATABRICKS_RUNTIME_VERSION": "16.4",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(lake.root),
            **variables,
        }

    def make_table(self) -> str:
        """Run the first task, and return what it prints."""
        task = self._job["tasks"][0]["python_wheel_task"]
        assert (task["package_name"], task["entry_point"]) == ("tracelake", "tracelake")
        return self._run("-m", "tracelake", *task["parameters"])

    def work(self, *more: str, **environ: str) -> str:
        """Run the second task, and return what it prints."""
        task = self._job["tasks"][1]["spark_python_task"]
        return self._run(str(BUNDLE / task["python_file"]), *task["parameters"], *more, **environ)

    def _run(self, *arguments: str, **environ: str) -> str:
        process = self._lake.start(sys.executable, *arguments, **environ)
        code = process.wait(60)
        output = self._lake.output(process)
        assert code == 0, output
        return output


@pytest.mark.slow
def test_job_of_the_bundle_delivers_before_it_ends(workspace: MockWorkspace, lake: Lake) -> None:
    """By the access that the platform gives to the job, with the privileges that the bundle grants."""
    user = workspace.add_user(GIVEN["var.writer"])
    schema = deployed()["resources"]["schemas"]["traces"]
    assert [each["principal"] for each in schema["grants"]] == [user.name]
    workspace.grant("USE CATALOG", on="main", to=user.name)
    workspace.grant(*schema["grants"][0]["privileges"], on="main.obs", to=user.name)
    workspace.create_warehouse("traces", id=GIVEN["var.warehouse_id"])
    cluster = Cluster(lake, workspace.url, user.token)

    assert "CREATE TABLE" in cluster.make_table()
    assert "2 spans recorded: 2 delivered, 0 pending" in cluster.work()
    (trace,) = workspace.table("main.obs.spans").traces()
    assert [span.name for span in trace.spans] == ["nightly job", "look_up"]
    assert lake.shippers() == []  # another process would not have the job's access


@pytest.mark.slow
def test_job_whose_workspace_is_down_ends_in_time_and_says_what_is_left(lake: Lake) -> None:
    """The job's own work is done, whatever becomes of its spans."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
    cluster = Cluster(lake, nobody, "dapi0")
    started_s = time.monotonic()
    output = cluster.work("--wait", "1", TRACELAKE_EXIT_TIMEOUT="1")
    assert time.monotonic() - started_s < 20
    assert "2 spans recorded: 0 delivered, 2 pending" in output
    assert len(lake.records()) == 2


# --- the env-file ----------------------------------------------------------------------------------------------------


def test_env_file_has_every_setting_with_its_default() -> None:
    """Each is explained above, and is set to what it can be, or has its default after a #."""
    settings = {item.metadata["variable"]: item for item in fields(Settings)}
    variables: dict[str, str] = {}
    defaults: dict[str, str] = {}
    before = ""
    for text in (CONFIG / "tracelake.env").read_text().splitlines():
        if found := re.fullmatch(r"(#?)([A-Z_]+)=(\S*)", text):
            assert before, f"{text} is not explained"
            (defaults if found[1] else variables)[found[2]] = found[3]
        else:
            assert text == "" or text.startswith("# "), text
        before = text
    assert {name for name in variables | defaults if name.startswith("TRACELAKE_")} == set(settings)
    assert not variables.keys() & defaults.keys()
    for name, text in defaults.items():
        assert text == "" or settings[name].metadata["parse"](text) == settings[name].default, name
        assert text or not settings[name].default, name
    assert read_settings(variables)[1] == []
    assert parse_target(variables["TRACELAKE_DESTINATION"])


def test_env_file_is_one_for_a_shell() -> None:
    """As its first line says."""
    command = f"set -a; . {shlex.quote(str(CONFIG / 'tracelake.env'))}; env"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
    assert "TRACELAKE_DESTINATION=main.obs.spans\n" in done.stdout
    assert done.stderr == ""


# --- the sidecar -----------------------------------------------------------------------------------------------------

APP = """
import tracelake

with tracelake.start_span("checkout"):
    pass
"""


def sidecar() -> tuple[dict[str, str], dict[str, Any]]:
    """Return the variables that both containers have, and the pod."""
    shared, deployment = yaml.safe_load_all((CONFIG / "kubernetes" / "sidecar.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["envFrom"] == [{"configMapRef": {"name": shared["metadata"]["name"]}}]
    return shared["data"], pod


def literal_variables(container: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of a container that are no secrets."""
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


def test_sidecar_is_one_for_kubernetes_own_schema() -> None:
    """Which knows each field."""
    import kubernetes_validate

    for each in yaml.safe_load_all((CONFIG / "kubernetes" / "sidecar.yaml").read_text()):
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**each, "sepc": {}}, kubernetes_validate.latest_version(), strict=True)


def test_containers_share_the_spool_and_the_access() -> None:
    """The app has no secret, the sidecar outlives it, and neither may do more than it has to."""
    _, pod = sidecar()
    (ships,), (app,) = pod["initContainers"], pod["containers"]
    assert ships["restartPolicy"] == "Always"
    assert ships["volumeMounts"] == app["volumeMounts"]
    assert {each["name"] for each in app["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    assert [each["name"] for each in ships["env"] if "valueFrom" in each] == ["DATABRICKS_CLIENT_SECRET"]
    assert literal_variables(app).keys() == {each["name"] for each in app["env"]}
    assert read_settings(literal_variables(app))[0].shipper == "external"
    assert pod["volumes"][0]["emptyDir"]["sizeLimit"] == "2Gi"
    assert Settings().spool_max_bytes < 2 * 2**30
    for container in (ships, app):
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]


@pytest.mark.slow
def test_app_and_sidecar_deliver(workspace: MockWorkspace, lake: Lake) -> None:
    """The commands of both containers as processes: the app ends, then the sidecar is ended, as in a pod."""
    shared, pod = sidecar()
    (ships,), (app,) = pod["initContainers"], pod["containers"]
    table = workspace.create_table(shared["TRACELAKE_DESTINATION"])
    principal = workspace.add_service_principal("shop")
    workspace.grant("USE CATALOG", on="main", to=principal.name)
    workspace.grant("USE SCHEMA", on="main.obs", to=principal.name)
    workspace.grant("SELECT", "MODIFY", on="main.obs.spans", to=principal.name)
    access = workspace.environment(principal.name)
    assert access.keys() > {"DATABRICKS_HOST", "DATABRICKS_CLIENT_ID", "DATABRICKS_CLIENT_SECRET"}
    here = {"TRACELAKE_SPOOL_DIR": str(lake.root / "pod")}
    shared |= {name: (access | here)[name] for name in shared.keys() & (access | here).keys()}
    lake.environ = {name: value for name, value in lake.environ.items() if not name.startswith("TRACELAKE_")}
    lake.environ |= {"PATH": os.path.dirname(sys.executable) + os.pathsep + lake.environ["PATH"]}
    lake.environ |= {"NO_PROXY": "127.0.0.1", **shared}
    (lake.root / app["command"][1]).write_text(APP)

    shipper = lake.start(
        *ships["command"], **literal_variables(ships), DATABRICKS_CLIENT_SECRET=access["DATABRICKS_CLIENT_SECRET"]
    )
    wait_until(lambda: "delivering" in lake.output(shipper), "the sidecar has started")
    recorder = lake.start(*app["command"], **literal_variables(app))
    assert recorder.wait(30) == 0, lake.output(recorder)
    shipper.terminate()
    assert shipper.wait(pod["terminationGracePeriodSeconds"]) == 0, lake.output(shipper)
    assert [span.name for span in table.spans()] == ["checkout"], lake.output(shipper)


# --- SQL -------------------------------------------------------------------------------------------------------------

TRACE, LATE = "a" * 32, "b" * 32
USAGE = {"input_tokens": 30, "output_tokens": 12, "total_tokens": 42}
ROOT = record(
    TRACE,
    1,
    "answer",
    ms=25,
    attributes={
        "mlflow.spanType": "AGENT",
        "mlflow.spanInputs": {"question": "why?"},
        "mlflow.spanOutputs": "because",
        "mlflow.chat.tokenUsage": USAGE,
        "mlflow.trace.tag.env": "prod",
        "mlflow.trace.metadata.mlflow.trace.session": "s-1",
        "session.id": "s-1",
        "user.id": "ada",
    },
)
UNFINISHED = record(TRACE, 1, "answer", ms=5)
CALL = record(
    TRACE,
    2,
    "chat",
    parent=1,
    start_ms=5,
    status_code=2,
    attributes={"mlflow.chat.tokenUsage": USAGE, "gen_ai.request.model": "m-1"},
)
OTHER_CALL = record(
    TRACE,
    3,
    "embed",
    parent=4,
    start_ms=6,
    ms=30,
    attributes={"gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 0},
)
ORPHAN = record(LATE, 5, "GET /", parent=6, start_ms=1000, ms=2)
# As an at-least-once transport may: some of them twice.
DELIVERED = [UNFINISHED, ROOT, ROOT, CALL, OTHER_CALL, ORPHAN, CALL]

SPANS_SELECT = """
SELECT name, parent_span_id, span_type, duration_ms, inputs, outputs, model, input_tokens, output_tokens, session_id,
  user_id, status_code FROM spans_flat ORDER BY start_time_unix_nano
"""
SPANS_FOUND = [
    ("answer", None, "AGENT", 25, '{"question":"why?"}', "because", None, 30, 12, "s-1", "ada", "STATUS_CODE_UNSET"),
    ("chat", ROOT.span_id, None, 10, None, None, "m-1", 30, 12, None, None, "STATUS_CODE_ERROR"),
    ("embed", f"{4:016x}", None, 30, None, None, None, 7, 0, None, None, "STATUS_CODE_UNSET"),
    ("GET /", f"{6:016x}", None, 2, None, None, None, None, None, None, None, "STATUS_CODE_UNSET"),
]
TRACES_SELECT = """
SELECT trace_id, name, unix_micros(start_time), duration_ms, state, spans, errors, input_tokens, output_tokens,
  total_tokens, session_id, user_id, request_preview, response_preview, tags['env'],
  metadata['mlflow.trace.session'] FROM traces ORDER BY trace_id
"""
START_US = START_NS // 1000
TRACES_FOUND = [
    (
        *(TRACE, "answer", START_US, 36, "OK", 3, 1, 37, 12, 49, "s-1", "ada", '{"question":"why?"}', "because"),
        *("prod", "s-1"),
    ),
    (LATE, None, START_US + 10**6, 2, "IN_PROGRESS", 1, 0, *[None] * 9),
]


def statements(name: str) -> list[str]:
    """Return the statements of a file of SQL."""
    text = re.sub(r"^\s*--.*\n", "", (SQL / name).read_text(), flags=re.MULTILINE)
    return [statement.strip() for statement in text.split(";\n") if statement.strip()]


def texts(rows: list[tuple[Any, ...]]) -> list[tuple[str | None, ...]]:
    """Return rows with their values as the workspace's SQL sends them."""
    return [tuple(None if value is None else str(value).removesuffix(".0") for value in row) for row in rows]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("spans_v1.sql", ["--schema-version", "1"]),
        ("spans_v2.sql", ["--schema-version", "2"]),
        ("spans_external.sql", ["--location", "s3://bucket/obs/spans"]),
    ],
)
def test_tables_are_those_that_the_command_makes(name: str, arguments: list[str]) -> None:
    """The files are what `create-table` prints."""
    command = [sys.executable, "-m", "tracelake", "create-table", "main.obs.spans", "--print-sql", *arguments]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert (SQL / name).read_text() == printed.strip() + "\n"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.slow
def test_views_have_each_span_and_trace_once(workspace: MockWorkspace, version: Version) -> None:
    """On the SQL warehouse of the mocked workspace, over the tables of config/sql."""
    sql = Sql(workspace)
    for name in (f"spans_v{version}.sql", f"spans_flat_v{version}.sql", "traces.sql"):
        for statement in statements(name):
            sql.rows(statement)
    Rest(workspace).send("main.obs.spans", *DELIVERED)
    assert texts([tuple(row) for row in sql.rows(SPANS_SELECT)]) == texts(SPANS_FOUND)
    assert texts([tuple(row) for row in sql.rows(TRACES_SELECT)]) == texts(TRACES_FOUND)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("version", [1, 2])
def test_spark_runs_the_views(spark: Any, tmp_path: Path, version: Version) -> None:  # noqa: F811
    """Spark's SQL is what Databricks' is made of; it finds the same."""
    table = land(tmp_path, DELIVERED, version)
    spark.sql(f"CREATE TABLE spans USING DELTA LOCATION '{table.table_uri}'")
    try:
        for name in (f"spans_flat_v{version}.sql", "traces.sql"):
            for statement in statements(name):
                spark.sql(statement)
        assert [tuple(row) for row in spark.sql(SPANS_SELECT).collect()] == SPANS_FOUND
        assert [tuple(row) for row in spark.sql(TRACES_SELECT).collect()] == TRACES_FOUND
    finally:
        spark.sql("DROP VIEW IF EXISTS traces")
        spark.sql("DROP VIEW IF EXISTS spans_flat")
        spark.sql("DROP TABLE spans")


@pytest.mark.slow
def test_grants_let_writers_write_and_readers_read_the_views(workspace: MockWorkspace) -> None:
    """And neither do more."""
    for group in ("trace-writers", "trace-readers"):
        workspace.add_group(group)
    writer = workspace.add_user("writer@example.com", groups=["trace-writers"])
    reader = workspace.add_user("reader@example.com", groups=["trace-readers"])
    owner = Sql(workspace)
    for name in ("spans_v2.sql", "spans_flat_v2.sql", "traces.sql", "grants.sql"):
        for statement in statements(name):
            owner.rows(statement)

    Rest(workspace, writer.name).send("main.obs.spans", ROOT)
    assert Sql(workspace, reader.name).rows("SELECT name, spans FROM traces") == [["answer", "1"]]
    assert "does not have SELECT on Table" in Sql(workspace, reader.name).fault("SELECT * FROM spans")
    granted = [row[1] for row in owner.rows("SHOW GRANTS `trace-writers` ON SCHEMA main.obs")]
    assert "EXTERNAL USE SCHEMA" in granted
