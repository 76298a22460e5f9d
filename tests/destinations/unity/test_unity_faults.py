"""What goes wrong around a table in Unity Catalog while spans are delivered: each waits, and arrives."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from deltalake import DeltaTable, Field, Schema
from deltalake.schema import PrimitiveType

from tests.destinations.contract import batch, spans
from tests.lake import Lake
from tests.numbered import add_segment, lines
from tests.shipper.conftest import Clock, make_lane
from tests.testing.rest import Rest
from tracelake import BatchExistsError, TransientDeliveryError
from tracelake.destinations.base import Progress
from tracelake.settings import Settings
from tracelake.shipper.backoff import Backoff
from tracelake.shipper.lane import LaneShipper
from tracelake.spans import tables
from tracelake.spool.ledger import InFlight, Range, read_delivery, read_ledger, write_in_flight
from tracelake.testing import MockWorkspace

from .conftest import AGENT, Place, prepare, unity_sink
from .gate import EXPIRED, Gate

NAME = "main.obs.spans"
TABLES = "/api/2.1/unity-catalog/tables"
VEND = "/api/2.1/unity-catalog/temporary-table-credentials"
OTLP = "/api/2.0/otel"


class Delivery:
    """A lane to one table, and its shipper, whose time stands still."""

    def __init__(self, lake: Lake, target: str = f"uc://{NAME}") -> None:
        self.clock = Clock()
        self.backoff = Backoff(random.Random(1))
        self.lane = make_lane(lake, target)
        self.shipper = self._new_shipper()

    def restart(self) -> None:
        """Go on as another process does after this one died."""
        self.shipper = self._new_shipper()

    def record(self, *numbers: int) -> str:
        """Put spans into the spool, and return the path of their segment."""
        return add_segment(self.lane, lines(numbers))

    def ship(self, *numbers: int) -> str:
        """Deliver what there is, and return the error if that fails."""
        if numbers:
            self.record(*numbers)
        while self.shipper.ship(flush=True):
            continue
        delivery = read_delivery(self.lane)
        return "" if delivery.state == "delivering" else f"{delivery.state}: {delivery.error}"

    def ship_for(self, seconds: float) -> list[float]:
        """Let time pass, and return when something was tried: the times since now."""
        begin_s, tried = self.clock.now_s, []
        while self.clock.now_s < begin_s + seconds:
            before = self.backoff.attempts
            self.shipper.ship()
            if self.backoff.attempts > before:
                tried.append(self.clock.now_s - begin_s)
            self.clock.now_s = max(self.clock.now_s + 1, self.backoff.next_try_s)
        return tried

    def _new_shipper(self) -> LaneShipper:
        return LaneShipper(self.lane, Settings(batch_max_age_s=0), clock=self.clock, backoff=self.backoff)


@pytest.fixture
def delivery(lake: Lake) -> Delivery:
    return Delivery(lake)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def new_table(workspace: MockWorkspace, tmp_path: Path) -> Callable[..., Place]:
    """Makes the table, external in a directory of this name, or managed without one."""

    def make(directory: str = "table", version: tables.Version = 2) -> Place:
        location = str(tmp_path / directory) if directory else ""
        workspace.create_table(NAME, schema_version=version, location=location)
        return Place(workspace, NAME)

    return make


NewTable = Callable[..., Place]


# --- the catalog -----------------------------------------------------------------------------------------------------


def test_catalog_that_is_down(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans wait, for a process that ran before as for one that starts meanwhile, and arrive once it is up again."""
    directory = str(lake.root / "workspace")
    delivery = Delivery(lake)
    with MockWorkspace(directory) as workspace:
        prepare(workspace, monkeypatch)
        workspace.create_table(NAME, location=lake.table)
        port = int(workspace.url.rpartition(":")[2])
        assert delivery.ship(1, 2) == ""
    assert delivery.ship(3).startswith("retrying: ")
    delivery.restart()
    error = delivery.ship(4)
    assert error.startswith("retrying: ")
    assert f"http://127.0.0.1:{port} is not reached: " in error
    assert "Connection refused" in error
    with MockWorkspace(directory) as workspace:
        workspace.serve(port=port)
        assert delivery.ship() == ""
        assert Place(workspace).numbers() == [1, 2, 3, 4]


