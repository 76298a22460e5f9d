"""Row parity: for the same program, our rows are what MLflow's own Unity Catalog exporter sends, but for a short list.

The program runs once with MLflow's exporter against a mocked workspace, and once with tracelake for each schema
version. What MLflow sent is decoded and made into rows by the code that makes our own; then every cell of every row is
compared. docs/mlflow.md has the list of differences, in words.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.lake import Lake, open_lake
from tracelake.spans import tables, variant
from tracelake.spans.otlp import from_otlp
from tracelake.spans.record import FLAG_HAS_IS_REMOTE, FLAG_IS_REMOTE, SpanRecord
from tracelake.spans.rows import to_arrow
from tracelake.spans.values import json_text
from tracelake.testing import MockWorkspace

pytestmark = pytest.mark.slow  # MLflow runs twice, on two schemas

PROGRAM = str(Path(__file__).parent / "apps" / "mlflow_program.py")

Row = dict[str, Any]
Cells = dict[str, str]
# By cell: what MLflow sends, and what our row has.
Differences = dict[str, tuple[str, str]]
ABSENT = "(absent)"

# The differences of all spans: what MLflow's exporter leaves unset, and the id of a trace that is in no workspace.
SCOPE = "mlflow.tracing.provider"
KINDS = {"otel root": "SPAN_KIND_SERVER", "otel client": "SPAN_KIND_CLIENT"}
# MLflow itself gives the traces of remote callers an id of no workspace.
REMOTE_SPANS = {"of a caller", "below that of a caller"}
LIBRARY_SPANS = {"otel root", "otel client", "otel raises", "otel under mlflow", "otel by mlflow"}

# The attributes that root spans have more: MLflow sends a request of its own for them. Of that, our rows leave out the
# sizes of what MLflow sent, and a tag that is set after the root span has ended, while MLflow waits for a late child.
NOT_CARRIED = {"mlflow.trace.sizeBytes", "mlflow.trace.sizeStats", "late"}
SCHEMA_VERSION = "mlflow.trace_schema.version"
SET_BY_HAND = {
    "trace": {"client_request_id": "request-1", "request_preview": "Why?", "response_preview": "Because."},
    "state by hand": {"state": "ERROR"},
    # OpenTelemetry leaves the status of a span unset where MLflow sets it.
}

# Attributes of OpenTelemetry's spans: MLflow's exporter takes every text for JSON, and loses what is false.
LIBRARY_VALUES = {
    "otel root": {
        "text of a number": (123, "123"),
        "text of a float": (1.5, "1.50"),
        "text that is JSON": ({"a": [1, None]}, '{"a": [1, null]}'),
        "text in quotes": ("quoted", '"quoted"'),
        "text of NaN": (float("nan"), "NaN"),
        "text of null": (None, "null"),
        "empty text": (None, ""),
        "zero": (None, 0),
        "float zero": (None, 0.0),
        "false": (None, False),
        "empty": (None, []),
        "bytes of a number": (
            12,
            BoundedAttributes(attributes={"b": b"12"})["b"],
        ),  # early versions make texts of bytes
    },
    # What MLflow sets on a span of a library is JSON, too, and cannot be told from the library's texts.
    "otel by mlflow": {
        "text by mlflow": ("x", '"x"'),
        "number by mlflow": (3, "3"),
        "dict by mlflow": ({"a": [1]}, '{"a": [1]}'),
    },
}

# Links: MLflow's exporter leaves out flags and trace state.
LINKS = {
    "links": dict.fromkeys(("links.0.flags", "links.1.flags", "links.2.flags"), ("0", str(FLAG_HAS_IS_REMOTE))),
    "otel root": {
        "links.0.flags": ("0", str(FLAG_HAS_IS_REMOTE | FLAG_IS_REMOTE | 1)),
        "links.0.trace_state": ("''", "'vendor=value'"),
    },
}

# Spans that MLflow's exporter cannot send: with an integer of more than 64 bits, or nested too deep for protobuf.
LOST_BY_MLFLOW = {"hard: huge", "hard: huge in a dict", "hard: deeper"}

# The times that the program sets are before this one.
NOT_SET = 1_750_000_000 * 10**9

# Lone surrogates: a question mark at MLflow, an escape and a note in our row.
SURROGATES = {"values", "value: surrogate", "value: surrogate in a dict"}
ESCAPE = re.compile(r"\\+ud[89a-f][0-9a-f]{2}")


@dataclass
class Runs:
    """What came of the program: by MLflow's exporter, and by tracelake in each schema version."""

    sent: list[SpanRecord]
    spans_tables: set[str]
    infos: dict[str, dict[str, Any]]
    rows: dict[tables.Version, list[Row]]
    outputs: list[str]

    def pairs(self, version: tables.Version) -> list[tuple[Row, Row]]:
        """Return the rows of each span that MLflow sent and that we have."""
        ours = by_span(self.rows[version])
        theirs = by_span(to_arrow(self.sent, tables.span_schema(version)).to_pylist())
        return [(row, ours[span_id]) for span_id, row in theirs.items() if span_id in ours]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Run the program three times at once."""
    root = tmp_path_factory.mktemp("parity")
    for name in ("mlflow", "v1", "v2"):
        (root / name).mkdir()
    with (
        MockWorkspace() as workspace,
        open_lake(root / "mlflow") as plain,
        open_lake(root / "v1") as v1,
        open_lake(root / "v2") as v2,
    ):
        workspace.create_schema("main.obs")
        del plain.environ["TRACELAKE_DESTINATION"]
        plain.environ |= {
            **workspace.environment(),
            "EXPERIMENT": "/parity",
            # A span that cannot be sent takes those of its batch with it; so each goes by itself.
            "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
        }
        lakes: dict[tables.Version, Lake] = {1: v1, 2: v2}
        for version, lake in lakes.items():
            lake.environ["TRACELAKE_SCHEMA_VERSION"] = str(version)
        outputs = _run(plain, v1, v2)
        refused = [(each.status, each.request.path) for each in workspace.requests() if each.status >= 400]
        assert refused == [(404, "/api/2.0/mlflow/experiments/get-by-name")]
        exports = [each.request for each in workspace.requests("/api/2.0/otel")]
        yield Runs(
            sent=[
                record
                for request in exports
                for record in from_otlp(ExportTraceServiceRequest.FromString(request.body))
            ],
            spans_tables={request.headers["x-databricks-uc-table-name"] for request in exports},
            infos=dict(_infos(workspace)),
            rows={version: _rows(lake) for version, lake in lakes.items()},
            outputs=outputs,
        )


def _infos(workspace: MockWorkspace) -> Iterator[tuple[str, dict[str, Any]]]:
    for exchange in workspace.requests("/api/4.0/mlflow/traces/"):
        if exchange.request.method == "POST" and exchange.request.path.endswith("/info"):
            yield exchange.request.path.split("/")[-2], exchange.request.json()


def _run(*lakes: Lake) -> list[str]:
    settings = {
        "DATABRICKS_CONFIG_FILE": "-",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACE_SAMPLING_RATIO": "1.0",
        "OTEL_RESOURCE_ATTRIBUTES": "team=search,service.instance.id=1",
        "OTEL_SERVICE_NAME": "agent",
    }
    processes = [lake.start(sys.executable, PROGRAM, **settings) for lake in lakes]
    codes = [process.wait(60) for process in processes]
    outputs = [lake.output(process) for lake, process in zip(lakes, processes, strict=True)]
    assert codes == [0] * len(lakes), "\n".join(outputs)
    return outputs


def _rows(lake: Lake) -> list[Row]:
    lake.settle()
    rows: list[Row] = DeltaTable(lake.table).to_pyarrow_table().to_pylist()
    return rows


def by_span(rows: list[Row]) -> dict[str, Row]:
    found = {row["span_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def cells_of(row: Row) -> Cells:
    """Return the cells of a row, those of its structs and maps one by one, but for times and the row's own id."""
    cells: Cells = {}
    _flatten("", {name: value for name, value in row.items() if name not in ("record_id", "time", "date")}, cells)
    return {path: value for path, value in cells.items() if not path.endswith("time_unix_nano")}


