"""Who is let in, as databricks-sdk and delta-rs' way to ask for tokens find it."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
import requests
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config, credentials_strategy
from databricks.sdk.errors import PermissionDenied, Unauthenticated

from tracelake import ConfigurationError
from tracelake.testing import MockWorkspace
from tracelake.testing.unity.oauth import AccessTokens

from .sdk import client, client_with

ME = "/api/2.0/preview/scim/v2/Me"
TOKEN = "/oidc/v1/token"


@credentials_strategy("none", [])
def nobody(_: Config) -> Any:
    return dict


def ask(workspace: MockWorkspace, authorization: str | None) -> requests.Response:
    headers = {} if authorization is None else {"Authorization": authorization}
    return requests.get(workspace.url + ME, headers=headers, timeout=10)


def test_a_personal_access_token(workspace: MockWorkspace) -> None:
    workspace.add_group("engineers")
    workspace.add_user("ann@example.com", groups=["engineers"])
    asking = client(workspace, "ann@example.com")
    assert asking.config.auth_type == "pat"
    me = asking.current_user.me()
    assert (me.user_name, me.display_name, me.active) == ("ann@example.com", "ann@example.com", True)
    assert [email.value for email in me.emails] == ["ann@example.com"]
    assert [group.display for group in me.groups] == ["engineers"]
    assert int(me.id) != int(client(workspace).current_user.me().id)


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Basic eDp5", "Token abc"])
def test_no_credential_of_a_supported_kind(workspace: MockWorkspace, authorization: str | None) -> None:
    answer = ask(workspace, authorization)
    assert answer.status_code == 401
    assert answer.json()["error_code"] == 401
    assert "unsupported type" in answer.json()["message"]


@pytest.mark.parametrize("token", ["dapi0", "a.b", ".", "é", "W10=.00"])
def test_an_invalid_token(workspace: MockWorkspace, token: str) -> None:
    answer = ask(workspace, "Bearer " + token.encode().decode("latin-1"))
    assert (answer.status_code, answer.json()) == (403, {"error_code": 403, "message": "Invalid access token."})
    with pytest.raises(PermissionDenied, match=r"Invalid access token\."):
        client_with(workspace.url, token="dapi0").current_user.me()


def test_an_unknown_path_says_nothing_to_strangers(workspace: MockWorkspace) -> None:
    assert requests.get(workspace.url + "/api/2.1/jobs/list", timeout=10).status_code == 401


def test_oauth_client_credentials(workspace: MockWorkspace) -> None:
    agent = workspace.add_service_principal("agent", token_lifetime_s=1200)
    asking = client(workspace, agent.name)
    assert asking.config.auth_type == "oauth-m2m"
    me = asking.current_user.me()
    assert (me.user_name, me.display_name, me.emails) == (agent.name, "agent", [])
    assert str(uuid.UUID(agent.name)) == agent.name
    asking.current_user.me()
    paths = [exchange.request.path for exchange in workspace.requests()]
    assert paths.count(TOKEN) == 1
    assert [exchange.status for exchange in workspace.requests()] == [200] * len(paths)


def test_a_token_is_fetched_anew_once_it_expires(workspace: MockWorkspace) -> None:
    agent = workspace.add_service_principal("agent", token_lifetime_s=2)
    asking = client(workspace, agent.name)
    asking.current_user.me()
    asking.current_user.me()
    assert len(workspace.requests(TOKEN)) == 2


def test_expired_tokens_are_refused_until_a_new_one_is_got(workspace: MockWorkspace) -> None:
    agent = workspace.add_service_principal("agent")
    asking = client(workspace, agent.name)
    asking.current_user.me()
    workspace.expire_tokens()
    with pytest.raises(PermissionDenied, match="JWT has expired"):
        asking.current_user.me()
    assert client(workspace, agent.name).current_user.me().user_name == agent.name
    # Personal access tokens are none of these.
    assert client(workspace).current_user.me().user_name == workspace.user


def test_a_token_expires_by_itself() -> None:
    tokens = AccessTokens()
    assert tokens.read(tokens.issue("ann", 60)) == ("ann", False)
    assert tokens.read(tokens.issue("ann", 0)) == ("ann", True)
    assert tokens.issue("ann", 60) != tokens.issue("ann", 60)
    assert AccessTokens().read(tokens.issue("ann", 60)) is None


def test_a_wrong_secret(workspace: MockWorkspace) -> None:
    agent = workspace.add_service_principal("agent")
    asking = client_with(workspace.url, client_id=agent.name, client_secret="wrong")
    with pytest.raises(ValueError, match="invalid_client: Client authentication failed"):
        asking.current_user.me()


def test_the_secret_in_the_form(workspace: MockWorkspace) -> None:
    """As delta-rs sends it; the fields that Zerobus' clients add are let pass."""
    agent = workspace.add_service_principal("agent")
    form = {
        "grant_type": "client_credentials",
        "client_id": agent.name,
        "client_secret": agent.secret,
        "scope": "all-apis",
        "resource": "api://databricks/workspaces/1/zerobusDirectWriteApi",
        "authorization_details": "[]",
    }
    answer = requests.post(workspace.url + TOKEN, data=form, timeout=10).json()
    assert (answer["token_type"], answer["expires_in"], answer["scope"]) == ("Bearer", 3600, "all-apis")
    assert ask(workspace, f"bearer {answer['access_token']}").json()["userName"] == agent.name


