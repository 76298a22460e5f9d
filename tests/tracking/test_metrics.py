"""Metrics of traces: the same as MLflow's own store says of the same traces.

What differs on purpose is not in the traces that both are given, and has tests of its own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
from mlflow.entities import (
    AssessmentError,
    AssessmentSource,
    Expectation,
    Feedback,
    Span,
    TraceInfo,
    TraceLocation,
    TraceState,
)
from mlflow.entities import trace_metrics as entities
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.store.tracking.utils import sql_trace_metrics_utils as metrics
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan

from tracelake.tracking.entry import open_tracking_store
from tracelake.tracking.store import LakeStore

pytestmark = pytest.mark.slow
# MLflow 3.9 has fewer metrics, and takes no other; its own store finds other figures.
newer = pytest.mark.skipif(not hasattr(metrics.TraceMetricKey, "SESSION_COUNT"), reason="this MLflow has fewer metrics")

HOUR_MS = 3_600_000
START_MS = 1_700_000_000_000
END_MS = START_MS + 10 * HOUR_MS
HUMAN = AssessmentSource(source_type="HUMAN", source_id="ann")
PERCENTILES = (50.0, 95.0)
FILTERS: dict[str, list[list[str]]] = {
    "TRACES": [
        [],
        ["trace.status = 'ERROR'"],
        ["trace.tag.team = 'blue'", "trace.status = 'OK'"],
        ["trace.tag.`mlflow.traceName` = 'ask'"],
        ["trace.metadata.`mlflow.trace.session` = 's1'"],
        ["trace.metadata.`mlflow.sourceRun` = 'r1'"],
        ["trace.metadata.city = 'Oslo'"],
    ],
}
FILTERS["SPANS"] = [
    *FILTERS["TRACES"],
    ["span.name = 'call'"],
    ["span.status = 'ERROR'"],
    ["span.type = 'LLM'", "trace.status = 'OK'"],
]
FILTERS["ASSESSMENTS"] = [*FILTERS["TRACES"], ["assessment.name = 'good'"], ["assessment.type = 'expectation'"]]


def trace_id(number: int) -> str:
    return f"{number:032x}"


def proto_span(trace: int, number: int, parent: int, name: str, at_ms: int, took_ms: int, **attributes: Any) -> Span:
    """Return a span as MLflow's server makes it of OTLP; a dict is JSON, and "_error" makes it fail."""
    failed = attributes.pop("_error", False)
    made = ProtoSpan(
        trace_id=bytes.fromhex(trace_id(trace)),
        span_id=number.to_bytes(8, "big"),
        parent_span_id=parent.to_bytes(8, "big") if parent else b"",
        name=name,
        start_time_unix_nano=at_ms * 10**6,
        end_time_unix_nano=(at_ms + took_ms) * 10**6,
    )
    made.status.code = 2 if failed else 1
    for key, value in attributes.items():
        text = json.dumps(value) if isinstance(value, dict) else value
        held = AnyValue(int_value=text) if isinstance(text, int) else AnyValue(string_value=text)
        made.attributes.append(KeyValue(key=key.replace("__", "."), value=held))
    return Span.from_otel_proto(made)


def usage(put_in: int, out: int, **more: int) -> dict[str, int]:
    return {"input_tokens": put_in, "output_tokens": out, "total_tokens": put_in + out, **more}


def call(trace: int, number: int, parent: int, at_ms: int, **attributes: Any) -> Span:
    model = ("small", "large")[number % 2]
    cost = {"input_cost": number / 8, "output_cost": number / 4, "total_cost": number * 3 / 8}
    given = {
        "mlflow__spanType": "LLM",
        "mlflow__llm__model": model,
        "mlflow__llm__provider": "acme",
        "mlflow__llm__cost": cost,
        "mlflow__chat__tokenUsage": usage(10 * number, trace),
        **attributes,
    }
    return proto_span(trace, number, parent, "call", at_ms + number, 10 * number, **given)


def spans_of(trace: int) -> list[Span]:
    """Return the spans of a trace; which of them say what depends on its number."""
    at = START_MS + trace * HOUR_MS // 3
    failed = trace % 3 == 0
    root = proto_span(
        trace, 1, 0, "answer", at, 100 * trace, mlflow__spanType="AGENT", _error=failed,
        **({"mlflow__chat__tokenUsage": usage(1000, 7)} if trace % 4 == 0 else {}),
    )  # fmt: skip
    tool = proto_span(trace, 2, 1, "tool", at + 1, 5, mlflow__spanType="TOOL", _error=failed)
    calls = [call(trace, 3, 1, at), call(trace, 4, 2, at)]
    if trace % 5 == 0:
        calls += [
            call(trace, 5, 3, at),
            call(trace, 6, 99, at, mlflow__chat__tokenUsage=usage(1, 2, cache_read_input_tokens=3)),
        ]
    if trace % 7 == 0:
        return [root, proto_span(trace, 8, 1, "plain", at, 1)]
    return [root, tool, *calls]


