"""Traces in Unity Catalog: what MLflow's client posts about them, reads back, changes and deletes."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.testing.rest import START_NS, Rest, located, new_trace_id, record
from tracelake.spans.record import SpanEvent, SpanLink
from tracelake.testing import MockWorkspace

AGENT, OLDER = "main.obs.agent", "main.obs"
SPANS, OLDER_SPANS = "main.obs.agent_otel_spans", "main.obs.mlflow_experiment_trace_otel_spans"
ANNOTATIONS = "main.obs.agent_otel_annotations"
FEEDBACK = {
    "assessment_name": "quality",
    "source": {"source_type": "CODE", "source_id": "default"},
    "create_time": "2026-11-22T14:50:24.481Z",
    "last_update_time": "2026-11-22T14:50:24.481Z",
    "feedback": {"value": True},
    "rationale": "good",
    "metadata": {"m": "1", "mlflow.assessment.sourceRunId": "r"},
    "valid": True,
}


@pytest.fixture
def rest(workspace: MockWorkspace) -> Rest:
    workspace.create_trace_location(AGENT)
    return Rest(workspace)


@pytest.fixture(scope="module")
def shared() -> Iterator[Rest]:
    """Of a workspace for what leaves nothing behind."""
    with MockWorkspace() as workspace:
        workspace.create_schema("main.obs")
        workspace.create_trace_location(AGENT)
        yield Rest(workspace)


def path(trace_id: str, rest: str = "", location: str = AGENT) -> str:
    return f"4.0/mlflow/traces/{location}/{trace_id}{rest}"


def info(rest: Rest, trace_id: str) -> dict[str, Any]:
    found = rest.ok("GET", path(trace_id, "/info"), trace_id=trace_id, location=AGENT)
    return dict(found["trace"]["trace_info"])


def batch(rest: Rest, *trace_ids: str, location: str = AGENT) -> list[dict[str, Any]]:
    answer = rest.ok("GET", f"4.0/mlflow/traces/{location}/batchGet", location_id=location, trace_ids=trace_ids)
    return list(answer["traces"])


def annotations(workspace: MockWorkspace) -> list[dict[str, Any]]:
    """The versions of annotations, oldest first."""
    return sorted(workspace.table(ANNOTATIONS).rows(), key=lambda row: row["updated_at"])


def test_info_comes_back_as_it_was_posted(rest: Rest) -> None:
    trace_id = new_trace_id()
    posted = {
        "client_request_id": "request-1",
        "request_preview": "asked",
        "response_preview": "answered",
        "request_time": "2026-11-22T14:50:24.481Z",
        "execution_duration": "0.099s",
        "state": "ERROR",
        "trace_metadata": {"mlflow.trace.user": "ada"},
        "tags": {"env": "prod", "mlflow.traceName": "root"},
    }
    rest.put_info(AGENT, trace_id, **posted)
    found = info(rest, trace_id)
    assert float(found.pop("execution_duration").removesuffix("s")) == 0.099
    assert found.pop("request_time") == "2026-11-22T14:50:24.481000Z"
    assert found.pop("trace_location")["uc_table_prefix"]["spans_table_name"] == SPANS
    assert found == {name: posted[name] for name in found if name in posted} | {"trace_id": trace_id, "assessments": []}
    (trace,) = batch(rest, trace_id)
    assert trace["spans"] == []


def test_of_two_infos_the_later_counts(rest: Rest, workspace: MockWorkspace) -> None:
    trace_id = new_trace_id()
    for state in ("IN_PROGRESS", "OK"):
        rest.put_info(AGENT, trace_id, state=state, tags={"env": state})
    assert info(rest, trace_id)["state"] == "OK"
    rows = annotations(workspace)
    assert [row["annotation_type"] for row in rows] == ["METADATA", "TAG"] * 2
    assert len({row["annotation_id"] for row in rows}) == 2
    assert len({row["updated_at"] for row in rows}) == 4


@pytest.mark.parametrize(
    "field",
    [
        {"state": "DONE"},
        {"request_time": "yesterday"},
        {"request_time": "2026-99-22T14:50:24Z"},
        {"execution_duration": "99"},
        {"execution_duration": "1e99s"},
        {"tags": {"a": 1}},
        {"trace_metadata": ["a"]},
        {"tags": {"lone": "\udc80"}},
        {"request_preview": {"a": 1}},
        {"assessments": [5]},
    ],
)
def test_info_that_is_none_is_refused(shared: Rest, field: dict[str, Any]) -> None:
    trace_id = new_trace_id()
    refused = shared.refused("POST", path(trace_id, "/info"), {"trace_id": trace_id, **field})
    assert refused[:2] == (400, "INVALID_PARAMETER_VALUE")
    assert batch(shared, trace_id) == []


@pytest.mark.parametrize(
    "field",
    [
        {"feedback": None},
        {"feedback": {"value": float("nan")}},
        {"feedback": {"value": {"a": 2**70}}},
        {"rationale": 5},
        {"source": {"source_id": "ada"}},
        {"source": {"source_type": "HUMAN", "source_id": 5}},
        {"metadata": {"m": 1}},
        {"assessment_name": ""},
        {"create_time": "now"},
    ],
)
def test_assessment_that_is_none_is_refused(shared: Rest, field: dict[str, Any]) -> None:
    trace_id = new_trace_id()
    refused = shared.refused("POST", path(trace_id, "/assessments"), {**FEEDBACK, **field})
    assert refused[:2] == (400, "INVALID_PARAMETER_VALUE")
    refused = shared.refused("POST", path(trace_id, "/info"), {"assessments": [{**FEEDBACK, **field}]})
    assert refused[:2] == (400, "INVALID_PARAMETER_VALUE")


def test_values_that_no_json_has_do_no_harm(rest: Rest) -> None:
    trace_ids = [new_trace_id() for _ in range(3)]
    for trace_id, value in zip(trace_ids, (float("nan"), {"x": [float("inf")]}, b"\xff"), strict=True):
        rest.send(SPANS, record(trace_id, 1, "root", attributes={"mlflow.spanInputs": value}))
    assert sorted(rest.search(AGENT)) == sorted(trace_ids)
    assert rest.search(AGENT, filter="text LIKE '%Infinity%'") == trace_ids[1:2]


def test_spans_come_back_with_the_types_they_were_sent_with(rest: Rest) -> None:
    trace_id = new_trace_id()
    attributes = {
        "text": "AGENT",
        "json": '{"a": 1}',
        "int": 2**60,
        "double": 0.5,
        "bool": True,
        "none": None,
        "bytes": b"\x00\xff",
        "map": {"a": [1, "b", {}]},
        "list": [],
    }
    rest.put_info(AGENT, trace_id)
    child = record(
        trace_id,
        2,
        "child",
        parent=1,
        start_ms=1,
        attributes=attributes,
        kind=3,
        events=[SpanEvent("exception", START_NS, {"exception.type": "ValueError"})],
        links=[SpanLink("c" * 32, "d" * 16, attributes={"k": 1})],
        status_code=2,
        status_message="bad",
    )
    # Delivered twice, and the child first.
    rest.send(SPANS, child)
    rest.send(SPANS, child, record(trace_id, 1, "root"))
    ((root, sent),) = [trace["spans"] for trace in batch(rest, trace_id)]
    assert (root["name"], "parent_span_id" in root, sent["name"]) == ("root", False, "child")
    assert base64.b64decode(sent["trace_id"]).hex() == trace_id
    assert base64.b64decode(sent["parent_span_id"]).hex() == f"{1:016x}"
    assert {each["key"]: each["value"] for each in sent["attributes"]} == {
        "text": {"string_value": "AGENT"},
        "json": {"string_value": '{"a": 1}'},
        "int": {"int_value": str(2**60)},
        "double": {"double_value": 0.5},
        "bool": {"bool_value": True},
        "none": {},
        "bytes": {"bytes_value": "AP8="},
        "map": {
            "kvlist_value": {
                "values": [
                    {
                        "key": "a",
                        "value": {
                            "array_value": {
                                "values": [{"int_value": "1"}, {"string_value": "b"}, {"kvlist_value": {"values": []}}]
                            }
                        },
                    }
                ]
            }
        },
        "list": {"array_value": {"values": []}},
    }
    assert sent["events"][0]["name"] == "exception"
    assert base64.b64decode(sent["links"][0]["span_id"]).hex() == "d" * 16
    assert sent["status"] == {"message": "bad", "code": "STATUS_CODE_ERROR"}
    assert (sent["kind"], sent["start_time_unix_nano"]) == ("SPAN_KIND_CLIENT", str(START_NS + 10**6))


def test_values_of_the_older_location_are_text_or_json(rest: Rest, workspace: MockWorkspace) -> None:
    workspace.create_trace_location(OLDER)
    trace_id = new_trace_id()
    attributes = {"mlflow.spanInputs": {"q": [1]}, "mlflow.spanType": "AGENT", "n": 1, "broken": "{not json"}
    rest.send(OLDER_SPANS, record(trace_id, 1, "root", attributes=attributes))
    (trace,) = batch(rest, trace_id, location=OLDER)
    found = {each["key"]: each["value"] for each in trace["spans"][0]["attributes"]}
    assert list(found["mlflow.spanInputs"]) == ["kvlist_value"]
    assert found["mlflow.spanType"] == {"string_value": "AGENT"}
    assert (found["n"], found["broken"]) == ({"string_value": "1"}, {"string_value": "{not json"})
    assert trace["trace_info"]["trace_location"]["type"] == "UC_SCHEMA"


def test_trace_of_opentelemetry_alone_is_there_with_its_root(rest: Rest) -> None:
    trace_id = new_trace_id()
    rest.send(SPANS, record(trace_id, 2, "child", parent=1, start_ms=5))
    assert batch(rest, trace_id) == []
    rest.send(SPANS, record(trace_id, 1, "root", ms=25, status_code=2, attributes={"input.value": "asked"}))
    (trace,) = batch(rest, trace_id)
    found = trace["trace_info"]
    assert [span["name"] for span in trace["spans"]] == ["root", "child"]
    assert (found["state"], found["request_preview"], found["tags"]) == ("ERROR", "asked", {"mlflow.traceName": "root"})
    assert float(found["execution_duration"].removesuffix("s")) == 0.025
    assert rest.search(AGENT, filter="trace.name = 'root'") == [trace_id]


def test_unknown_trace(shared: Rest) -> None:
    assert batch(shared, new_trace_id()) == []
    assert shared.refused("GET", path(new_trace_id(), "/info"))[:2] == (404, "RESOURCE_DOES_NOT_EXIST")
    assert shared.refused("GET", path("A" * 32, "/info"))[:2] == (400, "INVALID_PARAMETER_VALUE")
    assert shared.refused("GET", path(new_trace_id(), "/info", "main.obs.none"))[:2] == (404, "TABLE_DOES_NOT_EXIST")
    assert shared.refused("GET", path(new_trace_id(), "/info", "main"))[:2] == (400, "INVALID_PARAMETER_VALUE")


def test_tags_are_set_and_deleted(rest: Rest) -> None:
    trace_id = new_trace_id()
    # A tag may come before its trace.
    rest.ok("PATCH", path(trace_id, "/tags"), {"key": "a/b c", "value": "1"})
    rest.put_info(AGENT, trace_id, tags={"env": "prod"})
    rest.ok("PATCH", path(trace_id, "/tags"), {"key": "env", "value": "test"})
    assert info(rest, trace_id)["tags"] == {"a/b c": "1", "env": "test"}
    rest.ok("DELETE", path(trace_id, "/tags/a%2Fb%20c"))
    assert info(rest, trace_id)["tags"] == {"env": "test"}
    assert rest.refused("DELETE", path(trace_id, "/tags/a%2Fb%20c"))[:2] == (404, "RESOURCE_DOES_NOT_EXIST")
    assert rest.refused("PATCH", path(trace_id, "/tags"), {"key": "n", "value": 1})[0] == 400
    assert rest.refused("PATCH", path(trace_id, "/tags"), {"value": "1"})[0] == 400


def test_assessments(rest: Rest, workspace: MockWorkspace) -> None:
    trace_id = new_trace_id()
    rest.put_info(AGENT, trace_id)
    made = rest.ok("POST", path(trace_id, "/assessments"), FEEDBACK)
    one = path(trace_id, f"/assessments/{made['assessment_id']}")
    found = rest.ok("GET", one)
    assert (found["feedback"], found["rationale"], found["metadata"]) == (
        {"value": True},
        "good",
        FEEDBACK["metadata"],
    )
    assert found["create_time"] == "2026-11-22T14:50:24.481000Z"
    changed = {"feedback": {"value": "no"}, "rationale": "bad", "assessment_name": "kept out of the mask"}
    # As MLflow's client writes it: without a question mark.
    answered = rest.ok("PATCH", f"{one}&update_mask=feedback,rationale", changed)
    assert (answered["assessment_name"], answered["feedback"], answered["rationale"]) == (
        "quality",
        {"value": "no"},
        "bad",
    )
    assert rest.ok("GET", one) == answered
    assert answered["create_time"] == found["create_time"]
    assert rest.refused("PATCH", one, {"x": 1}, update_mask="x")[0] == 400
    serialized = {"serialized_value": {"serialization_format": "JSON_FORMAT", "value": '{"a": 1}'}}
    body = {**FEEDBACK, "expectation": serialized, "span_id": "1" * 16}
    assert rest.refused("POST", path(trace_id, "/assessments"), body)[0] == 400
    del body["feedback"]
    expectation = rest.ok("POST", path(trace_id, "/assessments"), body)["assessment_id"]
    read = rest.ok("GET", path(trace_id, f"/assessments/{expectation}"))
    assert (read["expectation"], read["span_id"]) == (serialized, "1" * 16)
    rest.ok("DELETE", one)
    assert rest.refused("GET", one)[:2] == (404, "RESOURCE_DOES_NOT_EXIST")
    assert rest.refused("DELETE", one)[:2] == (404, "RESOURCE_DOES_NOT_EXIST")
    assert [each["assessment_id"] for each in info(rest, trace_id)["assessments"]] == [expectation]
    rows = [row for row in annotations(workspace) if row["annotation_type"] == "FEEDBACK"]
    assert [(row["name"], row["value"], row["deleted_at"] is None) for row in rows[:2]] == [
        ("quality", True, True),
        ("quality", "no", True),
    ]
    assert rows[-1]["deleted_at"] is not None
    assert (rows[0]["target_type"], rows[0]["target_id"], rows[0]["trace_id"]) == ("TRACE", trace_id, trace_id)
    assert rows[0]["created_by"] == workspace.user


def test_an_assessment_that_is_overridden_is_valid_no_more(rest: Rest) -> None:
    trace_id = new_trace_id()
    rest.put_info(AGENT, trace_id)
    former = rest.ok("POST", path(trace_id, "/assessments"), FEEDBACK)["assessment_id"]
    body = {**FEEDBACK, "feedback": {"value": False}, "overrides": former}
    rest.ok("POST", path(trace_id, "/assessments"), body)
    found = {each["assessment_id"]: each for each in info(rest, trace_id)["assessments"]}
    assert found[former]["valid"] is False
    assert [each["overrides"] for each in found.values() if each["valid"]] == [former]
    assert rest.search(AGENT, filter="feedback.quality = 'true'") == []


def test_traces_are_linked_to_runs(rest: Rest) -> None:
    trace_ids = [new_trace_id() for _ in range(2)]
    for trace_id in trace_ids:
        rest.put_info(AGENT, trace_id)
    body = {"location_id": AGENT, "trace_ids": trace_ids, "run_id": "run-1"}
    rest.ok("POST", f"4.0/mlflow/traces/{AGENT}/link-to-run/batchCreate", body)
    assert sorted(rest.search(AGENT, filter="run_id = 'run-1'")) == sorted(trace_ids)
    body["trace_ids"] = trace_ids[:1]
    rest.ok("DELETE", f"4.0/mlflow/traces/{AGENT}/unlink-from-run/batchDelete", body)
    assert rest.search(AGENT, filter="run_id = 'run-1'") == trace_ids[1:]
    assert rest.search(AGENT, filter="run_id IS NULL") == trace_ids[:1]


def test_deleted_traces_are_gone(rest: Rest, workspace: MockWorkspace) -> None:
    experiment_id = rest.ok("POST", "2.0/mlflow/experiments/create", {"name": "/Shared/x"})["experiment_id"]
    delete = "2.0/mlflow/traces/delete-traces"
    first, second, third = trace_ids = [new_trace_id() for _ in range(3)]
    for second_of, trace_id in enumerate(trace_ids):
        rest.send(SPANS, record(trace_id, 1, "root", start_ms=second_of))
        rest.put_info(AGENT, trace_id, request_time=f"2026-11-22T14:50:0{second_of}Z", tags={"env": "prod"})
    uris = [f"trace:/{AGENT}/{each}" for each in (first, new_trace_id())]
    assert rest.ok("POST", delete, {"experiment_id": experiment_id, "request_ids": uris}) == {"traces_deleted": 1}
    assert batch(rest, first) == []
    assert rest.search(AGENT) == [third, second]
    live = {row["annotation_id"]: row for row in annotations(workspace)}.values()
    assert {row["annotation_type"] for row in live if row["deleted_at"]} == {"METADATA", "TAG"}
    rest.ok("POST", f"5.0/mlflow/experiments/{experiment_id}/trace-location:link", located(AGENT))
    oldest = {"experiment_id": experiment_id, "max_timestamp_millis": 2**41, "max_traces": 1}
    assert rest.ok("POST", delete, oldest) == {"traces_deleted": 1}
    assert rest.search(AGENT) == [third]
    assert rest.refused("POST", delete, {"experiment_id": experiment_id})[0] == 400
    mixed = {"experiment_id": experiment_id, "request_ids": [f"trace:/{AGENT}/{third}", f"tr-{third}"]}
    for wrong in (mixed, {**oldest, "max_timestamp_millis": "soon"}, {**oldest, "max_traces": 2**70}):
        assert rest.refused("POST", delete, wrong)[:2] == (400, "INVALID_PARAMETER_VALUE")
    # Whoever posts it again has it again.
    rest.put_info(AGENT, first)
    assert rest.search(AGENT) == [third, first] or rest.search(AGENT) == [first, third]


def test_privileges(rest: Rest, workspace: MockWorkspace) -> None:
    ada = workspace.add_user("ada@example.com").name
    other = Rest(workspace, ada)
    trace_id = new_trace_id()
    workspace.grant("USE CATALOG", on="main", to=ada)
    workspace.grant("USE SCHEMA", on="main.obs", to=ada)
    for table in (SPANS, ANNOTATIONS):
        status, code, message = other.refused("GET", path(trace_id, "/info"))
        assert (status, code) == (403, "PERMISSION_DENIED")
        assert table in message
        workspace.grant("SELECT", on=table, to=ada)
    assert batch(other, trace_id) == []
    writes: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/info", {}),
        ("PATCH", "/tags", {"key": "a", "value": "1"}),
        ("DELETE", "/tags/a", {}),
        ("POST", "/assessments", FEEDBACK),
        ("DELETE", "/assessments/a-1", {}),
    ]
    # Not named is not enough for tables of traces.
    workspace.grant("ALL PRIVILEGES", on="main.obs", to=ada)
    for method, rest_of_path, body in writes:
        status, code, message = other.refused(method, path(trace_id, rest_of_path), body)
        assert (status, code) == (403, "PERMISSION_DENIED")
        assert f"MODIFY on Table '{ANNOTATIONS}'" in message
    workspace.grant("MODIFY", on=ANNOTATIONS, to=ada)
    other.put_info(AGENT, trace_id)
    assert info(rest, trace_id)["state"] == "OK"


def test_nothing_is_lost_of_many_at_once(rest: Rest, workspace: MockWorkspace) -> None:
    trace_ids = [new_trace_id() for _ in range(32)]

    def write(trace_id: str) -> None:
        own = Rest(workspace)
        own.locate("main.obs.other")
        own.put_info("main.obs.other", trace_id, tags={"a": trace_id})
        own.ok("PATCH", path(trace_id, "/tags", "main.obs.other"), {"key": "b", "value": trace_id})

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(write, trace_ids))
    found = rest.searched("main.obs.other", max_results=500)["trace_infos"]
    assert {info["trace_id"]: info["tags"] for info in found} == {
        trace_id: {"a": trace_id, "b": trace_id} for trace_id in trace_ids
    }


def test_traces_survive_a_restart(tmp_path: Path) -> None:
    trace_id = new_trace_id()
    with MockWorkspace(str(tmp_path)) as workspace:
        workspace.create_schema("main.obs")
        workspace.create_trace_location(AGENT)
        rest = Rest(workspace)
        rest.send(SPANS, record(trace_id, 1, "root"))
        rest.put_info(AGENT, trace_id, tags={"env": "prod"})
        before = batch(rest, trace_id)
    with MockWorkspace(str(tmp_path)) as workspace:
        assert batch(Rest(workspace), trace_id) == before
        Rest(workspace).ok("PATCH", path(trace_id, "/tags"), {"key": "env", "value": "test"})
        assert info(Rest(workspace), trace_id)["tags"]["env"] == "test"
