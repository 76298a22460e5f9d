"""No secret is in anything that tracelake says or writes, whatever goes wrong: a canary in each place that holds one.

An app records, delivers, checks, reads back and runs every command, with the log at its most talkative, against servers
that repeat in their answers what they were told. Then all that it said and wrote is searched.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme

from tests.lake import Lake

from .server import EchoServer

ROOT = Path(__file__).parents[2]
CANARY = "c4nary/0f+a=BIRD"
_AS_IN_A_TOKEN = "c4naryOfABird0123456789abcdef"

# Where no request ever goes but by a proxy.
_ELSEWHERE = "store.example.com"


@dataclass(frozen=True)
class Place:
    """A destination at a URL, and the access to it; `{url}` and `{host}` are filled in."""

    target: str
    environ: Mapping[str, str]
    secrets: tuple[str, ...] = (CANARY,)


S3 = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": CANARY,
    "AWS_SESSION_TOKEN": _AS_IN_A_TOKEN,
    "AWS_REGION": "eu-west-1",
    "AWS_ENDPOINT_URL": "{url}",
    "AWS_ALLOW_HTTP": "true",
    "AWS_EC2_METADATA_DISABLED": "true",
}
DATABRICKS = {"DATABRICKS_HOST": "{url}", "DATABRICKS_WAREHOUSE_ID": "1"}
PLACES = {
    "otlp": Place(
        "otlp+{url}",
        {"OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{_AS_IN_A_TOKEN},x-tenant-pass={quote(CANARY, '')}"},
        (CANARY, _AS_IN_A_TOKEN),
    ),
    "MLflow by password": Place("{url}", {"MLFLOW_TRACKING_USERNAME": "ana", "MLFLOW_TRACKING_PASSWORD": CANARY}),
    "MLflow by token": Place("{url}", {"MLFLOW_TRACKING_TOKEN": _AS_IN_A_TOKEN}, (_AS_IN_A_TOKEN,)),
    "S3": Place("s3://lake/spans", S3, (CANARY, _AS_IN_A_TOKEN)),
    "Databricks by token": Place(
        "main.obs.spans", {**DATABRICKS, "DATABRICKS_TOKEN": _AS_IN_A_TOKEN}, (_AS_IN_A_TOKEN,)
    ),
    "Databricks by OAuth": Place(
        "main.obs.spans", {**DATABRICKS, "DATABRICKS_CLIENT_ID": "me", "DATABRICKS_CLIENT_SECRET": CANARY}
    ),
    "Zerobus": Place(
        "main.obs.spans",
        {
            **DATABRICKS,
            "DATABRICKS_CLIENT_ID": "me",
            "DATABRICKS_CLIENT_SECRET": CANARY,
            "TRACELAKE_TRANSPORT": "zerobus",
            "TRACELAKE_ZEROBUS_URL": "{url}",
        },
    ),
    "catalog": Place(
        "main.obs.spans",
        {"TRACELAKE_CATALOG_URL": "{url}", "TRACELAKE_CATALOG_TOKEN": _AS_IN_A_TOKEN},
        (_AS_IN_A_TOKEN,),
    ),
}
# Takes some seconds; all of them take minutes.
_QUICK = {("Databricks by token", "403")}
# Of these every fault is tried; of the others, those that differ in what is said.
_ALL_FAULTS = ("otlp", "Databricks by token")


def cases() -> Iterator[object]:
    for place in PLACES:
        faults = ("401", "403", "500", "refused", "certificate", "proxy") if place in _ALL_FAULTS else ("403", "proxy")
        for fault in faults:
            marks = () if (place, fault) in _QUICK else (pytest.mark.slow,)
            yield pytest.param(place, fault, marks=marks, id=f"{place}, {fault}".replace(" ", "-"))


def forms(secret: str) -> dict[str, bytes]:
    """Return what a secret looks like in a text."""
    found = {
        "as it is": secret,
        "in a URL": quote(secret, ""),
        "in JSON": secret.replace("/", "\\/"),
        "in base64": base64.b64encode(secret.encode()).decode().rstrip("="),
    }
    for user in ("ana", "me", "proxy", "token"):
        found[f"in basic authentication of {user}"] = base64.b64encode(f"{user}:{secret}".encode()).decode()
    return {name: text.encode() for name, text in found.items()}


def leaks(lake: Lake, secrets: tuple[str, ...]) -> list[str]:
    """Return each place of a test where a secret is."""
    found = []
    for path in sorted(lake.root.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        for text in (data, gzip.decompress(data) if data.startswith(b"\x1f\x8b") else b""):
            for secret in secrets:
                for name, form in forms(secret).items():
                    place = text.find(form)
                    if place >= 0:
                        shown = text[max(0, place - 300) : place + 100].decode(errors="replace")
                        found.append(f"{path.relative_to(lake.root)}, {name}: ...{shown}...")
    return found


@pytest.mark.parametrize(("place", "fault"), list(cases()))
def test_no_secret_is_said_or_written(lake: Lake, place: str, fault: str) -> None:
    """In an answer that repeats them, a refused connection, a certificate or a proxy that is no good."""
    secrets = (*PLACES[place].secrets, "proxypass-C4NARY") if fault == "proxy" else PLACES[place].secrets
    with contextlib.ExitStack() as stack:
        environ = {}
        if fault in ("401", "403", "500"):
            url = stack.enter_context(EchoServer(int(fault)).serve())
        elif fault == "refused":
            with socket.create_server(("127.0.0.1", 0)) as free:
                url = f"http://127.0.0.1:{free.getsockname()[1]}"
        elif fault == "certificate":
            import ssl

            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
            url = stack.enter_context(EchoServer(200).serve(context))
        else:
            proxy = stack.enter_context(EchoServer(407).serve()).replace("://", "://proxy:proxypass-C4NARY@")
            environ = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy)
            url = f"https://{_ELSEWHERE}"
        lake.environ |= {name: value.format(url=url) for name, value in PLACES[place].environ.items()}
        lake.environ |= {
            "RUST_BACKTRACE": "1",
            "TRACELAKE_SHIPPER": "process" if fault == "500" else "inline",
            "TRACELAKE_EXIT_TIMEOUT": "1",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            **environ,
        }
        app = lake.start(sys.executable, "-m", "tests.security.apps.everything", PLACES[place].target.format(url=url))
        assert app.wait(240) == 0, lake.output(app)
    said = lake.output(app)
    assert "--- objects" in said
    assert "1 pending" in said, said
    assert leaks(lake, secrets) == []


def test_no_secret_gets_into_a_table(lake: Lake) -> None:
    """Nor into the log of a shipper, where all goes well: with the access to every place at hand."""
    for place in PLACES.values():
        lake.environ |= {name: value.format(url="http://127.0.0.1:9") for name, value in place.environ.items()}
    lake.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    app = lake.start(sys.executable, "-m", "tests.security.apps.everything", lake.table)
    assert app.wait(60) == 0, lake.output(app)
    assert "1 delivered, 0 pending" in lake.output(app)
    assert len(lake.rows()) >= 2
    assert leaks(lake, (CANARY, _AS_IN_A_TOKEN)) == []


def test_search_finds_what_is_hidden(lake: Lake) -> None:
    """The search of this module does not pass for want of looking."""
    for number, form in enumerate(forms(CANARY).values()):
        (lake.root / f"file-{number}").write_bytes(b"x" + form + b"y")
    (lake.root / "packed").write_bytes(gzip.compress(CANARY.encode()))
    files = {found.partition(",")[0] for found in leaks(lake, (CANARY,))}
    assert files == {*(f"file-{number}" for number in range(len(forms(CANARY)))), "packed"}