def info_of(trace: int, experiment: str) -> TraceInfo:
    names = {"mlflow.traceName": ("ask", "say")[trace % 2], "team": ("blue", "red")[trace % 2]}
    made = TraceInfo(
        f"tr-{trace_id(trace)}",
        TraceLocation.from_experiment_id(experiment),
        START_MS + trace * HOUR_MS // 3,
        TraceState.ERROR if trace % 3 == 0 else TraceState.OK,
        tags=names,
    )
    made.execution_duration = 100 * trace
    made.trace_metadata = {"city": ("Oslo", "Rome")[trace % 2]}
    if trace % 2:
        made.trace_metadata["mlflow.trace.session"] = f"s{trace % 3}"
    if trace % 6 == 1:
        made.trace_metadata["mlflow.sourceRun"] = "r1"
    if trace % 8 == 3:
        made.trace_metadata["mlflow.trace.tokenUsage"] = json.dumps(usage(5, 6))
    return made


def assess(store: SqlAlchemyStore, trace: int) -> None:
    """Say something of a trace."""
    of = {"source": HUMAN, "trace_id": f"tr-{trace_id(trace)}"}
    judged: list[Any] = [True, False, 0.25 * trace, trace, "yes", " No ", "fine", "12"]
    made = store.create_assessment(Feedback(name="good", value=judged[trace % len(judged)], **of))
    if trace % 4 == 1:
        store.create_assessment(Feedback(name="good", value=7, overrides=made.assessment_id, **of))
    store.create_assessment(Expectation(name="wanted", value="because", **of))
    if trace % 5 == 2:
        store.create_assessment(Feedback(name="broken", error=AssessmentError("E", "no"), **of))


class Stores(NamedTuple):
    """Two that were given the same, and the experiment it is in."""

    ours: LakeStore
    theirs: SqlAlchemyStore
    experiment: str

    def points(self, **asked: Any) -> tuple[list[Any], list[Any]]:
        return tuple(  # type: ignore[return-value]
            [(each.dimensions, {key: pytest.approx(value) for key, value in each.values.items()}) for each in found]
            for found in (store.query_trace_metrics([self.experiment], **asked) for store in (self.ours, self.theirs))
        )


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    root = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACELAKE_DESTINATION", str(root / "spans"))
        patch.setenv("TRACELAKE_SPOOL_DIR", str(root / "spool"))
        ours = open_tracking_store(f"tracelake://sqlite:///{root}/ours.db", str(root / "a"))
        theirs = SqlAlchemyStore(f"sqlite:///{root}/theirs.db", str(root / "b"))
        experiment = ""
        for store in (ours, theirs):
            experiment, other = store.create_experiment("of metrics"), store.create_experiment("other")
            for trace in range(1, 26):
                where = other if trace == 25 else experiment
                store.log_spans(where, spans_of(trace))
                store.start_trace(info_of(trace, where))
                assess(store, trace)
            store.link_traces_to_run([f"tr-{trace_id(4)}"], "r1")
            store.start_trace(info_of(26, experiment))  # no span of it has come yet
            store.delete_traces(experiment, trace_ids=[f"tr-{trace_id(24)}"])
        yield Stores(ours, theirs, experiment)


def subsets(dimensions: Sequence[str]) -> list[list[str]]:
    return [list(each) for size in range(3) for each in itertools.combinations(sorted(dimensions), size)]


def aggregations(types: Sequence[Any]) -> list[Any]:
    plain = [entities.MetricAggregation(each) for each in sorted(types) if each != entities.AggregationType.PERCENTILE]
    if entities.AggregationType.PERCENTILE not in types:
        return plain
    return [*plain, *(entities.MetricAggregation(entities.AggregationType.PERCENTILE, each) for each in PERCENTILES)]


ASKED = [
    (view, name, aggregations(config.aggregation_types), dimensions)
    for view, configs in metrics.VIEW_TYPE_CONFIGS.items()
    for name, config in configs.items()
    for dimensions in subsets(config.dimensions)
]


@newer
@pytest.mark.parametrize(
    ("view", "name", "wanted", "dimensions"), ASKED, ids=lambda each: str(each) if isinstance(each, str) else ""
)
def test_same_as_mlflows(stores: Stores, view: Any, name: str, wanted: list[Any], dimensions: list[str]) -> None:
    """Of every metric, by all that it is grouped by, of all time and by the hour."""
    asked = {"view_type": view, "metric_name": name, "aggregations": wanted, "dimensions": dimensions}
    ours, theirs = stores.points(**asked)
    assert ours == theirs
    assert theirs or name.startswith("cache_creation")
    window = {"start_time_ms": START_MS + HOUR_MS, "end_time_ms": START_MS + 5 * HOUR_MS}
    ours, theirs = stores.points(**asked, **window, time_interval_seconds=3600)
    assert ours == theirs


