"""The sink for MLflow servers: a real one on loopback, read back by MLflow's own client."""

from __future__ import annotations

import itertools
import math
import re
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.lake import Lake
from tests.mlflow_server import QUIET, MlflowServer, run_mlflow_server
from tests.numbered import START_NS, TRACE_ID
from tracelake import PermanentDeliveryError, Sink, SpanEvent, SpanLink, SpanRecord, TransientDeliveryError
from tracelake.destinations.targets import parse_target
from tracelake.spans.line import pack
from tracelake.spans.record import Resource

from .contract import SinkContract, batch, spans

pytestmark = pytest.mark.slow  # a server takes seconds to start

USAGE = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with run_mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: MlflowServer) -> Iterator[Any]:
    """MLflow's own client."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        from mlflow import MlflowClient

        yield MlflowClient(tracking_uri=server.url)


@dataclass
class Experiment:
    """The default experiment, of which the contract has all spans in one trace."""

    server: MlflowServer
    client: Any

    def open(self) -> Sink:
        return parse_target(self.server.url).open()

    def numbers(self) -> list[int]:
        trace = self.client.get_trace(f"tr-{TRACE_ID}")
        return sorted(int(span.span_id, 16) for span in trace.data.spans)


class TestContract(SinkContract):
    """At least once, as the interface says; in fact MLflow replaces a span that comes again."""

    @pytest.fixture
    def place(self, server: MlflowServer, client: Any) -> Iterator[Experiment]:
        yield Experiment(server, client)
        server.post("traces/delete-traces", experiment_id="0", request_ids=[f"tr-{TRACE_ID}"])


def new_experiment(server: MlflowServer) -> str:
    return str(server.post("experiments/create", name=uuid.uuid4().hex)["experiment_id"])


def new_trace() -> str:
    return uuid.uuid4().hex


def span(trace_id: str, number: int, parent: int | None = None, **fields: Any) -> SpanRecord:
    """Return a span that starts and ends a second times its number after, and before, its trace."""
    return SpanRecord(
        **{
            "trace_id": trace_id,
            "span_id": f"{number:016x}",
            "name": f"span {number}",
            "start_time_unix_nano": START_NS + number * 10**9,
            "end_time_unix_nano": START_NS + (100 - number) * 10**9,
            "parent_span_id": None if parent is None else f"{parent:016x}",
            **fields,
        }
    )


def write(target: str, *records: SpanRecord) -> None:
    sink = parse_target(target).open()
    assert sink.write(batch(1, records)) == []
    sink.close()


VALUES: list[Any] = [
    "text",
    "ünï\u2028 \U0001f50e",
    "",
    "1",
    "null",
    True,
    0,
    2**63 - 1,
    -(2**63),
    0.1,
    None,
    [],
    {},
    [1, "a", None, [True], {}],
    {"question": "Why?", "nested": {"list": [{"deep": 1.5}], "none": None}},
]


@pytest.mark.parametrize("value", VALUES)
def test_inputs_and_outputs_are_what_was_recorded(server: MlflowServer, client: Any, value: Any) -> None:
    """Of any kind that a row has, by the names that MLflow has for them."""
    trace_id = new_trace()
    attributes = {"mlflow.spanInputs": value, "mlflow.spanOutputs": [value], "mlflow.spanType": "TOOL"}
    write(server.url, span(trace_id, 1, attributes={**attributes, "other": value}))
    (read,) = client.get_trace(f"tr-{trace_id}").data.spans
    assert (read.inputs, read.outputs, read.span_type) == (value, [value], "TOOL")
    assert read.get_attribute("other") == value


def test_text_that_is_json_is_shown_as_what_it_says(server: MlflowServer, client: Any) -> None:
    """As it is with MLflow's own client: the server takes it for what a library without nested values wrote."""
    trace_id = new_trace()
    write(server.url, span(trace_id, 1, attributes={"mlflow.spanInputs": '{"question": "Why?"}'}))
    (read,) = client.get_trace(f"tr-{trace_id}").data.spans
    assert read.inputs == {"question": "Why?"}


def test_values_that_json_has_not(server: MlflowServer, client: Any) -> None:
    """Numbers that are none come back; of bytes the server makes Python's own text."""
    trace_id = new_trace()
    inputs = {"nan": math.nan, "inf": [math.inf, -math.inf], "bytes": b"\x00\xff"}
    write(server.url, span(trace_id, 1, attributes={"mlflow.spanInputs": inputs}))
    (read,) = client.get_trace(f"tr-{trace_id}").data.spans
    assert math.isnan(read.inputs["nan"])
    assert read.inputs["inf"] == [math.inf, -math.inf]
    assert read.inputs["bytes"] == str(b"\x00\xff")


