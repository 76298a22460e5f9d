"""What redaction masks, and that nothing it names reaches the spool, whatever form it has and whatever fails."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry.sdk.resources import Resource as OtelResource
from opentelemetry.sdk.trace import TracerProvider

from tests.lake import Lake
from tests.numbered import record
from tracelake import ConfigurationError, SpanEvent, SpanLink, SpanRecord, SpanRecorder
from tracelake.destinations.targets import parse_target
from tracelake.recorder.recorder import Recorder
from tracelake.recorder.redact import MASK
from tracelake.settings import Settings
from tracelake.spans.line import pack, resource_of, scope_of
from tracelake.spans.record import Resource, Scope

SECRET = "correct-horse-battery"

Record = Callable[..., SpanRecord]


@pytest.fixture
def recorded(lake: Lake) -> Record:
    """Records a span with redaction, sees that the secret is nowhere in the spool, and returns the span."""

    def run(redact: Any, *, environment: tuple[str, ...] = (), secret: str = SECRET, **fields: Any) -> SpanRecord:
        recorder = Recorder(Settings(shipper="external", redact=environment), lake.spool)
        recorder.set_default((parse_target(lake.table),))
        recorder.use_redaction(redact)
        recorder.record(msgspec.structs.replace(record(1), **fields), recorder.default_route().writers)
        for path in Path(lake.spool.path).rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path
        return lake.records()[-1]

    return run


@dataclasses.dataclass
class Login:
    """An object of an app, as it comes into attributes."""

    user: str
    password: str


@pytest.mark.parametrize(
    ("pattern", "attributes", "left"),
    [
        ("api_key", {"api_key": SECRET, "api_keys": 1}, {"api_key": MASK, "api_keys": 1}),
        ("*.password", {"password": SECRET, "db.password": SECRET}, {"password": MASK, "db.password": MASK}),
        ("*.password", {"passwords": "x", "a.password.b": "x"}, {"passwords": "x", "a.password.b": "x"}),
        ("*token*", {"http.Token-1": SECRET, "total": 2}, {"http.Token-1": MASK, "total": 2}),
        ("HTTP.Request.*", {"http.request.header.x": [SECRET]}, {"http.request.header.x": MASK}),
        ("a?c", {"abc": SECRET, "abbc": 1}, {"abc": MASK, "abbc": 1}),
        ("[ab].key", {"a.key": SECRET, "c.key": 1}, {"a.key": MASK, "c.key": 1}),
        ("a", {"a": {"b": SECRET}}, {"a": MASK}),
        ("a.b", {"a": {"b": SECRET, "c": 1}}, {"a": {"b": MASK, "c": 1}}),
        ("*.b", {"a": {"x": {"b": [SECRET]}}}, {"a": {"x": {"b": MASK}}}),
        ("a.b.c", {"a": {"b": [{"c": SECRET}, {"d": 1}]}}, {"a": {"b": [{"c": MASK}, {"d": 1}]}}),
        ("a.b", {"a": [[{"b": SECRET}]], "b": ("x", 1)}, {"a": [[{"b": MASK}]], "b": ["x", 1]}),
        ("*.password", {"in": Login("ana", SECRET)}, {"in": {"user": "ana", "password": MASK}}),
        ("*.k", {"a": {"k": SECRET.encode()}, "n": float("inf")}, {"a": {"k": MASK}, "n": float("inf")}),
        ("1.2", {1: {2: SECRET}}, {"1": {"2": MASK}}),
    ],
)
def test_pattern_masks_what_its_path_names(
    recorded: Record, pattern: str, attributes: dict[Any, Any], left: dict[str, Any]
) -> None:
    """The path is the attribute's key and the keys within, with dots; all of it is matched, in any case."""
    assert recorded(pattern, attributes=attributes).attributes == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (json.dumps({"b": SECRET, "c": [1]}), {"b": MASK, "c": [1]}),
        (json.dumps([{"x": {"b": SECRET}}]), [{"x": {"b": MASK}}]),
        (json.dumps({"b": SECRET}).replace('"b"', '"\\u0062"'), {"b": MASK}),
        (" \n" + json.dumps({"x": json.dumps({"b": SECRET})}), {"x": json.dumps({"b": MASK}, separators=(",", ":"))}),
    ],
)
def test_pattern_looks_into_json_text(recorded: Record, text: str, left: Any) -> None:
    """Inputs and outputs are often JSON in a text; what is left is JSON again."""
    assert json.loads(recorded("*.b", attributes={"a": text}).attributes["a"]) == left


@pytest.mark.parametrize("text", ['{"c": "\\"", "b": "' + SECRET, '{"b": NaN, "c": "' + SECRET + '"}'])
def test_text_that_is_cut_json_is_masked_as_a_whole(recorded: Record, text: str) -> None:
    """If it holds a key that a pattern names: what belongs to the key cannot be told apart."""
    assert recorded("*.b", attributes={"a": text}).attributes == {"a": MASK}


