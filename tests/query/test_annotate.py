"""What is said of traces beside their spans."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from deltalake import DeltaTable

from tests.destinations.unity.conftest import AGENT, prepare
from tests.query.samples import write_table
from tests.query.test_warehouse import close_files, filled
from tests.spans.samples import TRACE_ID, span
from tracelake.destinations.annotation_table import annotations_name
from tracelake.destinations.base import Destination
from tracelake.destinations.targets import parse_target
from tracelake.errors import DeliveryError, QueryError
from tracelake.query import annotate
from tracelake.query.infos import Assessment, TraceInfo
from tracelake.query.search import get_infos
from tracelake.spans.annotations import annotations_schema
from tracelake.testing import MockWorkspace

FEEDBACK = Assessment(
    assessment_id="",
    kind="feedback",
    name="quality",
    value={"score": [0.5, None, True]},
    source_type="HUMAN",
    source_id="ann@example.com",
    rationale="so it seems",
    metadata={"run": "7"},
    span_id=f"{1:016x}",
    error={"error_code": "LATE", "error_message": "too late"},
)


@pytest.fixture
def table(tmp_path: Path) -> Destination:
    return write_table(tmp_path / "spans", [span(1)])


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch) -> Iterator[MockWorkspace]:
    with MockWorkspace() as made:
        prepare(made, monkeypatch)
        yield made


def info(destination: Destination) -> TraceInfo:
    return get_infos(destination, [TRACE_ID])[0]


def files(destination: Destination) -> DeltaTable:
    return DeltaTable(annotations_name(destination.target))


def test_tags(table: Destination) -> None:
    annotate.set_tags(table, f"tr-{TRACE_ID}", {"team": "blue", "empty": ""})
    annotate.set_tags(table, TRACE_ID, {"team": "red"})
    assert info(table).tags == {"team": "red", "empty": ""}
    annotate.delete_tag(table, TRACE_ID, "team")
    assert info(table).tags == {"empty": ""}
    annotate.set_tags(table, TRACE_ID, {})
    assert files(table).version() == 3


def test_runs(table: Destination) -> None:
    annotate.link_run(table, [TRACE_ID, TRACE_ID], "a")
    annotate.link_run(table, [TRACE_ID], "b")
    annotate.unlink_run(table, [TRACE_ID], "a")
    assert info(table).run_ids == ("b",)


def test_assessment(table: Destination) -> None:
    """All of it comes back; it may be changed, and removed."""
    made = annotate.log_assessment(table, TRACE_ID, FEEDBACK)
    assert made.assessment_id.startswith("a-")
    assert replace(made, assessment_id="", create_time_us=0, update_time_us=0) == FEEDBACK
    found = annotate.get_assessment(table, TRACE_ID, made.assessment_id)
    assert replace(found, update_time_us=made.update_time_us) == made
    changed = annotate.update_assessment(table, TRACE_ID, replace(found, value="good", rationale=None))
    (found,) = info(table).assessments
    assert (found.value, found.rationale, found.create_time_us) == ("good", None, made.create_time_us)
    assert found.update_time_us >= changed.update_time_us > made.update_time_us
    annotate.delete_assessment(table, TRACE_ID, made.assessment_id)
    assert info(table).assessments == ()
    with pytest.raises(QueryError, match="no assessment"):
        annotate.get_assessment(table, TRACE_ID, made.assessment_id)


def test_expectation_that_json_cannot_hold(table: Destination) -> None:
    held = Assessment("", "expectation", "answer", '{"a": 1}', serialization_format="JSON_FORMAT")
    annotate.log_assessment(table, TRACE_ID, held)
    (found,) = info(table).assessments
    assert (found.kind, found.value, found.serialization_format) == ("expectation", '{"a": 1}', "JSON_FORMAT")


def test_assessment_that_overrides_another(table: Destination) -> None:
    """The other is not valid, until the one that overrides it is removed."""
    first = annotate.log_assessment(table, TRACE_ID, FEEDBACK)
    second = annotate.log_assessment(table, TRACE_ID, replace(FEEDBACK, overrides=first.assessment_id))
    assert [(each.assessment_id, each.valid) for each in info(table).assessments] == [
        (first.assessment_id, False),
        (second.assessment_id, True),
    ]
    annotate.delete_assessment(table, TRACE_ID, second.assessment_id)
    assert [(each.assessment_id, each.valid) for each in info(table).assessments] == [(first.assessment_id, True)]
    with pytest.raises(QueryError, match="no assessment 'a-unknown'"):
        annotate.log_assessment(table, TRACE_ID, replace(FEEDBACK, overrides="a-unknown"))


def test_before_there_are_spans(tmp_path: Path) -> None:
    """What is said of a trace whose spans are under way is found with them."""
    destination = parse_target(str(tmp_path / "spans"))
    annotate.set_tags(destination, TRACE_ID, {"team": "blue"})
    annotate.log_assessment(destination, TRACE_ID, FEEDBACK)
    write_table(tmp_path / "spans", [span(1)])
    found = info(destination)
    assert (found.tags, len(found.assessments)) == ({"team": "blue"}, 1)


@pytest.mark.slow
def test_many_at_once_are_few_commits(table: Destination) -> None:
    """Each is there when its call returns, and those that wait for one another are committed together."""
    missing: list[str] = []

    def tag(number: int) -> None:
        for turn in range(5):
            annotate.set_tags(table, TRACE_ID, {f"{number}.{turn}": "x"})
            if f"{number}.{turn}" not in info(table).tags:
                missing.append(f"{number}.{turn}")

    threads = [threading.Thread(target=tag, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not missing
    assert len(info(table).tags) == 40
    assert files(table).version() < 40


@pytest.mark.slow
def test_files_stay_few(table: Destination) -> None:
    """They are put together as those of spans are, and the newest version still counts."""
    for number in range(61):
        annotate.set_tags(table, TRACE_ID, {"turn": str(number)})
    assert info(table).tags == {"turn": "60"}
    assert len(files(table).file_uris()) < 30


def test_what_is_refused(table: Destination) -> None:
    with pytest.raises(QueryError, match="not a trace id"):
        annotate.set_tags(table, "trace-1", {"a": "b"})
    with pytest.raises(QueryError, match="cannot be stored"):
        annotate.log_assessment(table, TRACE_ID, replace(FEEDBACK, value=2**200))
    with pytest.raises(QueryError, match="is not a table"):
        annotate.set_tags(parse_target("http://127.0.0.1:1"), TRACE_ID, {"a": "b"})
    assert info(table).assessments == ()


def test_directory_that_takes_none(table: Destination, tmp_path: Path) -> None:
    (tmp_path / "annotations").write_text("a file")
    with pytest.raises(DeliveryError, match="annotations"):
        annotate.set_tags(table, TRACE_ID, {"a": "b"})


@pytest.mark.parametrize("managed", [False, True])
def test_in_unity_catalog(workspace: MockWorkspace, managed: bool) -> None:
    """By a SQL warehouse, which makes the table; whatever is annotated comes back the same."""
    filled(workspace, 2)
    destination = parse_target("main.obs.spans")
    with pytest.raises(QueryError, match="CREATE TABLE IF NOT EXISTS"):
        annotate.set_tags(destination, TRACE_ID, {"team": "blue"})
    workspace.grant("CREATE TABLE", on="main.obs", to=AGENT)
    if managed:
        close_files(workspace)
    annotate.set_tags(destination, TRACE_ID, {"team": "it's \\ blue"})
    made = annotate.log_assessment(destination, TRACE_ID, FEEDBACK)
    annotate.put_info(destination, TRACE_ID, {"trace_metadata": {"a": "b"}, "state": "OK"})
    annotate.link_run(destination, [TRACE_ID], "run")
    found = info(destination)
    assert (found.tags, found.metadata, found.run_ids) == ({"team": "it's \\ blue"}, {"a": "b"}, ("run",))
    assert replace(found.assessments[0], update_time_us=made.update_time_us) == made
    annotate.delete_traces(destination, [TRACE_ID])
    assert get_infos(destination, [TRACE_ID]) == []


def test_in_an_external_table(workspace: MockWorkspace, tmp_path: Path) -> None:
    """To its files, by credentials of the catalog."""
    filled(workspace, 1)
    columns = {field["name"]: field["type"] for field in annotations_schema()["fields"]}
    workspace.create_table("main.obs.annotations", columns=columns, location=str(tmp_path / "files"))
    destination = parse_target("main.obs.spans")
    before = len(workspace.requests("/api/2.0/sql/statements"))
    annotate.set_tags(destination, TRACE_ID, {"team": "blue"})
    assert info(destination).tags == {"team": "blue"}
    assert len(workspace.requests("/api/2.0/sql/statements")) == before
