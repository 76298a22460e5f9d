"""Whom tracelake talks to: certificates are checked, redirects take no access elsewhere, proxies are those named."""

from __future__ import annotations

import ast
import contextlib
import os
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

import tracelake
from tests.destinations.contract import batch, spans
from tracelake.destinations.targets import parse_target
from tracelake.errors import TracelakeError

from .server import EchoServer

TOKEN = "c4naryOfABird0123456789abcdef"
Set = Callable[[str, str], None]


@dataclass(frozen=True)
class Client:
    """One way of tracelake to talk to a server: its target and variables at a URL, and where an authority is named."""

    target: str
    environ: dict[str, str]
    authority: str = "REQUESTS_CA_BUNDLE"


CLIENTS = {
    "otlp": Client(
        "otlp+{url}",
        {"OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{TOKEN},x-own-key={TOKEN}"},
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
    ),
    "mlflow": Client("{url}", {"MLFLOW_TRACKING_TOKEN": TOKEN}),
    "databricks": Client("main.obs.spans", {"DATABRICKS_HOST": "{url}", "DATABRICKS_TOKEN": TOKEN}),
    "catalog": Client("main.obs.spans", {"TRACELAKE_CATALOG_URL": "{url}", "TRACELAKE_CATALOG_TOKEN": TOKEN}),
    "zerobus": Client(
        "main.obs.spans",
        {
            "DATABRICKS_HOST": "{url}",
            "DATABRICKS_CLIENT_ID": "me",
            "DATABRICKS_CLIENT_SECRET": TOKEN,
            "TRACELAKE_TRANSPORT": "zerobus",
        },
    ),
    "s3": Client(
        "s3://lake/spans",
        {
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "not-sent",
            "AWS_SESSION_TOKEN": TOKEN,
            "AWS_REGION": "eu-west-1",
            "AWS_ENDPOINT_URL": "{url}",
            "AWS_ALLOW_HTTP": "true",
        },
        "SSL_CERT_FILE",
    ),
}
# delta-rs tries ten times before it says what is wrong.
EVERY_CLIENT = pytest.mark.parametrize(
    "client",
    [pytest.param(client, marks=pytest.mark.slow if name == "s3" else ()) for name, client in CLIENTS.items()],
    ids=list(CLIENTS),
)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a proxy nor an authority of the machine's, nor its credentials."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def talk(client: Client, url: str, put: Set) -> str:
    """Have a batch written, and return what is said of it."""
    for name, value in client.environ.items():
        put(name, value.format(url=url))
    try:
        with contextlib.closing(parse_target(client.target.format(url=url)).open()) as sink:
            sink.write(batch(1, spans(1)))
    except TracelakeError as error:
        return f"{type(error).__name__}: {error}"
    return ""


@contextlib.contextmanager
def with_tls(echo: EchoServer, authority: trustme.CA, name: str) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    with echo.serve(context) as url:
        yield url


@EVERY_CLIENT
def test_certificate_of_nobody_is_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is sent, and the error says what it is about."""
    echo = EchoServer(403)
    with with_tls(echo, trustme.CA(), "127.0.0.1") as url:
        said = talk(client, url, monkeypatch.setenv)
    assert "certificate" in said.lower(), said
    assert echo.seen == []


@EVERY_CLIENT
def test_certificate_of_a_named_authority_is_taken(
    client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the variable that users of such servers have set already."""
    echo, authority = EchoServer(403), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv(client.authority, str(tmp_path / "authority.pem"))
    with with_tls(echo, authority, "127.0.0.1") as url:
        said = talk(client, url, monkeypatch.setenv)
    assert "certificate" not in said.lower(), said
    assert echo.seen


@EVERY_CLIENT
def test_certificate_of_another_host_is_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also if its authority is trusted."""
    echo, authority = EchoServer(403), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv(client.authority, str(tmp_path / "authority.pem"))
    with with_tls(echo, authority, "other.example.com") as url:
        said = talk(client, url, monkeypatch.setenv)
    assert "certificate" in said.lower(), said
    assert echo.seen == []


@EVERY_CLIENT
@pytest.mark.parametrize("status", [302, 307, 308])
def test_redirect_takes_no_access_elsewhere(client: Client, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """What is sent to the place that a server names holds no token.

    delta-rs does send the session token of S3 on, which opens nothing without the key that signs; a signature it leaves
    out, and that key is never sent.
    """
    elsewhere = EchoServer(403)
    with (
        elsewhere.serve() as place,
        EchoServer(status, {"Location": f"{place.replace('127.0.0.1', 'localhost')}/there"}).serve() as url,
    ):
        talk(client, url, monkeypatch.setenv)
    for _, _, headers in elsewhere.seen:
        assert "authorization" not in map(str.lower, headers)
        assert TOKEN not in str(headers) or "x-amz-security-token" in headers


@EVERY_CLIENT
def test_proxy_of_the_environment_is_used(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a server anywhere; NO_PROXY leaves out those it names."""
    echo, proxy = EchoServer(403), EchoServer(403)
    with proxy.serve() as proxy_url, echo.serve() as url:
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy_url)
        talk(client, "http://store.example.com:8080", monkeypatch.setenv)
        assert proxy.seen
        assert all("store.example.com" in target for _, target, _ in proxy.seen)
        proxy.seen.clear()
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "127.0.0.1")
        talk(client, url, monkeypatch.setenv)
    assert proxy.seen == []
    assert echo.seen


@EVERY_CLIENT
def test_proxy_does_not_see_what_goes_by_tls(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for a connection to a host, by its own password if it has one, and for nothing else."""
    proxy = EchoServer(407)
    with proxy.serve() as url:
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, url)
        talk(client, "https://store.example.com", monkeypatch.setenv)
    assert {method for method, _, _ in proxy.seen} == {"CONNECT"}
    assert TOKEN not in str(proxy.seen)


def test_nothing_turns_verification_off() -> None:
    """No call of ours has it off; MLFLOW_TRACKING_INSECURE_TLS of MLflow's own is the one way, and a user's choice."""
    found = []
    for path in Path(tracelake.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg in ("verify", "check_hostname", "authority"):
                found += [path.name] if isinstance(node.value, ast.Constant) and node.value.value is False else []
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            found += [f"{path.name}: {name}"] if name in ("CERT_NONE", "_create_unverified_context") else []
        found += [path.name] if "allow_invalid_certificates" in path.read_text().lower() else []
    assert found == []
