"""MLflow's AI Gateway in a real server: an agent's trace has each call of it, and links to the gateway's own trace."""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.apps.fake_openai import ANSWER, USAGE, FakeOpenAI, run_fake_openai
from tests.lake import Lake, wait_until
from tests.mlflow_server import QUIET, MlflowServer, ServedTrace, run_mlflow_server

APPS = Path(__file__).parent / "apps"
KEY = "sk-the-provider's"
QUESTION = {"role": "user", "content": "What is a lakehouse?"}
TOKENS = {"input_tokens": 7, "output_tokens": 9, "total_tokens": 16}
LINK = "mlflow.gateway.linkedTraceId"
DEFAULT_EXPERIMENT = "0"

pytestmark = pytest.mark.slow  # a server with a gateway takes long to start


@dataclass(frozen=True)
class Gateway:
    """A server with one endpoint that answers and one whose provider does not.

    Attributes:
        agents: id of the experiment of the agents.
        experiments: ids of the endpoints' own experiments, by the endpoints' names.
    """

    server: MlflowServer
    provider: FakeOpenAI
    agents: str
    experiments: dict[str, str]

    def full_trace(self, agents_trace: ServedTrace, endpoint: str) -> ServedTrace:
        """Follow the link of an agent's trace to the gateway's own."""
        linked = agents_trace.span(f"gateway/{endpoint}").attributes[LINK]
        full = wait_until(lambda: self._finished(linked), "the gateway's own trace is there")
        assert full.experiment_id == self.experiments[endpoint]
        return full

    def _finished(self, trace_id: str) -> ServedTrace | None:
        trace = self.server.trace(trace_id)
        return trace if trace and len(trace.spans) == 2 and trace.info["state"] != "IN_PROGRESS" else None

    def agents_trace(self, trace_id: str, spans: int) -> ServedTrace:
        """Return an agent's trace once it has so many spans."""

        def look() -> ServedTrace | None:
            trace = self.server.trace(trace_id)
            return trace if trace and len(trace.spans) >= spans else None

        trace = wait_until(look, f"{trace_id} has {spans} spans")
        assert len(trace.spans) == spans
        return trace


@contextlib.contextmanager
def run_gateway(root: Path, *, store: str = "", **environ: str) -> Iterator[Gateway]:
    """Run a gateway in front of a provider on loopback; `store` is as `run_mlflow_server` takes it."""
    with run_fake_openai() as provider, run_mlflow_server(root, store=store, **environ) as server:
        secret = server.post(
            "gateway/secrets/create",
            secret_name="provider",
            provider="openai",
            secret_value={"api_key": KEY},
            auth_config={"api_base": provider.url},
        )["secret"]["secret_id"]
        agents = str(server.post("experiments/create", name="agents")["experiment_id"])
        models = {"chat": "fake-model", "broken": "error-503"}
        experiments = {name: _create_endpoint(server, secret, name, model) for name, model in models.items()}
        yield Gateway(server, provider, agents, experiments)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that writes the spans it adds to its callers' traces."""
    # With batches of spans, which are MLflow's default, the server forgets such a span before it has written it.
    with run_gateway(tmp_path_factory.mktemp("server"), MLFLOW_USE_BATCH_SPAN_PROCESSOR="false") as running:
        yield running


def _create_endpoint(server: MlflowServer, secret_id: str, name: str, model: str) -> str:
    definition = server.post(
        "gateway/model-definitions/create", name=name, provider="openai", model_name=model, secret_id=secret_id
    )["model_definition"]["model_definition_id"]
    use = {"model_definition_id": definition, "linkage_type": "PRIMARY", "weight": 1.0}
    endpoint = server.post("gateway/endpoints/create", name=name, usage_tracking=True, model_configs=[use])["endpoint"]
    return str(endpoint["experiment_id"])


@dataclass(frozen=True)
class Run:
    """What became of an agent."""

    trace_id: str
    headers: dict[str, str]
    error: str


def run_agent(lake: Lake, gateway: Gateway, endpoint: str, *options: str, **environ: str) -> Run:
    """Run the agent to its end, with `TRACELAKE_DESTINATION=auto` if not told otherwise."""
    command = (sys.executable, str(APPS / "gateway_agent.py"), gateway.server.url, endpoint, *options)
    process = lake.start(*command, **{"TRACELAKE_DESTINATION": "auto", **QUIET, **environ})
    assert process.wait(60) == 0, lake.output(process)
    assert bool(lake.shippers()) == (environ.get("TRACELAKE_SHIPPER") != "external")  # it is we who delivered
    (told,) = [json.loads(line) for line in lake.output(process).splitlines() if line.startswith("{")]
    return Run(**told)


