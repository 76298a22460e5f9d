"""Traces found by what they are."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.destinations.unity.conftest import AGENT, prepare
from tests.query.samples import write_table
from tests.query.test_warehouse import close_files, filled
from tests.spans.samples import START
from tracelake.destinations.base import Batch, Destination
from tracelake.destinations.targets import parse_target
from tracelake.errors import QueryError
from tracelake.query import annotate, search
from tracelake.query.infos import Assessment, Tokens, TraceInfo
from tracelake.query.search import Search, get_infos, search_traces
from tracelake.query.sql import sql
from tracelake.query.stats import stats
from tracelake.query.traces import get_trace
from tracelake.spans.line import pack
from tracelake.spans.record import Resource, SpanRecord
from tracelake.testing import MockWorkspace

S = 10**9
START_MS = START // 10**6
VERSIONS = pytest.mark.parametrize("version", [1, 2])


def trace_id(number: int) -> str:
    return f"{number:032x}"


def record(trace: int, number: int = 1, parent: int | None = None, at: float = 0.0, **fields: Any) -> SpanRecord:
    """Return a span that starts some seconds after START and takes one; `parent` is None for the root."""
    start = START + int(at * S)
    made: dict[str, Any] = {
        "trace_id": trace_id(trace),
        "span_id": f"{number:016x}",
        "parent_span_id": None if parent is None else f"{parent:016x}",
        "name": "ask" if parent is None else "step",
        "start_time_unix_nano": start,
        "end_time_unix_nano": start + S,
        "resource": pack(Resource({"service.name": fields.pop("service", "agent")})),
        **fields,
    }
    return SpanRecord(**made)


def ids(destination: Destination, **asked: Any) -> list[int]:
    return [int(info.trace_id, 16) for info in search_traces(destination, Search(**asked))]


# Four traces, ten seconds apart: of two services; failed; with tokens; without its root.
RECORDS = [
    record(1, attributes={"session.id": "s1", "user.id": "ann", "mlflow.trace.tag.team": "blue"}),
    record(1, 2, 1, 0.1, service="search", attributes={"mlflow.spanType": "TOOL", "db.rows": 3}),
    record(2, at=10, name="plan", status_code=2, attributes={"mlflow.spanInputs": {"q": "Where is 100%?"}}),
    record(2, 2, 1, 10.1, end_time_unix_nano=START + 15 * S, attributes={"mlflow.spanOutputs": "In the LAKE"}),
    record(
        3,
        at=20,
        end_time_unix_nano=START + 25 * S,
        attributes={
            "mlflow.trace.metadata.mlflow.trace.session": "s3",
            "mlflow.trace.state": "ERROR",
            "mlflow.trace.client_request_id": "r3",
            "mlflow.spanInputs": "hello",
        },
    ),
    record(
        3,
        2,
        1,
        20.1,
        attributes={
            "mlflow.chat.tokenUsage": {"input_tokens": 30, "output_tokens": 12},
            "mlflow.llm.cost": {"total_cost": 0.5},
        },
    ),
    record(4, 2, 1, 30, service="search", attributes={"text": "it's"}),
    record(4, 3, 2, 31),
]


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table that the tests copy, which takes less time than to write it."""
    path = tmp_path_factory.mktemp("written") / "spans"
    write_table(path, RECORDS, request.param)
    return path


@pytest.fixture
def table(written: Path, tmp_path: Path) -> Destination:
    return parse_target(str(shutil.copytree(written, tmp_path / "spans")))