@pytest.mark.parametrize("text", ["", "{", '{"c": 1, "d": {', "[1, 2] and more", '{"c":  1}', "b: 1", "[[" * 5000])
def test_other_text_stays_as_it_is(recorded: Record, text: str) -> None:
    """To the byte."""
    assert recorded("*.b", attributes={"a": text}).attributes == {"a": text}


def test_every_part_of_a_span_is_seen(recorded: Record) -> None:
    """Events, links, resource and scope; a span that has more to mask counts nothing as dropped."""
    found = recorded(
        ["*.key"],
        attributes={"key": SECRET},
        events=[SpanEvent("e", 1, {"a.key": SECRET, "b": 1})],
        links=[SpanLink("a" * 32, "b" * 16, attributes={"key": SECRET})],
        resource=pack(Resource({"service.name": "shop", "db.key": SECRET})),
        scope=pack(Scope("lib", "1", {"key": SECRET})),
    )
    assert found.events[0].attributes == {"a.key": MASK, "b": 1}
    assert found.links[0].attributes == {"key": MASK}
    assert resource_of(found).attributes == {"service.name": "shop", "db.key": MASK}
    assert scope_of(found) == Scope("lib", "1", {"key": MASK})
    assert found.dropped_attributes_count == 0


def test_copies_of_a_masked_value_go_with_it(recorded: Record) -> None:
    """The status and the stack trace repeat an exception's message, and previews repeat inputs and outputs."""
    found = recorded(
        "exception.message,*.question",
        attributes={
            "mlflow.spanInputs": {"question": SECRET, "n": 1},
            "mlflow.spanOutputs": "fine",
            "mlflow.trace.request_preview": f"Q: {SECRET}",
            "mlflow.trace.metadata.mlflow.traceInputs": f'{{"question": "{SECRET}',
            "mlflow.trace.response_preview": "fine",
        },
        events=[
            SpanEvent(
                "exception",
                1,
                {"exception.type": "E", "exception.message": SECRET, "exception.stacktrace": f"at\nE: {SECRET}"},
            )
        ],
        status_code=2,
        status_message=f"E: {SECRET}",
    )
    assert found.attributes == {
        "mlflow.spanInputs": {"question": MASK, "n": 1},
        "mlflow.spanOutputs": "fine",
        "mlflow.trace.request_preview": MASK,
        "mlflow.trace.metadata.mlflow.traceInputs": MASK,
        "mlflow.trace.response_preview": "fine",
    }
    assert found.events[0].attributes == {
        "exception.type": "E",
        "exception.message": MASK,
        "exception.stacktrace": MASK,
    }
    assert found.status_message == MASK


def test_status_message_has_a_key(recorded: Record) -> None:
    """For spans that say something there without an exception."""
    assert recorded("status_message", status_message=SECRET).status_message == MASK
    assert recorded(lambda *_: None, status_message=SECRET).status_message == ""
    assert recorded(lambda key, _: len(key), status_message=SECRET).status_message == "14"


def test_callable_replaces_and_drops(recorded: Record) -> None:
    """It gets each key and plain value; None drops the attribute, which is counted."""
    seen: list[tuple[str, Any]] = []

    def redact(key: str, value: Any) -> Any:
        seen.append((key, value))
        if key == "gone":
            return None
        return value.replace(SECRET, "***") if isinstance(value, str) else value

    found = recorded(
        redact,
        attributes={"a": f"see {SECRET}", "gone": SECRET, "n": 1, "who": Login("ana", "x"), "nothing": None},
        events=[SpanEvent("e", 1, {"gone": SECRET})],
    )
    who = {"user": "ana", "password": "x"}
    assert found.attributes == {"a": "see ***", "n": 1, "who": who, "nothing": None}
    assert (found.dropped_attributes_count, found.events[0].dropped_attributes_count) == (1, 1)
    assert ("who", who) in seen


def test_environment_holds_in_any_case(recorded: Record) -> None:
    """What the environment names is masked before code is asked, and code cannot turn it off."""
    attributes = {"password": SECRET, "name": "ana"}
    seen: list[Any] = []

    def redact(key: str, value: Any) -> Any:
        seen.append((key, value))
        return value

    found = recorded(redact, environment=("*.password",), attributes=attributes)
    assert found.attributes == {"password": MASK, "name": "ana"}
    assert ("password", MASK) in seen
    assert recorded((), environment=("*.password",), attributes=attributes).attributes["password"] == MASK