@pytest.mark.parametrize(
    ("form", "basic", "status", "error"),
    [
        ({}, None, 400, "invalid_request"),
        ({"grant_type": "password"}, None, 400, "unsupported_grant_type"),
        ({"grant_type": "client_credentials"}, None, 401, "invalid_client"),
        ({"grant_type": "client_credentials"}, ("nobody", ""), 401, "invalid_client"),
        ({"grant_type": "client_credentials"}, ("you@example.com", ""), 401, "invalid_client"),
        ({"grant_type": "client_credentials", "client_id": "é", "client_secret": "é"}, None, 401, "invalid_client"),
    ],
)
def test_refused_token_requests(
    workspace: MockWorkspace, form: dict[str, str], basic: tuple[str, str] | None, status: int, error: str
) -> None:
    answer = requests.post(workspace.url + TOKEN, data=form, auth=basic, timeout=10)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert set(answer.json()) == {"error", "error_description"}


def test_a_broken_basic_header(workspace: MockWorkspace) -> None:
    answer = requests.post(
        workspace.url + TOKEN,
        data={"grant_type": "client_credentials"},
        headers={"Authorization": "Basic %%%"},
        timeout=10,
    )
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


def test_deactivated_and_removed_principals_are_not_let_in(workspace: MockWorkspace) -> None:
    agent, ann = workspace.add_service_principal("agent"), workspace.add_user("ann@example.com")
    as_agent, as_ann = client(workspace, agent.name), client(workspace, ann.name)
    as_agent.current_user.me()
    workspace.grant("USE CATALOG", on="main", to=ann.name)
    workspace.deactivate(agent.name)
    workspace.remove_principal(ann.name)
    for asking in (as_agent, as_ann):
        with pytest.raises(PermissionDenied, match="Invalid access token"):
            asking.current_user.me()
    with pytest.raises(ValueError, match="invalid_client"):
        client_with(workspace.url, client_id=agent.name, client_secret=agent.secret).current_user.me()
    assert client(workspace).grants.get("CATALOG", "main").privilege_assignments == []
    with pytest.raises(ConfigurationError, match=r"has no principal 'ann@example\.com'"):
        workspace.remove_principal(ann.name)


def test_groups_have_to_be_there(workspace: MockWorkspace) -> None:
    with pytest.raises(ConfigurationError, match="has no principal 'engineers'"):
        workspace.add_user("ann@example.com", groups=["engineers"])
    with pytest.raises(ConfigurationError, match="is a user and no group"):
        workspace.add_user("ann@example.com", groups=[workspace.user])
    with pytest.raises(ConfigurationError, match="already"):
        workspace.add_group(workspace.user)


def test_principals_survive_a_restart_and_access_tokens_do_not(tmp_path: Path) -> None:
    with MockWorkspace(str(tmp_path)) as before:
        agent = before.add_service_principal("agent")
        asking = client(before, agent.name)
        asking.current_user.me()
        token = asking.config.authenticate()["Authorization"]
        assert ask(before, token).status_code == 200
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or token.split()[1] not in file.read_text("latin-1")
    with MockWorkspace(str(tmp_path)) as after:
        assert ask(after, token).status_code == 403
        assert client(after, agent.name).current_user.me().user_name == agent.name


def test_within_the_process(workspace: MockWorkspace) -> None:
    agent = workspace.add_service_principal("agent")
    with workspace.in_process() as host:
        assert client(workspace, agent.name, host=host).current_user.me().user_name == agent.name
        anonymous = WorkspaceClient(config=Config(host=host, credentials_strategy=nobody))
        with pytest.raises(Unauthenticated, match="Credential was not sent"):
            anonymous.current_user.me()


def test_no_secret_is_in_a_repr(workspace: MockWorkspace) -> None:
    agent, ann = workspace.add_service_principal("agent"), workspace.add_user("ann@example.com")
    client(workspace, agent.name).current_user.me()
    client(workspace, ann.name).current_user.me()
    shown = repr((agent, ann, workspace.requests()))
    assert agent.secret not in shown
    assert ann.token not in shown
    assert "Bearer" not in shown