def _flatten(path: str, value: Any, cells: Cells) -> None:
    name = path.rpartition(".")[2]
    if name == "attributes" and value is not None:
        if isinstance(value, dict):
            value = variant.decode(value["metadata"], value["value"])
        cells.update({f"{path}.{key}": repr(item) for key, item in dict(value).items()})
    elif isinstance(value, dict):
        for key, item in value.items():
            _flatten(f"{path}.{key}".lstrip("."), item, cells)
    elif name in ("events", "links"):
        cells[f"{path}.length"] = str(len(value))
        for index, item in enumerate(value):
            _flatten(f"{path}.{index}", item, cells)
    else:
        cells[path] = repr(value)


def cell(value: Any, version: tables.Version) -> str:
    """Return the cell of an attribute value."""
    return repr(value if version == 2 else json_text(value))


def differences(theirs: Row, ours: Row) -> Differences:
    """Return the cells in which two rows differ."""
    left, right = cells_of(theirs), cells_of(ours)
    pairs = {path: (left.get(path, ABSENT), right.get(path, ABSENT)) for path in left | right}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


def expected(ours: Row, version: tables.Version) -> Differences:
    """Return the differences of a span, but for those of its trace."""
    name, trace_id = ours["name"], ours["trace_id"]
    is_library = name in LIBRARY_SPANS
    # Bit 1 says that the trace id is random, which newer versions of OpenTelemetry know.
    flags = FLAG_HAS_IS_REMOTE | (FLAG_IS_REMOTE if name == "of a caller" else 0) | ours["flags"] & 2 | 1
    found = {
        "kind": ("'SPAN_KIND_UNSPECIFIED'", repr(KINDS.get(name, "SPAN_KIND_INTERNAL"))),
        "flags": ("0", str(flags)),
        "instrumentation_scope.name": ("''", repr("some.library" if is_library else SCOPE)),
        **LINKS.get(name, {}),
    }
    if name not in REMOTE_SPANS:
        ids = repr(f"trace:/main.obs.agent/{trace_id}"), repr(f"tr-{trace_id}")
        found["attributes.mlflow.traceRequestId"] = ids
    if is_library:
        found["instrumentation_scope.version"] = ("''", "'1.2'")
        found["instrumentation_scope.attributes.scope"] = (ABSENT, cell(1, version))
    for key, (mlflows, own) in LIBRARY_VALUES.get(name, {}).items():
        pair = cell(mlflows, version), cell(own, version)
        if pair[0] != pair[1]:  # as text, some are the same
            found[f"attributes.{key}"] = pair
    return found


