"""Spans into the tables of an open-source Unity Catalog server, and back out of them."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path

import boto3
import pytest
import requests
from deltalake import DeltaTable, Schema

from tests.lake import Lake, open_lake, wait_until
from tracelake.databricks.columns import columns_of
from tracelake.query import duck
from tracelake.spans import tables

from .spark import Spark
from .unity_server import BUCKET, UnityServer
from .users import User, act

pytestmark = pytest.mark.slow  # a server takes seconds to start


@pytest.fixture
def user(unity_server: UnityServer, s3: str, lake: Lake) -> User:
    """Someone whom the server does not ask who they are."""
    return User(unity_server, s3, lake)


# --- making and checking ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("store", ["s3", "file"])
def test_table_is_made_and_takes_a_span(user: User, store: str, version: tables.Version) -> None:
    """As all that `doctor` looks at says before, and one span after; made again, it stays as it is."""
    name = f"main.obs.made_{store}_{version}"
    location = f"{BUCKET}/{name}" if store == "s3" else f"file://{user.lake.root}/table"
    options = ("--schema-version", str(version))
    assert user.create_table(name, location, *options).startswith(f"registered {name} at {location}\n")
    known = user.server.ok("GET", f"tables/{name}")
    assert (known["table_type"], known["storage_location"]) == ("EXTERNAL", location)
    found = user.doctor(name, "--write-test")
    assert [finding["code"] for finding in found if finding["severity"] == "ok"] == [
        "host",
        "metastore",
        "catalog",
        "schema",
        "table",
        "schema-version",
        "columns",
        "credentials",
        "files",
        "transport",
        "spool",
        "write-test",
    ]
    assert len(found) == 12
    assert user.create_table(name, location, *options).startswith(f"{name} is there already\n")
    assert user.server.ok("GET", f"tables/{name}") == known
    assert user.names(name) == ["tracelake doctor"]
    assert user.table(name).metadata().configuration["otel.schemaVersion"] == f"v{version}"


def test_table_needs_a_place(user: User) -> None:
    """For nobody but the server's own engines writes to those that it has a place for."""
    result = user.run("create-table", "main.obs.nowhere")
    assert result.code == 1
    assert "--location" in result.err
    assert user.server.request("GET", "tables/main.obs.nowhere").status_code == 404


def test_table_in_a_store_that_the_server_does_not_know(user: User) -> None:
    """It can be registered, and neither begun nor written."""
    name = "main.obs.elsewhere"
    result = user.run("create-table", name, "--location", "s3://elsewhere/spans")
    assert result.code == 1
    assert f"{name} is registered at s3://elsewhere/spans, and has no files there" in result.err
    assert "S3 bucket configuration not found" in result.err
    errors = user.errors(name)
    assert list(errors) == ["credentials"]
    assert "the server's settings" in errors["credentials"]["remedy"]


def test_server_that_is_none(user: User, s3: str) -> None:
    """One that is down, and one that is something else, which answers."""
    user.server.stop()
    try:
        errors = user.errors("main.obs.spans")
    finally:
        user.server.start()
    assert list(errors) == ["host-unreachable"]
    assert "Connection refused" in errors["host-unreachable"]["seen"]
    errors = user.errors("main.obs.spans", TRACELAKE_CATALOG_URL=s3)
    assert list(errors) == ["metastore"]
    assert errors["metastore"]["seen"] == f"{s3} answers, and has no metastore."
    assert "TRACELAKE_CATALOG_URL" in errors["metastore"]["remedy"]


def test_what_is_missing_is_made_by_the_remedy(user: User) -> None:
    """The catalog, then the schema, then the table."""
    name = "new_catalog.new_schema.spans"
    for kind in ("catalog", "schema"):
        errors = user.errors(name)
        assert list(errors) == [kind]
        assert errors[kind]["seen"].startswith(f"There is no {kind} new_catalog")
        act(user.server, errors[kind]["remedy"])
    errors = user.errors(name)
    assert list(errors) == ["table"]
    assert errors["table"]["remedy"] == f"tracelake create-table {name} --location URL"
    user.create_table(name, f"{BUCKET}/new")
    assert user.errors(name) == {}