def test_catalog_that_is_down_at_the_start_of_a_service_principal(
    workspace: MockWorkspace, delivery: Delivery, new_table: NewTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nobody to give it a token, which is no fault of its settings."""
    table = new_table()
    principal = workspace.add_service_principal("job")
    workspace.grant("ALL PRIVILEGES", "EXTERNAL USE SCHEMA", on="main", to=principal.name)
    monkeypatch.delenv("DATABRICKS_TOKEN")
    for name, value in workspace.environment(principal.name).items():
        monkeypatch.setenv(name, value)
    for path in ("/oidc/v1/token", "/.well-known"):
        workspace.faults.fail(None, path=path)
        error = delivery.ship(1)
        assert error.startswith("retrying: "), path
        assert workspace.url in error
        workspace.faults.clear()
    assert delivery.ship() == ""
    assert table.numbers() == [1, 1]


@pytest.mark.parametrize("path", [TABLES, VEND], ids=["table", "credentials"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_catalog_that_fails_for_ten_minutes(
    workspace: MockWorkspace, delivery: Delivery, new_table: NewTable, path: str, status: int
) -> None:
    """It is tried again less and less often, never before it wants to be, and nothing is lost or there twice."""
    table = new_table()
    fail(workspace, path, status)
    delivery.record(*range(1, 101))
    tried = delivery.ship_for(600)
    assert 8 <= len(tried) <= 25
    if status == 429:
        assert min(later - earlier for earlier, later in pairwise(tried)) >= 20
    assert table.numbers() == []
    workspace.faults.clear()
    assert delivery.ship_for(1) == []
    assert table.numbers() == list(range(1, 101))


def test_busy_catalog_does_not_hold_up_its_callers(workspace: MockWorkspace, new_table: NewTable) -> None:
    """It asks for an hour, which is for the caller to wait, and to do something else meanwhile."""
    sink = new_table().open()
    workspace.faults.rate_limit(None, retry_after_s=3600, path=TABLES)
    with pytest.raises(TransientDeliveryError, match=r"^main\.obs\.spans: .*It is tried again\.") as raised:
        sink.write(batch(1, spans(1)))
    assert raised.value.retry_after_s == 3600
    assert len(workspace.requests(TABLES)) == 1


def fail(workspace: MockWorkspace, path: str, status: int) -> None:
    if status == 429:
        workspace.faults.rate_limit(None, retry_after_s=20, path=path)
    else:
        workspace.faults.fail(None, status=status, path=path)


# --- the table -------------------------------------------------------------------------------------------------------


def test_table_that_is_dropped_and_made_anew(
    workspace: MockWorkspace, delivery: Delivery, new_table: NewTable, tmp_path: Path
) -> None:
    """Spans wait while there is none, and go to the new one: elsewhere, of another version. The old files stay."""
    new_table("first", 2)
    assert delivery.ship(1) == ""
    workspace.drop(NAME)
    for number in (2, 3):
        error = delivery.ship(number)
        assert error.startswith("stopped: ")
        assert error.endswith(f"Table '{NAME}' does not exist. `tracelake doctor {NAME}` says what is missing.")
    second = new_table("second", 1)
    assert delivery.ship(4) == ""
    assert second.numbers() == [2, 3, 4]
    assert DeltaTable(tmp_path / "first").count() == 1
    workspace.drop(NAME)
    third = new_table("")
    assert delivery.ship(5) == ""
    assert third.numbers() == [5]


@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 1)])
def test_table_that_is_replaced_by_one_of_other_columns(
    workspace: MockWorkspace, delivery: Delivery, new_table: NewTable, old: tables.Version, new: tables.Version
) -> None:
    """Between two batches of one sink, which saw no error: VARIANT becomes MAP, or the other way round."""
    sink = new_table("first", old).open()
    sink.write(batch(1, spans(1)))
    sink.write(batch(2, []))
    workspace.drop(NAME)
    second = new_table("second", new)
    sink.write(batch(3, spans(2)))
    assert second.numbers() == [2]
    assert delivery.ship(3) == ""
    assert second.numbers() == [2, 3]


def test_properties_of_a_table_are_no_reason_to_open_it_anew(workspace: MockWorkspace, new_table: NewTable) -> None:
    """Databricks notes each commit in them; nor is another owner."""
    table = new_table()
    sink = table.open()
    sink.write(batch(1, spans(1)))
    for number in (2, 3):
        properties = {"delta.lastCommitTimestamp": str(number), "otel.schemaVersion": "v2"}
        Rest(workspace).ok("PATCH", f"2.1/unity-catalog/tables/{NAME}", {"properties": properties, "owner": AGENT})
        sink.write(batch(number, spans(number)))
    assert len(workspace.requests(VEND)) == 1
    assert table.numbers() == [1, 2, 3]


def alter(location: Path, change: Callable[[list[dict[str, object]]], None]) -> None:
    """Change the columns of an empty Delta table as ALTER TABLE or CREATE OR REPLACE TABLE do."""
    table = DeltaTable(location)
    schema = json.loads(table.schema().to_json())
    change(schema["fields"])
    DeltaTable.create(
        location,
        Schema.from_json(json.dumps(schema)),
        mode="overwrite",
        configuration=dict(table.metadata().configuration),
        raise_if_key_not_exists=False,
    )


def column(name: str, kind: str, *, nullable: bool = True) -> dict[str, object]:
    return {"name": name, "type": kind, "nullable": nullable, "metadata": {}}


@pytest.mark.parametrize("version", [1, 2])
def test_column_that_is_added_while_spans_are_delivered(
    delivery: Delivery, new_table: NewTable, tmp_path: Path, version: tables.Version
) -> None:
    """It stays empty."""
    table = new_table(version=version)
    assert delivery.ship(1) == ""
    DeltaTable(tmp_path / "table").alter.add_columns([Field("team", PrimitiveType("string"))])
    assert delivery.ship(2) == ""
    assert table.numbers() == [1, 2]
    assert {row["team"] for row in table.workspace.table(NAME).rows()} == {None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda fields: fields.append(column("team", "string", nullable=False)), "team"),
        (lambda fields: fields.__setitem__(slice(None), [f for f in fields if f["name"] != "span_id"]), "span_id"),
        (
            lambda fields: fields.__setitem__(
                slice(None), [column("attributes", "long") if f["name"] == "attributes" else f for f in fields]
            ),
            "attributes",
        ),
    ],
    ids=["not-null", "dropped", "type"],
)
@pytest.mark.parametrize("version", [1, 2])
def test_columns_that_cannot_hold_spans_stop_delivery(
    delivery: Delivery,
    new_table: NewTable,
    tmp_path: Path,
    version: tables.Version,
    change: Callable[[list[dict[str, object]]], None],
    said: str,
) -> None:
    """Nothing is set aside for it: the spans wait, and arrive when the columns are mended."""
    table = new_table(version=version)
    assert delivery.ship(1) == ""
    before = json.loads(DeltaTable(tmp_path / "table").schema().to_json())["fields"]
    alter(tmp_path / "table", change)
    error = delivery.ship(2)
    assert error.startswith(f"stopped: {NAME}: ")
    assert said in error
    alter(tmp_path / "table", lambda fields: fields.__setitem__(slice(None), before))
    assert delivery.ship(3) == ""
    assert table.numbers() == [2, 3]
    assert read_ledger(delivery.lane).quarantined == 0


def require(location: Path, feature: str) -> None:
    """Commit that whoever reads or writes a Delta table has to know a feature."""
    table = DeltaTable(location)
    found = table.protocol()
    protocol = {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": [*(found.reader_features or ()), feature],
        "writerFeatures": [*(found.writer_features or ()), feature],
    }
    log = location / "_delta_log" / f"{table.version() + 1:020}.json"
    log.write_text(json.dumps({"protocol": protocol}) + "\n")


@pytest.mark.parametrize("feature", ["catalogManaged", "catalogOwned-preview", "catalogOwned"])
def test_table_whose_log_says_that_its_catalog_manages_commits(
    delivery: Delivery, new_table: NewTable, tmp_path: Path, feature: str
) -> None:
    """Its files are left alone, though the catalog says nothing of it."""
    new_table()
    assert delivery.ship(1) == ""
    require(tmp_path / "table", feature)
    files = sorted((tmp_path / "table").rglob("*"))
    error = delivery.ship(2)
    assert error.startswith(f"stopped: {NAME}: ")
    assert "its commits are managed by its catalog" in error
    assert "TRACELAKE_TRANSPORT=otlp" in error
    assert sorted((tmp_path / "table").rglob("*")) == files


def test_table_that_delta_rs_cannot_write(delivery: Delivery, new_table: NewTable, tmp_path: Path) -> None:
    """A feature of Delta that it does not know is for somebody to act on, not for trying again soon."""
    new_table()
    assert delivery.ship(1) == ""
    require(tmp_path / "table", "ofTomorrow")
    error = delivery.ship(2)
    assert error.startswith("stopped: ")
    assert "ofTomorrow" in error
    assert "Update deltalake" in error


# --- privileges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("privilege", ["USE CATALOG", "USE SCHEMA", "MODIFY"])
@pytest.mark.parametrize("directory", ["table", ""], ids=["delta", "otlp"])
def test_privilege_that_is_taken_away_and_given_back(
    workspace: MockWorkspace, delivery: Delivery, new_table: NewTable, privilege: str, directory: str
) -> None:
    """Spans wait meanwhile, and the error names the table and the privilege."""
    table = new_table(directory)
    assert delivery.ship(1) == ""
    workspace.revoke(privilege, on="main", from_=AGENT)
    # Credentials for files stay good until they expire; a process that starts has none.
    delivery.restart()
    error = delivery.ship(2, 3)
    assert error.startswith(f"stopped: {NAME}: ")
    assert f"does not have {privilege} on" in error
    assert f"`tracelake doctor {NAME}` says what is missing." in error
    workspace.grant(privilege, on="main", to=AGENT)
    assert delivery.ship(4) == ""
    assert table.numbers() == [1, 2, 3, 4]


def test_renewal_that_is_denied(
    workspace: MockWorkspace, delivery: Delivery, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no other way is allowed, spans wait for the privilege; with keys that ended, nothing is written."""
    monkeypatch.setenv("TRACELAKE_TRANSPORT", "delta")
    workspace.create_table(NAME, location="s3://lake/faults/renewal")
    assert delivery.ship(1) == ""
    workspace.revoke("EXTERNAL USE SCHEMA", on="main", from_=AGENT)
    assert delivery.ship(2) == ""
    gate.refuse_key_from(lambda _: True, EXPIRED)
    error = delivery.ship(3)
    assert error.startswith(f"stopped: {NAME}: ")
    assert "does not have EXTERNAL USE SCHEMA on Schema 'main.obs'" in error
    assert len(gate.keys_used()) == 1
    workspace.grant("EXTERNAL USE SCHEMA", on="main", to=AGENT)
    assert delivery.ship(4) == ""
    assert Place(workspace).numbers() == [1, 2, 3, 4]


# --- Databricks' own engine, where the files are closed --------------------------------------------------------------


def otlp_requests(workspace: MockWorkspace) -> int:
    return len(workspace.requests(OTLP))


@pytest.mark.parametrize("closed", ["metastore", "schema"])
def test_files_that_are_closed_are_written_by_otlp_until_they_are_open(
    workspace: MockWorkspace, new_table: NewTable, clock: Clock, caplog: pytest.LogCaptureFixture, closed: str
) -> None:
    """A process of weeks does not stay with what was so at its start: it looks again each hour."""

    def open_files(is_open: bool) -> None:
        if closed == "metastore":
            workspace.set_external_access(is_open)
        else:
            (workspace.grant if is_open else _revoke(workspace))("EXTERNAL USE SCHEMA", on="main", to=AGENT)

    table = new_table()
    open_files(False)
    sink = unity_sink(clock)
    for number in (1, 2):
        sink.write(batch(number, spans(number)))
    assert (otlp_requests(workspace), len(workspace.requests(VEND))) == (2, 1)
    assert f"{NAME} is written by OTLP, at least once: its files are closed to us." in caplog.text
    open_files(True)
    clock.now_s += 3500
    sink.write(batch(3, spans(3)))
    assert otlp_requests(workspace) == 3
    clock.now_s += 200
    for number in (4, 5):
        sink.write(batch(number, spans(number)))
    assert (otlp_requests(workspace), len(workspace.requests(VEND))) == (3, 2)
    assert table.numbers() == [1, 2, 3, 4, 5]


def _revoke(workspace: MockWorkspace) -> Callable[..., None]:
    return lambda privilege, on, to: workspace.revoke(privilege, on=on, from_=to)


def test_batch_that_was_begun_by_otlp_goes_on_by_it(
    workspace: MockWorkspace, new_table: NewTable, clock: Clock
) -> None:
    """Its first request was taken and its second was not; by now the files are open. None of it is there twice."""
    table = new_table()
    workspace.set_external_access(False)
    both = replace(batch(1, spans(*range(1, 2001))), progress=Progress())
    sink = unity_sink(clock)
    workspace.faults.fail(path=OTLP, after=1)
    with pytest.raises(TransientDeliveryError):
        sink.write(both)
    assert 0 < both.progress.spans < 2000
    workspace.set_external_access(True)
    unity_sink(clock).write(both)
    assert table.numbers() == list(range(1, 2001))


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.slow
def test_endpoint_that_fails_for_ten_minutes(
    workspace: MockWorkspace, delivery: Delivery, new_table: NewTable, status: int
) -> None:
    """As the catalog: nothing is lost, and what the endpoint did not take is not there twice."""
    table = new_table("")
    fail(workspace, OTLP, status)
    delivery.record(*range(1, 101))
    tried = delivery.ship_for(600)
    assert 8 <= len(tried) <= 25
    if status == 429:
        assert min(later - earlier for earlier, later in pairwise(tried)) >= 20
    workspace.faults.clear()
    assert delivery.ship_for(1) == []
    assert table.numbers() == list(range(1, 101))


def test_answer_of_the_endpoint_that_is_lost(workspace: MockWorkspace, delivery: Delivery, new_table: NewTable) -> None:
    """Nothing is lost; nobody can know that the spans were taken, so they are there twice."""
    table = new_table("")
    workspace.faults.lose_answer(path=OTLP)
    assert delivery.ship(1).startswith("retrying: ")
    assert delivery.ship(2) == ""
    assert table.numbers() == [1, 1, 2]


# --- exactly once ----------------------------------------------------------------------------------------------------


def test_process_that_dies_between_commit_and_acknowledgement(delivery: Delivery, new_table: NewTable) -> None:
    """The table says that it has the batch, and the next process makes up the acknowledgement only."""
    table = new_table()
    assert delivery.ship(1) == ""
    ledger, before = read_ledger(delivery.lane), Path(delivery.lane.ledger_path).read_bytes()
    segment = delivery.record(2, 3)
    assert delivery.ship() == ""
    Path(delivery.lane.ledger_path).write_bytes(before)
    note = InFlight(ledger.app_id, ledger.batch + 1, [Range(os.path.basename(segment), 0, os.path.getsize(segment))], 1)
    write_in_flight(delivery.lane, note)
    delivery.restart()
    assert delivery.ship(4) == ""
    assert table.numbers() == [1, 2, 3, 4]
    assert read_ledger(delivery.lane).delivered == 4


def test_batch_of_a_copied_spool_is_not_taken_for_delivered(new_table: NewTable) -> None:
    """The table has a batch of this name that was never sent: its spans are others."""
    sink = new_table().open()
    sink.write(batch(1, spans(1)))
    with pytest.raises(BatchExistsError, match="See whether a copy of the spool is delivered from elsewhere"):
        sink.write(replace(batch(1, spans(2)), retried=False))
    sink.write(replace(batch(2, spans(2)), retried=False))
