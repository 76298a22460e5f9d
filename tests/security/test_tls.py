"""A certificate that nobody vouches for is somebody's to act on: the error has the variable that names an authority."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trustme

from .server import EchoServer
from .test_connections import CLIENTS, Client, talk, with_tls

AUTHORITIES = {
    "otlp": "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "mlflow": "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "databricks": "REQUESTS_CA_BUNDLE",
    "catalog": "REQUESTS_CA_BUNDLE",
    "zerobus": "REQUESTS_CA_BUNDLE",
    "s3": "SSL_CERT_FILE",
}


@pytest.fixture(autouse=True)
def own_trust(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a proxy nor an authority of the machine's, nor its credentials."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "variable"),
    # delta-rs tries ten times before it says so.
    [pytest.param(*item, marks=[pytest.mark.slow] * (item[0] == "s3"), id=item[0]) for item in AUTHORITIES.items()],
)
def test_untrusted_certificate_says_what_to_set(name: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And trying again soon would not help."""
    with with_tls(EchoServer(403), trustme.CA(), "127.0.0.1") as url:
        said = talk(CLIENTS[name], url, monkeypatch.setenv)
    assert said.startswith("PermanentDeliveryError: "), said
    assert "is not trusted" in said
    assert f"Set {variable} to the certificate of its authority" in said


@pytest.mark.parametrize(("name", "variable"), AUTHORITIES.items(), ids=list(AUTHORITIES))
def test_authority_by_the_variable_that_the_error_names(
    name: str, variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It does what the error says."""
    echo, authority = EchoServer(403), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv(variable, str(tmp_path / "authority.pem"))
    with with_tls(echo, authority, "127.0.0.1") as url:
        talk(CLIENTS[name], url, monkeypatch.setenv)
    assert echo.seen


def test_plain_server_is_no_matter_of_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that speaks no TLS may be one that starts: it is tried again."""
    with EchoServer(403).serve() as url:
        said = talk(Client("otlp+{url}", {}), url.replace("http:", "https:"), monkeypatch.setenv)
    assert said.startswith("TransientDeliveryError: "), said
