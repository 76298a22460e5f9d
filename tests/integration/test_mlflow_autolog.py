"""What MLflow's autologging makes of calls to a language model: in the row are what was asked, answered and used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.apps.fake_openai import ANSWER, USAGE, FakeOpenAI, run_fake_openai
from tests.lake import Lake
from tests.mlflow_server import QUIET

pytestmark = pytest.mark.slow  # each loads MLflow and OpenAI

QUESTION = {"role": "user", "content": "What is a lakehouse?"}
TOKENS = {"input_tokens": 7, "output_tokens": 9, "total_tokens": 16}

SETUP = """
import asyncio, sys
import mlflow, openai

mlflow.openai.autolog()
settings = {"base_url": sys.argv[1], "api_key": "none", "max_retries": 0}
call = {"model": "fake-model", "messages": [{"role": "user", "content": "What is a lakehouse?"}]}
streamed = call | {"stream": True, "stream_options": {"include_usage": True}}
"""

CALLS = {
    "whole": """
openai.OpenAI(**settings).chat.completions.create(**call)
""",
    "stream": """
for chunk in openai.OpenAI(**settings).chat.completions.create(**streamed):
    pass
""",
    "async": """
async def main():
    await openai.AsyncOpenAI(**settings).chat.completions.create(**call)

asyncio.run(main())
""",
    "async-stream": """
async def main():
    async for chunk in await openai.AsyncOpenAI(**settings).chat.completions.create(**streamed):
        pass

asyncio.run(main())
""",
}

ERRORS = """
for model in ("error-400", "error-500"):
    try:
        openai.OpenAI(**settings).chat.completions.create(**call | {"model": model})
    except openai.APIStatusError as error:
        print(error.status_code)
"""

AGENT = """
@mlflow.trace(span_type="TOOL")
def tool(client):
    return client.chat.completions.create(**call).choices[0].message.content

with mlflow.start_span("agent", span_type="AGENT"):
    tool(openai.OpenAI(**settings))
    for chunk in openai.OpenAI(**settings).chat.completions.create(**streamed):
        pass
"""


@pytest.fixture
def provider() -> Iterator[FakeOpenAI]:
    """A provider on loopback."""
    with run_fake_openai() as running:
        yield running


def run(lake: Lake, provider: FakeOpenAI, source: str) -> str:
    return lake.run(SETUP + source, provider.url, **QUIET)


def value(row: dict[str, Any], name: str) -> Any:
    return json.loads(row["attributes"][name])


def check_answered(row: dict[str, Any]) -> None:
    attributes = row["attributes"]
    assert row["status"]["code"] == "STATUS_CODE_OK"
    assert attributes["mlflow.spanType"] == "CHAT_MODEL"
    assert attributes["mlflow.llm.model"] == "fake-model"
    assert value(row, "mlflow.spanInputs")["messages"] == [QUESTION]
    outputs = value(row, "mlflow.spanOutputs")
    assert outputs["choices"][0]["message"]["content"] == ANSWER
    assert {name: outputs["usage"][name] for name in USAGE} == USAGE
    assert value(row, "mlflow.chat.tokenUsage") == TOKENS


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind != "whole" else kind for kind in CALLS]
)
def test_call(lake: Lake, provider: FakeOpenAI, kind: str) -> None:
    """A program with one line for MLflow, and none for us."""
    assert run(lake, provider, CALLS[kind]) == ""
    (row,) = lake.rows()
    assert row["name"] == ("AsyncCompletions" if "async" in kind else "Completions")
    assert row["parent_span_id"] is None
    check_answered(row)
    assert value(row, "mlflow.trace.metadata.mlflow.trace.tokenUsage") == TOKENS


def test_error(lake: Lake, provider: FakeOpenAI) -> None:
    """What the provider refused is there as well, with its reason."""
    assert run(lake, provider, ERRORS).split() == ["400", "500"]
    rows = lake.rows()
    assert len(rows) == 2
    assert len({row["trace_id"] for row in rows}) == 2
    for row, model in zip(rows, ("error-400", "error-500"), strict=True):
        assert value(row, "mlflow.spanInputs")["model"] == model
        assert "mlflow.spanOutputs" not in row["attributes"]
        assert row["status"]["code"] == "STATUS_CODE_ERROR"
        (event,) = row["events"]
        assert event["name"] == "exception"
        assert f"{model} has no answer" in dict(event["attributes"])["exception.message"]


def test_calls_of_an_agent(lake: Lake, provider: FakeOpenAI) -> None:
    """Calls are under the spans they were made in, and the trace counts the tokens of all."""
    assert run(lake, provider, AGENT) == ""
    rows = {row["span_id"]: row for row in lake.rows()}
    (agent,) = [row for row in rows.values() if row["name"] == "agent"]
    calls = [row for row in rows.values() if row["name"] == "Completions"]
    assert [rows[row["parent_span_id"]]["name"] for row in calls] == ["tool", "agent"]
    assert len(rows) == 4
    assert len({row["trace_id"] for row in rows.values()}) == 1
    for row in calls:
        check_answered(row)
    total = {name: 2 * tokens for name, tokens in TOKENS.items()}
    assert value(agent, "mlflow.trace.metadata.mlflow.trace.tokenUsage") == total
