"""MLflow's AI Gateway in a server that records into one table, called by an agent that records into another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.apps.fake_openai import ANSWER
from tests.integration.test_mlflow_gateway import LINK, QUESTION, TOKENS, run_agent, run_gateway
from tests.lake import Lake, wait_until
from tracelake.testing import MockWorkspace

pytestmark = pytest.mark.slow  # a server with a gateway takes long to start

CONTENTS = {"mlflow.spanInputs", "mlflow.spanOutputs"}


@pytest.fixture
def workspace(lake: Lake) -> Iterator[MockWorkspace]:
    """A workspace that the lake's processes reach, with two span tables."""
    with MockWorkspace() as made:
        lake.environ |= made.environment(host=made.serve())
        made.create_schema("main.obs")
        for name in ("main.obs.agents", "main.obs.gateway"):
            made.create_table(name)
        yield made


def call(lake: Lake, root: Path, agents: str, gateway: str, *options: str, accept: str = "") -> tuple[str, str]:
    """Have an agent call the gateway; returns its trace's id and the id of the endpoint's experiment."""
    environ = {**lake.environ, "TRACELAKE_DESTINATION": gateway, "TRACELAKE_ACCEPT_DESTINATIONS": accept}
    kept = {name: value for name, value in environ.items() if name.startswith(("TRACELAKE_", "DATABRICKS_"))}
    with run_gateway(root, **kept) as running:
        run = run_agent(lake, running, "chat", *options, TRACELAKE_DESTINATION=agents)
        assert not run.error
        assert running.server.traces(running.experiments["chat"]) == []
        experiment = running.experiments["chat"]
    lake.settle()
    return run.trace_id.removeprefix("tr-"), experiment


def check(agents: list[dict[str, Any]], gateways: list[dict[str, Any]], trace_id: str, experiment: str) -> None:
    """See that the call is in the agent's table without contents, and in the gateway's with them, and nothing twice."""
    light = {row["name"]: row for row in agents}
    assert light.keys() == {"agent", "gateway/chat", "provider/openai/fake-model"}
    assert len(agents) == 3
    assert {row["trace_id"] for row in agents} == {trace_id}
    used = light["provider/openai/fake-model"]
    assert light["gateway/chat"]["parent_span_id"] == light["agent"]["span_id"]
    assert used["parent_span_id"] == light["gateway/chat"]["span_id"]
    assert _value(used["attributes"]["mlflow.chat.tokenUsage"]) == TOKENS
    for name in ("gateway/chat", "provider/openai/fake-model"):
        assert not CONTENTS & light[name]["attributes"].keys()

    full = {row["name"]: row for row in gateways}
    assert full.keys() == {"gateway/chat", "provider/openai/fake-model"}
    assert len(gateways) == 2
    assert {f"tr-{row['trace_id']}" for row in gateways} == {light["gateway/chat"]["attributes"][LINK]}
    root = full["gateway/chat"]["attributes"]
    assert str(root["mlflow.experimentId"]) == experiment
    assert _value(root["mlflow.spanInputs"])["messages"] == [QUESTION]
    assert _value(root["mlflow.spanOutputs"])["choices"][0]["message"]["content"] == ANSWER


@pytest.mark.parametrize("options", [(), ("stream",)], ids=["whole", "stream"])
def test_each_in_its_own_table(lake: Lake, tmp_path: Path, options: tuple[str, ...]) -> None:
    """The server accepts the table that the agent names a digest of."""
    other = str(tmp_path / "gateway")
    trace_id, experiment = call(lake, tmp_path, lake.table, other, "headers", *options, accept=lake.table)
    check(lake.rows(), lake.rows(other), trace_id, experiment)


def test_table_that_is_not_accepted(lake: Lake, tmp_path: Path) -> None:
    """The gateway's spans are all in its own table, those of the agent's trace under that trace's id."""
    other = str(tmp_path / "gateway")
    trace_id, _ = call(lake, tmp_path, lake.table, other, "headers")
    assert [row["name"] for row in lake.rows()] == ["agent"]
    split = [row["name"] for row in lake.rows(other) if row["trace_id"] == trace_id]
    assert sorted(split) == ["gateway/chat", "provider/openai/fake-model"]


@pytest.mark.parametrize("gateway", ["main.obs.gateway", "main.obs.agents"], ids=["own", "same"])
def test_tables_of_unity_catalog(lake: Lake, tmp_path: Path, workspace: MockWorkspace, gateway: str) -> None:
    """Both in a workspace: in a table each, or in one."""
    agents = "main.obs.agents"
    trace_id, experiment = call(lake, tmp_path, agents, gateway, "headers", accept=agents)
    rows = {name: _rows(workspace, name) for name in ("main.obs.agents", "main.obs.gateway")}
    if gateway == agents:
        assert rows["main.obs.gateway"] == []
        check(*_parted(rows[agents], trace_id), trace_id, experiment)
    else:
        check(rows[agents], rows[gateway], trace_id, experiment)


def test_agent_in_unity_catalog_and_gateway_on_disk(lake: Lake, tmp_path: Path, workspace: MockWorkspace) -> None:
    """The kinds of the two tables have nothing to do with each other."""
    trace_id, experiment = call(lake, tmp_path, "main.obs.agents", lake.table, "headers", accept="main.obs.agents")
    check(_rows(workspace, "main.obs.agents"), lake.rows(), trace_id, experiment)


@pytest.mark.parametrize("gateway", ["main.obs.gateway", ""], ids=["unity-catalog", "disk"])
def test_server_whose_store_is_the_table(lake: Lake, tmp_path: Path, workspace: MockWorkspace, gateway: str) -> None:
    """As before; and the server shows the full trace in the experiment of the endpoint."""
    own = gateway or str(tmp_path / "gateway")
    environ = {**lake.environ, "TRACELAKE_DESTINATION": own, "TRACELAKE_ACCEPT_DESTINATIONS": "main.obs.agents"}
    environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    kept = {name: value for name, value in environ.items() if name.startswith(("TRACELAKE_", "DATABRICKS_", "MLFLOW_"))}
    with run_gateway(tmp_path, store="tracelake://", **kept) as running:
        run = run_agent(lake, running, "chat", "headers", TRACELAKE_DESTINATION="main.obs.agents")
        assert not run.error
        experiment = running.experiments["chat"]
        shown = wait_until(lambda: running.server.traces(experiment), "the gateway's trace is shown")
        assert len(shown) == 1
        full = running.server.trace(shown[0])
        assert full is not None
        assert {span.name for span in full.spans} == {"gateway/chat", "provider/openai/fake-model"}
        assert full.experiment_id == experiment
    lake.settle()
    rows = _rows(workspace, gateway) if gateway else lake.rows(own)
    check(_rows(workspace, "main.obs.agents"), rows, run.trace_id.removeprefix("tr-"), experiment)


def _value(value: Any) -> Any:
    """Return an attribute's value from its JSON, or as it is, where the table has VARIANTs."""
    return json.loads(value) if isinstance(value, str) else value


def _rows(workspace: MockWorkspace, name: str) -> list[dict[str, Any]]:
    return [
        {
            "name": span.name,
            "trace_id": span.trace_id,
            "span_id": span.span_id,
            "parent_span_id": span.parent_span_id,
            "attributes": span.attributes,
        }
        for span in workspace.table(name).spans()
    ]


def _parted(rows: list[dict[str, Any]], trace_id: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return (
        [row for row in rows if row["trace_id"] == trace_id],
        [row for row in rows if row["trace_id"] != trace_id],
    )
