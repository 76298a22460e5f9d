"""What a program reads back: from where it records to, or from a table that it names."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import tracelake
from tests.destinations.unity.conftest import prepare
from tests.query.samples import full_span, service_span, write_table
from tests.spans.samples import TRACE_ID, span
from tracelake.destinations.base import Batch
from tracelake.destinations.targets import parse_target
from tracelake.testing import MockWorkspace

VERSIONS = pytest.mark.parametrize("version", [1, 2])
ROOT = service_span(
    1,
    "agent",
    name="answer",
    attributes={
        "mlflow.spanInputs": {"question": "why?"},
        "mlflow.spanOutputs": "because",
        "mlflow.spanType": "AGENT",
        "mlflow.trace.tag.team": "search",
        "mlflow.trace.metadata.mlflow.trace.session": "s-1",
    },
)
CHILD = service_span(2, "tools", parent_span_id=ROOT.span_id, status_code=2, status_message="no", attributes={"n": 3})


@pytest.fixture(params=[1, 2])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    write_table(tmp_path / "table", [ROOT, CHILD], request.param)
    return str(tmp_path / "table")


def test_what_is_recorded_here_is_read_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No table is named twice: it is the destination in force, also that of a block."""
    monkeypatch.setenv("TRACELAKE_SPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("TRACELAKE_SHIPPER", "inline")
    with tracelake.destination(str(tmp_path / "inner")):
        with tracelake.start_span("inner") as active:
            trace_id = active.trace_id
        assert tracelake.flush().complete
        assert [each.name for each in tracelake.get_trace(trace_id).spans] == ["inner"]
        assert list(tracelake.sql("SELECT name FROM spans")) == [{"name": "inner"}]
    with pytest.raises(tracelake.QueryError, match="There is no table at"):
        tracelake.get_trace(trace_id, target=tmp_path / "other")


def test_table_of_the_environment(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook that records nothing."""
    monkeypatch.setenv("TRACELAKE_DESTINATION", f"{table},otlp+http://127.0.0.1:1")
    assert len(tracelake.get_trace(f"tr-{TRACE_ID}").spans) == 2


def test_rule_for_recording_is_none_for_reading(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory may be read also where traces have to go to Unity Catalog."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    assert tracelake.get_trace(TRACE_ID, target=table).roots[0].name == "answer"


def test_rows_of_a_query(table: str) -> None:
    """One by one, at once, and as a frame of pandas."""
    rows = tracelake.sql("SELECT name, attributes, events FROM spans ORDER BY span_id", target=table)
    assert (len(rows), rows.columns, repr(rows)) == (
        2,
        ["name", "attributes", "events"],
        "<2 rows of name, attributes, events>",
    )
    assert [row["name"] for row in rows] == ["answer", "span 2"]
    frame = rows.to_pandas()
    assert list(frame["name"]) == ["answer", "span 2"]
    assert frame["attributes"][0]["mlflow.spanType"] == "AGENT"
    assert rows.to_arrow().num_rows == 2
    nothing = tracelake.sql("SELECT name FROM spans WHERE name = 'nobody'", target=table)
    assert (list(nothing), list(nothing.to_pandas().columns)) == ([], ["name"])


def test_spans_of_a_trace(table: str) -> None:
    """As plain values, Arrow and a frame of pandas."""
    trace = tracelake.get_trace(TRACE_ID, target=table)
    first, second = trace.to_dicts()
    assert (first["service_name"], second["parent_span_id"]) == ("agent", first["span_id"])
    json.dumps(trace.to_dicts())
    assert trace.to_arrow().column("name").to_pylist() == ["answer", "span 2"]
    frame = trace.to_pandas()
    assert list(frame.columns) == list(first)
    assert list(frame["service_name"]) == ["agent", "tools"]


def test_trace_as_mlflows(table: str) -> None:
    """With the values that MLflow itself would show, from both versions of the table."""
    mlflow = pytest.importorskip("mlflow")
    found = tracelake.get_trace(TRACE_ID, target=table).to_mlflow()
    assert isinstance(found, mlflow.entities.Trace)
    assert (found.info.trace_id, found.info.state.value) == (f"tr-{TRACE_ID}", "OK")
    assert (found.info.tags["team"], found.info.trace_metadata["mlflow.trace.session"]) == ("search", "s-1")
    assert (found.info.request_preview, found.info.response_preview) == ('{"question":"why?"}', "because")
    assert found.info.execution_duration == (ROOT.end_time_unix_nano - ROOT.start_time_unix_nano) // 1_000_000
    root, child = found.data.spans
    assert (root.inputs, root.outputs, root.span_type) == ({"question": "why?"}, "because", "AGENT")
    assert (child.parent_id, child.status.status_code.value, child.status.description) == (root.span_id, "ERROR", "no")
    assert root.start_time_ns == ROOT.start_time_unix_nano
    assert "mlflow.trace.tag.team" not in root.attributes
    assert mlflow.entities.Trace.from_json(found.to_json()).data.spans[0].inputs == {"question": "why?"}


def test_trace_without_a_root_is_none_of_mlflows(tmp_path: Path) -> None:
    """The message says what may be done."""
    pytest.importorskip("mlflow")
    destination = write_table(tmp_path / "table", [CHILD])
    with pytest.raises(tracelake.QueryError, match=r"has no root span yet.*Try again"):
        tracelake.get_trace(TRACE_ID, target=destination).to_mlflow()


def test_trace_with_every_kind_of_value_becomes_mlflows(tmp_path: Path) -> None:
    """What JSON has not is text there."""
    pytest.importorskip("mlflow")
    odd = span(1, attributes={"bytes": b"\0\xff", "nan": float("nan"), "deep": {"a": [1, {"b": None}]}, "text": "{"})
    destination = write_table(tmp_path / "table", [odd, full_span(2)], 2)
    found = tracelake.get_trace(TRACE_ID, target=destination).to_mlflow()
    assert found.data.spans[0].attributes["deep"] == {"a": [1, {"b": None}]}
    assert found.data.spans[0].attributes["text"] == "{"


@pytest.mark.parametrize(("package", "convert"), [("pandas", "to_pandas"), ("mlflow.entities", "to_mlflow")])
def test_package_that_is_missing(table: str, monkeypatch: pytest.MonkeyPatch, package: str, convert: str) -> None:
    """Is named with the command that installs it."""
    trace = tracelake.get_trace(TRACE_ID, target=table)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(tracelake.MissingDependencyError, match=f"pip install {package.partition('.')[0]}"):
        getattr(trace, convert)()


def test_table_in_unity_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name, as it is written to."""
    with MockWorkspace() as workspace:
        prepare(workspace, monkeypatch)
        workspace.create_table("main.obs.spans")
        assert not parse_target("main.obs.spans").open().write(Batch("tests", 1, 1_000, lambda: iter([[ROOT, CHILD]])))
        assert tracelake.get_trace(TRACE_ID, target="main.obs.spans").roots[0].attributes["mlflow.spanType"] == "AGENT"
        assert tracelake.sql("SELECT 1 FROM spans", target="main.obs.spans").to_arrow().num_rows == 2
