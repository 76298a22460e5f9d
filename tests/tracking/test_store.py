"""The tracking store itself, without a server."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from mlflow.entities import AssessmentSource, Expectation, Feedback, Span, TraceInfo, TraceLocation, TraceState
from mlflow.entities.assessment import FeedbackValue
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan

import tracelake
from tracelake.tracking.entry import open_tracking_store
from tracelake.tracking.store import LakeStore

pytestmark = pytest.mark.slow

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
MLFLOW_ID = f"tr-{TRACE}"
HUMAN = AssessmentSource(source_type="HUMAN", source_id="ann")
# Methods of MLflow's store that speak of traces in their names, and what they need not be here.
OF_DATABASE = {"get_online_trace_details", "resolve_trace_archival_config", "delete_traces"}
# MLflow 3.9 drops the resource of a span that its server receives.
TAKES_RESOURCES = "resource" in inspect.signature(Span.from_otel_proto).parameters
WORDS = ("trace", "span", "assessment", "session")


def text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def received(number: int, name: str, service: str, parent: int = 0, query: str = "", session: str = "") -> Span:
    """Return a span as MLflow's server makes it of OTLP."""
    made = ProtoSpan(
        trace_id=bytes.fromhex(TRACE),
        span_id=number.to_bytes(8, "big"),
        parent_span_id=parent.to_bytes(8, "big") if parent else b"",
        name=name,
        start_time_unix_nano=1_700_000_000_000_000_000 + number,
        end_time_unix_nano=1_700_000_001_000_000_000 - number,
        attributes=[text(key, value) for key, value in (("query", query), ("session.id", session)) if value],
    )
    if not TAKES_RESOURCES:
        return Span.from_otel_proto(made)
    return Span.from_otel_proto(made, resource=Resource(attributes=[text("service.name", service)]))


def test_trace(store: LakeStore, tmp_path: Path) -> None:
    """Pieces of a trace that several services send, one of them twice, are one; all that is said of it is read back."""
    assert store.search_traces(locations=["0"]) == ([], None)
    with pytest.raises(MlflowException) as missing:
        store.get_trace(MLFLOW_ID)
    assert missing.value.error_code == "RESOURCE_DOES_NOT_EXIST"

    experiment = store.create_experiment(f"of {tmp_path.name}")
    child = received(2, "search", "tools", parent=1, query="why?")
    store.log_spans(experiment, [child])
    store.log_spans(experiment, [child, received(1, "answer", "front", session="s1")])
    trace = store.get_trace(MLFLOW_ID)
    assert [(span.name, span.parent_id) for span in trace.data.spans] == [
        ("answer", None),
        ("search", f"{1:016x}"),
    ]
    assert trace.data.spans[1].attributes["query"] == "why?"
    assert trace.info.experiment_id == experiment
    assert trace.info.trace_metadata["mlflow.trace.session"] == "s1"
    (found,), token = store.search_traces(locations=[experiment], filter_string="name = 'answer'")
    assert (found.trace_id, token) == (MLFLOW_ID, None)
    assert store.search_traces(locations=["0"]) == ([], None)

    posted = TraceInfo(
        MLFLOW_ID, TraceLocation.from_experiment_id(experiment), 1_700_000_000_000, TraceState.OK, tags={"team": "blue"}
    )
    posted.execution_duration, posted.trace_metadata = 1000, {"mlflow.trace.user": "bob"}
    assert store.start_trace(posted).tags["mlflow.trace.spansLocation"] == "TRACKING_STORE"
    store.set_trace_tag(MLFLOW_ID, "colour", "red")
    store.delete_trace_tag(MLFLOW_ID, "team")
    store.link_traces_to_run([MLFLOW_ID], "r1")
    info = store.get_trace_info(MLFLOW_ID)
    assert info.tags["colour"] == "red"
    assert "team" not in info.tags
    assert info.trace_metadata["mlflow.trace.user"] == "bob"

    assert store._delete_traces("0", trace_ids=[MLFLOW_ID]) == 0
    assert store.delete_traces(experiment, max_timestamp_millis=1_700_000_000_000) == 1
    assert store.batch_get_traces([MLFLOW_ID]) == []
    spans = tracelake.get_trace(TRACE, target=str(tmp_path / "spans")).to_dicts()
    assert [span["service_name"] for span in spans] == (["front", "tools"] if TAKES_RESOURCES else ["", ""])


def test_assessments(store: LakeStore) -> None:
    store.log_spans("0", [received(1, "answer", "front")])
    liked = Feedback(name="good", value=True, source=HUMAN, rationale="clear", trace_id=MLFLOW_ID)
    made = store.create_assessment(liked)
    store.create_assessment(Expectation(name="answer", value={"is": [1]}, source=HUMAN, trace_id=MLFLOW_ID))
    assert [(each.name, each.value) for each in store.get_trace_info(MLFLOW_ID).assessments] == [
        ("good", True),
        ("answer", {"is": [1]}),
    ]
    changed = store.update_assessment(MLFLOW_ID, made.assessment_id, feedback=FeedbackValue(False), metadata={"a": "b"})
    assert (changed.value, changed.rationale, changed.metadata) == (False, "clear", {"a": "b"})
    assert store.get_assessment(MLFLOW_ID, made.assessment_id).value is False
    with pytest.raises(MlflowException, match="is feedback, and cannot be updated by expectation"):
        store.update_assessment(MLFLOW_ID, made.assessment_id, expectation=FeedbackValue(1))
    store.delete_assessment(MLFLOW_ID, made.assessment_id)
    with pytest.raises(MlflowException) as missing:
        store.get_assessment(MLFLOW_ID, made.assessment_id)
    assert missing.value.error_code == "RESOURCE_DOES_NOT_EXIST"


def test_only_experiment_has_all_traces(store: LakeStore, tmp_path: Path) -> None:
    """Those of another server's experiment are nobody's as soon as there is a second one."""
    other = store.create_experiment(f"of {tmp_path.name}")
    store.log_spans(other, [received(1, "answer", "front")])
    assert store.search_traces(locations=["0"]) == ([], None)
    second = open_tracking_store(f"tracelake://sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts"))
    assert [each.trace_id for each in second.search_traces(locations=["0"])[0]] == [MLFLOW_ID]
    assert [each.info.trace_id for each in second.batch_get_traces([MLFLOW_ID], "0")] == [MLFLOW_ID]
    second.create_experiment("more")
    assert second.search_traces(locations=["0"]) == ([], None)
    assert second.batch_get_traces([MLFLOW_ID], "0") == []


def test_errors(store: LakeStore) -> None:
    store.log_spans("0", [received(1, "answer", "front")])
    with pytest.raises(MlflowException) as wrong:
        store.search_traces(locations=["0"], filter_string="status ==== 'OK'")
    assert wrong.value.error_code == "INVALID_PARAMETER_VALUE"
    with pytest.raises(MlflowException) as refused:
        store.calculate_trace_filter_correlation(["0"], "status = 'OK'", "status = 'ERROR'")
    assert refused.value.error_code == "NOT_IMPLEMENTED"
    with pytest.raises(MlflowException, match="No Experiment with id=12345"):
        store.log_spans("12345", [received(1, "answer", "front")])


def test_every_method_of_traces_is_known() -> None:
    """A new MLflow may keep traces in another way; then the store has to learn it."""
    of_traces = {name for name in dir(SqlAlchemyStore) if not name.startswith("_") and any(w in name for w in WORDS)}
    assert of_traces - OF_DATABASE <= set(vars(LakeStore))
