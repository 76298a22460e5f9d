"""The Delta sink: the contract of all sinks, and what the files of the table say."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deltalake.exceptions
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, Schema

from tests.numbered import numbers
from tracelake import DeliveryError, PermanentDeliveryError, SettingError, TransientDeliveryError
from tracelake.destinations.delta import DeltaDestination, DeltaSink
from tracelake.destinations.delta_errors import translate
from tracelake.spans import tables

from .contract import APP, SinkContract, batch, spans


@dataclass
class Table:
    """A table on the local disk."""

    path: str
    version: tables.Version = 1

    def open(self) -> DeltaSink:
        return DeltaSink(self.path, version=self.version, create=True)

    def numbers(self) -> list[int]:
        return numbers(self.path)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(str(tmp_path / "table"))


@pytest.mark.parametrize("version", [1, 2])
class TestContract(SinkContract):
    """Both versions of the schema."""

    @pytest.fixture
    def place(self, tmp_path: Path, version: tables.Version) -> Table:
        return Table(str(tmp_path / "table"), version)


def actions(path: str) -> list[dict[str, Any]]:
    """Return all that is in the raw log of a table, oldest first."""
    return [
        json.loads(line)
        for log in sorted((Path(path) / "_delta_log").glob("*.json"))
        for line in log.read_text().splitlines()
    ]


def transactions(path: str) -> list[tuple[str, int]]:
    return [(action["txn"]["appId"], action["txn"]["version"]) for action in actions(path) if "txn" in action]


def make_table(path: str, change: Callable[[list[dict[str, Any]]], None], version: tables.Version = 1) -> None:
    """Create a span table whose columns are changed."""
    schema = tables.delta_schema(version)
    change(schema["fields"])
    DeltaTable.create(path, Schema.from_json(json.dumps(schema)))


def column(name: str, kind: Any, *, nullable: bool = True) -> dict[str, Any]:
    return {"name": name, "type": kind, "nullable": nullable, "metadata": {}}


def test_batch_is_one_commit_with_its_name(table: Table) -> None:
    """Rows and transaction identifier are in the same file of the log: there is no state in between."""
    table.open().write(batch(1, spans(1, 2)))
    table.open().write(batch(4, spans(3)))
    table.open().write(batch(4, spans(3)))
    assert transactions(table.path) == [(APP, 1), (APP, 4)]
    commits = [log.read_text() for log in sorted((Path(table.path) / "_delta_log").glob("*.json"))]
    assert len(commits) == 3
    assert all('"txn"' in commit and '"add"' in commit for commit in commits[1:])


@pytest.mark.parametrize("version", [1, 2])
def test_made_table_says_what_it_is(tmp_path: Path, version: tables.Version) -> None:
    """Its name, its schema version, and how its log is kept short."""
    made = Table(str(tmp_path / "table"), version)
    made.open().write(batch(1, spans(1)))
    metadata = DeltaTable(made.path).metadata()
    assert metadata.name == "spans"
    assert metadata.configuration["otel.schemaVersion"] == f"v{version}"
    assert metadata.configuration["delta.checkpointInterval"] == "20"
    fields = json.loads(DeltaTable(made.path).schema().to_json())["fields"]
    assert [field["name"] for field in fields] == [field["name"] for field in tables.delta_schema(version)["fields"]]


def test_written_file_is_compressed_and_can_be_skipped(table: Table) -> None:
    """zstd, statistics in the log, and a bloom filter on trace_id: what makes a trace quick to find."""
    table.open().write(batch(1, spans(*range(50))))
    (add,) = [action["add"] for action in actions(table.path) if "add" in action]
    statistics = json.loads(add["stats"])
    assert statistics["numRecords"] == 50
    assert statistics["minValues"]["trace_id"] == statistics["maxValues"]["trace_id"] == "5" * 32
    assert statistics["minValues"]["start_time_unix_nano"] <= statistics["maxValues"]["start_time_unix_nano"]
    group = pq.ParquetFile(Path(table.path) / add["path"]).metadata.row_group(0)
    columns = {group.column(index).path_in_schema: group.column(index) for index in range(group.num_columns)}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    with_statistics = {name for name, column in columns.items() if column.is_stats_set}
    assert with_statistics == {"trace_id", "name", "start_time_unix_nano", "end_time_unix_nano"}
    assert has_bloom_filter((Path(table.path) / add["path"]).read_bytes())


def has_bloom_filter(data: bytes) -> bool:
    """Say whether a bloom filter's header is there: of 32-byte blocks, hashed by xxHash, uncompressed.

    https://github.com/apache/parquet-format/blob/apache-parquet-format-2.10.0/src/main/thrift/parquet.thrift#L737
    """
    empty_struct_in_a_union = b"\x1c\x1c\x00\x00"
    return 3 * empty_struct_in_a_union + b"\x00" in data


def test_log_gets_a_checkpoint(table: Table) -> None:
    """After 20 commits: a table of a million commits opens as fast."""
    sink = table.open()
    for number in range(1, 23):
        sink.write(batch(number, spans(number)))
    assert list((Path(table.path) / "_delta_log").glob("*.checkpoint.parquet"))
    assert table.numbers() == list(range(1, 23))
    sink.write(batch(22, spans(22)))
    assert table.numbers() == list(range(1, 23))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda fields: fields.reverse(), id="any order"),
        pytest.param(lambda fields: fields.append(column("tenant", "string")), id="extra last"),
        pytest.param(lambda fields: fields.insert(0, column("loaded", "timestamp")), id="extra first"),
        pytest.param(lambda fields: fields.insert(3, column("tags", {"type": "array", "elementType": "long",
                                                                    "containsNull": True})), id="extra array"),
        pytest.param(lambda fields: fields.__delitem__(slice(9, None)) or
                     fields.append(column("attributes", tables.delta_schema(1)["fields"][9]["type"])),
                     id="only what is needed"),
    ],
)  # fmt: skip
def test_table_of_others_is_taken_as_it_is(table: Table, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Columns are matched by name: more, fewer or in another order, and the table's schema stays."""
    make_table(table.path, change)
    before = DeltaTable(table.path).schema().to_json()
    assert table.open().write(batch(1, spans(1, 2))) == []
    assert table.numbers() == [1, 2]
    assert DeltaTable(table.path).schema().to_json() == before