@newer
@pytest.mark.parametrize(
    ("view", "name", "wanted", "filters"),
    [
        (view, name, aggregations(config.aggregation_types), filters)
        for view, configs in metrics.VIEW_TYPE_CONFIGS.items()
        for name, config in configs.items()
        if name in ("trace_count", "session_count", "total_tokens", "span_count", "total_cost", "assessment_value")
        for filters in FILTERS[view][1:]
    ],
)
def test_same_filters_as_mlflows(stores: Stores, view: Any, name: str, wanted: list[Any], filters: list[str]) -> None:
    """Of each kind, alone and together with another."""
    ours, theirs = stores.points(view_type=view, metric_name=name, aggregations=wanted, filters=filters)
    assert ours == theirs


@newer
def test_most_points(stores: Stores) -> None:
    """The first of them, as they are ordered."""
    count = [entities.MetricAggregation(entities.AggregationType.COUNT)]
    ours, theirs = stores.points(
        view_type=entities.MetricViewType.SPANS,
        metric_name="span_count",
        aggregations=count,
        dimensions=["span_name"],
        max_results=2,
    )
    assert ours == theirs
    assert len(ours) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"metric_name": "nonsense"},
        {"dimensions": ["span_name"]},
        {"filters": ["span.name = 'call'"]},
        {"filters": ["trace.nonsense = 'x'"]},
        {"time_interval_seconds": 60},
        {"max_results": 0},
    ],
)
def test_wrong_parameters(store: LakeStore, wrong: dict[str, Any]) -> None:
    """As MLflow's errors have it."""
    count = [entities.MetricAggregation(entities.AggregationType.COUNT)]
    asked = {"view_type": entities.MetricViewType.TRACES, "metric_name": "trace_count", "aggregations": count}
    with pytest.raises(MlflowException) as error:
        store.query_trace_metrics(["0"], **{**asked, **wrong})
    assert error.value.error_code == "INVALID_PARAMETER_VALUE"


def ask(store: LakeStore, view: str, name: str, kind: str, *dimensions: str) -> list[tuple[dict[str, str], float]]:
    found = store.query_trace_metrics(
        ["0"],
        entities.MetricViewType(view),
        name,
        [entities.MetricAggregation(entities.AggregationType(kind))],
        list(dimensions),
    )
    return [(each.dimensions, each.values[kind]) for each in found]


def test_no_table_has_no_points(store: LakeStore) -> None:
    """Until the first span is there."""
    assert ask(store, "TRACES", "trace_count", "COUNT") == []


def test_span_that_comes_twice_counts_once(store: LakeStore) -> None:
    """Its tokens, too; MLflow's own store replaces it."""
    store.log_spans("0", [proto_span(1, 1, 0, "answer", START_MS, 10), call(1, 3, 1, START_MS)])
    store.log_spans("0", [call(1, 3, 1, START_MS)])
    assert ask(store, "SPANS", "span_count", "COUNT") == [({}, 2)]
    assert ask(store, "TRACES", "total_tokens", "SUM") == [({}, 31)]


@newer
def test_cost_of_a_span_that_comes_twice_counts_once(store: LakeStore) -> None:
    store.log_spans("0", [call(1, 3, 0, START_MS)])
    store.log_spans("0", [call(1, 3, 0, START_MS)])
    assert ask(store, "SPANS", "total_cost", "SUM") == [({}, 9 / 8)]


def test_trace_without_an_info_has_the_name_of_its_root(store: LakeStore) -> None:
    """As it has where traces are listed; in MLflow's own store it has none, and so is not in what is grouped by it.

    Nor has it there, in what its root took, nanoseconds less than a millisecond at both ends.
    """
    store.log_spans("0", [proto_span(1, 1, 0, "answer", START_MS, 10), call(1, 3, 1, START_MS)])
    assert ask(store, "TRACES", "latency", "AVG", "trace_name") == [({"trace_name": "answer"}, 10)]


def test_tokens_by_opentelemetrys_names(store: LakeStore) -> None:
    """Together are the total."""
    tokens = {"gen_ai__usage__input_tokens": 4, "gen_ai__usage__output_tokens": 2}
    store.log_spans("0", [proto_span(1, 1, 0, "answer", START_MS, 10, **tokens)])
    assert ask(store, "TRACES", "total_tokens", "SUM") == [({}, 6)]


@newer
def test_tokens_of_a_cache_by_opentelemetrys_names(store: LakeStore) -> None:
    tokens = {"gen_ai__usage__input_tokens": 4, "gen_ai__usage__cache_read__input_tokens": 3}
    store.log_spans("0", [proto_span(1, 1, 0, "answer", START_MS, 10, **tokens)])
    assert ask(store, "TRACES", "cache_read_input_tokens", "SUM") == [({}, 3)]
