"""The views of a span table in Spark, beside the answers of the Python API."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

import tracelake.spark as views
from tests.query.samples import write_table
from tests.query.test_annotate import FEEDBACK
from tests.query.test_search import RECORDS, S, _random_records, record, trace_id
from tests.spans.samples import START
from tests.spans.test_engines import spark  # noqa: F401 - a fixture
from tracelake.destinations.base import Destination
from tracelake.errors import QueryError
from tracelake.query import annotate
from tracelake.query.infos import Assessment
from tracelake.query.search import Search, search_traces

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
VERSIONS = pytest.mark.parametrize("version", [1, 2])


def by_spark(spark: Any, destination: Destination, **asked: Any) -> list[dict[str, Any]]:  # noqa: F811
    rows = views.traces(spark, destination.target, **asked).orderBy("trace_id").collect()
    return [row.asDict(recursive=True) for row in rows]


def by_python(destination: Destination, **asked: Any) -> list[dict[str, Any]]:
    """Return the same of the Python API, in the types that Spark has."""
    page = search_traces(destination, Search(max_results=1_000, order_by=["trace_id"], **asked))
    found = page.to_dicts()
    for each, info in zip(found, page, strict=True):
        each |= {"session": info.session, "user": info.user}
        for assessment in each["assessments"]:
            assessment["value"] = json.dumps(assessment["value"], separators=(",", ":"))
            assessment["error"] = assessment["error"] and json.dumps(assessment["error"])
    return found


def assert_same(spark: Any, destination: Destination, **asked: Any) -> None:  # noqa: F811
    expected = by_python(destination, **asked)
    found = by_spark(spark, destination)
    assert [each["trace_id"] for each in found] == [each["trace_id"] for each in expected]
    for each, wanted in zip(found, expected, strict=True):
        assert each == wanted


@VERSIONS
def test_traces(spark: Any, tmp_path: Path, version: int) -> None:  # noqa: F811
    """Field by field: of roots, halves, repeats, tokens of agents, tags, feedback, deletions, posted infos."""
    usage = {"mlflow.chat.tokenUsage": {"input_tokens": 5, "output_tokens": 2}, "mlflow.llm.cost": {"total_cost": 0.25}}
    more = [
        record(5, at=50, attributes=usage),
        record(5, 2, 1, 50.1, attributes=usage),
        record(5, 3, 2, 50.2, attributes={"gen_ai.usage.input_tokens": 7}),
        record(6, at=60),
        record(6, 2, 1, 60.1),
        record(6, 3, 2, 60.2, attributes=usage),
        record(6, 4, 9, 60.2, attributes={"gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 1}),
        record(7, 2, 3, 70),
        record(7, 3, 2, 70),
    ]
    destination = write_table(tmp_path / "spans", [*RECORDS, *more, *RECORDS[:3]], version)
    assert_same(spark, destination)
    annotate.set_tags(destination, trace_id(1), {"team": "red", "new": "x", "mlflow.traceName": "named"})
    annotate.delete_tag(destination, trace_id(1), "new")
    first = annotate.log_assessment(destination, trace_id(1), FEEDBACK)
    annotate.log_assessment(destination, trace_id(1), replace(FEEDBACK, overrides=first.assessment_id, error=None))
    annotate.log_assessment(destination, trace_id(3), Assessment("", "expectation", "answer", 42))
    annotate.link_run(destination, [trace_id(3)], "b")
    annotate.link_run(destination, [trace_id(3)], "a")
    annotate.link_run(destination, [trace_id(3)], "c")
    annotate.unlink_run(destination, [trace_id(3)], "b")
    annotate.delete_traces(destination, [trace_id(2)])
    posted = {"timestamp_us": START // 1000, "duration_ns": 5, "state": "ERROR", "trace_metadata": {"a": "b"}}
    for number in (4, 8):
        annotate.put_info(destination, trace_id(number), {**posted, "request_preview": "asked"})
    assert_same(spark, destination)


@pytest.mark.parametrize("seed", range(4))
def test_random_traces(spark: Any, tmp_path: Path, seed: int) -> None:  # noqa: F811
    records = _random_records(random.Random(100 + seed))
    assert_same(spark, write_table(tmp_path / "spans", records, 1 + seed % 2))


@VERSIONS
def test_times(spark: Any, tmp_path: Path, version: int) -> None:  # noqa: F811
    """A trace is whole, though its spans go on after the end that is asked for; a time without a zone is UTC."""
    destination = write_table(tmp_path / "spans", RECORDS, version)
    start = datetime.fromtimestamp(START // S + 9, timezone.utc)
    found = by_spark(spark, destination, start=start.replace(tzinfo=None), end=start + timedelta(seconds=2))
    assert [(each["trace_id"], each["span_count"]) for each in found] == [(trace_id(2), 2)]
    spans = views.spans(spark, destination.target, start=start, end=start + timedelta(seconds=1.2))
    assert [row.span_id for row in spans.collect()] == [f"{1:016x}"]


@VERSIONS
def test_spans(spark: Any, tmp_path: Path, version: int) -> None:  # noqa: F811
    """Each once, the one that ended last; an attribute is read in the same words of tables of both versions."""
    again = record(1, 2, 1, 0.1, end_time_unix_nano=START + 9 * S, attributes={"it's": "b", "n": 3, "d": {"a": [1]}})
    destination = write_table(tmp_path / "spans", [*RECORDS[:2], again, RECORDS[1]], version)
    frame = views.spans(spark, destination.target)
    assert len(frame.columns) == len(spark.read.format("delta").load(destination.target).columns)
    rows = frame.orderBy("span_id").collect()
    assert [(row.span_id, row.end_time_unix_nano) for row in rows] == [
        (f"{1:016x}", START + S),
        (f"{2:016x}", START + 9 * S),
    ]
    keys = ("it's", "n", "d", "missing")
    (found,) = (
        frame.where("parent_span_id IS NOT NULL").select(*(views.attribute(frame, key) for key in keys)).collect()
    )
    assert tuple(found) == ("b", "3", '{"a":[1]}', None)


def test_target_of_the_environment(
    spark: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    destination = write_table(tmp_path / "spans", RECORDS)
    monkeypatch.setenv("TRACELAKE_DESTINATION", destination.target)
    assert views.spans(spark).count() == len(RECORDS)
    assert views.traces(spark).count() == 4


def test_what_is_no_span_table(spark: Any, tmp_path: Path) -> None:  # noqa: F811
    spark.range(1).write.format("delta").save(str(tmp_path / "other"))
    for target, said in (
        (str(tmp_path / "other"), "is no span table: trace_id"),
        (str(tmp_path / "none"), "finds no table"),
        ("http://127.0.0.1:1", "not a table that Spark can read"),
        ("nobody.knows.this", "finds no table"),
    ):
        for view in (views.spans, views.traces):
            with pytest.raises(QueryError, match=said):
                view(spark, target)
    frame = views.spans(spark, write_table(tmp_path / "spans", RECORDS, 2).target)
    with pytest.raises(QueryError, match="both kinds of quotes"):
        views.attribute(frame, 'it\'s "so"')
