"""Where spans go in a round, and what is there, read by other means than it was written."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from tests.torture.accounting import SpanKey
from tests.torture.schedule import SERVERS
from tests.torture.servers import BUCKET, S3_ACCESS, Servers

_COMMIT = re.compile(r"\d{20}\.json")


@dataclass(frozen=True)
class Place:
    """One destination of a round.

    Attributes:
        target: as `TRACELAKE_DESTINATION` names it.
        environ: what gives apps and shippers access.
        held: returns how often each span is there.
        exactly_once: whether none may be there twice.
    """

    kind: str
    target: str
    held: Callable[[], Counter[SpanKey]]
    exactly_once: bool
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def servers(self) -> tuple[str, ...]:
        return SERVERS[self.kind]


def make_place(kind: str, servers: Servers, root: Path, name: str, *, logs_in_once: bool) -> Place:
    """Make a destination that holds nothing yet; `root` is where its files are, `name` its own."""
    if kind == "delta":
        table = str(root / "table")
        return Place(kind, table, lambda: held_in_directory(table), exactly_once=True)
    if kind == "s3":
        target = f"s3://{BUCKET}/{name}/spans"
        return Place(kind, target, lambda: held_in_s3(servers, target), exactly_once=True, environ=_s3(servers))
    if kind == "otlp":
        target = f"otlp+{servers['otlp'].proxied_url}/{name}/v1/traces"
        return Place(kind, target, lambda: _received(servers, f"/{name}/v1/traces"), exactly_once=False)
    if kind == "mlflow":
        number = _new_experiment(servers, name)
        target = f"{servers['mlflow'].proxied_url}?experiment_id={number}"
        return Place(kind, target, lambda: _held_in_mlflow(servers, number), exactly_once=False)
    return _unity_place(kind, servers, root, name, logs_in_once=logs_in_once)


def _unity_place(kind: str, servers: Servers, root: Path, name: str, *, logs_in_once: bool) -> Place:
    table = f"main.obs.{name.replace('-', '_')}_{kind.replace('-', '_')}"
    environ = servers.workspace_access(logs_in_once=logs_in_once)
    if kind == "uc-otlp":
        directory = _path(servers.ask("create_table", table))
        return Place(kind, table, lambda: held_in_directory(directory), exactly_once=False, environ=environ)
    if kind == "uc-delta":
        directory = _path(servers.ask("create_table", table, location=str(root / "external")))
        return Place(kind, table, lambda: held_in_directory(directory), exactly_once=True, environ=environ)
    servers.use_s3()
    location = servers.ask("create_table", table, location=f"s3://{BUCKET}/{name}/external")
    environ |= _s3(servers)
    return Place(kind, table, lambda: held_in_s3(servers, location), exactly_once=True, environ=environ)


def held_in_directory(table: str) -> Counter[SpanKey]:
    """Return what is in a Delta table, by its log as it is written down, and by DuckDB."""
    log = os.path.join(table, "_delta_log")
    commits = sorted(filter(_COMMIT.fullmatch, os.listdir(log))) if os.path.isdir(log) else []
    live: set[str] = set()
    for commit in commits:
        with open(os.path.join(log, commit), encoding="utf-8") as file:
            for action in map(json.loads, file):
                if "add" in action:
                    live.add(action["add"]["path"])
                if "remove" in action:
                    live.discard(action["remove"]["path"])
    if not live:
        return Counter()
    files = [os.path.join(table, urllib.parse.unquote(path)) for path in sorted(live)]
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT trace_id, span_id, count(*) FROM read_parquet($files) GROUP BY ALL", {"files": files}
        ).fetchall()
    return Counter({(trace_id, span_id): times for trace_id, span_id, times in rows})


def held_in_s3(servers: Servers, location: str) -> Counter[SpanKey]:
    """Return what is in a Delta table on the S3 server, of which a copy is made for that."""
    import boto3

    prefix = urllib.parse.urlsplit(location).path.lstrip("/") + "/"
    copy = servers.root / "s3-copy" / prefix
    client = boto3.client(
        "s3",
        endpoint_url=servers["s3"].url,
        region_name=S3_ACCESS["AWS_REGION"],
        aws_access_key_id=S3_ACCESS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=S3_ACCESS["AWS_SECRET_ACCESS_KEY"],
    )
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
        for found in page.get("Contents", ()):
            path = copy / found["Key"].removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(BUCKET, found["Key"], str(path))
    return held_in_directory(str(copy))


def _s3(servers: Servers) -> dict[str, str]:
    return {
        **S3_ACCESS,
        "AWS_ENDPOINT_URL": servers["s3"].proxied_url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _received(servers: Servers, path: str) -> Counter[SpanKey]:
    """Return what the receiver stored of requests to a path; not what it was killed in the middle of."""
    lines = (servers.root / "received").read_text().split("\n")
    found = (line.split(" ") for line in lines if line.startswith(f"{path} "))
    return Counter((words[1], words[2]) for words in found if tuple(map(len, words[1:])) == (32, 16))


def _new_experiment(servers: Servers, name: str) -> str:
    body = json.dumps({"name": name}).encode()
    url = f"{servers['mlflow'].url}/api/2.0/mlflow/experiments/create"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(json.load(answer)["experiment_id"])


def _held_in_mlflow(servers: Servers, experiment_id: str) -> Counter[SpanKey]:
    """Return what is in the server's database."""
    with closing(sqlite3.connect(f"file:{servers.root}/mlflow.db?mode=ro", uri=True, timeout=30)) as connection:
        rows = connection.execute("SELECT trace_id, span_id FROM spans WHERE experiment_id = ?", (experiment_id,))
        return Counter((trace_id.removeprefix("tr-"), span_id) for trace_id, span_id in rows)


def _path(location: str) -> str:
    return urllib.parse.unquote(urllib.parse.urlsplit(location).path)