def check_call(trace: ServedTrace, endpoint: str, model: str) -> None:
    """See that the call is in the agent's trace: under the agent's span, with what was used, and without contents."""
    agent, call, used = trace.span("agent"), trace.span(f"gateway/{endpoint}"), trace.span(f"provider/openai/{model}")
    assert agent.parent_span_id is None
    assert call.parent_span_id == agent.span_id
    assert call.attributes["endpoint_name"] == endpoint
    assert used.parent_span_id == call.span_id
    assert used.attributes["mlflow.llm.model"] == model
    for span in (call, used):
        assert not {"mlflow.spanInputs", "mlflow.spanOutputs"} & span.attributes.keys()


@pytest.mark.parametrize(
    ("options", "destination"),
    [
        pytest.param((), "auto", id="whole-auto"),
        pytest.param(("stream",), "auto", id="stream-auto"),
        pytest.param(("stream",), "{url}?experiment=agents", id="stream-url"),
    ],
)
def test_agent_calls_the_gateway(lake: Lake, gateway: Gateway, options: tuple[str, ...], destination: str) -> None:
    """Its trace has the call, with the tokens that were used, and links to the gateway's trace, with all contents."""
    run = run_agent(lake, gateway, "chat", *options, TRACELAKE_DESTINATION=destination.format(url=gateway.server.url))
    assert not run.error
    trace = gateway.agents_trace(run.trace_id, 3)
    assert trace.experiment_id == gateway.agents
    assert trace.info["state"] == "OK"
    check_call(trace, "chat", "fake-model")
    assert trace.span("agent").attributes["mlflow.spanType"] == "AGENT"
    assert trace.span("agent").attributes["mlflow.spanInputs"] == {"question": QUESTION["content"]}
    assert trace.span("agent").attributes["mlflow.spanOutputs"] == ANSWER
    assert trace.span("provider/openai/fake-model").attributes["mlflow.chat.tokenUsage"] == TOKENS
    assert json.loads(trace.info["trace_metadata"]["mlflow.trace.tokenUsage"]) == TOKENS

    full = gateway.full_trace(trace, "chat")
    root = full.span("gateway/chat")
    assert full.info["state"] == "OK"
    assert root.parent_span_id is None
    assert root.attributes["mlflow.spanInputs"]["messages"] == [QUESTION]
    outputs = root.attributes["mlflow.spanOutputs"]
    assert outputs["choices"][0]["message"]["content"] == ANSWER
    assert {name: int(outputs["usage"][name]) for name in USAGE} == USAGE
    assert gateway.provider.requests[-1].headers["authorization"] == f"Bearer {KEY}"
    assert "traceparent" not in gateway.provider.requests[-1].headers


@pytest.mark.parametrize(
    ("options", "error"),
    [pytest.param((), "InternalServerError", id="whole"), pytest.param(("stream",), "APIError", id="stream")],
)
def test_provider_fails(lake: Lake, gateway: Gateway, options: tuple[str, ...], error: str) -> None:
    """The agent has its exception, and both traces say what went wrong."""
    run = run_agent(lake, gateway, "broken", *options)
    assert run.error == error
    trace = gateway.agents_trace(run.trace_id, 3)
    assert trace.experiment_id == gateway.agents
    assert trace.info["state"] == "ERROR"
    check_call(trace, "broken", "error-503")
    assert trace.span("agent").status == "STATUS_CODE_ERROR"
    assert trace.span("agent").events == ["exception"]
    assert trace.span("provider/openai/error-503").status == "STATUS_CODE_ERROR"

    full = gateway.full_trace(trace, "broken")
    root = full.span("gateway/broken")
    assert full.info["state"] == root.status.removeprefix("STATUS_CODE_") == "ERROR"
    assert root.attributes["mlflow.spanInputs"]["messages"] == [QUESTION]
    assert "mlflow.spanOutputs" not in root.attributes
    assert full.span("provider/openai/error-503").events == ["exception"]