SEARCHES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "all": ({}, [4, 3, 2, 1]),
    "times": ({"start_ns": START + 10 * S, "end_ns": START + 20 * S}, [2]),
    "service": ({"service": "search"}, [4, 1]),
    "service that has an attribute": ({"service": "search", "attributes": {"db.rows": 3}}, [1]),
    "service that has not": ({"service": "agent", "attributes": {"db.rows": 3}}, []),
    "attribute": ({"attributes": {"text": "it's"}}, [4]),
    "name": ({"name": "plan"}, [2]),
    "name of a first span": ({"name": "step"}, [4]),
    "failed": ({"state": "ERROR"}, [3, 2]),
    "well": ({"state": "OK"}, [1]),
    "without its root": ({"state": "IN_PROGRESS"}, [4]),
    "slow": ({"min_duration_ns": 2 * S}, [4, 3]),
    "quick": ({"max_duration_ns": 2 * S - 1}, [2, 1]),
    "between": ({"min_duration_ns": 2 * S, "max_duration_ns": 2 * S}, [4]),
    "tag": ({"tags": {"team": "blue"}}, [1]),
    "session": ({"session": "s1"}, [1]),
    "session in metadata": ({"session": "s3"}, [3]),
    "user": ({"user": "ann"}, [1]),
    "text of inputs": ({"text": "100%"}, [2]),
    "text in another case": ({"text": "the lake"}, [2]),
    "several": ({"state": "ERROR", "text": "hello", "session": "s3"}, [3]),
    "filter": ({"filter": "status = 'ERROR' AND execution_time_ms >= 5000"}, [3]),
    "filter by span": ({"filter": "span.type = 'TOOL' AND span.name = 'step'"}, [1]),
    "filter by two spans": ({"filter": "span.type = 'TOOL' AND span.name = 'ask'"}, []),
    "filter by attribute": ({"filter": "span.attributes.db.rows = '3'"}, [1]),
    "filter by content": ({"filter": "span.content ILIKE '%tokenusage%'"}, [3]),
    "filter by text": ({"filter": "trace.text LIKE '%LAKE%'"}, [2]),
    "filter by status of a span": ({"filter": "span.status = 'ERROR'"}, [2]),
    "filter by pattern": ({"filter": "name RLIKE '^(ask|x)'"}, [3, 1]),
    "filter by several": ({"filter": "name IN ('plan', 'step')"}, [4, 2]),
    "filter by none of several": ({"filter": "name NOT IN ('plan', 'step')"}, [3, 1]),
    "filter by id": ({"filter": f"trace_id = 'tr-{trace_id(2)}'"}, [2]),
    "filter by ids": ({"filter": f"trace_id IN ('{trace_id(2)}', 'other')"}, [2]),
    "filter by request": ({"filter": "request LIKE '%hello%'"}, [3]),
    "filter by what is missing": ({"filter": "session IS NULL"}, [4, 2]),
    "filter by what is there": ({"filter": "metadata.`mlflow.trace.session` IS NOT NULL"}, [3, 1]),
    "filter by request id": ({"filter": "client_request_id = 'r3'"}, [3]),
    "filter by time": ({"filter": f"timestamp_ms >= {START_MS + 10_000} AND timestamp < '2100-01-01'"}, [4, 3, 2]),
    "filter by one time": ({"filter": f"timestamp_ms = {START_MS + 10_000}"}, [2]),
    "filter by another time": ({"filter": f"timestamp_ms != {START_MS + 10_000}"}, [4, 3, 1]),
    "filter by end": ({"filter": f"end_time > {START_MS + 24_000}"}, [4, 3]),
    "filter by issue": ({"filter": "issue.id = 'i'"}, []),
    "filter that is no SQL": ({"filter": "name = 'x'' OR true --'"}, []),
    "experiment": ({"experiment_ids": ("0", "5")}, [4, 3, 2, 1]),
    "other experiment": ({"experiment_ids": ("5",)}, []),
    "oldest first": ({"order_by": ["timestamp_ms ASC"]}, [1, 2, 3, 4]),
    "slowest first": ({"order_by": ["execution_time DESC"]}, [3, 4, 2, 1]),
    "by name": ({"order_by": ["name", "timestamp ASC"]}, [1, 3, 2, 4]),
    "by state": ({"order_by": ["status DESC"]}, [1, 4, 3, 2]),
    "by id": ({"order_by": ["trace_id"]}, [1, 2, 3, 4]),
    "by what none has": ({"order_by": ["run_id", "experiment_id"]}, [4, 3, 2, 1]),
}  # fmt: skip


