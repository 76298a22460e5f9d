"""Whose access is used, in every way that databricks-sdk finds one, and what a refusal means."""

from __future__ import annotations

import base64
import json
import logging
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.destinations.contract import batch, spans
from tests.lake import Lake
from tracelake import (
    DeliveryError,
    MissingDependencyError,
    PermanentDeliveryError,
    RefusedError,
    SettingError,
    TransientDeliveryError,
)
from tracelake.databricks.workspace import CATALOG_TOKEN, Workspace, connect, identity
from tracelake.destinations.base import is_confined
from tracelake.destinations.targets import parse_target
from tracelake.testing import MockWorkspace

ME = "/api/2.0/preview/scim/v2/Me"
SECRET = "dose0123456789abcdefSECRET"
# An access token whose claims databricks-sdk reads.
JWT = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in ({}, {"upn": "me"}, {}))

Answer = tuple[int, dict[str, str], bytes]


class Stub:
    """A server on loopback that answers as a test says; by default, who asks with what header Authorization."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path.partition("?")[0]
                stub.seen.append((path, dict(self.headers), body))
                status, headers, body = stub.answer(path, self.headers.get("Authorization", ""))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815 - as the base class names them

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, path: str, authorization: str) -> Answer:
        if path in self.answers:
            return self.answers[path]
        if path == "/.well-known/databricks-config":
            return in_json({"oidc_endpoint": f"{self.url}/oidc"})
        if path == "/oidc/.well-known/oauth-authorization-server":
            oidc = f"{self.url}/oidc/v1"
            return in_json({"authorization_endpoint": f"{oidc}/authorize", "token_endpoint": f"{oidc}/token"})
        if path == "/oidc/v1/token":
            return in_json({"access_token": "exchanged", "token_type": "Bearer", "expires_in": 3600})
        return in_json({"userName": authorization})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def in_json(body: Any, status: int = 200, **headers: str) -> Answer:
    return status, {"Content-Type": "application/json", **headers}, json.dumps(body).encode()


@pytest.fixture
def stub() -> Iterator[Stub]:
    opened = Stub()
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def no_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None of the developer's, nor those of a cloud's command line."""
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "databrickscfg"))
    for name in [name for name in os.environ if name.startswith(("ARM_", "HTTP_PROXY", "HTTPS_PROXY", "ACTIONS_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def served() -> Iterator[MockWorkspace]:
    with MockWorkspace() as made:
        made.create_schema("main.obs")
        made.serve()
        yield made


Set = Callable[..., None]


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Set:
    def put(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


def dead_url() -> str:
    """Return an address where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{held.getsockname()[1]}"


def me(workspace: Workspace) -> str:
    return str(workspace.get(ME)["userName"])


# --- ways of getting access ------------------------------------------------------------------------------------------


def test_personal_access_token(served: MockWorkspace, env: Set) -> None:
    """Of the environment."""
    env(**served.environment())
    workspace = connect()
    assert me(workspace) == served.user
    assert (workspace.access, workspace.url, workspace.open_source) == ("by pat", served.url, False)
    assert workspace.authorization().get("X-Databricks-Org-Id", "") == workspace.workspace_id
    assert workspace.oauth() is None


def test_service_principal(served: MockWorkspace, env: Set) -> None:
    """By OAuth; its secret is what Zerobus asks for, too."""
    principal = served.add_service_principal("agent")
    env(**served.environment(principal.name))
    workspace = connect()
    assert (me(workspace), workspace.access) == (principal.name, "by oauth-m2m")
    assert workspace.oauth() == (principal.name, principal.secret)


PROFILES = "[DEFAULT]\nhost = {url}\ntoken = default-token\n[team]\nhost = {url}\ntoken = team-token\n"


@pytest.mark.parametrize(
    ("variables", "token"),
    [
        ({}, "default-token"),
        ({"DATABRICKS_CONFIG_PROFILE": "team"}, "team-token"),
        ({"MLFLOW_TRACKING_URI": "databricks://team"}, "team-token"),
        ({"MLFLOW_TRACKING_URI": "databricks-uc://team"}, "team-token"),
        ({"MLFLOW_TRACKING_URI": "databricks"}, "default-token"),
        ({"MLFLOW_TRACKING_URI": "databricks://team", "DATABRICKS_CONFIG_PROFILE": "DEFAULT"}, "default-token"),
    ],
)
def test_profile(stub: Stub, env: Set, tmp_path: Path, variables: dict[str, str], token: str) -> None:
    """Of the configuration file, named by a variable or as MLflow names one."""
    (tmp_path / "databrickscfg").write_text(PROFILES.format(url=stub.url))
    env(**variables)
    assert me(connect()) == f"Bearer {token}"


def test_host_of_the_environment_outranks_the_profile_of_mlflow(stub: Stub, env: Set, tmp_path: Path) -> None:
    """As in MLflow's own clients, which then leave the profile alone."""
    (tmp_path / "databrickscfg").write_text(PROFILES.format(url=dead_url()))
    env(MLFLOW_TRACKING_URI="databricks://team", DATABRICKS_HOST=stub.url, DATABRICKS_TOKEN="own-token")
    assert me(connect()) == "Bearer own-token"


def test_user_and_password(stub: Stub, env: Set) -> None:
    """As old setups have them."""
    env(DATABRICKS_HOST=stub.url, DATABRICKS_USERNAME="me", DATABRICKS_PASSWORD=SECRET)
    assert me(connect()) == "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()


@pytest.mark.parametrize("kind", ["env-oidc", "file-oidc"])
def test_federated_identity(stub: Stub, env: Set, tmp_path: Path, kind: str) -> None:
    """A token of another issuer, as of a CI or of Kubernetes, is exchanged."""
    (tmp_path / "token").write_text(JWT)
    env(DATABRICKS_HOST=stub.url, DATABRICKS_CLIENT_ID="agent", DATABRICKS_AUTH_TYPE=kind)
    env(**({"DATABRICKS_OIDC_TOKEN": JWT} if kind == "env-oidc" else
           {"DATABRICKS_OIDC_TOKEN_FILE": str(tmp_path / "token"),
            "DATABRICKS_OIDC_TOKEN_FILEPATH": str(tmp_path / "token")}))  # fmt: skip
    workspace = connect()
    assert (me(workspace), workspace.access) == ("Bearer exchanged", f"by {kind}")
    (exchange,) = [body for path, _, body in stub.seen if path == "/oidc/v1/token"]
    assert b"token-exchange" in exchange


def test_metadata_service(stub: Stub, env: Set) -> None:
    """What an editor's extension gives."""
    stub.answers["/token"] = in_json(
        {"access_token": "of-service", "token_type": "Bearer", "expires_on": time.time() + 3600}
    )
    env(DATABRICKS_HOST=stub.url, DATABRICKS_METADATA_SERVICE_URL=f"{stub.url}/token")
    env(DATABRICKS_AUTH_TYPE="metadata-service")
    assert me(connect()) == "Bearer of-service"


LOGIN = """\
#!/bin/sh
case "$1" in
  auth) echo '{"access_token": "of-login", "token_type": "Bearer", "expiry": "2099-01-01T00:00:00.000Z"}' ;;
  *) echo '{"Version": "0.250.0", "Major": 0, "Minor": 250, "Patch": 0}' ;;
esac
exit
"""


def command_line(path: Path, text: str) -> str:
    """Make a `databricks` command, as large as those that databricks-sdk takes for a new one."""
    path.write_text(text + "#" * 2**20)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_login_of_the_command_line(stub: Stub, env: Set, tmp_path: Path) -> None:
    """A developer's `databricks auth login`."""
    env(DATABRICKS_HOST=stub.url, DATABRICKS_AUTH_TYPE="databricks-cli")
    env(DATABRICKS_CLI_PATH=command_line(tmp_path / "databricks", LOGIN))
    workspace = connect()
    assert (me(workspace), workspace.access) == ("Bearer of-login", "by databricks-cli")


def test_model_serving(stub: Stub, env: Set, tmp_path: Path) -> None:
    """The file that the platform keeps up to date."""
    from databricks.sdk.credentials_provider import ModelServingAuthProvider

    if not hasattr(ModelServingAuthProvider, "_model_dependency_oauth_token_path"):
        pytest.skip("this databricks-sdk looks at the root of the file system only")
    token = tmp_path / "model-dependencies-oauth-token"
    token.write_text(json.dumps({"OAUTH_TOKEN": [{"oauthTokenValue": "of-serving"}]}))
    env(IS_IN_DB_MODEL_SERVING_ENV="true", SERVING_CREDENTIALS_DIR=str(tmp_path))
    env(DATABRICKS_MODEL_SERVING_HOST_URL=stub.url)
    workspace = connect()
    assert (me(workspace), workspace.access, workspace.url) == ("Bearer of-serving", "by model-serving", stub.url)
    assert not is_confined(identity())


NOTEBOOK = """
import os, threading, tracelake
tracelake.set_destination("main.obs.notebook")
with tracelake.start_span("cell"):
    pass
report = tracelake.flush(30)
assert report.complete, report
print(report.delivered, sorted(os.listdir(os.path.join(os.environ["TRACELAKE_SPOOL_DIR"], "shippers"))))
"""


# What the platform has in each notebook and job.
PLATFORM = """
class UserNamespaceInitializer:
    getOrCreate = classmethod(lambda cls: cls())
    get_namespace_globals = lambda self: {}
"""


@pytest.mark.slow
def test_access_of_a_notebook_is_used_by_a_thread_of_it(served: MockWorkspace, lake: Lake) -> None:
    """The platform gives it to this process only, so that no shipper process could deliver."""
    served.create_table("main.obs.notebook")
    variables = served.environment()
    package = lake.root / "dbruntime"
    package.mkdir()
    (package / "__init__.py").write_text(PLATFORM)
    (package / "sdk_credential_provider.py").write_text(
        f"def init_runtime_native_auth():\n    return {served.url!r}, "
        f"lambda: {{'Authorization': 'Bearer {variables['DATABRICKS_TOKEN']}'}}\n"
    )
    given = {"DATABRICKS_RUNTIME_VERSION": "17.3", "PYTHONPATH": str(lake.root), "MLFLOW_TRACKING_URI": "databricks"}
    output = lake.run(NOTEBOOK, DATABRICKS_CONFIG_FILE=variables["DATABRICKS_CONFIG_FILE"], **given)
    assert output.startswith("1 ")
    assert ".log" not in output  # of a process
    assert [span.name for span in served.table("main.obs.notebook").spans()] == ["cell"]


def test_identity_in_a_notebook_is_confined(env: Set) -> None:
    """Unless it has an access of its own, as a secret of a job is one."""
    env(DATABRICKS_RUNTIME_VERSION="17.3")
    assert identity()["access"] == "runtime"
    assert is_confined(parse_target("main.obs.spans").identity)
    for name in ("DATABRICKS_TOKEN", "DATABRICKS_CLIENT_ID", "DATABRICKS_CONFIG_PROFILE", "DATABRICKS_AUTH_TYPE"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, "x")
            assert not is_confined(identity())
    env(MLFLOW_TRACKING_URI="databricks://team")
    assert not is_confined(identity())


def test_identity_has_no_secret_and_outlives_a_rotated_one(env: Set) -> None:
    """It names a lane, and is in `tracelake status`."""
    env(DATABRICKS_HOST="https://example.com", DATABRICKS_CLIENT_ID="agent", DATABRICKS_CLIENT_SECRET=SECRET)
    first = identity()
    env(DATABRICKS_CLIENT_SECRET="another", DATABRICKS_TOKEN=SECRET, DATABRICKS_PASSWORD=SECRET)
    assert {**first, "access": "token"} == identity()
    assert first["DATABRICKS_CLIENT_ID"] == "agent"
    assert SECRET not in str(identity())


# --- an open-source server -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("token", "header"), [("", ""), ("of-server", "Bearer of-server")])
def test_open_source_server(stub: Stub, env: Set, token: str, header: str) -> None:
    """With its token, or with none; access to Databricks goes to nobody else."""
    env(DATABRICKS_HOST=dead_url(), DATABRICKS_TOKEN=SECRET, TRACELAKE_CATALOG_URL=f"{stub.url}/")
    env(**{CATALOG_TOKEN: token})
    workspace = connect()
    assert (me(workspace), workspace.open_source, workspace.url) == (header, True, stub.url)
    assert not any(SECRET in str(headers) for _, headers, _ in stub.seen)
    assert identity() == {"catalog": f"{stub.url}/", **({"access": "token"} if token else {})}


def test_open_source_server_that_wants_another_token(stub: Stub, env: Set) -> None:
    """The error names the variable."""
    stub.answers[ME] = in_json({"error_code": "UNAUTHENTICATED", "message": "No."}, 401)
    env(TRACELAKE_CATALOG_URL=stub.url)
    with pytest.raises(RefusedError, match=rf"refuses \(401 UNAUTHENTICATED\): No\..*Set {CATALOG_TOKEN}") as raised:
        connect().get(ME)
    assert raised.value.status == 401


@pytest.mark.parametrize("token", ["größe", "two\nlines"])
def test_token_that_no_header_takes(stub: Stub, env: Set, token: str) -> None:
    """Found before it is sent, and not shown."""
    env(TRACELAKE_CATALOG_URL=stub.url, **{CATALOG_TOKEN: token})
    with pytest.raises(
        PermanentDeliveryError, match=rf"{CATALOG_TOKEN} holds what no token has\. Set {CATALOG_TOKEN}"
    ) as raised:
        connect()
    assert token not in str(raised.value)


def test_url_of_the_catalog_that_is_none(env: Set) -> None:
    """As every wrong setting."""
    env(TRACELAKE_CATALOG_URL="ftp://x")
    with pytest.raises(SettingError, match="TRACELAKE_CATALOG_URL='ftp://x' is not usable"):
        connect()


# --- no access -------------------------------------------------------------------------------------------------------


def test_databricks_sdk_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the command."""
    for name in [name for name in sys.modules if name.startswith("databricks.sdk")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "databricks.sdk", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tracelake\[databricks\]'"):
        connect()


def test_no_access_at_all() -> None:
    """What to set."""
    with pytest.raises(
        PermanentDeliveryError, match=r"There is no access: .*Set DATABRICKS_HOST with DATABRICKS_TOKEN"
    ):
        connect()


def test_two_kinds_of_access_at_once(stub: Stub, env: Set) -> None:
    """Both are named, and what chooses one; databricks-sdk's dump of all settings is not repeated."""
    env(
        DATABRICKS_HOST=stub.url, DATABRICKS_TOKEN=SECRET, DATABRICKS_CLIENT_ID="agent", DATABRICKS_CLIENT_SECRET=SECRET
    )
    with pytest.raises(
        PermanentDeliveryError, match=r"more than one access: by oauth and pat\. Unset .*AUTH_TYPE"
    ) as raised:
        connect()
    assert "Config" not in str(raised.value)
    env(DATABRICKS_AUTH_TYPE="pat")
    assert me(connect()) == f"Bearer {SECRET}"


def test_secret_of_nobody(served: MockWorkspace, env: Set) -> None:
    """Somebody has to act: no later try will do."""
    env(DATABRICKS_HOST=served.url, DATABRICKS_CLIENT_ID="agent", DATABRICKS_CLIENT_SECRET=SECRET)
    with pytest.raises(
        PermanentDeliveryError, match=r"There is no access: invalid_client.*Set DATABRICKS_HOST"
    ) as raised:
        connect().get(ME)
    assert SECRET not in str(raised.value)


def test_token_of_nobody(served: MockWorkspace, env: Set) -> None:
    """A workspace answers 403, as for a privilege that is missing, and this is none."""
    env(**{**served.environment(), "DATABRICKS_TOKEN": SECRET})
    with pytest.raises(
        RefusedError, match=r"refuses \(403\): Invalid access token\. The access by pat is not valid\. Set"
    ):
        connect().get(ME)


def test_missing_privilege_is_not_taken_for_a_missing_access(stub: Stub, env: Set) -> None:
    """Though it speaks of tokens."""
    stub.answers[ME] = in_json({"error_code": "PERMISSION_DENIED", "message": "No token use for you"}, 403)
    env(DATABRICKS_HOST=stub.url, DATABRICKS_TOKEN=SECRET)
    workspace = connect()
    workspace.get("/api/2.0/other")
    with pytest.raises(RefusedError, match=r"refuses \(403 PERMISSION_DENIED\): No token use for you\.$") as raised:
        workspace.get(ME)
    assert (raised.value.status, raised.value.code) == (403, "PERMISSION_DENIED")


def test_access_that_ends_is_asked_for_again(served: MockWorkspace, env: Set) -> None:
    """A token that expires is no reason to stop: the next sink has another."""
    principal = served.add_service_principal("short-lived")
    env(**served.environment(principal.name))
    workspace = connect()
    workspace.get(ME)
    served.expire_tokens()
    with pytest.raises(TransientDeliveryError, match=r"has ended: JWT has expired\. It is asked for again"):
        workspace.get(ME)
    with pytest.raises(RefusedError, match="The access by oauth-m2m is not valid"):
        workspace.get(ME)  # by the same token, which did not work since
    assert me(connect()) == principal.name


@pytest.mark.parametrize("external", [False, True], ids=["managed", "external"])
def test_sink_goes_on_when_its_access_has_ended(
    served: MockWorkspace, env: Set, tmp_path: Path, external: bool
) -> None:
    """The next one, opened as after any error, has a new token; what was not written is written then."""
    principal = served.add_service_principal("long-lived")
    name = f"main.obs.expiring_{'external' if external else 'managed'}"
    served.create_table(name, location=str(tmp_path / "table") if external else "")
    privileges = ("USE CATALOG", "USE SCHEMA", "SELECT", "MODIFY", "EXTERNAL USE SCHEMA")
    served.grant(*privileges, on="main", to=principal.name)
    env(**served.environment(principal.name))
    destination = parse_target(name)
    sink = destination.open()
    sink.write(batch(1, spans(1)))
    served.expire_tokens()
    with pytest.raises(TransientDeliveryError, match="has ended"):
        sink.write(batch(2, spans(2)))
    sink.close()
    assert destination.open().write(batch(2, spans(2))) == []
    assert len(served.table(name).spans()) == 2


# --- no answer -------------------------------------------------------------------------------------------------------

OAUTH = {"DATABRICKS_CLIENT_ID": "agent", "DATABRICKS_CLIENT_SECRET": SECRET}


@pytest.mark.parametrize("access", [{"DATABRICKS_TOKEN": SECRET}, OAUTH], ids=["pat", "oauth"])
def test_host_that_is_not_there(env: Set, access: dict[str, str]) -> None:
    """Said within seconds, by what the system says; spans wait, for it may come back."""
    url = dead_url()
    env(DATABRICKS_HOST=url, **access)
    started_s = time.monotonic()
    with pytest.raises(TransientDeliveryError, match=rf"{url} is not reached: .*refused.*see whether the URL is right"):
        connect()
    assert time.monotonic() - started_s < 5


def test_host_of_a_profile_that_is_not_there(env: Set, tmp_path: Path) -> None:
    """As well."""
    url = dead_url()
    (tmp_path / "databrickscfg").write_text(f"[team]\nhost = {url}\nclient_id = agent\nclient_secret = {SECRET}\n")
    env(DATABRICKS_CONFIG_PROFILE="team")
    with pytest.raises(TransientDeliveryError, match=rf"{url} is not reached"):
        connect()


@pytest.mark.parametrize("url", ["http://tracelake.invalid", "tracelake.invalid"])
def test_host_without_an_address(env: Set, url: str) -> None:
    """A typing error, or no network."""
    env(DATABRICKS_HOST=url, DATABRICKS_TOKEN=SECRET)
    with pytest.raises(
        TransientDeliveryError, match=r"https?://tracelake\.invalid is not reached: .*see whether the URL"
    ):
        connect()


def test_host_that_speaks_no_tls(stub: Stub, env: Set) -> None:
    """The system's own words."""
    env(DATABRICKS_HOST=stub.url.replace("http", "https"), DATABRICKS_TOKEN=SECRET)
    with pytest.raises(TransientDeliveryError, match=r"is not reached: \[SSL"):
        connect()


def test_host_that_is_lost_under_way(env: Set) -> None:
    """With the first call, without databricks-sdk's own waiting."""
    stub = Stub()
    env(DATABRICKS_HOST=stub.url, DATABRICKS_TOKEN=SECRET)
    workspace = connect()
    stub.close()
    started_s = time.monotonic()
    with pytest.raises(TransientDeliveryError, match=r"is not reached: .*refused"):
        workspace.get(ME)
    assert time.monotonic() - started_s < 5


@pytest.mark.parametrize("status", [429, 503])
def test_busy_host_is_left_alone_for_as_long_as_it_asks(stub: Stub, env: Set, status: int) -> None:
    """By whoever called, and not by waiting here."""
    env(DATABRICKS_HOST=stub.url, DATABRICKS_TOKEN=SECRET)
    workspace = connect()
    stub.answers[ME] = in_json({"error_code": "BUSY", "message": "later"}, status, **{"Retry-After": "600"})
    started_s = time.monotonic()
    with pytest.raises(TransientDeliveryError, match="fails: later") as raised:
        workspace.get(ME)
    assert raised.value.retry_after_s == 600
    assert time.monotonic() - started_s < 5
    stub.answers["/.well-known/databricks-config"] = stub.answers[ME]
    with pytest.raises(TransientDeliveryError, match=rf"fails: {status}"):
        connect()


@pytest.mark.parametrize("status", [408, 500, 502, 504])
def test_failing_host_is_tried_again(stub: Stub, env: Set, status: int) -> None:
    """It is its own fault."""
    stub.answers[ME] = in_json({"error_code": "INTERNAL_ERROR", "message": "broken"}, status)
    env(DATABRICKS_HOST=stub.url, DATABRICKS_TOKEN=SECRET)
    with pytest.raises(TransientDeliveryError, match=r"fails: broken\. It is tried again"):
        connect().get(ME)


@pytest.mark.parametrize(
    ("status", "code"), [(400, "INVALID_PARAMETER_VALUE"), (404, "NOT_FOUND"), (409, "ALREADY_EXISTS"), (501, "NOT")]
)
def test_refusal_says_what_the_host_says(stub: Stub, env: Set, status: int, code: str) -> None:
    """With its code, on one line."""
    stub.answers[ME] = in_json({"error_code": code, "message": "so\nnot"}, status)
    env(DATABRICKS_HOST=stub.url, DATABRICKS_TOKEN=SECRET)
    with pytest.raises(RefusedError, match=rf"refuses \({status} {code}\): so not\.$") as raised:
        connect().get(ME)
    assert (raised.value.code, raised.value.reason) == (code, "so not")


PAGE = b"<html><head><title>Sign in</title></head><body>Sign in</body></html>"


@pytest.mark.parametrize("status", [200, 502])
def test_page_for_people_is_no_answer(stub: Stub, env: Set, status: int) -> None:
    """Of a proxy, or of another server than the one that was meant."""
    stub.answers[ME] = status, {"Content-Type": "text/html"}, PAGE
    env(DATABRICKS_HOST=stub.url, DATABRICKS_TOKEN=SECRET)
    with pytest.raises(TransientDeliveryError) as raised:
        connect().get(ME)
    assert "<" not in str(raised.value)
    assert str(raised.value).startswith(stub.url)


@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b""])
def test_other_json_than_an_object_is_nothing(stub: Stub, env: Set, body: bytes) -> None:
    """Read leniently, as all that a catalog says."""
    stub.answers["/api/x"] = 200, {"Content-Type": "application/json"}, body
    env(DATABRICKS_HOST=stub.url, DATABRICKS_TOKEN=SECRET)
    if body == b'"x"':
        with pytest.raises(DeliveryError):
            connect().get("/api/x")
    else:
        assert connect().get("/api/x") == {}


def test_token_service_that_is_down_is_tried_again(stub: Stub, env: Set) -> None:
    """It is no reason to call an access wrong."""
    env(DATABRICKS_HOST=stub.url, **OAUTH)
    for body in (in_json({"message": "later"}, 503), (502, {"Content-Type": "text/html"}, PAGE), in_json({})):
        stub.answers["/oidc/v1/token"] = body
        with pytest.raises(TransientDeliveryError, match=r"gives no access now: .*It is tried again"):
            connect().get(ME)


def test_access_that_breaks_in_its_own_way(stub: Stub, env: Set, tmp_path: Path) -> None:
    """Each way of getting access has its own errors, of which none is a traceback."""
    program = command_line(tmp_path / "databricks", LOGIN.replace("2099", "2001"))
    env(DATABRICKS_HOST=stub.url, DATABRICKS_AUTH_TYPE="databricks-cli", DATABRICKS_CLI_PATH=program)
    workspace = connect()
    command_line(tmp_path / "databricks", "#!/bin/sh\necho 'the login has ended' >&2\nexit 1\n")
    with pytest.raises(PermanentDeliveryError, match=r"There is no access: .*login has ended.*Set DATABRICKS"):
        workspace.get(ME)


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_no_secret_is_shown_or_logged(stub: Stub, env: Set, caplog: pytest.LogCaptureFixture) -> None:
    """Neither that of the access, nor one in an answer; databricks-sdk logs answers where an app logs all."""
    caplog.set_level(logging.DEBUG)
    stub.answers["/vend"] = in_json({"aws_temp_credentials": {"secret_access_key": "V3NDED-SECRET"}})
    stub.answers["/no"] = in_json({"message": f"no {SECRET}"}, 401)
    env(DATABRICKS_HOST=stub.url, DATABRICKS_TOKEN=SECRET)
    workspace = connect()
    assert "V3NDED-SECRET" in str(workspace.post("/vend", table_id="x"))
    with pytest.raises(DeliveryError) as raised:
        connect().get("/no")
    shown = f"{caplog.text} {raised.value} {raised.value.__cause__!r} {workspace!r} {workspace.access}"
    for secret in (SECRET, "V3NDED-SECRET"):
        assert secret not in shown
    assert repr(workspace) == f"<{stub.url} by pat>"


def test_log_of_the_app_about_its_own_calls_stays(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    """Only what is done here goes unlogged."""
    from databricks.sdk.core import ApiClient, Config

    caplog.set_level(logging.DEBUG, "databricks.sdk")
    ApiClient(Config(host=stub.url, token="x")).do("GET", "/api/own")
    assert "/api/own" in caplog.text