def test_agent_is_delivered_long_after_the_call(lake: Lake, gateway: Gateway) -> None:
    """The gateway's span comes first, and the server puts it into its default experiment; the agent's moves it."""
    run = run_agent(lake, gateway, "chat", TRACELAKE_SHIPPER="external")
    early = gateway.agents_trace(run.trace_id, 2)
    assert {span.name for span in early.spans} == {"gateway/chat", "provider/openai/fake-model"}
    assert early.experiment_id == DEFAULT_EXPERIMENT

    process = lake.start(sys.executable, "-m", "tracelake", "ship", "--once")
    assert process.wait(60) == 0, lake.output(process)
    trace = gateway.agents_trace(run.trace_id, 3)
    assert trace.experiment_id == gateway.agents
    assert trace.info["state"] == "OK"
    check_call(trace, "chat", "fake-model")
    assert run.trace_id in gateway.server.traces(gateway.agents)
    assert run.trace_id not in gateway.server.traces(DEFAULT_EXPERIMENT)
    assert gateway.full_trace(trace, "chat").info["state"] == "OK"


def test_gateway_is_called_after_the_agent_was_delivered(lake: Lake, gateway: Gateway) -> None:
    """A call that belongs to a trace which is complete already joins it where it is."""
    run = run_agent(lake, gateway, "chat")
    gateway.agents_trace(run.trace_id, 3)
    lake.settle()
    request = urllib.request.Request(
        f"{gateway.server.url}/gateway/mlflow/v1/chat/completions",
        json.dumps({"model": "chat", "messages": [QUESTION]}).encode(),
        {"Content-Type": "application/json", **run.headers},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.load(answer)["choices"][0]["message"]["content"] == ANSWER
    trace = gateway.agents_trace(run.trace_id, 5)
    assert trace.experiment_id == gateway.agents
    assert trace.info["state"] == "OK"
    calls = [span for span in trace.spans if span.name == "gateway/chat"]
    assert [call.parent_span_id for call in calls] == [trace.span("agent").span_id] * 2
    assert len({call.attributes[LINK] for call in calls}) == 2


def test_client_is_traced_too(lake: Lake, gateway: Gateway) -> None:
    """With autologging the agent's trace has the call from both sides, the contents from the client's."""
    run = run_agent(lake, gateway, "chat", "autolog")
    trace = gateway.agents_trace(run.trace_id, 4)
    check_call(trace, "chat", "fake-model")
    client: dict[str, Any] = trace.span("Completions").attributes
    assert trace.span("Completions").parent_span_id == trace.span("agent").span_id
    assert client["mlflow.spanOutputs"]["choices"][0]["message"]["content"] == ANSWER
    assert client["mlflow.chat.tokenUsage"] == TOKENS


def test_server_records_into_the_table(lake: Lake, tmp_path: Path) -> None:
    """A server that is given a table puts its spans beside the agent's, also as MLflow sets it up by default."""
    recording = {name: value for name, value in lake.environ.items() if name.startswith("TRACELAKE_")}
    with run_gateway(tmp_path, **recording) as gateway:
        runs = [run_agent(lake, gateway, name, TRACELAKE_DESTINATION=lake.table) for name in ("chat", "broken")]
        assert gateway.server.traces(gateway.experiments["chat"]) == []
    rows = lake.rows()
    assert len(rows) == 10
    for run, name, model in zip(runs, ("chat", "broken"), ("fake-model", "error-503"), strict=True):
        spans = {row["name"]: row for row in rows if f"tr-{row['trace_id']}" == run.trace_id}
        call, used = spans[f"gateway/{name}"], spans[f"provider/openai/{model}"]
        assert len(spans) == 3
        assert call["parent_span_id"] == spans["agent"]["span_id"]
        assert used["parent_span_id"] == call["span_id"]
        linked = {row["name"]: row for row in rows if f"tr-{row['trace_id']}" == call["attributes"][LINK]}
        root = linked[f"gateway/{name}"]
        assert len(linked) == 2
        assert root["attributes"]["mlflow.experimentId"] == gateway.experiments[name]
        assert root["attributes"]["mlflow.trace.metadata.mlflow.gateway.requestType"] == "unified/chat"
        assert json.loads(root["attributes"]["mlflow.spanInputs"])["messages"] == [QUESTION]
        if name == "chat":
            assert json.loads(used["attributes"]["mlflow.chat.tokenUsage"]) == TOKENS
            assert ANSWER in root["attributes"]["mlflow.spanOutputs"]
        else:
            assert used["status"]["code"] == root["status"]["code"] == "STATUS_CODE_ERROR"