def test_callable_that_fails_masks_everything(recorded: Record, caplog: pytest.LogCaptureFixture) -> None:
    """The span is recorded, says so, and nothing of it that the callable should have seen to is."""

    def redact(key: str, value: Any) -> Any:
        raise ValueError(f"cannot take {key}={value}")

    for _ in range(3):
        found = recorded(
            redact,
            attributes={"a": SECRET, "b": {"c": SECRET}},
            events=[SpanEvent("e", 1, {"exception.message": SECRET})],
            links=[SpanLink("a" * 32, "b" * 16, attributes={"k": SECRET})],
            status_message=SECRET,
            resource=pack(Resource({"service.name": SECRET})),
            scope=pack(Scope("lib", attributes={"k": SECRET})),
        )
    note = ["attributes: redact raised ValueError, so all values are masked"]
    assert found.attributes == {"a": MASK, "b": MASK, "tracelake.degraded": note}
    assert found.events[0].attributes == {"exception.message": MASK}
    assert (found.status_message, resource_of(found).attributes) == (MASK, {"service.name": MASK})
    assert (found.name, found.trace_id) == (record(1).name, record(1).trace_id)
    assert "A span has all its values masked: redact raised ValueError." in caplog.text
    assert SECRET not in caplog.text


def test_value_that_no_row_holds_may_be_returned(recorded: Record) -> None:
    """It is degraded as any other."""
    found = recorded(lambda key, _: {1: object} if key == "a" else 2**70, attributes={"a": SECRET, "b": 1})
    assert found.attributes["b"] == str(2**70)
    assert "attributes.b: integer of 71 bits written as text" in found.attributes["tracelake.degraded"]


@pytest.mark.parametrize("redact", [7, [1], ["a", None], {"a": 1}.items()])
def test_what_is_no_redaction_is_refused(recorded: Record, redact: Any) -> None:
    """At once, in the code that gave it."""
    with pytest.raises(ConfigurationError, match=r"neither patterns of attribute keys nor a callable\. Pass a list"):
        recorded(redact)


def test_app_records_nothing_it_masks(lake: Lake) -> None:
    """By `set_destination` and by the environment; also of spans that had begun before, and in forked children."""
    lake.run(
        """
import os, tracelake
before = tracelake.start_span("before")
with before as span:
    tracelake.set_destination(os.environ["TRACELAKE_DESTINATION"], redact=lambda k, v: "-" if k == "mine" else v)
    span.set_attributes({"mine": "correct-horse-battery", "their.password": "correct-horse-battery"})
tracelake.set_destination(os.environ["TRACELAKE_DESTINATION"])  # which does not end it
if os.fork() == 0:
    with tracelake.start_span("child") as span:
        span.set_inputs({"password": "correct-horse-battery", "user": "ana"})
        span.set_attribute("mine", "correct-horse-battery")
    os._exit(0)
assert os.wait()[1] == 0
""",
        TRACELAKE_REDACT="*.password, *.api_key",
    )
    before, child = lake.rows()
    assert (before["attributes"]["mine"], before["attributes"]["their.password"]) == ("-", MASK)
    assert child["attributes"]["mine"] == "-"
    assert json.loads(child["attributes"]["mlflow.spanInputs"]) == {"password": MASK, "user": "ana"}
    for path in lake.root.rglob("*"):
        assert not path.is_file() or path.name == "program.py" or SECRET.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_mlflow_program_records_nothing_it_masks(lake: Lake) -> None:
    """Inputs, tags, metadata, previews and exceptions of MLflow's spans."""
    lake.run(
        """
import contextlib, mlflow

@mlflow.trace
def call(password, question):
    mlflow.update_current_trace(tags={"api_key": password}, metadata={"my.password": password})
    raise ValueError(password)

with contextlib.suppress(ValueError):
    call("correct-horse-battery", "why?")
""",
        TRACELAKE_REDACT="*.password,*.api_key,exception.message",
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
    )
    (row,) = lake.rows()
    assert json.loads(row["attributes"]["mlflow.spanInputs"]) == {"password": MASK, "question": "why?"}
    assert row["attributes"]["mlflow.trace.tag.api_key"] == MASK
    for path in lake.root.rglob("*"):
        assert not path.is_file() or path.name == "program.py" or SECRET.encode() not in path.read_bytes(), path


def test_recorder_of_a_provider_takes_it(lake: Lake) -> None:
    """`SpanRecorder(redact=...)`, for programs that set up OpenTelemetry by themselves; resources included."""
    recorder = Recorder(Settings(shipper="external"), lake.spool)
    recorder.set_default((parse_target(lake.table),))
    resource = OtelResource({"service.name": "shop", "deploy.token": SECRET})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(SpanRecorder(recorder, redact="*.token"))
    tracer = provider.get_tracer("t")
    for _ in range(2):
        with tracer.start_as_current_span("s", attributes={"token": SECRET, "n": (1, 2)}):
            pass
    for found in lake.records():
        assert found.attributes == {"token": MASK, "n": [1, 2]}
        assert resource_of(found).attributes["deploy.token"] == MASK


def test_nothing_is_logged_where_nothing_fails(recorded: Record, caplog: pytest.LogCaptureFixture) -> None:
    """Redaction is silent."""
    caplog.set_level(logging.DEBUG)
    recorded("a", attributes={"a": SECRET})
    assert caplog.text == ""
