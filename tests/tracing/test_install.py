"""Naming a destination, in fresh interpreters: what it does to OpenTelemetry, and where the spans then are."""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from deltalake import DeltaTable

from tests.lake import Lake, wait_until
from tracelake.destinations.base import digest
from tracelake.destinations.delta import DeltaDestination

HEAD = """
import asyncio, contextvars, json, logging, threading
import tracelake
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

def span(name, **options):
    trace.get_tracer("t").start_span(name, **options).end()
"""


def run(lake: Lake, source: str, **environ: str) -> str:
    return lake.run(HEAD + source, **environ)


def names(lake: Lake, table: str = "table") -> list[str]:
    return sorted(row["name"] for row in lake.rows(str(lake.root / table)))


def test_provider_is_made_where_there_is_none(lake: Lake) -> None:
    """Once, with one recorder; tracers that were taken before record, too."""
    output = run(
        lake,
        """
early = trace.get_tracer("early")
first = tracelake.set_destination("./table")
second = tracelake.set_destination(["./table"])
assert first == second, (first, second)
provider = trace.get_tracer_provider()
print(type(provider) is TracerProvider, len(provider._active_span_processor._span_processors))
early.start_span("a").end()
span("b")
""",
    )
    assert output == "True 1\n"
    assert names(lake) == ["a", "b"]


def test_provider_that_is_there_is_used(lake: Lake) -> None:
    """With its resource, its sampler and its other processors."""
    run(
        lake,
        """
from opentelemetry.sdk.resources import Resource
provider = TracerProvider(resource=Resource.create({"service.name": "mine", "team": "x"}))
trace.set_tracer_provider(provider)
span("before")
tracelake.set_destination("./table")
assert trace.get_tracer_provider() is provider
span("after")
with tracelake.start_span("ours"):
    pass
""",
    )
    assert names(lake) == ["after", "ours"]
    resources = [dict(row["resource"]["attributes"]) for row in lake.rows()]
    assert {(resource["service.name"], resource["team"]) for resource in resources} == {("mine", "x")}


def test_recorder_added_by_hand_and_set_destination_record_once(lake: Lake) -> None:
    """Whichever comes first."""
    run(
        lake,
        """
provider = TracerProvider()
provider.add_span_processor(tracelake.SpanRecorder())
trace.set_tracer_provider(provider)
tracelake.set_destination("./table")
provider.add_span_processor(tracelake.SpanRecorder())
for number in range(10):
    span(str(number))
""",
    )
    assert names(lake) == sorted(map(str, range(10)))


def test_foreign_provider_is_an_error_and_nothing_changes(lake: Lake) -> None:
    """From `set_destination` and `destination`; `start_span` goes on, says so once, and records nothing."""
    output = run(
        lake,
        """
trace.set_tracer_provider(trace.NoOpTracerProvider())
for name in (tracelake.set_destination, lambda target: tracelake.destination(target).__enter__()):
    try:
        name("./elsewhere")
    except tracelake.ConfigurationError as error:
        print(error)
for _ in range(3):
    with tracelake.start_span("s") as current:
        current.set_inputs({"a": 1})
""",
    )
    assert output.count("The global tracer provider is a opentelemetry.trace.NoOpTracerProvider, which takes no") == 3
    assert output.count("Spans of tracelake.start_span are not recorded.") == 1
    assert "or use OpenTelemetry's." in output
    assert not lake.records()


def test_wrong_target_is_an_error_and_nothing_changes(lake: Lake) -> None:
    """The destination before it stays."""
    output = run(
        lake,
        """
tracelake.set_destination("./table")
for wrong in ("nowhere", ["./other", "nowhere"], [], None.__class__):
    try:
        tracelake.set_destination(wrong)
    except tracelake.TargetError as error:
        print("refused")
span("a")
""",
    )
    assert output == "refused\n" * 4
    assert names(lake) == ["a"]
    assert not (lake.root / "other").exists()


def test_destination_can_be_changed_and_taken_back(lake: Lake) -> None:
    """A span goes where it was sent when it ended; None is what the environment names."""
    output = run(
        lake,
        """
tracelake.set_destination("./first")
span("a")
tracelake.set_destination("./second")
span("b")
(back,) = tracelake.set_destination(None)
span("c")
print(back)
""",
    )
    assert output.strip() == lake.table
    assert (names(lake, "first"), names(lake, "second"), names(lake)) == (["a"], ["b"], ["c"])


def test_default_is_a_table_beside_the_program(lake: Lake) -> None:
    """No set-up at all."""
    run(lake, "with tracelake.start_span('a'): pass", TRACELAKE_DESTINATION="")
    assert names(lake, "tracelake/spans") == ["a"]