def expected_of_trace(info: dict[str, Any], name: str) -> Differences:
    """Return the attributes that our root span has more, from what MLflow sent of the trace."""
    assert info["trace_metadata"][SCHEMA_VERSION] == "4"
    metadata = info["trace_metadata"] | {SCHEMA_VERSION: "3"}
    carried = {f"tag.{key}": value for key, value in info["tags"].items() if key not in NOT_CARRIED}
    carried |= {f"metadata.{key}": value for key, value in metadata.items() if key not in NOT_CARRIED}
    carried |= SET_BY_HAND.get(name, {})
    return {f"attributes.mlflow.trace.{key}": (ABSENT, repr(value)) for key, value in carried.items()}


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_rows_are_what_mlflow_sends(runs: Runs, version: tables.Version) -> None:
    """Every cell of every row is as MLflow's exporter sends it, or differs as the tables above say."""
    assert runs.spans_tables == {"main.obs.agent_otel_spans"}
    pairs = runs.pairs(version)
    assert len(pairs) > 110
    wrong: dict[str, tuple[Differences, Differences]] = {}
    for theirs, ours in pairs:
        name = ours["name"]
        wanted = expected(ours, version)
        if ours["parent_span_id"] is None:
            wanted |= expected_of_trace(runs.infos[ours["trace_id"]], name)
        found = differences(theirs, ours)
        if name in SURROGATES:
            assert found.pop("attributes.tracelake.degraded")[0] == ABSENT
            escaped = {path: pair for path, pair in found.items() if ESCAPE.search(pair[1])}
            assert escaped, name
            for path, (mlflows, own) in escaped.items():
                assert ESCAPE.sub("?", own) == mlflows, (name, path)
                del found[path]
        if found != wanted:
            wrong[name] = (found, wanted)
    assert not wrong


