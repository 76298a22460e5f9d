"""Traces in experiments: MLflow's own client with the tracking URI `databricks`, and no table in Unity Catalog."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.lake import FOREIGN
from tracelake.errors import QueryError
from tracelake.testing import MockWorkspace

pytest.importorskip("mlflow")
pytestmark = pytest.mark.slow  # programs load MLflow

APPS = Path(__file__).parent / "apps"
NAME = "/Shared/agent"
HEX = "0123456789abcdef" * 2
TRACES = "/api/3.0/mlflow/traces"

Json = dict[str, Any]


class Run:
    """What the program saw, and what its requests were answered with; those of before it authenticated are left out."""

    def __init__(self, seen: Json, answers: list[tuple[str, str, int]], workspace: MockWorkspace | None = None) -> None:
        self.seen = seen
        self.answers = [each for each in answers if not each[1].startswith("/.well-known/")]
        self.workspace = workspace


@contextlib.contextmanager
def started(program: str, *arguments: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Start a program with nothing of this machine's settings; it is ended if it does not end by itself."""
    own = {key: value for key, value in os.environ.items() if not FOREIGN.match(key)}
    command = [sys.executable, str(APPS / program), *arguments]
    with subprocess.Popen(
        command, env={**own, **environ}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=APPS
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def output(process: subprocess.Popen[str]) -> str:
    """Return what a program printed, once it ended well."""
    printed, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert not re.search("Failed to (send|log|upload)", errors), errors
    return printed


@pytest.fixture(scope="module")
def served() -> Iterator[Run]:
    """The program over HTTP, sending asynchronously."""
    environ = {"MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "true"}
    with MockWorkspace() as workspace, started("mlflow_v3_client.py", **workspace.environment(), **environ) as process:
        seen = json.loads(output(process))
        answers = [(each.request.method, each.request.path, each.status) for each in workspace.requests()]
        yield Run(seen, answers, workspace)


@pytest.fixture(scope="module")
def within() -> Iterator[Run]:
    """The program in the process of its workspace, sending at once."""
    with started("mlflow_v3_in_process.py", MLFLOW_ENABLE_ASYNC_TRACE_LOGGING="false") as process:
        printed = json.loads(output(process))
        yield Run(printed["seen"], [(method, path, status) for method, path, status in printed["answers"]])


@pytest.fixture(params=[pytest.param("served", marks=pytest.mark.slow), pytest.param("within", marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest) -> Run:
    """One of the runs."""
    found: Run = request.getfixturevalue(request.param)
    return found


def test_nothing_that_mlflow_asks_is_unknown(run: Run) -> None:
    """The errors are those that the program provokes: early versions have a search whose answers are not operations."""
    paths = {path for _, path, _ in run.answers}
    if "/api/4.0/mlflow/traces/search" in paths:
        searches = {("POST", "/api/4.0/mlflow/traces/search", status): 1 for status in (400, 404)}
    else:
        searches = {("POST", "/api/4.0/mlflow/traces/search-long-running", 400): 1}
    errors = Counter((method, path.split("/tr-")[0], status) for method, path, status in run.answers if status >= 400)
    assert errors == {
        ("GET", "/api/2.0/mlflow/experiments/get-by-name", 404): 2,  # of a name that cannot be, and of the new one
        ("POST", "/api/2.0/mlflow/experiments/create", 400): 1,
        ("DELETE", "/api/2.0/mlflow/traces", 404): 1,  # a tag that is gone
        ("GET", "/api/3.0/mlflow/traces", 404): 2,  # an assessment and a trace that are gone
        **searches,
    }
    attached = [path for method, path, _ in run.answers if method == "PUT" and "/attachments%2F" in path]
    assert len(attached) == run.seen["attachments"]
    assert run.seen["before"].startswith("INVALID_PARAMETER_VALUE")
    assert "must be an absolute path" in run.seen["before"]


def test_a_trace_is_read_as_it_was_made(run: Run) -> None:
    """Its info, its spans with their inputs, outputs and attributes, and the exception of one that failed."""
    trace, trace_id = run.seen["trace"], run.seen["ids"]["one"]
    assert trace_id.startswith("tr-")
    info = trace["info"]
    assert info["trace_id"] == trace_id
    assert info["trace_location"] == {
        "type": "MLFLOW_EXPERIMENT",
        "mlflow_experiment": {"experiment_id": run.seen["experiment"]},
    }
    assert info["state"] == "OK"
    assert info["client_request_id"] == "request of one"
    assert info["request_preview"] == '{"question": "one"}'
    assert info["response_preview"] == '"ONE"'
    assert info["trace_metadata"]["mlflow.trace.user"] == "kim"
    assert info["trace_metadata"]["mlflow.trace.session"] == "s-1"
    root = trace["data"]["spans"][0]
    taken_ms = (root["end_time_unix_nano"] - root["start_time_unix_nano"]) / 1e6
    assert abs(info["execution_duration_ms"] - taken_ms) <= 1
    assert run.seen["spans"] == [
        ["ask", "AGENT", {"question": "one"}, "ONE", "OK", True],
        ["think", "LLM", {"question": "one"}, "yes", "OK", False],
        ["look up", "RETRIEVER", {"word": "one"}, {"hits": ["one", 2, 0.5, None]}, "OK", False],
    ]
    assert run.seen["temperature"] == 0.5
    assert run.seen["failed"] == ["ERROR", ["exception"]]


def test_tags_are_set_and_deleted(run: Run) -> None:
    """Beside those that the trace came with, and the place of its spans."""
    tags, _ = run.seen["info"]
    experiment, trace_id = run.seen["experiment"], run.seen["ids"]["one"]
    assert tags == {
        "env": "one",
        "a key / of many": "ü",
        "mlflow.traceName": "ask",
        "mlflow.artifactLocation": f"dbfs:/databricks/mlflow-tracking/{experiment}/{trace_id}/artifacts",
    }
    assert "No tag with key 'gone'" in run.seen["tag twice"]


def test_assessments_are_made_changed_overridden_and_deleted(run: Run) -> None:
    """Feedback and expectations, each with its source."""
    made = run.seen["assessment"]
    assert made["feedback"] == {"value": True}
    assert (made["rationale"], made["metadata"], made["valid"]) == ("is so", {"m": "1"}, True)
    assert made["source"] == {"source_type": "HUMAN", "source_id": "kim"}
    assert made["trace_id"] == run.seen["ids"]["one"]
    _, (changed,) = run.seen["info"]
    assert changed["feedback"] == {"value": False}
    assert changed["create_time"] == made["create_time"]
    assert {**changed, **{key: made[key] for key in ("feedback", "last_update_time")}} == made
    assert json.loads(run.seen["expectation"]["expectation"]["serialized_value"]["value"]) == ["a", {"b": 1}]
    named = {(name, value): (valid, overrides) for name, value, valid, overrides in run.seen["overridden"]}
    assert named == {
        ("good", False): (False, False),
        ("good", True): (True, True),
        ("broken", None): (True, False),
        ("facts", None): (None, False),
    }
    assert run.seen["gone"].startswith("RESOURCE_DOES_NOT_EXIST")


def test_searches_find_by_info_spans_and_assessments(run: Run) -> None:
    """In the order that is asked for, in pages, with spans or without."""
    assert run.seen["all"] == ["fail", "two", "one"]
    assert list(run.seen["searches"].values()) == [
        ["fail"],
        ["one"],
        ["fail", "one"],
        ["one", "two"],
        ["two"],
        ["two"],
        ["one"],
    ]
    assert run.seen["older search"] == ["two", "one"]
    assert run.seen["pages"] == [["one", "two"], ["fail"]]
    assert run.seen["spans of found"] == [3]
    assert run.seen["no spans"] == [0]
    assert "Invalid attribute key 'nothing'" in run.seen["bad search"]
    assert "Node ID 12345 does not exist" in run.seen["nowhere"]


def test_traces_are_deleted_by_id_and_by_time(run: Run) -> None:
    """The oldest first."""
    assert run.seen["deleted"] == 1
    assert run.seen["deleted trace"].startswith("RESOURCE_DOES_NOT_EXIST")
    assert run.seen["deleted by time"] == 1
    assert run.seen["left"] == ["ask", "with a file"]


def test_the_workspace_has_the_spans(served: Run) -> None:
    """Under the experiment's name, with values of their types."""
    workspace = served.workspace
    assert workspace is not None
    spans = {span.name: span for span in workspace.experiment(NAME).spans()}
    assert spans["look up"].attributes["mlflow.spanOutputs"]["hits"][1:] == [2, 0.5, None]
    assert spans["think"].parent_span_id is not None
    assert len(workspace.experiment(NAME).traces()) == 4
    with pytest.raises(QueryError, match="RESOURCE_DOES_NOT_EXIST"):
        workspace.experiment("/Shared/other")


def test_without_an_experiment_mlflow_logs_an_error(workspace: MockWorkspace) -> None:
    """Databricks has no default experiment; MLflow sends the trace with none."""
    with workspace.in_process() as host:
        told = requests.post(
            f"{host}{TRACES}",
            json={"trace": {"trace_info": info(HEX, "") | {"trace_location": location("")}}},
            headers=headers(workspace),
        )
    assert (told.status_code, told.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert "experiment_id" in told.json()["message"]


@pytest.mark.slow
def test_many_traces_at_once_are_all_there(workspace: MockWorkspace) -> None:
    """Of two programs with eight threads each."""
    workspace.create_experiment(NAME)
    environ = workspace.environment()
    with (
        started("mlflow_v3_many.py", NAME, "100", **environ) as first,
        started("mlflow_v3_many.py", NAME, "100", **environ) as second,
    ):
        output(first)
        output(second)
    traces = workspace.experiment(NAME).traces()
    assert Counter(len(trace.spans) for trace in traces) == {2: 200}
    assert {each.status for each in workspace.requests(TRACES)} == {200}


# --- the calls themselves --------------------------------------------------------------------------------------------


class Client:
    """Calls of one experiment, within this process."""

    def __init__(self, workspace: MockWorkspace, host: str) -> None:
        self.workspace = workspace
        self.host = host
        self.experiment = workspace.create_experiment(NAME)

    def call(self, method: str, path: str, body: Json | None = None, status: int = 200) -> Json:
        """Return the answer, which has to have this status."""
        answer = requests.request(method, f"{self.host}{path}", json=body, headers=headers(self.workspace))
        assert answer.status_code == status, answer.text
        found: Json = answer.json()
        return found

    def start(self, digits: str = HEX, **more: Any) -> str:
        """Make a trace and return its id."""
        body = {"trace": {"trace_info": {**info(digits, self.experiment), **more}}}
        made: str = self.call("POST", TRACES, body)["trace"]["trace_info"]["trace_id"]
        return made

    def signed(self, trace_id: str, way: str, path: str = "", status: int = 200) -> str:
        """Return the address for the upload or download of a file."""
        query = f"?path={path}" if path else ""
        told = self.call("GET", f"/api/2.0/mlflow/traces/{trace_id}/credentials-for-data-{way}{query}", None, status)
        if status != 200:
            return str(told["message"])
        assert told["credential_info"]["type"] == "AWS_PRESIGNED_URL"
        return str(told["credential_info"]["signed_uri"])

    def search(self, filter: str = "", **more: Any) -> list[str]:  # noqa: A002 - the API's name
        """Return the ids of what the search of version 3 finds."""
        body = {"locations": [location(self.experiment)], "filter": filter, **more}
        return [each["trace_id"] for each in self.call("POST", f"{TRACES}/search", body)["traces"]]


@pytest.fixture
def client(workspace: MockWorkspace) -> Iterator[Client]:
    """A client with an experiment."""
    with workspace.in_process() as host:
        yield Client(workspace, host)


def headers(workspace: MockWorkspace) -> dict[str, str]:
    """Return the authentication of the workspace's user."""
    return {"Authorization": f"Bearer {workspace.environment(host='-')['DATABRICKS_TOKEN']}"}


def location(experiment_id: str) -> Json:
    """Return a TraceLocation."""
    named = {"experiment_id": experiment_id} if experiment_id else {}
    return {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": named}


def info(digits: str, experiment_id: str) -> Json:
    """Return a TraceInfo."""
    return {
        "trace_id": f"tr-{digits}",
        "trace_location": location(experiment_id),
        "request_time": "2026-11-22T14:50:24.481Z",
        "execution_duration": "0.5s",
        "state": "OK",
        "trace_metadata": {"mlflow.trace_schema.version": "3"},
        "tags": {"mlflow.traceName": "root"},
    }


def spans_file(**attributes: Any) -> bytes:
    """Return a `traces.json` with one span."""
    span = {
        "trace_id": "ASNFZ4mrze8BI0VniavN7w==",
        "span_id": "Y1Q0FbV0JjA=",
        "parent_span_id": None,
        "name": "root",
        "start_time_unix_nano": 1795359265903870269,
        "end_time_unix_nano": 1795359266403870269,
        "events": [{"name": "e", "time_unix_nano": 1795359266003870269, "attributes": {"a": 1}}],
        "status": {"code": "STATUS_CODE_OK", "message": None},
        "attributes": attributes,
        "links": [{"trace_id": f"tr-{HEX}", "span_id": "0123456789abcdef", "attributes": None}],
    }
    return json.dumps({"spans": [span]}).encode()


def test_a_file_is_put_and_got_at_its_signed_address(client: Client) -> None:
    """Without authentication, with that method only, and of that trace only."""
    trace_id, other = client.start(), client.start(HEX[::-1])
    put, get = client.signed(trace_id, "upload"), client.signed(trace_id, "download")
    missing = requests.get(get)
    assert (missing.status_code, "<Code>NoSuchKey</Code>" in missing.text) == (404, True)
    assert requests.put(put, data=spans_file()).status_code == 200
    assert requests.get(get).content == spans_file()
    for refused in (
        requests.put(get, data=b"x"),
        requests.get(put),
        requests.get(get.replace(trace_id, other)),
        requests.get(get.replace("Expires=1", "Expires=2")),
        requests.get(get.partition("?")[0]),
    ):
        assert (refused.status_code, "<Code>SignatureDoesNotMatch</Code>" in refused.text) == (403, True)
    assert requests.get(get).content == spans_file()


def test_attachments_are_files_beside_the_spans(client: Client) -> None:
    """With names that lead nowhere else."""
    trace_id = client.start()
    requests.put(client.signed(trace_id, "upload", "attachments/1-2"), data=b"picture").raise_for_status()
    assert requests.get(client.signed(trace_id, "download", "attachments/1-2")).content == b"picture"
    for path in ("attachments/../x", "attachments/..", "experiment_id", "/etc/passwd", "attachments/a/b"):
        assert "is neither traces.json nor" in client.signed(trace_id, "upload", path, status=400)


def test_spans_are_searched_by_their_values(client: Client) -> None:
    """Values of attributes are JSON at MLflow; a number of which JSON has no word is one at Python."""
    trace_id = client.start()
    content = spans_file(nan="NaN", deep='{"a": {"b": [1]}}', text="no JSON", huge=str(10**30), flag="true")
    for _ in range(2):  # as a client that got no answer tries again
        requests.put(client.signed(trace_id, "upload"), data=content).raise_for_status()
    assert client.search("span.attributes.text = 'no JSON'") == [trace_id]
    assert client.search("span.attributes.text = 'other'") == []
    span = client.workspace.experiment(NAME).spans()[0]
    assert span.attributes["deep"] == {"a": {"b": [1]}}
    assert span.attributes["flag"] is True
    assert (span.trace_id, span.span_id, span.parent_span_id) == (HEX, "63543415b5742630", None)
    assert [event.attributes for event in span.events] == [{"a": 1}]
    assert [(link.trace_id, link.span_id) for link in span.links] == [(HEX, "0123456789abcdef")]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"spans": [{"name": "x"}]}', b"\xff"])
def test_whatever_is_uploaded_is_kept(client: Client, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """An object store does not look into it; what has no spans is found by its info alone."""
    trace_id = client.start()
    requests.put(client.signed(trace_id, "upload"), data=content).raise_for_status()
    assert requests.get(client.signed(trace_id, "download")).content == content
    assert client.search("name = 'root'") == [trace_id]
    assert client.workspace.experiment(NAME).spans() == []
    assert "cannot be searched" in caplog.text


def test_traces_survive_a_restart(tmp_path: Path) -> None:
    """With their spans, tags and assessments, and those that were deleted stay so."""
    with MockWorkspace(str(tmp_path)) as workspace, workspace.in_process() as host:
        before = Client(workspace, host)
        kept, gone = before.start(), before.start(HEX[::-1])
        requests.put(before.signed(kept, "upload"), data=spans_file(a="1")).raise_for_status()
        before.call("PATCH", f"{TRACES}/{kept}/tags", {"key": "env", "value": "dev"})
        assessment = {"assessment_name": "good", "feedback": {"value": 1}, "source": {"source_type": "CODE"}}
        before.call("POST", f"{TRACES}/{kept}/assessments", {"assessment": assessment})
        by_id = {"experiment_id": before.experiment, "request_ids": [gone]}
        assert before.call("POST", "/api/2.0/mlflow/traces/delete-traces", by_id) == {"traces_deleted": 1}
        told = before.call("GET", f"{TRACES}/{kept}")
    with MockWorkspace(str(tmp_path)) as workspace, workspace.in_process() as host:
        after = Client.__new__(Client)
        after.workspace, after.host, after.experiment = workspace, host, before.experiment
        assert after.call("GET", f"{TRACES}/{kept}") == told
        assert told["trace"]["trace_info"]["tags"]["env"] == "dev"
        assert requests.get(after.signed(kept, "download")).content == spans_file(a="1")
        assert after.search("tags.env = 'dev' AND span.attributes.a = '1'") == [kept]
        assert after.search() == [kept]
        after.call("GET", f"{TRACES}/{gone}", status=404)


def test_a_trace_that_is_sent_again_is_the_same(client: Client) -> None:
    """The later info counts."""
    assert client.start() == client.start(state="ERROR")
    assert client.search("status = 'ERROR'") == client.search() == [f"tr-{HEX}"]


def test_searches_come_in_pages(client: Client) -> None:
    """Over several experiments at once, too."""
    first, second = client.start(), client.start(HEX[::-1], request_time="2026-11-22T14:50:25Z")
    body: Json = {"locations": [location(client.experiment)], "max_results": 1, "order_by": ["timestamp_ms ASC"]}
    page = client.call("POST", f"{TRACES}/search", body)
    assert [each["trace_id"] for each in page["traces"]] == [first]
    last = client.call("POST", f"{TRACES}/search", {**body, "page_token": page["next_page_token"]})
    assert [each["trace_id"] for each in last["traces"]] == [second]
    assert "next_page_token" not in last
    other = client.workspace.create_experiment("/Shared/other")
    both = [location(other), location(client.experiment)]
    assert client.search(locations=both) == [second, first]
    assert client.search(locations=[location(other)]) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trace_id": "tr-1"}, "not 'tr-' and 32 hexadecimal digits"),
        ({"trace_id": f"trace:/main.obs.a/{HEX}"}, "not 'tr-' and 32 hexadecimal digits"),
        ({"trace_location": {"type": "UC_SCHEMA"}}, "MLFLOW_EXPERIMENT"),
        ({"trace_location": {"type": "MLFLOW_EXPERIMENT"}}, "has no mlflow_experiment"),
        ({"state": "FINE"}, "state"),
        ({"request_time": "yesterday"}, "request_time"),
        ({"tags": {"a": 1}}, "tags"),
        ({"tags": ["a"]}, "tags"),
        ({"assessments": ["good"]}, "assessments"),
        ({"assessments": [{"assessment_name": "x"}]}, "either feedback or an expectation"),
    ],
)
def test_an_info_that_is_none_is_refused(client: Client, change: Json, message: str) -> None:
    """With the field that is wrong; nothing of it is kept."""
    body = {"trace": {"trace_info": info(HEX, client.experiment) | change}}
    told = client.call("POST", TRACES, body, status=400)
    assert told["error_code"] == "INVALID_PARAMETER_VALUE"
    assert message in told["message"]
    assert client.search() == []
    client.call("GET", f"{TRACES}/tr-{HEX}", status=404)


def test_what_is_not_there_is_not_found(client: Client) -> None:
    """Experiments, traces and what belongs to them; also by ids that would lead elsewhere."""
    for trace_id in (f"tr-{HEX}", "get", "tr-..%2F..", f"tr-{HEX}%0a"):
        for method, path, body in (
            ("GET", "", None),
            ("PATCH", "/tags", {"key": "a", "value": "b"}),
            ("DELETE", "/tags", {"key": "a"}),
            ("GET", "/assessments/a-1", None),
            ("DELETE", "/assessments/a-1", {}),
        ):
            told = client.call(method, f"{TRACES}/{trace_id}{path}", body, status=404)
            assert told["error_code"] == "RESOURCE_DOES_NOT_EXIST"
        client.signed(trace_id, "upload", status=404)
    body = {"trace": {"trace_info": info(HEX, "1")}}
    assert "Node ID 1 does not exist" in client.call("POST", TRACES, body, status=404)["message"]
    linked = {"trace_ids": [client.start(), f"tr-{HEX[::-1]}"], "run_id": "r"}
    client.call("POST", "/api/2.0/mlflow/traces/link-to-run", linked, status=404)


def test_a_deleted_experiment_takes_no_traces(client: Client) -> None:
    """Those that it has can be read."""
    trace_id = client.start()
    client.call("POST", "/api/2.0/mlflow/experiments/delete", {"experiment_id": client.experiment})
    body = {"trace": {"trace_info": info(HEX[::-1], client.experiment)}}
    assert "must be in the 'active' state" in client.call("POST", TRACES, body, status=400)["message"]
    assert client.call("GET", f"{TRACES}/{trace_id}")["trace"]["trace_info"]["state"] == "OK"


@pytest.mark.parametrize(
    "body",
    [{}, {"request_ids": ["tr-1"], "max_timestamp_millis": 1}, {"max_timestamp_millis": "soon"}, {"request_ids": "x"}],
)
def test_deletion_says_what_to_delete(client: Client, body: Json) -> None:
    """Either ids or a time."""
    path = "/api/2.0/mlflow/traces/delete-traces"
    told = client.call("POST", path, {"experiment_id": client.experiment, **body}, status=400)
    assert told["error_code"] == "INVALID_PARAMETER_VALUE"


def test_only_traces_of_the_experiment_are_deleted(client: Client) -> None:
    """Others are passed over, as those that are gone already."""
    trace_id = client.start()
    other = client.workspace.create_experiment("/Shared/other")
    path = "/api/2.0/mlflow/traces/delete-traces"
    named = {"request_ids": [trace_id, trace_id, "tr-1"]}
    assert client.call("POST", path, {"experiment_id": other, **named}) == {"traces_deleted": 0}
    assert client.call("POST", path, {"experiment_id": client.experiment, **named}) == {"traces_deleted": 1}
    assert client.call("POST", path, {"experiment_id": client.experiment, **named}) == {"traces_deleted": 0}
    late = {"max_timestamp_millis": "9999999999999", "experiment_id": client.experiment}
    assert client.call("POST", path, late) == {"traces_deleted": 0}


def test_an_upload_to_a_deleted_trace_is_lost(client: Client) -> None:
    """And does not bring it back."""
    trace_id = client.start()
    url = client.signed(trace_id, "upload")
    by_id = {"experiment_id": client.experiment, "request_ids": [trace_id]}
    client.call("POST", "/api/2.0/mlflow/traces/delete-traces", by_id)
    assert requests.put(url, data=spans_file()).status_code == 404
    assert client.search() == []


def test_an_update_names_what_it_updates(client: Client) -> None:
    """In either spelling; the rest stays."""
    trace_id = client.start()
    path = f"{TRACES}/{trace_id}/assessments"
    made = client.call(
        "POST",
        path,
        {
            "assessment": {
                "assessment_name": "good",
                "source": {"source_type": "HUMAN", "source_id": "kim"},
                "feedback": {"value": "yes"},
                "rationale": "so",
            }
        },
    )["assessment"]
    body = {"assessment": {"assessment_name": "better", "feedback": {"value": "no"}}, "update_mask": "assessmentName"}
    changed = client.call("PATCH", f"{path}/{made['assessment_id']}", body)["assessment"]
    assert (changed["assessment_name"], changed["feedback"], changed["rationale"]) == ("better", {"value": "yes"}, "so")
    body["update_mask"] = "feedback, rationale"
    changed = client.call("PATCH", f"{path}/{made['assessment_id']}", body)["assessment"]
    assert changed["feedback"] == {"value": "no"}
    assert "rationale" not in changed
    body["update_mask"] = "source"
    assert "update_mask names source" in client.call("PATCH", f"{path}/{made['assessment_id']}", body, 400)["message"]


def test_a_search_reads_what_is_not_as_mlflow_writes_it(client: Client) -> None:
    """Tags and metadata that MLflow has JSON in, and anyone else any text."""
    trace_id = client.start(tags={"mlflow.linkedPrompts": "none"})
    feedback = {
        "assessment_name": "good",
        "feedback": {"value": True},
        "source": {"source_type": "HUMAN"},
        "metadata": {"mlflow.annotation.error": "none"},
    }
    client.call("POST", f"{TRACES}/{trace_id}/assessments", {"assessment": feedback})
    assert client.search() == [trace_id]
    assert client.search("prompt = 'ask/3'") == []