def test_all_parts_of_a_span_arrive(server: MlflowServer, client: Any) -> None:
    """Names, times, parents, events, links, status and resource."""
    trace_id, other = new_trace(), new_trace()
    exception = {"exception.type": "ValueError", "exception.message": "no", "exception.stacktrace": "Traceback ..."}
    root = span(trace_id, 1, resource=pack(Resource({"service.name": "search", "service.version": "1.2"})))
    child = span(
        trace_id,
        2,
        1,
        name="rank",
        events=[SpanEvent("exception", START_NS + 5, exception), SpanEvent("note", START_NS + 6, {"n": 7})],
        links=[SpanLink(other, "00f067aa0ba902b7", attributes={"why": "retry"})],
        status_code=2,
        status_message="ValueError: no",
    )
    write(server.url, child, root)
    trace = client.get_trace(f"tr-{trace_id}")
    first, second = trace.data.spans
    assert (first.name, first.parent_id, second.name, second.parent_id) == ("span 1", None, "rank", first.span_id)
    assert (second.start_time_ns, second.end_time_ns) == (child.start_time_unix_nano, child.end_time_unix_nano)
    assert [(event.name, event.timestamp, event.attributes) for event in second.events] == [
        ("exception", START_NS + 5, exception),
        ("note", START_NS + 6, {"n": 7}),
    ]
    (link,) = second.links
    assert (link.trace_id, link.span_id, link.attributes) == (f"tr-{other}", "00f067aa0ba902b7", {"why": "retry"})
    assert (second.status.status_code.value, second.status.description) == ("ERROR", "ValueError: no")
    assert (trace.info.tags["service.name"], trace.info.tags["service.version"]) == ("search", "1.2")


def test_what_is_the_traces_is_on_the_trace(server: MlflowServer, client: Any) -> None:
    """And no more on its root span, where the record has it; the trace is found by it."""
    trace_id, experiment_id = new_trace(), new_experiment(server)
    of_trace = {
        "mlflow.trace.tag.mlflow.traceName": "answer",
        "mlflow.trace.tag.env": "prod",
        "mlflow.trace.tag.long": "x" * 5000,
        "mlflow.trace.metadata.mlflow.trace.session": "session 1",
        "mlflow.trace.metadata.mlflow.trace.user": "ana",
        "mlflow.trace.metadata.mlflow.trace.sizeStats": '{"num_spans": 100}',
        "mlflow.trace.metadata.mine": "y" * 300,
        "mlflow.trace.client_request_id": "request-7",
        "mlflow.trace.request_preview": "Why?",
        "mlflow.trace.response_preview": "z" * 1100,
        "mlflow.trace.state": "ERROR",
    }
    target = f"{server.url}?experiment_id={experiment_id}"
    write(target, span(trace_id, 1, attributes={"mlflow.spanInputs": 1, "mlflow.trace.mine": 2, **of_trace}))
    (trace,) = client.search_traces(
        locations=[experiment_id], filter_string="tags.env = 'prod' AND metadata.`mlflow.trace.session` = 'session 1'"
    )
    info = trace.info
    assert (info.trace_id, info.experiment_id) == (f"tr-{trace_id}", experiment_id)
    assert (info.tags["mlflow.traceName"], info.tags["env"], info.tags["long"]) == ("answer", "prod", "x" * 4096)
    assert info.trace_metadata["mlflow.trace.session"] == "session 1"
    assert info.trace_metadata["mlflow.trace.user"] == "ana"
    assert info.trace_metadata["mine"] == "y" * 250
    assert (info.client_request_id, info.state.value) == ("request-7", "ERROR")
    assert (info.request_preview, info.response_preview) == ("Why?", "z" * 1000)
    (read,) = trace.data.spans
    assert set(read.attributes) == {"mlflow.spanInputs", "mlflow.trace.mine", "mlflow.traceRequestId"}


