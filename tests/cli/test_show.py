from __future__ import annotations

import json
import re

import pytest

from tests.cli.commands import Place
from tests.cli.test_main import DOCS
from tests.query.samples import full_span, write_table
from tests.spans.samples import TRACE_ID, span
from tracelake.query import annotate
from tracelake.query.infos import Assessment


def test_show_prints_the_tree_of_the_environments_table(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any option."""
    write_table(place.path / "table", [full_span(1), span(2, parent_span_id=f"{1:016x}")])
    monkeypatch.setenv("TRACELAKE_DESTINATION", "./table")
    result = place.run("show", TRACE_ID)
    assert (result.code, result.err) == (0, "")
    assert "span 1 (TOOL, search)" in result.out
    assert "ERROR: failed" in result.out
    assert "└─ span 2" in result.out or "`- span 2" in result.out


def test_show_reads_the_embedded_default(place: Place) -> None:
    """The table beside the program."""
    write_table(place.path / "tracelake" / "spans", [span(1)])
    assert "span 1" in place.call("show", f"tr-{TRACE_ID.upper()}").out


@pytest.mark.parametrize("version", [1, 2])
def test_show_json_has_the_documented_fields(place: Place, version: int) -> None:
    """One object, with every span."""
    write_table(place.path / "table", [full_span(1), span(2, parent_span_id=f"{1:016x}")], version)
    found = json.loads(place.call("show", TRACE_ID, "--target", "./table", "--json").out)
    section = DOCS.split("\n## `tracelake show", 1)[1].split("\n## ", 1)[0]
    for name in [*found, *found["spans"][0]]:
        assert f"`{name}`" in section, name
    first, second = found["spans"]
    assert found["trace_id"] == TRACE_ID
    assert first["service_name"] == "search"
    assert first["status"] == {"code": "STATUS_CODE_ERROR", "message": "failed"}
    assert first["attributes"]["count"] == (3 if version == 2 else "3")
    assert second["parent_span_id"] == first["span_id"]
    assert second["duration_ns"] == 1_000


def test_show_of_a_trace_that_is_not_there_fails_with_what_to_do(place: Place) -> None:
    """Exit code 1, and nothing on stdout."""
    write_table(place.path / "table", [span(1)])
    result = place.call("show", "e" * 32, "--target", "./table")
    assert (result.code, result.out) == (1, "")
    assert "no span of trace" in result.err
    assert "tracelake status" in result.err


def test_show_without_a_table_fails_with_what_to_do(place: Place) -> None:
    """And makes none."""
    result = place.call("show", TRACE_ID)
    assert result.code == 1
    assert "There is no table at" in result.err
    assert not (place.path / "tracelake").exists()


def test_show_has_what_is_known_beside_the_spans(place: Place) -> None:
    """Session, tags and feedback above the tree; a deleted trace is said to be."""
    root = span(1, attributes={"session.id": "s1", "mlflow.trace.tag.team": "blue"})
    destination = write_table(place.path / "table", [root])
    feedback = Assessment("", "feedback", "helpful", True, "HUMAN", "ann", "it is \x1b[1m right")
    annotate.log_assessment(destination, TRACE_ID, feedback)
    out = place.call("show", TRACE_ID, "--target", "./table").out
    assert out.splitlines()[2:5] == [
        "session s1",
        "tags team=blue",
        r"feedback helpful = true (HUMAN ann): it is \x1b[1m right",
    ]
    annotate.delete_traces(destination, [TRACE_ID])
    result = place.call("show", TRACE_ID, "--target", "./table", "--json")
    assert json.loads(result.out)["info"] is None
    assert f"trace {TRACE_ID} is deleted" in result.err


def drawn(out: str) -> int:
    """Return how many spans a tree has."""
    return len(re.findall(r"\bspan \d+$", out, re.MULTILINE))


def test_show_draws_as_much_of_a_large_trace_as_anybody_reads(place: Place) -> None:
    """And all of it if asked."""
    records = [span(number, parent_span_id=f"{number // 2:016x}") for number in range(2, 1_002)]
    write_table(place.path / "table", records)
    result = place.call("show", TRACE_ID, "--target", "./table")
    assert drawn(result.out) == 500
    assert "500 of 1,000 spans are shown" in result.err
    assert "No root span is in this table yet" in result.out
    result = place.call("show", TRACE_ID, "--target", "./table", "--all")
    assert drawn(result.out) == 1_000
    assert "are shown" not in result.err