def _drop(name: str) -> Callable[[list[dict[str, Any]]], None]:
    return lambda fields: fields.remove(next(field for field in fields if field["name"] == name))


def _replace(name: str, kind: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda fields: next(field for field in fields if field["name"] == name).update(type=kind)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda fields: fields.append(column("tenant", "string", nullable=False)), "tenant.*NOT NULL.*DROP NOT NULL"),
        (_drop("span_id"), "no column span_id.*name another table"),
        (_drop("attributes"), "not a span table.*Name a table"),
        (_replace("name", "long"), "Column name.*STRING"),
        (_replace("start_time_unix_nano", "string"), "Column start_time_unix_nano.*BIGINT"),
        (_replace("attributes", "string"), "not a span table"),
    ],
)
def test_table_that_cannot_take_spans_says_why(
    table: Table, change: Callable[[list[dict[str, Any]]], None], said: str
) -> None:
    """Permanent: somebody has to act, and the message names the table, the column and the way out."""
    make_table(table.path, change)
    with pytest.raises(PermanentDeliveryError, match=said) as raised:
        table.open().write(batch(1, spans(1)))
    assert table.path in str(raised.value)
    assert DeltaTable(table.path).version() == 0


def test_table_with_an_unknown_version_is_left_alone(table: Table) -> None:
    """A newer schema is not guessed at."""
    schema = Schema.from_json(tables.delta_schema_json(1))
    DeltaTable.create(table.path, schema, configuration={"otel.schemaVersion": "9"}, raise_if_key_not_exists=False)
    with pytest.raises(PermanentDeliveryError, match=r"'9'.*Upgrade tracelake"):
        table.open().write(batch(1, spans(1)))


def test_deleted_table_is_made_again(table: Table) -> None:
    """It is looked for with each batch, by a sink that is open for long."""
    sink = table.open()
    sink.write(batch(1, spans(1)))
    shutil.rmtree(table.path)
    sink.write(batch(2, spans(2)))
    assert table.numbers() == [2]