@pytest.mark.parametrize("version", [1, 2])
def test_times_are_those_of_the_program(runs: Runs, version: tables.Version) -> None:
    """Times that the program sets are the same to the nanosecond; others are those of its run."""
    of_the_program = 0
    for theirs, ours in runs.pairs(version):
        start, end = ours["start_time_unix_nano"], ours["end_time_unix_nano"]
        times = [(theirs["start_time_unix_nano"], start), (theirs["end_time_unix_nano"], end)]
        events = zip(theirs["events"], ours["events"], strict=True)
        times += [(sent["time_unix_nano"], event["time_unix_nano"]) for sent, event in events]
        for sent, own in times:
            is_set = sent < NOT_SET
            assert own == sent if is_set else abs(own - sent) < 120 * 10**9, ours["name"]
            of_the_program += is_set
        assert start <= end
        if version == 2:
            assert ours["time"] == datetime.fromtimestamp(start // 1000 / 1_000_000, timezone.utc)
            assert ours["date"] == ours["time"].date()
    assert of_the_program >= 8


@pytest.mark.parametrize("version", [1, 2])
def test_spans_that_mlflow_cannot_send_are_rows(runs: Runs, version: tables.Version) -> None:
    """Integers of more than 64 bits and values nested too deep cost MLflow the span, and ours a note in the row."""
    sent = {record.span_id for record in runs.sent}
    missing = [row for row in runs.rows[version] if row["span_id"] not in sent]
    assert sorted(row["name"] for row in missing) == sorted(LOST_BY_MLFLOW)
    for row in missing:
        assert "attributes.of value" in cells_of(row)["attributes.tracelake.degraded"]
    assert "Failed to log spans" in runs.outputs[0]


def test_what_is_not_carried_is_what_mlflow_sends(runs: Runs) -> None:
    """MLflow does send of some trace what our rows leave out."""
    sent = {key for info in runs.infos.values() for key in (*info["tags"], *info["trace_metadata"])}
    assert sent >= NOT_CARRIED


def test_both_have_the_same_spans(runs: Runs) -> None:
    """What MLflow sends is in the table, and what it cannot send; what is not sampled or switched off is in neither."""
    names = {record.name for record in runs.sent}
    assert "sometimes" in names
    assert not names & {"never", "child of never", "switched off"}
    for rows in runs.rows.values():
        assert {row["name"] for row in rows} == names | LOST_BY_MLFLOW
        assert {row["span_id"] for row in rows} >= {record.span_id for record in runs.sent}


def test_mlflow_is_asked_for_nothing(runs: Runs) -> None:
    """With tracelake, MLflow warns of nothing that it does not warn of by itself, and sets up no store."""
    own = {line.rpartition(" WARNING ")[2] for line in runs.outputs[0].splitlines()}
    assert any("Span processor fail failed" in line for line in own)
    for output in runs.outputs[1:]:
        assert {line.rpartition(" WARNING ")[2] for line in output.splitlines()} <= own