def test_columns_are_those_of_the_files(user: User) -> None:
    """An engine that adds one tells the server nothing, which describes the table as it was registered for ever."""
    name, location = "main.obs.grown", f"file://{user.lake.root}/grown"
    user.create_table(name, location)
    known = tables.delta_schema(1)
    user.server.drop_table(name)
    user.server.create_table(name, location, [])
    assert {finding["severity"] for finding in user.doctor(name, "--write-test")} == {"ok"}
    user.server.drop_table(name)
    without = {**known, "fields": [field for field in known["fields"] if field["name"] != tables.LINKS]}
    user.server.create_table(name, location, columns_of(without))
    (columns,) = [finding for finding in user.doctor(name, "--write-test") if finding["code"] == "columns"]
    assert (columns["severity"], columns["seen"]) == ("ok", "The 20 columns are those of version 1.")
    DeltaTable.create(f"{user.lake.root}/short", Schema.from_json(json.dumps(without)), raise_if_key_not_exists=False)
    user.server.create_table("main.obs.short", f"file://{user.lake.root}/short", columns_of(known))
    assert "The column links is missing." in [finding["seen"] for finding in user.doctor("main.obs.short")]


def test_managed_table_is_left_to_the_catalog(user: User, s3: str) -> None:
    """Though the server gives everybody credentials for it: neither a span nor a log is written to its place."""
    name = "main.obs.of_the_catalog"
    place = user.server.create_managed_table(name, 2)["storage_location"]
    assert user.server.vend(name)["aws_temp_credentials"]
    errors = user.errors(name)
    assert list(errors) == ["transport"]
    assert "delta.feature.catalogManaged" in errors["transport"]["seen"]
    assert "tracelake create-table NAME --location URL" in errors["transport"]["seen"]
    result = user.run("create-table", name, "--location", place)
    assert result.code == 1
    assert "takes no writes to its files" in result.err
    user.start_steps(name, "first")
    user.step("first")
    assert "delta.feature.catalogManaged" in user.wait_for_error("stopped")
    store = boto3.client(
        "s3", endpoint_url=s3, region_name="us-east-1", aws_access_key_id="AKIAREADER", aws_secret_access_key="reads"
    )
    prefix = place.removeprefix(f"{BUCKET}/")
    assert store.list_objects_v2(Bucket="lake", Prefix=prefix)["KeyCount"] == 0


# --- spans of applications -------------------------------------------------------------------------------------------

# Two spans of one trace, the first with all that a span can have.
APP = """
import sys
from opentelemetry import trace
import tracelake
tracelake.set_destination(sys.argv[1], service_name="shop")
other = trace.SpanContext(0xA, 0xB, is_remote=True)
with trace.get_tracer("shop", "1.0").start_as_current_span(
    "order", kind=trace.SpanKind.SERVER, attributes={"n": 3, "s": "grüße"}, links=[trace.Link(other, {"why": "retry"})]
) as span:
    span.add_event("paid", {"amount": 9.5})
    with tracelake.start_span("pack", attributes={"boxes": [1, 2]}):
        pass
    span.set_status(trace.Status(trace.StatusCode.ERROR, "sold out"))
print(format(span.get_span_context().trace_id, "032x"))
"""


