"""One trace of several services, MLflow's among them: real servers and clients, each in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_servers import APPS, BIN, start_server
from tests.lake import Lake

pytest.importorskip("mlflow")

# The example server is as simple as can be; newer versions of FastAPI add spans of their own.
OWN = {"server-handler", "client-root"}


def serve(lake: Lake, app: str, *before: str, **environ: str) -> str:
    """Start a server and return its address; the lake ends it."""
    uvicorn = [str(BIN / "uvicorn"), "--host=127.0.0.1", "--port=0", f"{app}:app"]
    _, client = start_server(lake, *before, *uvicorn, **environ)
    return f"http://127.0.0.1:{client.port}"


def call(lake: Lake, address: str) -> None:
    caller = lake.start(sys.executable, str(Path(APPS, "mlflow_caller.py")), address)
    assert caller.wait(60) == 0, lake.output(caller)


def stitched(lake: Lake) -> dict[str, dict[str, Any]]:
    """Return the spans by name once all are there, and see that they are one trace."""
    lake.close()
    rows = {row["name"]: row for row in lake.rows() if row["name"] in OWN}
    assert set(rows) == OWN
    assert rows["client-root"]["parent_span_id"] is None
    assert rows["server-handler"]["trace_id"] == rows["client-root"]["trace_id"]
    return rows


@pytest.mark.slow
def test_example_of_mlflow_as_it_is(lake: Lake) -> None:
    """Only the variable is set: the programs do not know of tracelake."""
    for program in ("mlflow_callee.py", "mlflow_caller.py"):
        assert "tracelake" not in Path(APPS, program).read_text()
    call(lake, serve(lake, "mlflow_callee"))
    rows = stitched(lake)
    server = rows["server-handler"]
    assert server["parent_span_id"] == rows["client-root"]["span_id"]
    assert server["attributes"]["mlflow.spanInputs"] == '{"input":"hello"}'
    assert server["attributes"]["status"] == "ok"
    assert not (lake.root / "mlflow.db").exists()


def test_caller_of_mlflow_and_callee_of_tracelake(lake: Lake) -> None:
    """The middleware puts the callee's spans under the caller's."""
    call(lake, serve(lake, "plain_callee"))
    rows = stitched(lake)
    assert rows["server-handler"]["instrumentation_scope"]["name"] == "tracelake"


@pytest.mark.slow
def test_caller_of_mlflow_and_callee_of_opentelemetry(lake: Lake) -> None:
    """Instrumented from outside, as `opentelemetry-instrument` does."""
    instrument = str(BIN / "opentelemetry-instrument")
    quiet = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    call(lake, serve(lake, "plain_callee", instrument, CALLEE="opentelemetry", **quiet))
    rows = stitched(lake)
    assert rows["server-handler"]["instrumentation_scope"]["name"] == "callee"


MIXED = """
import mlflow, tracelake
from opentelemetry import trace
from tracelake import get_tracing_context_headers_for_http_request as headers
from tracelake import set_tracing_context_from_http_request_headers as within

tracelake.set_destination("./table")
tracer = trace.get_tracer("library")

def parent_of(sent):
    return sent["traceparent"].split("-")[2]

with mlflow.start_span("mlflow outside") as outside:
    assert parent_of(headers()) == outside.span_id
    with tracer.start_as_current_span("opentelemetry inside") as inside:
        assert parent_of(headers()) == f"{inside.get_span_context().span_id:016x}"
with tracer.start_as_current_span("opentelemetry outside"):
    with mlflow.start_span("mlflow inside") as inside:
        assert parent_of(headers()) == inside.span_id
        sent = headers()
assert "traceparent" not in headers()
with within({name.title(): value for name, value in sent.items()}):
    with mlflow.start_span("mlflow's"), tracelake.start_span("ours"), tracer.start_as_current_span("theirs"):
        pass
print("caller", parent_of(sent))
"""


@pytest.mark.slow
def test_headers_carry_the_innermost_span(lake: Lake) -> None:
    """Of whichever front end; and each front end takes the caller's context from them."""
    output = lake.run(MIXED)
    rows = {row["name"]: row for row in lake.rows()}
    caller = output.split("caller ")[1].strip()
    assert rows["mlflow inside"]["span_id"] == caller
    assert rows["mlflow's"]["parent_span_id"] == rows["ours"]["parent_span_id"] == caller
    assert rows["theirs"]["parent_span_id"] == rows["ours"]["span_id"]
    assert len({rows[name]["trace_id"] for name in ("mlflow inside", "mlflow's", "ours", "theirs")}) == 1


RULE = """
import logging, os
logging.basicConfig()
import mlflow, tracelake
from tracelake import TargetError
from tracelake import get_tracing_context_headers_for_http_request as headers
from tracelake import set_tracing_context_from_http_request_headers as within

def refused(call):
    try:
        call()
    except TargetError as error:
        return str(error)

def enter():
    with within({}):
        pass

def said(text, *parts):
    wanted = ("Unity Catalog table", "tracelake.set_destination('catalog.schema.table')", *parts)
    assert text is not None and all(part in text for part in wanted), text
"""


@pytest.mark.parametrize("uri", ["databricks", "databricks://profile", "databricks-uc"])
@pytest.mark.slow
def test_databricks_rule_in_code(lake: Lake, uri: str) -> None:
    """`set_destination` and both header functions name the rule, what is set, and the line that mends it."""
    lake.run(
        f"""{RULE}
tracelake.set_destination("./table")
headers(), enter()
mlflow.set_tracking_uri({uri!r})
for call in (headers, enter, lambda: tracelake.set_destination("./table")):
    said(refused(call), {uri!r}, "the destination is", "/table'")
tracelake.set_destination(None)
os.environ.pop("TRACELAKE_DESTINATION")
for call in (headers, enter, tracelake.set_destination):
    said(refused(call), {uri!r}, "no destination is set")
def local():
    with tracelake.destination("./table"):
        pass
said(refused(local), "/table'")
mlflow.set_tracking_uri("sqlite:///mlflow.db")
headers(), enter(), tracelake.set_destination("./table")
"""
    )


@pytest.mark.slow
def test_databricks_rule_in_the_environment(lake: Lake) -> None:
    """It takes nothing down: it is logged once, and spans wait in the spool."""
    output = lake.run(
        f"""{RULE}
with tracelake.start_span("a"), tracelake.start_span("b"):
    headers(), headers(), enter()
with mlflow.start_span("c"):
    headers(), enter()
""",
        MLFLOW_TRACKING_URI="databricks",
        TRACELAKE_EXIT_TIMEOUT="0.1",
    )
    assert output.count("No destination for spans. TRACELAKE_DESTINATION: With the tracking URI 'databricks'") == 1
    assert sorted(record.name for record in lake.records()) == ["a", "b", "c"]