def test_replaced_table_is_written_in_its_own_schema(tmp_path: Path) -> None:
    """A table of the other version in the same place."""
    table = Table(str(tmp_path / "table"), 1)
    sink = table.open()
    sink.write(batch(1, spans(1)))
    shutil.rmtree(table.path)
    make_table(table.path, lambda _: None, version=2)
    sink.write(batch(2, spans(2)))
    assert table.numbers() == [2]
    assert "record_id" in {field.name for field in DeltaTable(table.path).schema().fields}


def test_column_added_under_way_is_respected(table: Table) -> None:
    """A table that is altered between two batches."""
    sink = table.open()
    sink.write(batch(1, spans(1)))
    DeltaTable(table.path).alter.add_columns(Schema.from_json(
        json.dumps({"type": "struct", "fields": [column("tenant", "string")]})).fields)  # fmt: skip
    sink.write(batch(2, spans(2)))
    assert table.numbers() == [1, 2]


def test_no_table_is_made_when_that_is_off(table: Table) -> None:
    """Says how to go on, and leaves no directory."""
    with pytest.raises(PermanentDeliveryError, match=r"There is no table at.*TRACELAKE_CREATE_TABLE=true") as raised:
        DeltaSink(table.path, version=1, create=False).write(batch(1, spans(1)))
    assert table.path in str(raised.value)
    assert not Path(table.path).exists()