@pytest.mark.parametrize(
    ("source", "environ", "expected"),
    [
        ("tracelake.set_destination('./table', service_name='code')", {"OTEL_SERVICE_NAME": "env"}, "code"),
        ("tracelake.set_destination('./table')", {"OTEL_SERVICE_NAME": "env"}, "env"),
        ("tracelake.set_destination('./table')", {"OTEL_RESOURCE_ATTRIBUTES": "service.name=attribute"}, "attribute"),
        ("trace.set_tracer_provider(TracerProvider()); tracelake.set_destination('./table')", {}, "unknown_service"),
        (
            "trace.set_tracer_provider(TracerProvider()); tracelake.set_destination('./table', service_name='code')",
            {"OTEL_SERVICE_NAME": "env"},
            "code",
        ),
        (
            "tracelake.set_destination('./table'); span('early'); "
            "tracelake.set_destination('./table', service_name='late')",
            {},
            "late",
        ),
    ],
)
@pytest.mark.slow
def test_service_name(lake: Lake, source: str, environ: dict[str, str], expected: str) -> None:
    """Code comes before the environment, also where the provider was there already."""
    run(lake, f"{source}\nspan('a')", **environ)
    (row,) = [row for row in lake.rows() if row["name"] == "a"]
    assert dict(row["resource"]["attributes"])["service.name"].partition(":")[0] == expected


def test_destination_of_a_context(lake: Lake) -> None:
    """Nested, in tasks that run across each other, in threads that are given the context, and in no others."""
    run(
        lake,
        """
tracelake.set_destination("./table")

async def customer(name):
    with tracelake.destination(f"./{name}"):
        for number in range(3):
            await asyncio.sleep(0)
            with tracelake.start_span(f"{name} {number}"):
                await asyncio.sleep(0)

async def main():
    await asyncio.gather(customer("a"), customer("b"))

asyncio.run(main())
with tracelake.destination("./a"):
    with tracelake.destination("./b"):
        span("nested")
    span("outer")
    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(span, "thread in the context")),
        threading.Thread(target=span, args=("thread without",)),
    ]
    for thread in threads:
        thread.start()
        thread.join()
span("outside")
""",
    )
    assert names(lake, "a") == ["a 0", "a 1", "a 2", "outer", "thread in the context"]
    assert names(lake, "b") == ["b 0", "b 1", "b 2", "nested"]
    assert names(lake) == ["outside", "thread without"]


def test_span_goes_where_it_started(lake: Lake) -> None:
    """Not where it ends: in another context, in another thread, after the with-body."""
    run(
        lake,
        """
tracelake.set_destination("./table")
tracer = trace.get_tracer("t")
outside = tracer.start_span("outside")
with tracelake.destination("./a"):
    inside = tracer.start_span("inside")
    outside.end()
    crossed = tracer.start_span("crossed")
with tracelake.destination("./b"):
    inside.end()
thread = threading.Thread(target=crossed.end)
thread.start()
thread.join()
""",
    )
    assert names(lake, "a") == ["crossed", "inside"]
    assert names(lake) == ["outside"]
    assert not (lake.root / "b").exists()


def test_list_is_a_copy_in_each_destination(lake: Lake) -> None:
    """Once each, and the report counts them apart."""
    output = run(
        lake,
        """
tracelake.set_destination(["./table", "./second", "./table"])
for name in "abc":
    span(name)
with tracelake.destination(["./second", "./third"]):
    span("d")
report = tracelake.flush(30)
print(report.recorded, report.delivered)
""",
    )
    assert output == "8 8\n"
    assert (names(lake), names(lake, "second"), names(lake, "third")) == (list("abc"), list("abcd"), ["d"])


def test_wrong_environment_does_not_take_the_app_down(lake: Lake) -> None:
    """One line in the log, the spans in the spool, and the app may still name a destination by code."""
    output = run(
        lake,
        """
for name in "ab":
    with tracelake.start_span(name):
        pass
tracelake.set_destination("./second")
span("c")
""",
        TRACELAKE_DESTINATION="main.obs.spans.too.many",
        TRACELAKE_BATCH_MAX_AGE="soon",
    )
    assert output.count("No destination for spans. TRACELAKE_DESTINATION: The target") == 1
    assert output.count("TRACELAKE_BATCH_MAX_AGE='soon' is not usable") == 1
    assert DeltaTable(str(lake.root / "second")).to_pyarrow_table()["name"].to_pylist() == ["c"]
    assert {record.name for record in lake.records()} >= {"a", "b"}


