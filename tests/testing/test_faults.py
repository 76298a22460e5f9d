"""Faults on demand, seen by a client over HTTP."""

from __future__ import annotations

import time

import pytest
import requests

from tracelake.testing import MockWorkspace

PATH = "/api/2.1/jobs/list"


@pytest.fixture
def get(workspace: MockWorkspace) -> object:
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {workspace.environment()['DATABRICKS_TOKEN']}"
        yield lambda path=PATH: session.get(workspace.url + path, timeout=10)


def statuses(get: object, count: int, path: str = PATH) -> list[int]:
    return [get(path).status_code for _ in range(count)]  # type: ignore[operator]


def test_rate_limit_says_when_to_come_again(workspace: MockWorkspace, get: object) -> None:
    """In the header that clients look at, and in the error's code."""
    workspace.faults.rate_limit(times=2, retry_after_s=7)
    answer = get()  # type: ignore[operator]
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "7"
    assert answer.json()["error_code"] == "REQUEST_LIMIT_EXCEEDED"
    assert statuses(get, 3) == [429, 501, 501]


@pytest.mark.parametrize(
    ("status", "code"),
    [(500, "INTERNAL_ERROR"), (503, "TEMPORARILY_UNAVAILABLE"), (504, "DEADLINE_EXCEEDED"), (502, "INTERNAL_ERROR")],
)
def test_errors_of_the_service_come_as_often_as_asked(
    workspace: MockWorkspace, get: object, status: int, code: str
) -> None:
    """After as many requests as are let through."""
    workspace.faults.fail(2, status=status, after=1)
    assert statuses(get, 5) == [501, status, status, 501, 501]
    workspace.faults.fail(status=status)
    assert get().json()["error_code"] == code  # type: ignore[operator]


def test_faults_strike_the_paths_they_are_for(workspace: MockWorkspace, get: object) -> None:
    """Of several that would strike, the first asked for does."""
    workspace.faults.fail(None, status=500, path="/api/2.1/jobs")
    workspace.faults.fail(None, status=503)
    assert statuses(get, 1) + statuses(get, 1, "/api/2.0/clusters/list") == [500, 503]
    workspace.faults.clear()
    assert statuses(get, 1) == [501]


def test_answers_come_later(workspace: MockWorkspace, get: object) -> None:
    """By no less than was asked."""
    workspace.faults.delay(0.2, times=1)
    began_s = time.monotonic()
    assert statuses(get, 1) == [501]
    assert time.monotonic() - began_s >= 0.2


def test_reset_connection_is_carried_out_by_nobody(workspace: MockWorkspace, get: object) -> None:
    """The client sees its connection end; the next request is answered."""
    workspace.create_catalog("other")
    workspace.faults.reset_connection()
    with pytest.raises(requests.ConnectionError):
        get()  # type: ignore[operator]
    assert statuses(get, 1) == [501]
    assert [seen.status for seen in workspace.requests()] == [0, 501]


def test_lost_answer_is_carried_out(workspace: MockWorkspace, get: object) -> None:
    """What a client that sends again has to reckon with."""
    workspace.faults.lose_answer(path="/mock/faults")
    with pytest.raises(requests.ConnectionError):
        requests.post(
            f"{workspace.url}/mock/faults",
            json={"status": 503},
            headers={"Authorization": f"Bearer {workspace.environment()['DATABRICKS_TOKEN']}"},
            timeout=10,
        )
    assert statuses(get, 2) == [503, 501]


def test_revoked_privilege_and_others_stay(workspace: MockWorkspace) -> None:
    """In mid-run: from one request to the next."""
    user = workspace.add_user("agent@example.com")
    workspace.create_table("main.obs.spans")
    for privilege, name in (("USE CATALOG", "main"), ("USE SCHEMA", "main.obs")):
        workspace.grant(privilege, on=name, to=user.name)
    workspace.grant("SELECT", "MODIFY", on="main.obs.spans", to=user.name)

    def send() -> requests.Response:
        return requests.post(
            f"{workspace.url}/api/2.0/otel/v1/traces",
            headers={
                "Authorization": f"Bearer {user.token}",
                "Content-Type": "application/x-protobuf",
                "X-Databricks-UC-Table-Name": "main.obs.spans",
            },
            timeout=10,
        )

    assert send().status_code == 200
    workspace.revoke("MODIFY", on="main.obs.spans", from_=user.name)
    answer = send()
    assert answer.status_code == 403
    assert "MODIFY" in answer.json()["message"]
    workspace.grant("MODIFY", on="main.obs.spans", to=user.name)
    assert send().status_code == 200


def test_faults_are_asked_for_over_http(workspace: MockWorkspace, get: object) -> None:
    """From tests in other languages; those need a credential too."""
    url, user = f"{workspace.url}/mock/faults", workspace.environment()["DATABRICKS_TOKEN"]
    assert requests.post(url, json={"status": 500}, timeout=10).status_code == 401
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {user}"
        assert session.post(url, json={"status": 429, "retry_after_s": 3, "times": 1}, timeout=10).json() == {}
        assert get().headers["Retry-After"] == "3"  # type: ignore[operator]
        refused = session.post(url, json={"status": "often"}, timeout=10)
        assert (refused.status_code, refused.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
        for wrong, said in (
            ({"latency": 3}, "latency"),
            ({}, "neither"),
            ({"status": 500, "times": 0}, "0 times"),
            ({"status": 500, "after": -1}, "after -1"),
            ({"status": 500, "delay_s": -1}, "-1.0 seconds"),
            ({"status": 200}, "the status 200"),
            ({"status": 500, "handled": True}, "reset"),
        ):
            assert said in session.post(url, json=wrong, timeout=10).json()["message"]
        session.post(url, json={"status": 500, "times": None}, timeout=10)
        assert statuses(get, 2) == [500, 500]
        assert session.delete(url, timeout=10).json() == {}
        assert statuses(get, 1) == [501]
        seen = session.get(f"{workspace.url}/mock/requests", params={"path": "/api"}, timeout=10).json()["requests"]
        assert [each["status"] for each in seen] == [429, 500, 500, 501]
        assert seen[-1] == {"method": "GET", "path": PATH, "principal": workspace.user, "bytes": 0, "status": 501}