@pytest.mark.parametrize(("status", "state"), [(0, "OK"), (1, "OK"), (2, "ERROR")])
def test_root_of_any_front_end_is_a_trace(server: MlflowServer, client: Any, status: int, state: str) -> None:
    """With a name, times, previews and all else that MLflow shows of a trace."""
    trace_id, experiment_id = new_trace(), new_experiment(server)
    attributes = {"mlflow.spanInputs": {"question": "Why?"}, "mlflow.spanOutputs": "Because."}
    root = span(trace_id, 1, status_code=status, attributes=attributes)
    write(f"{server.url}?experiment_id={experiment_id}", root)
    (trace,) = client.search_traces(locations=[experiment_id])
    info = trace.info
    assert (info.tags["mlflow.traceName"], info.state.value) == ("span 1", state)
    assert (info.request_time, info.execution_duration) == (START_NS // 10**6 + 1000, 98_000)
    assert info.trace_metadata["mlflow.trace_schema.version"] == "3"
    assert (info.request_preview, info.response_preview) == ('{"question": "Why?"}', '"Because."')
    assert (trace.data.request, trace.data.response) == ('{"question": "Why?"}', '"Because."')


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_services_of_a_trace_may_come_in_any_order(server: MlflowServer, client: Any, order: tuple[int, ...]) -> None:
    """Of which one records to another experiment: it is the root's trace, with the tokens of all spans, once."""
    trace_id, experiment_id = new_trace(), new_experiment(server)
    llm = {"mlflow.spanType": "LLM", "mlflow.chat.tokenUsage": USAGE}
    tags = {"mlflow.trace.tag.env": "prod", "mlflow.trace.client_request_id": "request-7"}
    # What the root's process counted is of its own spans only.
    counted = {"mlflow.trace.metadata.mlflow.trace.tokenUsage": '{"input_tokens": 10, "output_tokens": 5}'}
    services = [
        (experiment_id, [span(trace_id, 2, 1, attributes=llm), span(trace_id, 1, attributes={**tags, **counted})]),
        (experiment_id, [span(trace_id, 3, 1, attributes=llm)]),
        ("0", [span(trace_id, 4, 1, attributes=llm), span(trace_id, 5, 4)]),
    ]
    for number in [*order, order[0]]:
        target, records = services[number]
        write(f"{server.url}?experiment_id={target}", *records)
    trace = client.get_trace(f"tr-{trace_id}")
    info = trace.info
    assert [read.name for read in trace.data.spans] == [f"span {number}" for number in range(1, 6)]
    assert info.token_usage == {key: 3 * count for key, count in USAGE.items()}
    assert (info.experiment_id, info.state.value, info.execution_duration) == (experiment_id, "OK", 98_000)
    assert (info.tags["mlflow.traceName"], info.tags["env"], info.client_request_id) == ("span 1", "prod", "request-7")


def test_trace_whose_root_never_ends_is_shown(server: MlflowServer, client: Any) -> None:
    """As one in progress."""
    trace_id, experiment_id = new_trace(), new_experiment(server)
    write(f"{server.url}?experiment_id={experiment_id}", span(trace_id, 2, 1), span(trace_id, 3, 2))
    (trace,) = client.search_traces(locations=[experiment_id])
    assert (trace.info.trace_id, trace.info.state.value) == (f"tr-{trace_id}", "IN_PROGRESS")
    assert [read.name for read in trace.data.spans] == ["span 2", "span 3"]


def test_tokens_that_no_span_has(server: MlflowServer, client: Any) -> None:
    """Those that the program set on the trace itself are the trace's."""
    trace_id = new_trace()
    attributes = {"mlflow.trace.metadata.mlflow.trace.tokenUsage": '{"input_tokens": 7, "total_tokens": 7}'}
    write(server.url, span(trace_id, 1, attributes=attributes))
    assert client.get_trace(f"tr-{trace_id}").info.token_usage == {"input_tokens": 7, "total_tokens": 7}


def test_first_of_several_roots_names_the_trace(server: MlflowServer, client: Any) -> None:
    """A trace has one; where a service does not take up its caller's context properly, several."""
    trace_id = new_trace()
    write(server.url, span(trace_id, 3), span(trace_id, 1), span(trace_id, 2))
    trace = client.get_trace(f"tr-{trace_id}")
    assert trace.info.tags["mlflow.traceName"] == "span 1"
    assert len(trace.data.spans) == 3


def test_large_batch_of_many_traces(server: MlflowServer, client: Any) -> None:
    """More than one request can hold."""
    experiment_id = new_experiment(server)
    records = [span(new_trace(), 1, attributes={"mlflow.spanInputs": "x" * 500_000}) for _ in range(12)]
    write(f"{server.url}?experiment_id={experiment_id}", *records)
    found = client.search_traces(locations=[experiment_id], include_spans=False)
    assert {trace.info.trace_id for trace in found} == {f"tr-{record.trace_id}" for record in records}


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"session.id": "x" * 300}, "'Session ID' exceeds the maximum length of 250 characters"),
        ({"mlflow.chat.tokenUsage": {"input_tokens": "many"}}, "Failed to log OpenTelemetry spans"),
    ],
)
def test_span_that_the_server_refuses_is_set_aside(
    server: MlflowServer, client: Any, attributes: dict[str, Any], reason: str
) -> None:
    """By its place in the batch, and with the server's words; the others are stored, in whichever piece they come."""
    trace_id = new_trace()
    records = [span(trace_id, number, None if number == 1 else 1) for number in range(1, 21)]
    records[13].attributes = attributes
    sink = parse_target(server.url).open()
    (rejection,) = sink.write(batch(1, records, piece=8))
    assert rejection.index == 13
    assert reason in rejection.reason
    assert len(client.get_trace(f"tr-{trace_id}").data.spans) == 19


