"""The filters, orders and pages of trace search, over tables of both versions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.testing.rest import START_NS, Rest, record, trace_location
from tracelake.spans.record import SpanEvent
from tracelake.testing import MockWorkspace

AGENT, OLDER = "main.obs.agent", "main.obs"
SPANS = {AGENT: "main.obs.agent_otel_spans", OLDER: "main.obs.mlflow_experiment_trace_otel_spans"}
START_MS = START_NS // 10**6
# The bare ids of the traces: of MLflow, of MLflow with an error, of OpenTelemetry alone, and one with no spans.
MADE, FAILED, PLAIN, BARE = (character * 32 for character in "abcd")
ALL = [MADE, FAILED, PLAIN, BARE]
PROMPTS = '[{"name": "ask", "version": "3"}]'


def _fill(rest: Rest, location: str) -> None:
    rest.send(
        SPANS[location],
        record(MADE, 1, "answer", ms=100, attributes={"mlflow.spanType": "AGENT", "mlflow.spanInputs": {"q": "why"}}),
        record(MADE, 2, "llm", parent=1, attributes={"mlflow.spanType": "LLM", "model": "small", "tokens": 12}),
        record(MADE, 3, "tool", parent=1, attributes={"mlflow.spanType": "TOOL", "a b.c": "deep"}, status_code=1),
        record(
            FAILED,
            1,
            "answer twice",
            start_ms=1000,
            status_code=2,
            events=[SpanEvent("exception", START_NS, {"exception.message": "100% bad_luck"})],
        ),
        record(PLAIN, 1, "GET /", start_ms=2000, ms=50, attributes={"input.value": "asked", "output.value": "said"}),
    )
    rest.put_info(
        location,
        MADE,
        request_time="2026-11-22T14:50:00Z",
        execution_duration="0.100s",
        client_request_id="request-1",
        tags={"mlflow.traceName": "answer", "env": "prod", "a b": "it's", "mlflow.linkedPrompts": PROMPTS},
        trace_metadata={"mlflow.trace.user": "ada", "mlflow.trace.session": "s-1", "mlflow.sourceRun": "run-1"},
    )
    rest.put_info(
        location,
        FAILED,
        request_time="2026-11-22T14:50:01Z",
        execution_duration="0.010s",
        state="ERROR",
        tags={"mlflow.traceName": "answer twice", "env": "test"},
    )
    rest.put_info(location, BARE, request_time="2026-11-22T14:50:03Z", state="IN_PROGRESS")
    for name, value in (("quality", 0.8), ("safe", True), ("verdict", "yes")):
        rest.ok("POST", f"4.0/mlflow/traces/{location}/{MADE}/assessments", _assessment(name, "feedback", value))
    rest.ok("POST", f"4.0/mlflow/traces/{location}/{FAILED}/assessments", _assessment("quality", "feedback", 0.2))
    rest.ok("POST", f"4.0/mlflow/traces/{location}/{FAILED}/assessments", _assessment("answer", "expectation", 42))


def _assessment(name: str, kind: str, value: Any) -> dict[str, Any]:
    source = {"source_type": "HUMAN", "source_id": "ada"}
    return {"assessment_name": name, "source": source, kind: {"value": value}}


@pytest.fixture(scope="module")
def filled() -> Iterator[Rest]:
    with MockWorkspace() as workspace:
        workspace.create_schema("main.obs")
        rest = Rest(workspace)
        for location in SPANS:
            workspace.create_trace_location(location)
            _fill(rest, location)
        yield rest


FILTERS = {
    "": ALL,
    "trace.status = 'OK'": [MADE, PLAIN],
    "status != 'OK'": [FAILED, BARE],
    "state IN ('ERROR', 'IN_PROGRESS')": [FAILED, BARE],
    "attributes.status NOT IN ('ERROR')": [MADE, PLAIN, BARE],
    "trace.name = 'answer'": [MADE],
    "name LIKE 'answer%'": [MADE, FAILED],
    "name ILIKE 'get%'": [PLAIN],
    "name RLIKE '^answer .*e$'": [FAILED],
    "name IS NULL": [BARE],
    f"request_id = '{PLAIN}'": [PLAIN],
    f"trace.request_id IN ('trace:/x/{PLAIN}', '{MADE}')": [MADE, PLAIN],
    "timestamp_ms < 1795359001000": [MADE],
    "timestamp >= 1795359002000": [PLAIN, BARE],
    "trace.timestamp_ms > '2026-11-22T14:50:01Z'": [PLAIN, BARE],
    "timestamp_ms > '2026-11-23'": [],
    "timestamp_ms < 99999999999999999999999999999999999999999999": ALL,
    "timestamp_ms < 1e999": ALL,
    "execution_time_ms >= 100": [MADE],
    "execution_time != 10": [MADE, PLAIN],
    "end_time < 1795359001000 AND timestamp_ms > 0": [MADE],
    "client_request_id = 'request-1'": [MADE],
    "client_request_id IS NULL": [FAILED, PLAIN, BARE],
    "run_id = 'run-1'": [MADE],
    "user = 'ada' AND session = 's-1'": [MADE],
    "session IS NOT NULL": [MADE],
    "tag.env = 'prod'": [MADE],
    "tags.`a b` = 'it''s'": [MADE],
    'tag."a b" LIKE "it%"': [MADE],
    "tags.env != 'prod'": [FAILED],
    "tags.env IS NULL": [PLAIN, BARE],
    "tags.mlflow.traceName = 'answer'": [MADE],
    "metadata.`mlflow.trace.user` = 'ada'": [MADE],
    "request_metadata.mlflow.trace.user RLIKE 'a.a'": [MADE],
    "metadata.none IS NOT NULL": [],
    "span.type = 'LLM'": [MADE],
    "span.name IN ('llm', 'GET /')": [MADE, PLAIN],
    "span.status = 'ERROR'": [FAILED],
    "span.attributes.model = 'small'": [MADE],
    "span.attributes.tokens = '12'": [MADE],
    "span.attributes.`a b.c` LIKE 'd__p'": [MADE],
    # Both of one span.
    "span.type = 'LLM' AND span.name = 'tool'": [],
    "span.type = 'TOOL' AND span.name = 'tool' AND tag.env = 'prod'": [MADE],
    "span.content LIKE '%small%'": [MADE],
    "trace.text ILIKE '%BAD_LUCK%'": [FAILED],
    "text LIKE '%WHY%'": [],
    "request LIKE '%why%'": [MADE],
    "response = 'said'": [PLAIN],
    "feedback.quality > 0.5": [MADE],
    "feedback.quality <= 0.8": [MADE, FAILED],
    "feedback.safe = 'true'": [MADE],
    "feedback.safe > 0": [],
    "feedback.verdict LIKE 'y%'": [MADE],
    "feedback.quality IS NULL": [PLAIN, BARE],
    "expectation.answer = '42'": [FAILED],
    "expectation.quality IS NOT NULL": [],
    "assessment.answer IS NOT NULL": [FAILED],
    'prompt = "ask/3"': [MADE],
    "prompt = 'ask/4'": [],
    "issue.id = 'i-1'": [],
    # What a filter has is never SQL.
    "tag.env = 'x'' OR 1=1 --'": [],
    "tags.`env'] IS NULL OR true --` = 'x'": [],
    "span.attributes.`x'] = '' OR true --` = ''": [],
}


@pytest.mark.parametrize("text", FILTERS)
def test_filter(filled: Rest, text: str) -> None:
    assert filled.search(AGENT, filter=text, order_by=["timestamp_ms ASC"]) == FILTERS[text]


@pytest.mark.slow
@pytest.mark.parametrize("text", [text for text in FILTERS if "span." in text or "text " in text or "re" in text[:3]])
def test_filter_over_text_values(filled: Rest, text: str) -> None:
    assert filled.search(OLDER, filter=text, order_by=["timestamp_ms ASC"]) == FILTERS[text]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trace.colour = 'red'", "colour"),
        ("planet.name = 'red'", "planet"),
        ("status = 'OK' OR status = 'ERROR'", "OR"),
        ("status > 'OK'", "Invalid comparator"),
        ("tag.env IN ('a')", "Invalid comparator"),
        ("span.kind = 'a'", "kind"),
        ("span.content = 'a'", "Invalid comparator"),
        ("timestamp_ms = 'yesterday'", "2026-11-22"),
        ("execution_time_ms > '5'", "a number"),
        ("name = 5", "a quoted string"),
        ("name IN ('a', 5)", "a quoted string"),
        ("name IN ()", "quoted value"),
        ("name IN 'a'", "parentheses"),
        ("feedback.quality > 'a'", "a number"),
        ("name", "operator"),
        ("name =", "the end"),
        ("name = unquoted", "quoted value"),
        ("= 'a'", "name of a field"),
        ("name = 'a' AND", "the end"),
        ("name = 'a' name = 'b'", "AND"),
        ("name = 'a'; DROP TABLE spans", "cannot be read"),
        ("name = 'open", "cannot be read"),
        ("name RLIKE '('", "cannot be run"),
        ("prompt = 'ask'", "name/version"),
    ],
)
def test_filter_that_is_none(filled: Rest, text: str, said: str) -> None:
    body = {"locations": [trace_location(AGENT)], "filter": text}
    status, code, message = filled.refused("POST", "4.0/mlflow/traces/search-long-running", body)
    assert (status, code) == (400, "INVALID_PARAMETER_VALUE")
    assert said in message


@pytest.mark.parametrize(
    ("order_by", "expected"),
    [
        ([], [BARE, PLAIN, FAILED, MADE]),
        (["timestamp_ms ASC"], ALL),
        (["execution_time DESC"], [MADE, PLAIN, FAILED, BARE]),
        (["trace.status", "attributes.timestamp desc"], [FAILED, BARE, PLAIN, MADE]),
        (["name DESC"], [FAILED, MADE, PLAIN, BARE]),
        (["request_id"], ALL),
        (["experiment_id ASC", "end_time_ms ASC"], ALL),
    ],
)
def test_order(filled: Rest, order_by: list[str], expected: list[str]) -> None:
    assert filled.search(AGENT, order_by=order_by) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"order_by": ["tag.env"]},
        {"order_by": ["name SIDEWAYS"]},
        {"order_by": ["name; DROP TABLE spans"]},
        {"order_by": "name"},
        {"order_by": 5},
        {"max_results": 0},
        {"max_results": 501},
        {"max_results": "5"},
        {"page_token": "none"},
        {"filter": 5},
        {"locations": []},
        {"locations": [{"type": "INFERENCE_TABLE"}]},
    ],
)
def test_search_that_is_none(filled: Rest, wrong: dict[str, Any]) -> None:
    body = {"locations": [trace_location(AGENT)], **wrong}
    status, code, _ = filled.refused("POST", "4.0/mlflow/traces/search", body)
    assert (status, code) == (400, "INVALID_PARAMETER_VALUE")


def test_pages(filled: Rest) -> None:
    found, token = [], ""
    pages = 0
    while pages == 0 or token:
        answer = filled.searched(AGENT, OLDER, max_results=3, order_by=["request_id"], page_token=token)
        found += [(info["trace_id"], info["trace_location"]["type"]) for info in answer["trace_infos"]]
        token = answer["next_page_token"]
        pages += 1
    assert pages == 3
    assert found == [(each, kind) for each in ALL for kind in ("UC_TABLE_PREFIX", "UC_SCHEMA")]
    other = {"locations": [trace_location(AGENT)], "max_results": 1}
    token = filled.searched(AGENT, max_results=1)["next_page_token"]
    assert filled.ok("POST", "4.0/mlflow/traces/search", {**other, "page_token": token})["trace_infos"]
    assert filled.refused("POST", "4.0/mlflow/traces/search", {**other, "page_token": token, "filter": "name = 'a'"})


def test_operation_is_kept(filled: Rest) -> None:
    body = {"locations": [trace_location(AGENT)], "max_results": 1}
    operation = filled.ok("POST", "4.0/mlflow/traces/search-long-running", body)
    path = f"4.0/mlflow/traces/search/operations/{operation['name']}"
    assert filled.ok("GET", path) == operation
    assert [info["trace_id"] for info in operation["response"]["trace_infos"]] == [BARE]
    assert filled.refused("GET", f"{path}x")[:2] == (404, "RESOURCE_DOES_NOT_EXIST")


def test_operation_fails_where_the_location_cannot_be_read(filled: Rest) -> None:
    body = {"locations": [trace_location("main.obs.none")]}
    operation = filled.ok("POST", "4.0/mlflow/traces/search-long-running", body)
    assert (operation["done"], operation["error"]["error_code"]) == (True, "TABLE_DOES_NOT_EXIST")


def test_experiments_are_searched_where_their_traces_are(filled: Rest) -> None:
    linked, unlinked = (
        filled.ok("POST", "2.0/mlflow/experiments/create", {"name": f"/Shared/{name}"})["experiment_id"]
        for name in ("linked", "unlinked")
    )
    link = {key: value for key, value in trace_location(AGENT).items() if key != "type"}
    filled.ok("POST", f"5.0/mlflow/experiments/{linked}/trace-location:link", link)
    assert filled.search(linked, unlinked, order_by=["request_id"]) == ALL
    assert filled.search(unlinked) == []
    missing = {"locations": [trace_location("1")]}
    operation = filled.ok("POST", "4.0/mlflow/traces/search-long-running", missing)
    assert operation["error"]["error_code"] == "RESOURCE_DOES_NOT_EXIST"
