"""The workspace within a process, for what goes through the package `requests`."""

from __future__ import annotations

import io
import os

import pytest
import requests

from tracelake.testing import MockWorkspace


def headers(workspace: MockWorkspace) -> dict[str, str]:
    return {"Authorization": f"Bearer {workspace.environment(host='-')['DATABRICKS_TOKEN']}"}


def test_requests_to_the_host_are_answered(workspace: MockWorkspace) -> None:
    """Nothing listens, and the name is one that no resolver knows."""
    with workspace.in_process() as host:
        answer = requests.get(f"{host}/api/2.1/jobs/list?limit=5&name=a%20b", headers=headers(workspace))
    assert answer.status_code == 501
    assert answer.headers["Content-Type"] == "application/json"
    (seen,) = workspace.requests()
    assert seen.request.query == {"limit": ["5"], "name": ["a b"]}
    assert seen.request.principal == workspace.user


def test_other_hosts_are_reached(workspace: MockWorkspace) -> None:
    """Among them the workspace itself, as a server."""
    with workspace.in_process():
        answer = requests.get(f"{workspace.url}/api/2.1/jobs/list")
    assert answer.status_code == 401


def test_afterwards_nothing_is_answered(workspace: MockWorkspace) -> None:
    """Not even by accident: the host does not exist."""
    with workspace.in_process() as host:
        pass
    with pytest.raises(requests.ConnectionError):
        requests.get(host, timeout=5)
    assert workspace.requests() == []


@pytest.mark.parametrize("body", [b"abc", "abc", bytearray(b"abc"), io.BytesIO(b"abc"), iter([b"a", b"bc"])])
def test_bodies_of_every_kind_arrive(workspace: MockWorkspace, body: object) -> None:
    """`requests` takes bytes, text, files and iterators."""
    with workspace.in_process() as host:
        requests.post(f"{host}/api/2.0/otel/v1/traces", data=body, headers=headers(workspace))  # type: ignore[arg-type]
    (seen,) = workspace.requests()
    assert seen.request.body == b"abc"


def test_reset_connection_is_a_connection_error(workspace: MockWorkspace) -> None:
    """As `requests` would raise it for a real one."""
    workspace.faults.reset_connection()
    with workspace.in_process() as host:
        with pytest.raises(requests.ConnectionError, match="reset"):
            requests.get(f"{host}/api/2.1/jobs/list")
        assert requests.get(f"{host}/api/2.1/jobs/list").status_code == 401
    assert [seen.status for seen in workspace.requests()] == [0, 401]


def test_forked_process_is_refused(workspace: MockWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a copy of the workspace, and is told how it reaches the real one."""
    with workspace.in_process() as host:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        answer = requests.get(f"{host}/api/2.1/jobs/list", headers=headers(workspace))
    assert answer.status_code == 501
    assert "environment()" in answer.json()["message"]
    assert workspace.requests() == []


def test_head_is_answered_as_get_is(workspace: MockWorkspace) -> None:
    """As the server does."""
    with workspace.in_process() as host:
        assert requests.head(f"{host}/api/2.0/preview/scim/v2/Me", headers=headers(workspace)).status_code == 200