@pytest.mark.parametrize("name", ["my experiment", "/Shared/größe/日本", "a+b&c=d?e#f%20", "me@example.com, and you"])
def test_experiment_is_made_once(server: MlflowServer, client: Any, name: str) -> None:
    """By its first delivery, also if two sinks have theirs at the same time; check makes none."""
    destination = parse_target(f"{server.url}?experiment={quote(name, safe='')}")
    findings = destination.check()
    assert [finding.severity for finding in findings] == ["ok", "ok"]
    assert findings[0].seen.startswith("MLflow 3.")
    assert f"no experiment {name!r} yet" in findings[1].seen
    assert client.get_experiment_by_name(name) is None
    records = [span(new_trace(), 1) for _ in range(4)]
    failures: list[BaseException] = []
    start = threading.Barrier(len(records))

    def write_one(record: SpanRecord) -> None:
        try:
            start.wait()
            write(destination.target, record)
        except BaseException as error:  # noqa: BLE001 - for the test to see
            failures.append(error)

    threads = [threading.Thread(target=write_one, args=(record,)) for record in records]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    experiment = client.get_experiment_by_name(name)
    found = client.search_traces(locations=[experiment.experiment_id], include_spans=False)
    assert {trace.info.trace_id for trace in found} == {f"tr-{record.trace_id}" for record in records}
    assert f"id {experiment.experiment_id} takes spans" in destination.check()[1].seen


def test_experiment_that_is_not_there(server: MlflowServer) -> None:
    """An id is never made; the error says what to do."""
    destination = parse_target(f"{server.url}?experiment_id=424242")
    with pytest.raises(PermanentDeliveryError, match=r"has no experiment with the id 424242.*\?experiment=NAME"):
        destination.open().write(batch(1, spans(1)))
    assert [finding.severity for finding in destination.check()] == ["ok", "error"]


def test_experiment_that_is_deleted(server: MlflowServer) -> None:
    """It is said how to restore it, also if it is deleted under an open sink; afterwards all goes on."""
    name = uuid.uuid4().hex
    destination = parse_target(f"{server.url}?experiment={name}")
    sink = destination.open()
    trace_id = new_trace()
    sink.write(batch(1, [span(trace_id, 1)]))
    (experiment_id,) = re.findall(r"id (\d+) takes spans", destination.check()[1].seen)
    server.post("experiments/delete", experiment_id=experiment_id)
    with pytest.raises(TransientDeliveryError, match="looked up again"):
        sink.write(batch(2, [span(trace_id, 1)]))
    with pytest.raises(PermanentDeliveryError, match=f"is deleted. Restore it .*--experiment-id {experiment_id}"):
        sink.write(batch(2, [span(trace_id, 1)]))
    server.post("experiments/restore", experiment_id=experiment_id)
    assert sink.write(batch(2, [span(trace_id, 1)])) == []


APP = """
import tracelake
with tracelake.start_span("answer", span_type="AGENT") as root:
    root.set_inputs({"question": "Why?"})
    with tracelake.start_span("search", span_type="RETRIEVER"):
        pass
assert tracelake.flush(30).complete
print(root.trace_id, end="")
"""


def test_program_is_seen_in_mlflow(server: MlflowServer, client: Any, lake: Lake) -> None:
    """From the app, through a shipper process of its own, with nothing set but the destination."""
    trace_id = lake.run(APP, TRACELAKE_DESTINATION=f"{server.url}?experiment=from%20a%20program")
    lake.settle()
    trace = client.get_trace(f"tr-{trace_id}")
    assert [(read.name, read.span_type) for read in trace.data.spans] == [("answer", "AGENT"), ("search", "RETRIEVER")]
    assert trace.data.spans[0].inputs == {"question": "Why?"}
    assert client.get_experiment(trace.info.experiment_id).name == "from a program"


def test_server_that_is_down_is_tried_again(tmp_path: Path) -> None:
    """The same sink goes on when the server is there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    destination = parse_target(f"http://127.0.0.1:{port}")
    sink = destination.open()
    records = [span(new_trace(), 1)]
    with pytest.raises(TransientDeliveryError, match=f"{destination} is not reached"):
        sink.write(batch(1, records))
    with run_mlflow_server(tmp_path, port) as server:
        assert sink.write(batch(1, records)) == []
        assert server.traces("0") == [f"tr-{records[0].trace_id}"]
    with pytest.raises(TransientDeliveryError, match=f"{destination} is not reached"):
        sink.write(batch(2, records))
    (finding,) = destination.check()
    assert finding.severity == "error"
    assert "is not reached" in finding.seen
