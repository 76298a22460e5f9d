"""An open-source Unity Catalog server that asks who calls: tokens and grants decide whose spans arrive."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.lake import Lake, wait_until

from .unity_server import BUCKET, UnityServer
from .users import User, act

pytestmark = pytest.mark.slow  # a server takes seconds to start

WRITER = "service@example.com"
NEEDED = {
    "USE CATALOG": ("catalog", "main"),
    "USE SCHEMA": ("schema", "main.obs"),
    "SELECT": ("table", "main.obs.spans"),
    "MODIFY": ("table", "main.obs.spans"),
}


@pytest.fixture(scope="module")
def token(guarded_server: UnityServer) -> str:
    """A token of WRITER's, who may do nothing yet."""
    return guarded_server.add_user(WRITER)


@pytest.fixture
def administrator(guarded_server: UnityServer, s3: str, lake: Lake) -> User:
    return User(guarded_server, s3, lake, guarded_server.token)


@pytest.fixture
def new_writer(administrator: User, token: str) -> Callable[[str], User]:
    """Makes a table that WRITER may write to, and lets this machine be WRITER's."""

    def make(name: str) -> User:
        location = f"{BUCKET}/guarded/{name}"
        printed = administrator.create_table(name, location, "--grant-to", WRITER)
        assert f"granted SELECT, MODIFY on the table {name} to {WRITER}\n" in printed
        administrator.lake.environ["TRACELAKE_CATALOG_TOKEN"] = token
        return administrator

    return make


@pytest.mark.parametrize(
    ("kind", "seen", "remedy"),
    [
        ("none", "No authorization found. The access by no token", "Set TRACELAKE_CATALOG_TOKEN"),
        ("rubbish", "Invalid access token. The access by TRACELAKE_CATALOG_TOKEN", "Set TRACELAKE_CATALOG_TOKEN"),
        ("expired", "Invalid access token. The access by TRACELAKE_CATALOG_TOKEN", "Set TRACELAKE_CATALOG_TOKEN"),
        ("stranger", "User not allowed: stranger@example.com", "Ask an administrator"),
    ],
    ids=["none", "rubbish", "expired", "stranger"],
)
def test_token_that_gives_no_access(administrator: User, kind: str, seen: str, remedy: str) -> None:
    """The finding says what is wrong with it, and `create-table` the same."""
    server = administrator.server
    tokens = {
        "none": "",
        "rubbish": "rubbish-of-nobody",
        "expired": server.sign_token("admin", lifetime_s=-60),
        "stranger": server.sign_token("stranger@example.com"),
    }
    administrator.lake.environ["TRACELAKE_CATALOG_TOKEN"] = tokens[kind]
    errors = administrator.errors("main.obs.spans")
    assert list(errors) == ["authentication"]
    assert seen in errors["authentication"]["seen"]
    assert errors["authentication"]["remedy"].startswith(remedy)
    result = administrator.run("create-table", "main.obs.spans", "--location", f"{BUCKET}/{kind}")
    assert result.code == 1
    assert seen in result.err


def test_table_is_made_by_those_who_may(administrator: User, token: str) -> None:
    """By nobody who has no right to, nor is the table there after."""
    administrator.lake.environ["TRACELAKE_CATALOG_TOKEN"] = token
    result = administrator.run("create-table", "main.obs.forbidden", "--location", f"{BUCKET}/forbidden")
    assert result.code == 1
    assert "403 PERMISSION_DENIED" in result.err
    assert administrator.server.request("GET", "tables/main.obs.forbidden").status_code == 404


def test_each_privilege_is_asked_for_and_given_by_the_remedy(new_writer: Callable[[str], User]) -> None:
    """One after the other is taken away; with all of them a span goes all the way."""
    writer = new_writer("main.obs.spans")
    found = writer.doctor("main.obs.spans", "--write-test")
    assert {finding["severity"] for finding in found} == {"ok"}
    assert f"You are {WRITER}." in [finding["seen"] for finding in found]
    for privilege, (kind, name) in NEEDED.items():
        writer.server.revoke(WRITER, kind, name, privilege)
        errors = writer.errors("main.obs.spans")
        assert errors, privilege
        asked = errors.get("privileges") or errors[kind]
        assert asked["remedy"].startswith(f"uc permission create --securable_type {kind} --name {name} "), privilege
        act(writer.server, asked["remedy"])
        assert writer.errors("main.obs.spans") == {}, privilege
    assert writer.names("main.obs.spans") == ["tracelake doctor"]


def test_privilege_is_revoked_in_mid_run(new_writer: Callable[[str], User]) -> None:
    """Spans wait until it is there again, and arrive once."""
    name = "main.obs.revoked"
    writer = new_writer(name)
    program = writer.start_steps(name, "before", "meanwhile", "after")
    writer.step("before")
    writer.wait_for_delivered(1)
    writer.server.revoke(WRITER, "schema", "main.obs", "USE SCHEMA")
    writer.step("meanwhile")
    error = writer.wait_for_error("stopped")
    assert error.startswith(f"{name}: ")
    assert "403 PERMISSION_DENIED" in error
    writer.server.grant(WRITER, "schema", "main.obs", "USE SCHEMA")
    writer.step("after")
    writer.end(program)
    assert writer.names(name) == ["before", "meanwhile", "after"]


def test_token_expires_in_mid_run(new_writer: Callable[[str], User]) -> None:
    """Spans wait for a process that has another one, and the error says which variable has it."""
    name = "main.obs.expired"
    writer = new_writer(name)
    good = writer.lake.environ["TRACELAKE_CATALOG_TOKEN"]
    short = writer.lake.environ["TRACELAKE_CATALOG_TOKEN"] = writer.server.sign_token(WRITER, lifetime_s=8)
    program = writer.start_steps(name, "before", "meanwhile")
    writer.step("before")
    writer.wait_for_delivered(1)
    wait_until(
        lambda: writer.server.request("GET", "metastore_summary", token=short).status_code == 401, "the token expires"
    )
    writer.step("meanwhile")
    error = writer.wait_for_error("stopped")
    assert "401 UNAUTHENTICATED" in error
    assert "Set TRACELAKE_CATALOG_TOKEN" in error
    assert short not in error + writer.lake.log()
    assert program.wait(60) == 0, writer.lake.output(program)
    assert " 1 pending, 0 dropped" in writer.lake.output(program)
    # The shipper has the token of the program that started it.
    for pid in writer.lake.shippers():
        os.kill(pid, signal.SIGTERM)
    writer.lake.environ["TRACELAKE_CATALOG_TOKEN"] = good
    writer.end(writer.start_steps(name, "before"))
    assert writer.names(name) == ["before", "meanwhile", "before"]
