"""MLflow's spans, in fresh interpreters: where they go, and what of MLflow goes on working."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.lake import Lake

pytest.importorskip("mlflow")
pytestmark = pytest.mark.slow  # each loads MLflow

MODES = pytest.mark.parametrize("isolated", ["true", "false"], ids=["isolated", "global"])

# A stand-in for an MLflow server notes which traces MLflow itself sends.
HEAD = """
import asyncio, http.server, itertools, json, logging, os, sys, threading

class Handler(http.server.BaseHTTPRequestHandler):
    def do(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/3.0/mlflow/traces":
            sent.append(json.loads(body)["trace"]["trace_info"]["tags"]["mlflow.traceName"])
        answer = b"3.17.0" if self.path == "/version" else json.dumps(
            {"experiment": {"experiment_id": "1", "name": "e", "lifecycle_stage": "active"}}).encode()
        if self.path == "/api/3.0/mlflow/traces":
            answer = body
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    do_GET = do_POST = do_PATCH = do
    def log_message(self, *_):
        pass

sent = []
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
URI = f"http://127.0.0.1:{server.server_port}"
os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"

def span(name, **options):
    with mlflow.start_span(name, **options):
        pass

def result(value):
    print("result", json.dumps(value), flush=True)

def processors():
    from mlflow.tracing.provider import provider
    return [type(item).__name__ for item in provider.get()._active_span_processor._span_processors]
"""


def run(lake: Lake, source: str, **environ: str) -> str:
    """Run a program that names no destination by its environment."""
    environ = {"TRACELAKE_DESTINATION": "", "MLFLOW_DISABLE_TELEMETRY": "true", **environ}
    return lake.run(HEAD + source, **environ)


def result(output: str) -> Any:
    """Return what the program says of itself, among what MLflow says."""
    (line,) = [line for line in output.splitlines() if line.startswith("result ")]
    return json.loads(line.removeprefix("result "))


def by_name(lake: Lake, table: str = "table") -> dict[str, dict[str, Any]]:
    rows = lake.rows(str(lake.root / table))
    found = {row["name"]: row for row in rows}
    assert len(found) == len(rows)
    return found


@MODES
def test_order_of_calls_does_not_matter(lake: Lake, isolated: str) -> None:
    """Nor what makes MLflow's provider anew later: every span is recorded once, and MLflow sends none."""
    output = run(
        lake,
        """
import mlflow, tracelake
calls = {
    "destination": lambda: tracelake.set_destination("./table"),
    "uri": lambda: mlflow.set_tracking_uri(URI),
    "experiment": lambda: mlflow.set_experiment("e"),
    "reset": mlflow.tracing.reset,
    "disable": mlflow.tracing.disable,
    "enable": mlflow.tracing.enable,
}
mlflow.set_tracking_uri(URI)
names = []
def check(*order):
    tracelake.set_destination(None)
    mlflow.tracing.reset()
    for name in order:
        calls[name]()
    names.append("-".join(order))
    span(names[-1])
for order in itertools.permutations(["destination", "uri", "experiment"]):
    check(*order)
check("destination", "disable", "enable")
check("disable", "destination", "enable")
check("destination", "reset")
check("reset", "destination", "reset", "uri")
tracelake.set_destination("./table")
span("used before")
names.append("used before")
calls["disable"]()
span("not recorded")
calls["enable"]()
span("used again")
names.append("used again")
result([names, sent])
""",
        MLFLOW_USE_DEFAULT_TRACER_PROVIDER=isolated,
    )
    names, sent = result(output)
    assert sent == []
    assert sorted(by_name(lake)) == sorted(names)


@MODES
def test_import_order_does_not_matter(lake: Lake, isolated: str) -> None:
    """MLflow may be imported after a destination is named, and may have made its provider before."""
    for source in (
        'import tracelake; tracelake.set_destination("./table"); import mlflow; span("tracelake first")',
        'import mlflow; span("early"); import tracelake; tracelake.set_destination("./table"); span("mlflow first")',
    ):
        output = run(
            lake,
            f"os.environ['MLFLOW_TRACKING_URI'] = URI\n{source}\nresult(sent)",
            MLFLOW_USE_DEFAULT_TRACER_PROVIDER=isolated,
        )
        assert not [name for name in result(output) if "first" in name]
    assert sorted(by_name(lake)) == ["mlflow first", "tracelake first"]


@MODES
def test_mlflow_is_given_back(lake: Lake, isolated: str) -> None:
    """As it was: the same processors in the same provider, also where MLflow made its provider in between."""
    output = run(
        lake,
        """
import mlflow, tracelake
from mlflow.tracing.provider import provider
mlflow.set_tracking_uri(URI)
mlflow.set_experiment("e")
span("before")
own, made = list(provider.get()._active_span_processor._span_processors), provider.get()
tracelake.set_destination("./table")
span("ours")
tracelake.set_destination(None)
back = [item for item in provider.get()._active_span_processor._span_processors if item in own]
assert provider.get() is made and back == own, (own, back)
span("after")
tracelake.set_destination("./table")
mlflow.tracing.reset()
span("ours, too")
tracelake.set_destination(None)
assert "MlflowSpanRecorder" not in processors()
span("after that")
mlflow.tracing.reset()
span("at last")
result(sent)
""",
        MLFLOW_USE_DEFAULT_TRACER_PROVIDER=isolated,
    )
    assert result(output) == ["before", "after", "after that", "at last"]
    assert set(by_name(lake)) == {"ours", "ours, too"}


@MODES
def test_both_if_asked(lake: Lake, isolated: str) -> None:
    """`also_mlflow`: MLflow's server and the table have the same traces, with what belongs to the trace."""
    output = run(
        lake,
        """
import mlflow, tracelake
mlflow.set_tracking_uri(URI)
mlflow.set_experiment("e")
tracelake.set_destination("./table", also_mlflow=True)
with mlflow.start_span("root") as root:
    mlflow.update_current_trace(tags={"env": "prod"})
    with mlflow.start_span("child") as child:
        child.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3})
mlflow.tracing.reset()
span("again")
tracelake.set_destination("./table")
span("ours only")
result(sent)
""",
        MLFLOW_USE_DEFAULT_TRACER_PROVIDER=isolated,
    )
    assert result(output) == ["root", "again"]
    rows = by_name(lake)
    assert sorted(rows) == ["again", "child", "ours only", "root"]
    attributes = rows["root"]["attributes"]
    assert attributes["mlflow.trace.tag.env"] == "prod"
    assert json.loads(attributes["mlflow.trace.metadata.mlflow.trace.tokenUsage"])["total_tokens"] == 3


def test_what_belongs_to_the_trace_is_on_its_root(lake: Lake) -> None:
    """Tags, metadata, session and user, token usage, request id, previews; MLflow's own ways to ask go on working."""
    output = run(
        lake,
        """
import mlflow, tracelake
tracelake.set_destination("./table", service_name="agents")
def shorten(item):
    if item.name == "tool":
        item.set_outputs("shortened")
mlflow.tracing.configure(span_processors=[shorten])
with mlflow.start_span("root", span_type="AGENT") as root:
    with mlflow.start_span("tool") as tool:
        assert mlflow.get_current_active_span() is tool or mlflow.get_current_active_span().span_id == tool.span_id
        tool.set_outputs("long" * 1000)
        mlflow.update_current_trace(
            tags={"env": "prod"}, metadata={"mlflow.trace.session": "s1", "mlflow.trace.user": "ann", "k": "v"},
            client_request_id="req-1", request_preview="asked", response_preview="answered", state="ERROR",
        )
        tool.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3})
assert mlflow.get_last_active_trace_id() == root.trace_id == f"tr-{root._span.context.trace_id:032x}"
assert mlflow.get_current_active_span() is None
from mlflow.tracing.trace_manager import InMemoryTraceManager
assert not InMemoryTraceManager.get_instance()._traces
""",
    )
    assert "Traceback" not in output
    rows = by_name(lake)
    attributes = rows["root"]["attributes"]
    assert attributes["mlflow.trace.tag.env"] == "prod"
    assert attributes["mlflow.trace.tag.mlflow.traceName"] == "root"
    assert attributes["mlflow.trace.metadata.k"] == "v"
    assert (attributes["session.id"], attributes["user.id"]) == ("s1", "ann")
    assert attributes["mlflow.trace.client_request_id"] == "req-1"
    assert attributes["mlflow.trace.request_preview"] == "asked"
    assert attributes["mlflow.trace.response_preview"] == "answered"
    assert attributes["mlflow.trace.state"] == "ERROR"
    assert attributes["mlflow.spanType"] == "AGENT"
    assert json.loads(attributes["mlflow.trace.metadata.mlflow.trace.tokenUsage"])["total_tokens"] == 3
    assert rows["tool"]["attributes"]["mlflow.spanOutputs"] == "shortened"
    assert not any(key.startswith("mlflow.trace.") for key in rows["tool"]["attributes"])
    assert dict(rows["tool"]["resource"]["attributes"])["service.name"] == "agents"


def test_failing_bookkeeping_loses_no_trace(lake: Lake) -> None:
    """MLflow adds up what spans say of tokens, and stumbles over values that are none."""
    run(
        lake,
        """
import mlflow, tracelake
from mlflow.tracing.processor.base_mlflow import BaseMlflowSpanProcessor
tracelake.set_destination("./table")
with mlflow.start_span("odd usage") as root:
    root.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": "many"})
with mlflow.start_span("no usage") as root:
    root.set_attribute("mlflow.chat.tokenUsage", ["none"])
def fail(*_):
    raise RuntimeError("MLflow stumbles")
BaseMlflowSpanProcessor._update_trace_info = fail
with mlflow.start_span("stumbles"):
    mlflow.update_current_trace(tags={"env": "prod"})
BaseMlflowSpanProcessor.on_start = fail
span("stumbles at the start")
with tracelake.start_span("ours"):
    pass
""",
    )
    rows = by_name(lake)
    assert {"odd usage", "no usage", "stumbles", "ours"} <= set(rows)
    assert rows["stumbles"]["attributes"]["mlflow.trace.tag.env"] == "prod"


def test_sampling_is_mlflows(lake: Lake) -> None:
    """The ratio, and the caller's decision in a header."""
    output = run(
        lake,
        """
import mlflow, tracelake
from mlflow.tracing import set_tracing_context_from_http_request_headers as within
tracelake.set_destination("./table")
for index in range(20):
    span("never")
del os.environ["MLFLOW_TRACE_SAMPLING_RATIO"]
mlflow.tracing.reset()
span("always")
with within({"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-00"}):
    span("not sampled by the caller")
with within({"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}):
    span("sampled by the caller")
from mlflow.tracing.provider import provider
result(type(provider.get().sampler).__name__)
""",
        MLFLOW_TRACE_SAMPLING_RATIO="0.0",
    )
    # Up to MLflow 3.10, its sampler does not look at the caller's decision.
    unheard = {"not sampled by the caller"} if result(output) != "ParentBased" else set()
    assert set(by_name(lake)) == {"always", "sampled by the caller"} | unheard


def test_all_kinds_of_functions_and_spans_that_outlive_their_root(lake: Lake) -> None:
    """Decorated functions, coroutines, generators; spans of threads that end, or start, after the root."""
    run(
        lake,
        """
import contextvars
import mlflow, tracelake
tracelake.set_destination("./table")

@mlflow.trace
def function(x):
    return list(generator(x)) + [asyncio.run(coroutine(x))]

@mlflow.trace
def generator(x):
    yield x

@mlflow.trace
async def coroutine(x):
    return [item async for item in asynchronous(x)]

@mlflow.trace
async def asynchronous(x):
    yield x

assert function(1) == [1, [1]]
go, started = threading.Event(), threading.Event()
def work():
    with mlflow.start_span("late"):
        started.set()
        go.wait()
        span("later")
with mlflow.start_span("root"):
    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
    thread.start()
    started.wait()
go.set()
thread.join()
from mlflow.tracing.trace_manager import InMemoryTraceManager
assert not InMemoryTraceManager.get_instance()._traces
""",
    )
    rows = by_name(lake)
    assert sorted(rows) == ["asynchronous", "coroutine", "function", "generator", "late", "later", "root"]
    assert rows["later"]["parent_span_id"] == rows["late"]["span_id"]
    assert rows["late"]["parent_span_id"] == rows["root"]["span_id"]
    assert len({row["trace_id"] for row in rows.values()}) == 2
    assert json.loads(rows["function"]["attributes"]["mlflow.spanOutputs"]) == [1, [1]]


def test_spans_of_both_front_ends_in_one_provider(lake: Lake) -> None:
    """MLflow's global mode: each span is recorded once, in one trace, OpenTelemetry's as it is."""
    run(
        lake,
        """
import tracelake
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
trace.set_tracer_provider(TracerProvider())
import mlflow
tracelake.set_destination("./table")
tracer = trace.get_tracer("library")
with tracer.start_as_current_span("server", attributes={"code": "200", "flag": False}):
    with mlflow.start_span("agent") as agent:
        agent.set_inputs({"q": 1})
        with tracer.start_as_current_span("client"):
            with tracelake.start_span("tool"):
                pass
""",
        MLFLOW_USE_DEFAULT_TRACER_PROVIDER="false",
    )
    rows = by_name(lake)
    assert sorted(rows) == ["agent", "client", "server", "tool"]
    for child, parent in (("agent", "server"), ("client", "agent"), ("tool", "client")):
        assert rows[child]["parent_span_id"] == rows[parent]["span_id"]
    assert rows["server"]["attributes"]["code"] == "200"
    assert rows["server"]["attributes"]["flag"] == "false"
    assert rows["agent"]["attributes"]["mlflow.spanInputs"] == '{"q":1}'


def test_part_of_a_program_has_a_destination_of_its_own(lake: Lake) -> None:
    """Traces that start in it, with all their spans; those outside are MLflow's."""
    output = run(
        lake,
        """
import mlflow, tracelake
mlflow.set_tracking_uri(URI)
mlflow.set_experiment("e")
span("outside before")
with tracelake.destination("./ann"):
    with mlflow.start_span("of ann"):
        with tracelake.destination("./bob"):
            span("within ann's")
    with tracelake.destination("./bob"):
        held = mlflow.start_span_no_context("of bob")
    span("of ann, too")
held.end()
span("outside")
tracelake.set_destination("./table")
with tracelake.destination("./ann"):
    span("of ann again")
span("of all")
result(sent)
""",
    )
    assert result(output) == ["outside before", "outside"]
    assert sorted(by_name(lake, "ann")) == ["of ann", "of ann again", "of ann, too", "within ann's"]
    assert sorted(by_name(lake, "bob")) == ["of bob"]
    assert sorted(by_name(lake)) == ["of all"]


@MODES
def test_spans_end_where_they_began(lake: Lake, isolated: str) -> None:
    """Whatever is set while they are under way; and a part of a program keeps its destination."""
    output = run(
        lake,
        """
import mlflow, tracelake
mlflow.set_tracking_uri(URI)
mlflow.set_experiment("e")
with mlflow.start_span("before"):
    tracelake.set_destination("./table")
with mlflow.start_span("ours"):
    tracelake.set_destination(None)
    span("child of ours")
    with mlflow.start_span("again"):
        tracelake.set_destination("./table")
tracelake.set_destination(None)
assert "MlflowSpanRecorder" not in processors()
with tracelake.destination("./table"):
    tracelake.set_destination(None)
    span("within")
span("outside")
tracelake.set_destination(None)
assert "MlflowSpanRecorder" not in processors()
span("after")
result(sent)
""",
        MLFLOW_USE_DEFAULT_TRACER_PROVIDER=isolated,
    )
    assert result(output) == ["before", "outside", "after"]
    assert sorted(by_name(lake)) == ["again", "child of ours", "ours", "within"]


def test_span_that_starts_as_the_last_of_its_trace_ends(lake: Lake) -> None:
    """In another thread: MLflow forgets no trace of which a span is just starting."""
    output = run(
        lake,
        """
import mlflow, tracelake, time
from mlflow.tracing.processor import base_mlflow
tracelake.set_destination("./table")
real, starting = base_mlflow.create_mlflow_span, threading.Event()
def slow(span, *args):
    if span.name == "child":
        starting.set()
        time.sleep(0.2)
    return real(span, *args)
base_mlflow.create_mlflow_span = slow
root, made = mlflow.start_span_no_context("root"), []
start = lambda: made.append(mlflow.start_span_no_context("child", parent_span=root))
thread = threading.Thread(target=start)
thread.start()
starting.wait()
root.end()
thread.join()
made[0].end()
""",
    )
    assert "could not" not in output
    assert sorted(by_name(lake)) == ["child", "root"]


def test_settings_that_mlflow_refuses_are_not_ours(lake: Lake) -> None:
    """Three parts in its own variable: MLflow sends nothing then, and our next destination is used all the same."""
    output = run(
        lake,
        """
import mlflow, tracelake
tracelake.set_destination("./table")
span("one")
tracelake.set_destination(None)
del os.environ["MLFLOW_TRACING_DESTINATION"]
mlflow.tracing.reset()
tracelake.set_destination("./table")
span("two")
""",
        MLFLOW_TRACING_DESTINATION="main.obs.agent",
        MLFLOW_TRACKING_URI="file:./mlruns",
    )
    assert "This version of MLflow" not in output
    assert sorted(by_name(lake)) == ["one", "two"]


def test_odd_names_and_limits_cost_no_span(lake: Lake) -> None:
    """A name without a text, tags that are none, and a limit that drops MLflow's own attribute."""
    run(
        lake,
        """
import mlflow, tracelake
class Odd:
    def __str__(self):
        raise RuntimeError("no text")
    __repr__ = __str__
tracelake.set_destination("./table")
span(Odd())
with mlflow.start_span("many") as many:
    for index in range(5):
        many.set_attribute(f"a{index}", {"n": index})
""",
        OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT="4",
    )
    rows = by_name(lake)
    assert sorted(rows) == ["<Odd>", "many"]
    assert rows["many"]["attributes"]["a4"] == '{"n":4}'
    assert rows["<Odd>"]["attributes"]["tracelake.degraded"]


def test_texts_of_our_front_end_stay_texts(lake: Lake) -> None:
    """In MLflow's global mode, where its spans and ours come by one provider."""
    run(
        lake,
        """
import mlflow, tracelake
tracelake.set_destination("./table")
span("first")
with tracelake.start_span("ours", span_type="TOOL") as ours:
    ours.set_outputs('{"a": 1}')
""",
        MLFLOW_USE_DEFAULT_TRACER_PROVIDER="false",
    )
    ours = by_name(lake)["ours"]["attributes"]
    assert ours["mlflow.spanOutputs"] == '{"a": 1}'  # decoded, it would be written anew, without the space
    assert ours["mlflow.spanType"] == "TOOL"


def test_environment_alone_is_enough(lake: Lake) -> None:
    """No line of tracelake; an unusable value takes nothing down, and says so once."""
    source = "os.environ['MLFLOW_TRACKING_URI'] = URI\nimport mlflow\nspan('a')\nspan('b')\nresult(sent)"
    assert result(run(lake, source, TRACELAKE_DESTINATION=lake.table)) == []
    assert sorted(by_name(lake)) == ["a", "b"]
    output = run(lake, source, TRACELAKE_DESTINATION="what is this?")
    assert output.count("No destination for spans. TRACELAKE_DESTINATION: ") == 1
    assert result(output) == []


def test_variable_of_mlflow_has_no_say(lake: Lake) -> None:
    """Where another destination is named: MLflow would change its tracking URI for it, or fail."""
    source = """
import mlflow
from mlflow.tracing import set_tracing_context_from_http_request_headers as within
with within({"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}):
    span(os.environ["MLFLOW_TRACING_DESTINATION"])
assert "databricks" not in os.environ.get("MLFLOW_TRACKING_URI", "")
"""
    for value in ("main.obs", "main.obs.agent", "1234"):
        run(lake, source, TRACELAKE_DESTINATION=lake.table, MLFLOW_TRACING_DESTINATION=value)
    assert sorted(by_name(lake)) == ["1234", "main.obs", "main.obs.agent"]


@pytest.mark.parametrize(
    "moved",
    [
        "provider._TracerProviderWrapper.get = property(lambda self: 1 / 0)",
        "from mlflow.tracing.processor import base_mlflow; del base_mlflow.BaseMlflowSpanProcessor",
    ],
    ids=["provider", "processor"],
)
def test_unknown_mlflow_is_left_alone(lake: Lake, moved: str) -> None:
    """A later version may have moved what we need: that is logged once, and the program goes on without us."""
    output = run(
        lake,
        f"""
import mlflow.tracing.provider
from mlflow.tracing import provider
mlflow.set_tracking_uri(URI)
mlflow.set_experiment("e")
{moved}
import tracelake
logging.basicConfig()
tracelake.set_destination("./table")
tracelake.set_destination("./table")
with tracelake.start_span("ours"):
    tracelake.get_tracing_context_headers_for_http_request()
span("mlflow's")
tracelake.get_tracing_context_headers_for_http_request()
""",
    )
    assert output.count("This version of MLflow is not supported") == 1
    assert sorted(by_name(lake)) == ["ours"]


def refusals_of_stores(lake: Lake, uri: str, before: str = "") -> str:
    """Return what is said to a program whose tracking URI is no good, when it comes to the store and the registry."""
    return run(
        lake,
        f"""
{before}
import mlflow, tracelake
from tracelake.tracking.entry import open_model_registry
mlflow.set_tracking_uri({uri!r})
for ask in (lambda: mlflow.set_experiment("e"), lambda: open_model_registry({uri!r})):
    try:
        ask()
    except tracelake.ConfigurationError as error:
        print(error)
""",
    )


def test_tracking_uri_without_a_database_is_refused(lake: Lake) -> None:
    """The entry point by which MLflow loads us opens a store only where it is told which database is beside it."""
    output = refusals_of_stores(lake, "tracelake://here")
    assert output.count("is no database URL of MLflow's") == 2


def test_tracking_uri_needs_all_of_mlflow(lake: Lake) -> None:
    """Its small packages have no SQLAlchemy; the error says what to install."""
    output = refusals_of_stores(lake, "tracelake://sqlite:///mlflow.db", "sys.modules['sqlalchemy'] = None")
    assert "sqlalchemy is missing." in output
    assert output.count("is missing. Run `pip install mlflow`") == 2