@pytest.mark.parametrize("label", SEARCHES)
def test_search(table: Destination, label: str) -> None:
    asked, expected = SEARCHES[label]
    assert ids(table, **asked) == expected


@pytest.mark.slow
@VERSIONS
def test_search_by_a_warehouse(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    """A table whose files are closed to us gives the same traces, and the same infos."""
    with MockWorkspace() as workspace:
        prepare(workspace, monkeypatch)
        filled(workspace, version, records=RECORDS)
        workspace.grant("CREATE TABLE", on="main.obs", to=AGENT)
        destination = parse_target("main.obs.spans")
        annotate.set_tags(destination, trace_id(2), {"team": "red"})
        annotate.log_assessment(destination, trace_id(2), Assessment("", "feedback", "good", 0.5))
        by_files = get_infos(destination, [trace_id(number) for number in range(5)])
        close_files(workspace)
        assert get_infos(destination, [trace_id(number) for number in range(5)]) == by_files
        for label, (asked, expected) in SEARCHES.items():
            assert (label, ids(destination, **asked)) == (label, expected)
        assert ids(destination, filter="tag.team = 'red' AND feedback.good > 0.1") == [2]
        assert ids(destination, filter="tag.team = 'red' AND feedback.good > 0.6") == []


@pytest.mark.slow
@VERSIONS
@pytest.mark.parametrize("by", ["url", "name"])
def test_search_of_an_object_store(s3: str, monkeypatch: pytest.MonkeyPatch, version: int, by: str) -> None:
    """By credentials of the environment or of the catalog: the same as in a directory."""
    with MockWorkspace() as workspace:
        prepare(workspace, monkeypatch)
        workspace.use_s3(s3, "AKIALAKE", "0nlyF0rTheW0rkspace")
        workspace.grant("CREATE TABLE", on="main.obs", to=AGENT)
        access = {"AWS_ENDPOINT_URL": s3, "AWS_ALLOW_HTTP": "true"}
        if by == "url":
            access |= {"AWS_ACCESS_KEY_ID": "AKIALAKE", "AWS_SECRET_ACCESS_KEY": "0nlyF0rTheW0rkspace"}
            access |= {"AWS_REGION": "eu-west-1", "TRACELAKE_SCHEMA_VERSION": str(version)}
        for name, value in access.items():
            monkeypatch.setenv(name, value)
        if by == "url":
            destination = parse_target(f"s3://lake/search-{version}/spans")
            assert not destination.open().write(Batch("tests", 1, 1_000, lambda: iter([RECORDS])))
        else:
            filled(workspace, version, records=RECORDS)
            destination = parse_target("main.obs.spans")
        for label, (asked, expected) in SEARCHES.items():
            assert (label, ids(destination, **asked)) == (label, expected)
        annotate.set_tags(destination, trace_id(2), {"team": "red"})
        assert ids(destination, tags={"team": "red"}) == [2]
        assert [each.tags.get("team") for each in get_infos(destination, [trace_id(1), trace_id(2)])] == ["blue", "red"]
        found = get_trace(trace_id(3), destination)
        assert [span.span_id for span in found.spans] == [f"{1:016x}", f"{2:016x}"]
        assert found.spans[1].attributes["mlflow.llm.cost"] == (
            {"total_cost": 0.5} if version == 2 else '{"total_cost":0.5}'
        )
        counted = sql("SELECT count(*) AS n FROM spans", destination)
        assert counted.to_pylist() == [{"n": len(RECORDS)}]
        groups = stats(destination, ("service",), 0, 2**62).groups["service"]
        assert {group.name: group.spans for group in groups} == {"agent": 6, "search": 2}


def test_infos(table: Destination) -> None:
    """Each with what its spans come to, in the order that is asked for; an unknown one is left out."""
    annotate.link_run(table, [trace_id(3)], "run-1")
    found = get_infos(table, [f"tr-{trace_id(3)}", trace_id(9), trace_id(4), trace_id(4)])
    assert found == [
        TraceInfo(
            trace_id=trace_id(3),
            name="ask",
            service_name="agent",
            start_time_unix_nano=START + 20 * S,
            duration_ns=5 * S,
            state="ERROR",
            request_preview="hello",
            span_count=2,
            tokens=Tokens(30, 12, 0.5),
            client_request_id="r3",
            metadata={"mlflow.trace.session": "s3"},
            run_ids=("run-1",),
        ),
        TraceInfo(
            trace_id=trace_id(4),
            name="step",
            service_name="search",
            start_time_unix_nano=START + 30 * S,
            duration_ns=2 * S,
            state="IN_PROGRESS",
            span_count=2,
        ),
    ]
    assert found[0].session == "s3"
    assert found[0].user is None
    assert found[0].tokens.total == 42


def test_search_gives_the_same_infos(table: Destination) -> None:
    page = search_traces(table, Search())
    assert list(page) == get_infos(table, [info.trace_id for info in page])
    assert page[0] == page[:1][0]
    assert repr(page) == "<4 traces>"


def test_page_as_mlflows(table: Destination) -> None:
    """With spans, tags and feedback, also of a trace without its root; one of which only the info is there has none."""
    mlflow = pytest.importorskip("mlflow")
    annotate.set_tags(table, trace_id(2), {"team": "red"})
    annotate.log_assessment(table, trace_id(2), Assessment("", "feedback", "good", 0.5))
    annotate.put_info(table, trace_id(5), {"timestamp_us": (START + 40 * S) // 1000, "state": "OK"})
    found = search_traces(table, Search()).to_mlflow()
    assert all(isinstance(each, mlflow.entities.Trace) for each in found)
    assert [each.info.trace_id for each in found] == [f"tr-{trace_id(number)}" for number in (5, 4, 3, 2, 1)]
    assert [[span.name for span in each.data.spans] for each in found] == [
        [], ["step", "step"], ["ask", "step"], ["plan", "step"], ["ask", "step"]
    ]  # fmt: skip
    assert found[3].info.tags["team"] == "red"
    assert [each.value for each in found[3].info.assessments] == [0.5]
    assert found[3].data.spans[1].outputs == "In the LAKE"
    assert search_traces(table, Search(name="none")).to_mlflow() == []


def test_tags_over_what_the_root_carries(table: Destination) -> None:
    """A tag that is set later comes before it, and one that is removed is gone."""
    annotate.set_tags(table, trace_id(1), {"team": "red", "more": "x"})
    assert ids(table, tags={"team": "red", "more": "x"}) == [1]
    assert ids(table, tags={"team": "blue"}) == []
    annotate.delete_tag(table, trace_id(1), "team")
    assert ids(table, filter="tag.team IS NOT NULL") == []
    assert get_infos(table, [trace_id(1)])[0].tags == {"more": "x"}
    annotate.set_tags(table, trace_id(1), {"mlflow.traceName": "renamed"})
    assert ids(table, name="renamed") == [1]
    assert get_infos(table, [trace_id(1)])[0].name == "renamed"


def test_trace_that_is_deleted(table: Destination) -> None:
    """It is not found any more, by whatever is asked."""
    annotate.delete_traces(table, [trace_id(3), trace_id(4)])
    assert ids(table) == [2, 1]
    assert get_infos(table, [trace_id(3)]) == []


def test_trace_of_which_only_the_info_is_there(table: Destination) -> None:
    """It is listed by what was posted, and over its spans that counts once they come."""
    value = {
        "timestamp_us": (START + 40 * S) // 1000,
        "duration_ns": 7 * S,
        "state": "ERROR",
        "trace_metadata": {"mlflow.trace.user": "bob"},
        "request_preview": "posted",
        "experiment_id": "5",
    }
    for number in (5, 1):
        annotate.put_info(table, trace_id(number), value)
    assert ids(table) == [5, 4, 3, 2, 1]
    assert ids(table, user="bob") == [5, 1]
    assert ids(table, experiment_ids=["5"]) == [5, 1]
    assert ids(table, min_duration_ns=7 * S, state="ERROR") == [5, 1]
    five, one = get_infos(table, [trace_id(5), trace_id(1)])
    assert (five.name, five.duration_ns, five.state, five.request_preview, five.span_count) == (
        "", 7 * S, "ERROR", "posted", 0
    )  # fmt: skip
    assert five.start_time_unix_nano == (START + 40 * S) // 1000 * 1000
    assert (one.name, one.start_time_unix_nano, one.duration_ns, one.user, one.session) == (
        "ask", START, 7 * S, "bob", "s1"
    )  # fmt: skip


def test_assessments_and_runs(table: Destination) -> None:
    annotate.log_assessment(table, trace_id(1), Assessment("", "feedback", "quality", 0.9))
    annotate.log_assessment(table, trace_id(2), Assessment("", "expectation", "answer", "42"))
    old = annotate.log_assessment(table, trace_id(3), Assessment("", "feedback", "quality", 0.1))
    annotate.log_assessment(table, trace_id(3), Assessment("", "feedback", "quality", 0.2, overrides=old.assessment_id))
    annotate.link_run(table, [trace_id(1), trace_id(4)], "run-1")
    annotate.unlink_run(table, [trace_id(4)], "run-1")
    annotate.set_tags(table, trace_id(2), {"mlflow.linkedPrompts": '[{"name": "ask me", "version": "3"}]'})
    for text, expected in {
        "feedback.quality > 0.5": [1],
        "feedback.quality < 0.15": [],
        "feedback.quality IS NOT NULL": [3, 1],
        "feedback.quality IS NULL": [4, 2],
        "assessment.answer = '42'": [2],
        "feedback.answer = '42'": [],
        "expectation.answer LIKE '4%'": [2],
        "run_id = 'run-1'": [1],
        "run_id IS NULL": [4, 3, 2],
        "run_id IS NOT NULL": [1],
        "prompt = 'ask me/3'": [2],
        "prompt = 'ask me/4'": [],
    }.items():
        assert (text, ids(table, filter=text)) == (text, expected)


@pytest.fixture(scope="module")
def written_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parts") / "spans"
    for number in range(1, 31):
        records = [record(number, at=10.0 * number, name="even" if number % 2 == 0 else "odd")]
        records += [record(number - 1, 2, 1, at=10.0 * number - 0.5, attributes={"late": number - 1})]
        write_table(path, records[: 1 if number == 1 else 2], number=number)
    return path


@pytest.fixture
def parts(written_parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Destination:
    """Thirty traces in as many files, each trace's second span in the file after."""
    monkeypatch.setattr(search, "_FIRST_PART", 6)
    monkeypatch.setattr(search, "_GROWTH", 2)
    return parse_target(str(shutil.copytree(written_parts, tmp_path / "spans")))


def paged(destination: Destination, **asked: Any) -> list[int]:
    found: list[int] = []
    token = ""
    while True:
        page = search_traces(destination, Search(page_token=token, **asked))
        found += [int(info.trace_id, 16) for info in page]
        token = page.next_page_token
        if not token:
            return found
        assert len(page) == asked["max_results"]


@pytest.mark.parametrize("order", ["timestamp_ms DESC", "timestamp_ms ASC", "name DESC", "execution_time ASC"])
@pytest.mark.parametrize("size", [7, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 30))])
def test_pages(parts: Destination, order: str, size: int) -> None:
    """They have every trace once, in the order of the whole."""
    if size == 1 and order != "timestamp_ms DESC":
        size = 11
    whole = ids(parts, order_by=[order], max_results=100)
    assert sorted(whole) == list(range(1, 31))
    assert paged(parts, order_by=[order], max_results=size) == whole


@pytest.mark.parametrize("order", ["timestamp_ms DESC", "timestamp_ms ASC"])
def test_pages_of_what_is_rare(parts: Destination, order: str) -> None:
    """The span that meets a condition may be in a later file than its root."""
    even = {"name": "even", "filter": "span.attributes.late RLIKE '^[0-9]$'", "order_by": [order]}
    expected = [2, 4, 6, 8]
    assert paged(parts, max_results=3, **even) == (expected if "ASC" in order else expected[::-1])


def test_new_traces_do_not_shift_pages(parts: Destination) -> None:
    first = search_traces(parts, Search(max_results=5))
    write_table(Path(parts.target), [record(40, at=400)], number=40)
    second = search_traces(parts, Search(max_results=3, page_token=first.next_page_token))
    assert [int(info.trace_id, 16) for info in second] == [25, 24, 23]
    assert ids(parts, max_results=1) == [40]


def test_root_in_another_part(parts: Destination) -> None:
    """A trace whose newest span alone is in the part that is looked at is listed where its root is."""
    write_table(Path(parts.target), [record(1, 3, 1, at=1000), record(50, 2, 1, at=999)], number=60)
    assert ids(parts, max_results=3) == [50, 30, 29]
    assert ids(parts, start_ns=START + 500 * S) == [50]
    assert ids(parts, order_by=["timestamp_ms ASC"], max_results=2) == [1, 2]


def test_file_that_is_gone(parts: Destination) -> None:
    next(iter(Path(parts.target).glob("part-*.parquet"))).unlink()
    with pytest.raises(QueryError, match="is not there"):
        ids(parts)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"filter": "name ="}, "character 7"),
        ({"order_by": ["colour"]}, "order_by"),
        ({"max_results": 0}, "at least one"),
        ({"page_token": "nonsense"}, "page_token"),
        ({"page_token": "WzEsMl0="}, "page_token"),
        ({"page_token": "bnVsbA=="}, "page_token"),
    ],
)
def test_search_that_is_none(table: Destination, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(QueryError, match=said):
        search_traces(table, Search(**asked))


def test_token_of_another_search(parts: Destination) -> None:
    token = search_traces(parts, Search(max_results=2)).next_page_token
    assert len(search_traces(parts, Search(max_results=9, page_token=token))) == 9
    with pytest.raises(QueryError, match="page_token"):
        search_traces(parts, Search(name="even", page_token=token))


def test_infos_of_ids_that_are_none(table: Destination) -> None:
    with pytest.raises(QueryError, match="not a trace id"):
        get_infos(table, ["trace-1"])
    assert get_infos(table, []) == []


def test_empty_table(tmp_path: Path) -> None:
    destination = write_table(tmp_path / "spans", [record(1)])
    annotate.delete_traces(destination, [trace_id(1)])
    assert len(search_traces(destination, Search())) == 0


# What a search comes to in plain Python, over few services, names and times, so that much of it meets.
def _random_records(chance: random.Random) -> list[SpanRecord]:
    found = []
    for trace in range(1, chance.randint(2, 12)):
        at = chance.choice([0, 1, 5, 5, 30]) + trace * 0.001
        for number in range(1, chance.randint(2, 5)):
            if number == 1 and chance.random() < 0.2:
                continue  # without a root
            found.append(
                record(
                    trace,
                    number,
                    None if number == 1 else chance.choice([1, number - 1, 9]),
                    at + chance.choice([0, 0.25, 2, -0.5]) * (number > 1) + number * 0.0001,
                    name=chance.choice(["ask", "plan"]),
                    service=chance.choice(["agent", "search"]),
                    status_code=chance.choice([0, 0, 2]),
                    end_time_unix_nano=START + int((at + chance.choice([1, 4])) * S),
                    attributes=chance.choice([{}, {"user.id": "ann"}, {"k": "v", "mlflow.trace.tag.team": "red"}]),
                )
            )
    found += chance.sample(found, len(found) // 3)
    chance.shuffle(found)
    return found


def _expected(
    records: Sequence[SpanRecord], tags: dict[str, str | None], deleted: set[str]
) -> Iterator[dict[str, Any]]:
    for key in {each.trace_id for each in records} - deleted:
        spans = {each.span_id: each for each in records if each.trace_id == key}.values()
        root = next((each for each in spans if each.parent_span_id is None), None)
        first = root or min(spans, key=lambda each: each.start_time_unix_nano)
        own = root.attributes if root else {}
        ends = max(max(each.start_time_unix_nano, each.end_time_unix_nano) for each in spans)
        yield {
            "id": key,
            "name": first.name,
            "start": first.start_time_unix_nano,
            "state": "IN_PROGRESS" if root is None else "ERROR" if root.status_code == 2 else "OK",
            "duration": max(0, (root.end_time_unix_nano if root else ends) - first.start_time_unix_nano),
            "team": tags[key] if key in tags else own.get("mlflow.trace.tag.team"),
            "user": own.get("user.id"),
            "services": {(bytes(each.resource), each.attributes.get("k")) for each in spans},
            "count": len(spans),
        }


_ASKED: list[tuple[dict[str, Any], Callable[[dict[str, Any]], bool]]] = [
    ({}, lambda _: True),
    ({"name": "plan"}, lambda trace: trace["name"] == "plan"),
    ({"state": "OK"}, lambda trace: trace["state"] == "OK"),
    ({"state": "IN_PROGRESS"}, lambda trace: trace["state"] == "IN_PROGRESS"),
    ({"filter": "tag.team = 'red'"}, lambda trace: trace["team"] == "red"),
    ({"filter": "tag.team IS NULL AND user IS NULL"}, lambda trace: trace["team"] is None and trace["user"] is None),
    ({"min_duration_ns": 2 * S}, lambda trace: trace["duration"] >= 2 * S),
    (
        {"service": "search", "attributes": {"k": "v"}},
        lambda trace: (bytes(pack(Resource({"service.name": "search"}))), "v") in trace["services"],
    ),
    ({"start_ns": START + S, "end_ns": START + 6 * S}, lambda trace: START + S <= trace["start"] < START + 6 * S),
]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 40))])
def test_search_equals_plain_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Over random tables: with spans delivered twice, roots that are missing, clocks that differ, tags, deletions."""
    chance = random.Random(seed)
    monkeypatch.setattr(search, "_FIRST_PART", chance.choice([1, 5, 100]))
    records = _random_records(chance)
    if not records:
        return
    cut = chance.randint(0, len(records))
    version = 1 + seed % 2
    for number, some in enumerate((records[:cut], records[cut:]), 1):
        if some:
            destination = write_table(tmp_path / "spans", some, version, number)
    known = sorted({each.trace_id for each in records})
    tags: dict[str, str | None] = {}
    for key in chance.sample(known, len(known) // 3):
        tags[key] = chance.choice(["red", "blue", None])
        if tags[key] is None:
            annotate.delete_tag(destination, key, "team")
        else:
            annotate.set_tags(destination, key, {"team": str(tags[key])})
    deleted = set(chance.sample(known, len(known) // 4))
    annotate.delete_traces(destination, deleted)
    everything = list(_expected(records, tags, deleted))
    for asked, meets in _ASKED:
        wanted = sorted((each for each in everything if meets(each)), key=lambda each: (-each["start"], each["id"]))
        page_size = chance.choice([1, 3, 100])
        found: list[TraceInfo] = []
        token = ""
        while True:
            page = search_traces(destination, Search(page_token=token, max_results=page_size, **asked))
            found += page
            token = page.next_page_token
            if not token:
                break
        assert (asked, [info.trace_id for info in found]) == (asked, [each["id"] for each in wanted])
        for info, each in zip(found, wanted, strict=True):
            assert (info.name, info.state, info.start_time_unix_nano, info.span_count, info.duration_ns) == (
                each["name"], each["state"], each["start"], each["count"], each["duration"]
            )  # fmt: skip