# Gives a trace a tag, in a table of annotations that is made for it.
TAG = """
import sys
from tracelake.destinations.targets import parse_target
from tracelake.query import annotate

annotate.set_tags(parse_target(sys.argv[1]), sys.argv[2], {"team": "blue"})
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", [1, 2])
def test_spans_are_read_back_through_the_catalog(user: User, spark_catalog: Spark, version: tables.Version) -> None:
    """All of them: by Spark and by what the server gives to readers, as by our own commands."""
    name = f"main.obs.app_{version}"
    user.create_table(name, f"{BUCKET}/app_{version}", "--schema-version", str(version))
    trace_id = user.lake.run(APP, name).strip()
    user.wait_for_delivered(2)

    order, pack = user.spans(name)
    assert (order["name"], order["kind"], order["trace_id"]) == ("order", "SPAN_KIND_SERVER", trace_id)
    assert (pack["parent_span_id"], pack["trace_id"]) == (order["span_id"], trace_id)
    assert order["status"] == {"message": "sold out", "code": "STATUS_CODE_ERROR"}
    ((link,), (event,)) = order["links"], order["events"]
    assert (link["trace_id"], link["span_id"], event["name"]) == (f"{0xA:032x}", f"{0xB:016x}", "paid")

    connection = duck.connect({"spans": user.table(name)})
    value = "attributes['s']" if version == 1 else "attributes.s::VARCHAR"
    assert connection.sql(f"SELECT {value} FROM spans WHERE name = 'order'").fetchall() == [("grüße",)]

    value, amount = (
        ("attributes['s']", "get(events, 0).attributes['amount']")
        if version == 1
        else (
            "variant_get(attributes, '$.s', 'string')",
            "variant_get(get(events, 0).attributes, '$.amount', 'string')",
        )
    )
    query = f"SELECT name, {value} AS s, {amount} AS amount FROM {name} WHERE trace_id = '{trace_id}' ORDER BY name"
    assert spark_catalog.sql(query) == [
        {"name": "order", "s": "grüße", "amount": "9.5"},
        {"name": "pack", "s": None, "amount": None},
    ]

    shown = user.run("show", trace_id, "--target", name)
    assert (shown.code, shown.out.index("order") < shown.out.index("pack")) == (0, True)
    spans = json.loads(user.run("show", trace_id, "--target", name, "--json").out)["spans"]
    assert [span["name"] for span in spans] == ["order", "pack"]
    assert spans[0]["attributes"]["n"] == (3 if version == 2 else "3")
    rows = user.run("sql", "SELECT count(*) AS n FROM spans", "--target", name, "--json")
    assert json.loads(rows.out) == {"n": 2}

    user.lake.run(TAG, name, trace_id)
    (found,) = json.loads(user.run("traces", "--target", name, "--json").out)["traces"]
    assert (found["name"], found["state"], found["span_count"]) == ("order", "ERROR", 2)
    assert found["tags"] == {"team": "blue"}
    (row,) = spark_catalog.traces(name)
    assert row == {**found, "session": None, "user": None}


SERVICE = """
import os
import requests
from deltalake import DeltaTable, Schema
from fastapi import FastAPI, Request
import tracelake

app = FastAPI(telemetry={"tracing": False})
app.add_middleware(tracelake.TracingMiddleware)

@app.get("/")
def answer() -> str:
    with tracelake.start_span(os.environ["SERVICE"]) as span:
        if "NEXT" in os.environ:
            headers = tracelake.get_tracing_context_headers_for_http_request()
            requests.get(os.environ["NEXT"], headers=headers, timeout=20).raise_for_status()
        return span.trace_id
"""


def test_services_share_a_trace(user: User, unity_server: UnityServer, s3: str, tmp_path: Path) -> None:
    """Two of them, on machines of their own, which know each other by a URL and the table by its name."""
    name = "main.obs.services"
    user.create_table(name, f"{BUCKET}/services")
    (tmp_path / "back").mkdir()
    with open_lake(tmp_path / "back") as lake:
        back = User(unity_server, s3, lake)
        url = start_service(back, name, SERVICE="back")
        front_url = start_service(user, name, SERVICE="front", NEXT=url)
        trace_id = requests.get(front_url, timeout=30).json()
        for machine in (user, back):
            machine.wait_for_delivered(1)
    front_span, back_span = user.spans(name)
    assert (front_span["name"], back_span["name"]) == ("front", "back")
    assert front_span["trace_id"] == back_span["trace_id"] == trace_id
    assert back_span["parent_span_id"] == front_span["span_id"]
    tree = user.run("show", trace_id, "--target", name).out
    assert re.search(r"front.*\n.*└.*back", tree)


def start_service(user: User, name: str, **environ: str) -> str:
    """Start a service, and return its URL once it listens."""
    (user.lake.root / "service.py").write_text(SERVICE)
    command = [sys.executable, "-m", "uvicorn", "--host=127.0.0.1", "--port=0", "service:app"]
    process = user.lake.start(*command, TRACELAKE_DESTINATION=name, **environ)

    def url() -> str:
        assert process.poll() is None, user.lake.output(process)
        found = re.search(r"running on (http://127\.0\.0\.1:[1-9]\d*)", user.lake.output(process))
        return found[1] if found else ""

    return wait_until(url, "the service listens")


# --- faults ----------------------------------------------------------------------------------------------------------


ONE = """
import tracelake
with tracelake.start_span("early"):
    pass