def test_settings_of_the_process_hold_for_the_sink(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schema version and creation come from the environment when the destination is opened; a wrong one is raised."""
    monkeypatch.setenv("TRACELAKE_SCHEMA_VERSION", "2")
    destination = DeltaDestination.parse(table.path)
    destination.open().write(batch(1, spans(1)))
    assert "record_id" in {field.name for field in DeltaTable(table.path).schema().fields}
    monkeypatch.setenv("TRACELAKE_SCHEMA_VERSION", "3")
    with pytest.raises(SettingError, match="TRACELAKE_SCHEMA_VERSION='3'"):
        destination.open()


NAMES = ["with space", "gr\u00fc\u00dfe", "\u4f60\u597d", "\U0001f600", "100%", "it's", 'say "hi"', "~tilde"]
NAMES += [f"a{char}b" for char in "!$&()*+,:;<=>@_`{}~"]


@pytest.mark.parametrize("name", NAMES)
def test_path_may_have_any_name(tmp_path: Path, name: str) -> None:
    """The files are where the name says, and the table is found again there."""
    destination = DeltaDestination.parse(str(tmp_path / name / "t\u00e4ble"))
    sink = destination.open()
    sink.write(batch(1, spans(1)))
    sink.write(batch(2, spans(2)))
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["t\u00e4ble"]
    assert (tmp_path / name / "t\u00e4ble" / "_delta_log").is_dir()
    assert numbers(destination.location) == [1, 2]


def test_place_that_cannot_be_written_is_permanent(tmp_path: Path) -> None:
    """A file in the way."""
    (tmp_path / "file").write_text("")
    with pytest.raises(PermanentDeliveryError, match=r"cannot be written.*Repair the access"):
        Table(str(tmp_path / "file" / "table")).open().write(batch(1, spans(1)))


def test_damaged_log_is_a_delivery_error(table: Table) -> None:
    """What delta-rs raises for a log that is no log names the table."""
    log = Path(table.path) / "_delta_log"
    log.mkdir(parents=True)
    (log / f"{0:020}.json").write_text("not json\n")
    with pytest.raises(DeliveryError, match="table"):
        table.open().write(batch(1, spans(1)))


FOREIGN_ERRORS = [
    error
    for error in vars(deltalake.exceptions).values()
    if isinstance(error, type) and issubclass(error, BaseException)
]


@pytest.mark.parametrize("error", [*FOREIGN_ERRORS, OSError, PermissionError, TimeoutError, ConnectionError])
def test_every_error_of_the_libraries_is_translated(error: type[Exception]) -> None:
    """None of them comes out of the sink as it is; each names the table, and says what happens next."""
    translated = translate(error("what happened"), "/data/table")
    assert isinstance(translated, (TransientDeliveryError, PermanentDeliveryError))
    assert "/data/table" in str(translated)
    assert "what happened" in str(translated)
    assert str(translated).endswith(("It is tried again.", "name another.", "name another table."))


@pytest.mark.parametrize(
    "error", [pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowMemoryError, pa.ArrowNotImplementedError]
)
def test_every_error_of_arrow_is_translated(error: type[Exception]) -> None:
    """They are not OSErrors, most of them."""
    assert isinstance(translate(error("what happened"), "/data/table"), DeliveryError)


def test_panic_of_delta_rs_is_translated() -> None:
    """It is a BaseException of no public type, and must not end the shipper."""
    panic = type("PanicException", (BaseException,), {})
    assert isinstance(translate(panic("boom"), "/data/table"), TransientDeliveryError)
    assert translate(KeyboardInterrupt(), "/data/table") is None


@pytest.mark.parametrize(
    "text",
    [
        "Generic S3 error: Client error with status 403 Forbidden: AccessDenied",
        "NoSuchBucket: The specified bucket does not exist",
        "The request signature we calculated does not match: SignatureDoesNotMatch",
        "InvalidAccessKeyId",
        "Unable to create: Permission denied (os error 13)",
        "Read-only file system (os error 30)",
        "status 401 Unauthorized",
    ],
)
def test_denied_access_is_permanent(text: str) -> None:
    """Trying again at once cannot help; and a number such as 4031 is no status."""
    assert isinstance(translate(OSError(text), "s3://b/t"), PermanentDeliveryError)
    assert isinstance(translate(OSError("part 4031 timed out"), "s3://b/t"), TransientDeliveryError)


def test_error_does_not_show_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores put signed URLs and keys into their errors."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very/secret+key")
    text = "https://host/path?X-Amz-Signature=abcdef123456&x=1 by http://user:p@ssw0rd@host used very/secret+key"
    translated = str(translate(OSError(text), "s3://b/t"))
    assert "abcdef123456" not in translated
    assert "very/secret+key" not in translated
    assert "ssw0rd" not in translated


def test_check_finds_what_is_there(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing yet, nothing and not to be made, a span table, another table: each finding says which, and what to do."""
    destination = DeltaDestination(table.path)
    (finding,) = destination.check()
    assert (finding.severity, finding.remedy) == ("ok", "")
    assert "the first delivery makes it" in finding.seen
    assert not Path(table.path).exists()

    monkeypatch.setenv("TRACELAKE_CREATE_TABLE", "false")
    (finding,) = destination.check()
    assert finding.severity == "error"
    assert "TRACELAKE_CREATE_TABLE=true" in finding.remedy

    table.open().write(batch(1, spans(1)))
    (finding,) = destination.check()
    assert finding.severity == "ok"
    assert "span table, version 1" in finding.seen

    make_table(str(tmp_path / "other"), lambda fields: fields.__setitem__(slice(None), [column("x", "long")]))
    (finding,) = DeltaDestination(str(tmp_path / "other")).check()
    assert finding.severity == "error"
    assert "not a span table" in finding.seen


def test_check_finds_what_a_write_would(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column that spans cannot fill, and a setting that cannot be."""
    make_table(table.path, lambda fields: fields.append(column("tenant", "string", nullable=False)))
    (finding,) = DeltaDestination(table.path).check()
    assert finding.severity == "error"
    assert "tenant" in finding.seen
    monkeypatch.setenv("TRACELAKE_SCHEMA_VERSION", "3")
    (finding,) = DeltaDestination(table.path).check()
    assert finding.severity == "error"
    assert "TRACELAKE_SCHEMA_VERSION" in finding.seen


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc to tell files by their descriptors")
def test_commit_to_a_local_table_is_on_the_disk(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log, the data and their directories are synced before a batch counts as delivered."""
    synced: set[str] = set()
    sync = os.fsync

    def noted(descriptor: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    for number in (1, 2):
        synced.clear()
        table.open().write(batch(number, spans(3)))
        added = [action["add"]["path"] for action in actions(table.path) if "add" in action]
        log = os.path.join(table.path, "_delta_log")
        expected = {table.path, log, os.path.join(log, f"{number:020d}.json"), os.path.join(table.path, added[-1])}
        assert expected <= synced