CALLEE = """
import json, sys
from wsgiref.simple_server import make_server, WSGIRequestHandler
import tracelake

class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass

def answer(environ, start_response):
    with tracelake.start_span("callee"):
        pass
    start_response("200 OK", [])
    names = ("HTTP_TRACEPARENT", "HTTP_TRACESTATE", "HTTP_BAGGAGE")
    return [json.dumps({name: environ[name] for name in names if name in environ}).encode()]

server = make_server("127.0.0.1", 0, tracelake.WsgiTracingMiddleware(answer), handler_class=Quiet)
print("port", server.server_port, flush=True)
server.serve_forever()
"""

CALLER = """
import sys
import requests
tracelake.propagate_all()
for number in range(5):
    with tracelake.start_span("caller"):
        print(requests.get(f"http://127.0.0.1:{sys.argv[1]}/", timeout=20).text)
"""


class Services:
    """A callee that runs, and a caller that asks it five times."""

    def __init__(self, lake: Lake, callee: str, **environ: str) -> None:
        self.lake = lake
        script = lake.root / "callee.py"
        script.write_text(CALLEE)
        destination = {"TRACELAKE_DESTINATION": str(lake.root / callee)}
        self.process = lake.start(sys.executable, str(script), **destination, **environ)
        found = wait_until(lambda: re.search(r"port (\d+)", lake.output(self.process)), "the callee listens")
        self.port = found[1]

    def call(self) -> list[dict[str, str]]:
        """Return the headers that arrived, by request; then the callee is ended."""
        output = self.lake.run(HEAD + CALLER, self.port)
        self.process.terminate()
        self.process.wait(20)
        return [json.loads(line) for line in output.splitlines()]

    def warnings(self) -> int:
        return self.lake.output(self.process).count("the trace will be split")


def test_callee_that_records_elsewhere_is_told_once(lake: Lake) -> None:
    """Once for five requests, by digest; each records to its own table, and the trace is one."""
    services = Services(lake, "other")
    services.call()
    assert services.warnings() == 1
    output = lake.output(services.process)
    for table in (lake.table, str(lake.root / "other")):
        assert digest(DeltaDestination(table)) in output
        assert table not in output
    callers = {row["trace_id"]: row["span_id"] for row in lake.rows()}
    callees = {row["trace_id"]: row["parent_span_id"] for row in lake.rows(str(lake.root / "other"))}
    assert len(callers) == 5
    assert callees == callers


def test_callee_that_records_to_the_same_place_is_told_nothing(lake: Lake) -> None:
    """Named in another way: the digest is that of what it means."""
    services = Services(lake, "x/../table")
    services.call()
    assert services.warnings() == 0
    assert Counter(row["name"] for row in lake.rows()) == {"caller": 5, "callee": 5}


def test_destination_of_a_caller_is_adopted_if_allowed(lake: Lake) -> None:
    """By the callee's own list, for the requests of that caller only."""
    services = Services(lake, "other", TRACELAKE_ACCEPT_DESTINATIONS=f"s3://no/such, {lake.table}")
    services.call()
    assert services.warnings() == 0
    assert Counter(row["name"] for row in lake.rows()) == {"caller": 5, "callee": 5}
    assert not (lake.root / "other").exists()


def test_request_without_a_caller_is_recorded_at_home(lake: Lake) -> None:
    """And one whose digest is on no list, or is none, also."""
    services = Services(lake, "other", TRACELAKE_ACCEPT_DESTINATIONS=f"nonsense,{lake.table}")
    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    for baggage in ("", f"tracelake.destination={'0' * 16}", "tracelake.destination=../../etc", "x=y"):
        headers = {"traceparent": traceparent, "baggage": baggage} if baggage else {}
        url = f"http://127.0.0.1:{services.port}/"
        urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20).close()
    services.process.terminate()
    services.process.wait(20)
    assert names(lake, "other") == ["callee"] * 4
    assert not Path(lake.table).exists()
    assert services.warnings() == 1
    assert lake.output(services.process).count("TRACELAKE_ACCEPT_DESTINATIONS: The target 'nonsense'") == 1


def test_nothing_but_the_digest_travels(lake: Lake) -> None:
    """Headers reach third parties: no name, no path, no service, no host."""
    arrived = Services(lake, "other").call()
    expected = f"tracelake.destination={digest(DeltaDestination(lake.table))}"
    assert len(arrived) == 5
    for headers in arrived:
        assert headers.keys() == {"HTTP_TRACEPARENT", "HTTP_BAGGAGE"}
        assert headers["HTTP_BAGGAGE"] == expected
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-9a-f]", headers["HTTP_TRACEPARENT"])