"""


def test_server_is_down_when_an_application_starts(user: User) -> None:
    """It starts and ends as ever, and its spans arrive once the server is there."""
    name = "main.obs.down_at_start"
    user.create_table(name, f"{BUCKET}/down_at_start")
    user.server.stop()
    try:
        user.lake.run(
            "import tracelake\nwith tracelake.start_span('early'): pass",
            TRACELAKE_DESTINATION=name,
            TRACELAKE_EXIT_TIMEOUT="0",
        )
        assert f"{user.server.url} is not reached" in user.wait_for_error("retrying")
    finally:
        user.server.start()
    user.wait_for_delivered(1)
    assert user.names(name) == ["early"]


def test_server_goes_down_and_comes_back(user: User) -> None:
    """What is recorded meanwhile waits, and is there once."""
    name = "main.obs.down_meanwhile"
    user.create_table(name, f"{BUCKET}/down_meanwhile")
    program = user.start_steps(name, "before", "meanwhile", "after")
    user.step("before")
    user.wait_for_delivered(1)
    user.server.stop()
    try:
        user.step("meanwhile")
        assert f"{user.server.url} is not reached" in user.wait_for_error("retrying")
    finally:
        user.server.start()
    user.step("after")
    user.end(program)
    assert user.names(name) == ["before", "meanwhile", "after"]


def test_table_is_dropped_and_made_anew(user: User) -> None:
    """In another place: spans wait while there is none, and go to the new one, not into the old one's files."""
    name = "main.obs.made_anew"
    user.create_table(name, f"{BUCKET}/old_place")
    program = user.start_steps(name, "before", "meanwhile", "after")
    user.step("before")
    user.wait_for_delivered(1)
    assert user.names(name) == ["before"]
    user.server.drop_table(name)
    user.step("meanwhile")
    error = user.wait_for_error("stopped")
    assert "TABLE_NOT_FOUND" in error
    assert f"tracelake doctor {name}" in error
    user.create_table(name, f"{BUCKET}/new_place", "--schema-version", "2")
    user.step("after")
    user.end(program)
    assert user.names(name) == ["meanwhile", "after"]
    user.server.create_table("main.obs.old_place", f"{BUCKET}/old_place")
    assert user.names("main.obs.old_place") == ["before"]


MANY = """
import sys
import tracelake
for number in range(50):
    with tracelake.start_span(f"{sys.argv[1]}-{number}"):
        pass
    if number % 10 == 9:
        tracelake.flush(60)
"""


def test_machines_write_at_once(user: User, unity_server: UnityServer, s3: str, tmp_path: Path) -> None:
    """Four of them, each with a spool of its own: no span is lost, none is there twice."""
    name = "main.obs.at_once"
    user.create_table(name, f"{BUCKET}/at_once")
    with contextlib.ExitStack() as stack:
        users = [user]
        for number in range(3):
            (tmp_path / f"machine-{number}").mkdir()
            users.append(User(unity_server, s3, stack.enter_context(open_lake(tmp_path / f"machine-{number}"))))
        programs = [
            each.lake.start(sys.executable, "-c", MANY, str(number), TRACELAKE_DESTINATION=name)
            for number, each in enumerate(users)
        ]
        for each, program in zip(users, programs, strict=True):
            assert program.wait(120) == 0, each.lake.output(program)
            each.wait_for_delivered(50)
    assert sorted(user.names(name)) == sorted(f"{number}-{span}" for number in range(4) for span in range(50))
