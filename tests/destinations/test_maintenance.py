"""Maintenance of a Delta table: fewer files and older spans gone, and each other span there once all the same."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder, TableFeatures

from tests.numbered import START_NS, numbers, record
from tracelake import DeliveryError, PermanentDeliveryError, SpanRecord, TransientDeliveryError
from tracelake.destinations.base import Batch
from tracelake.destinations.delta import DeltaSink
from tracelake.destinations.delta_log import AUTO_COMPACT, turn
from tracelake.destinations.maintenance import Upkeep, optimize, remove_older, vacuum
from tracelake.spans import tables

from .contract import APP, batch, spans
from .test_delta import has_bloom_filter

WEEK_S = 7 * 86_400
DAY_NS = 86_400 * 10**9

COMMANDS: dict[str, Callable[[DeltaSink], Upkeep]] = {
    "optimize": optimize,
    "vacuum": vacuum,
    "retention": lambda sink: remove_older(sink, START_NS + 1),
}
COMMAND = pytest.mark.parametrize("work", COMMANDS.values(), ids=list(COMMANDS))
VERSION = pytest.mark.parametrize("version", [1, 2])


@pytest.fixture
def sink(tmp_path: Path) -> DeltaSink:
    return DeltaSink(str(tmp_path / "table"), version=1, create=True)


def opened(sink: DeltaSink) -> DeltaTable:
    table = sink.table()
    assert table is not None
    return table


def fill(sink: DeltaSink, batches: int) -> None:
    """Write batches of one span each, numbered from 1."""
    for number in range(1, batches + 1):
        sink.write(batch(number, spans(number)))


def days_old(number: int) -> SpanRecord:
    """Return a span that started so many days before START_NS."""
    start = START_NS - number * DAY_NS
    return replace_times(record(number), start)


def replace_times(span: SpanRecord, start: int) -> SpanRecord:
    return msgspec.structs.replace(span, start_time_unix_nano=start, end_time_unix_nano=start + 1)


def data_files(sink: DeltaSink) -> set[str]:
    return {path.name for path in Path(sink.location).rglob("*.parquet") if "_delta_log" not in path.parts}


def rows(sink: DeltaSink) -> list[dict[str, object]]:
    """Return all of the table, VARIANT values as they are stored."""
    found = QueryBuilder().register("spans", opened(sink)).execute("SELECT * FROM spans ORDER BY span_id")
    return pa.table(found).to_pylist()


def age(sink: DeltaSink, seconds: float = WEEK_S + 3600) -> None:
    """Let all that was written and removed so far be so long ago."""
    then = time.time() - seconds
    for path in Path(sink.location).rglob("*.parquet"):
        os.utime(path, (then, then))
    for log in (Path(sink.location) / "_delta_log").glob("*.json"):
        actions = [json.loads(line) for line in log.read_text().splitlines()]
        for action in actions:
            if "remove" in action:
                action["remove"]["deletionTimestamp"] = int(then * 1000)
        log.write_text("\n".join(map(json.dumps, actions)))


def meanwhile(first: list[SpanRecord], rest: list[SpanRecord], work: Callable[[], object], number: int) -> Batch:
    """Return a batch during whose upload something else is done, once."""
    done: list[object] = []

    def chunks() -> Iterator[list[SpanRecord]]:
        yield first
        if not done:
            done.append(work())
        yield rest

    return Batch(APP, number, 4000, chunks)


@VERSION
def test_small_files_become_one_with_the_same_rows(tmp_path: Path, version: tables.Version) -> None:
    """Every column of every row is as it was, VARIANT ones, too."""
    sink = DeltaSink(str(tmp_path / "table"), version=version, create=True)
    fill(sink, 15)
    before = rows(sink)
    done = optimize(sink)
    assert (done.before.files, done.after.files) == (15, 1)
    assert 0 < done.after.bytes < done.before.bytes
    assert rows(sink) == before
    assert opened(sink).schema() == DeltaTable(sink.location, version=0).schema()


def test_compacted_file_is_written_as_others_are(sink: DeltaSink) -> None:
    """With what finds a trace quickly: a bloom filter, statistics in the log, and compression."""
    fill(sink, 3)
    optimize(sink)
    (path,) = opened(sink).file_uris()
    with pq.ParquetFile(path) as file:
        columns = {item.path_in_schema: item for item in map(file.metadata.row_group(0).column, range(3))}
    assert columns["trace_id"].compression == "ZSTD"
    assert has_bloom_filter(Path(path).read_bytes())
    assert "max.trace_id" in pa.table(opened(sink).get_add_actions(flatten=True)).column_names


def test_second_optimize_changes_nothing(sink: DeltaSink) -> None:
    """Not even the table's version."""
    fill(sink, 3)
    done = optimize(sink).after
    again = optimize(sink)
    assert (again.before, again.after) == (done, done)


@COMMAND
def test_names_of_batches_survive(sink: DeltaSink, work: Callable[[DeltaSink], Upkeep]) -> None:
    """A batch that was delivered before is not written again after it, though the log was shortened meanwhile."""
    fill(sink, 15)
    work(sink)
    opened(sink).create_checkpoint()
    for log in (Path(sink.location) / "_delta_log").glob("*.json"):
        log.unlink()
    before = numbers(sink.location)
    sink.write(batch(15, spans(15)))
    assert numbers(sink.location) == before


@pytest.mark.parametrize("work", [optimize, vacuum], ids=["optimize", "vacuum"])
def test_batch_under_way_is_committed(sink: DeltaSink, work: Callable[[DeltaSink], Upkeep]) -> None:
    """A shipper that began before does not notice."""
    fill(sink, 5)
    sink.write(meanwhile(spans(6), spans(7), lambda: work(sink), 6))
    assert numbers(sink.location) == [1, 2, 3, 4, 5, 6, 7]


def test_batch_under_way_is_written_again_after_old_spans_were_removed(sink: DeltaSink) -> None:
    """delta-rs refuses the commit; the next try finds that it was not made, and makes it once."""
    sink.write(batch(1, [days_old(3)]))
    delivery = meanwhile([days_old(0)], spans(7), lambda: remove_older(sink, START_NS - DAY_NS), 2)
    with pytest.raises(TransientDeliveryError, match="It is tried again"):
        sink.write(delivery)
    sink.write(delivery)
    assert numbers(sink.location) == [0, 7]


@pytest.mark.slow
def test_two_at_once_do_not_double_a_row(sink: DeltaSink) -> None:
    """One waits for the other. Without that, delta-rs 1.6.6 has each row twice in most of these rounds."""
    for turn_number in range(5):
        for number in range(6):
            sink.write(batch(1 + turn_number * 6 + number, spans(1 + turn_number * 6 + number)))
        start = threading.Barrier(4)

        def work(start: threading.Barrier = start) -> None:
            start.wait()
            optimize(sink)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert numbers(sink.location) == list(range(1, 7 + turn_number * 6))
    assert len(opened(sink).file_uris()) == 1


@pytest.mark.parametrize("name", ["optimize", "retention"])
def test_turn_of_another_is_respected_until_it_ends(
    sink: DeltaSink, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says when; a turn that was given back, or whose time is over, is nobody's."""
    monkeypatch.setattr("tracelake.destinations.maintenance._WAIT_S", 0.0)
    fill(sink, 3)
    with turn(opened(sink), sink.location, 600):
        with pytest.raises(PermanentDeliveryError, match=r"maintained by another process.* in 10 minutes\."):
            COMMANDS[name](sink)
        sink.write(batch(4, spans(4)))
    COMMANDS[name](sink)


def test_turn_of_a_killed_process_ends(sink: DeltaSink) -> None:
    """After its time, without anybody's help."""
    fill(sink, 3)
    left = turn(opened(sink), sink.location, 0.3)
    left.__enter__()
    assert optimize(sink).after.files == 1


def test_files_that_were_replaced_stay_for_a_week(sink: DeltaSink) -> None:
    """Counted from when they were replaced, however old they are; the log may have been shortened meanwhile."""
    fill(sink, 5)
    age(sink)
    optimize(sink)
    opened(sink).create_checkpoint()
    assert vacuum(sink).files_deleted == 0
    assert len(data_files(sink)) == 6


def test_files_that_were_replaced_a_week_ago_are_deleted(sink: DeltaSink) -> None:
    """A dry run deletes none, and makes no commit."""
    fill(sink, 5)
    optimize(sink)
    age(sink)
    planned = vacuum(sink, dry_run=True)
    assert (planned.files_deleted, planned.before, len(data_files(sink))) == (5, planned.after, 6)
    done = vacuum(sink)
    assert (done.files_deleted, done.after.files) == (5, 1)
    assert data_files(sink) == {os.path.basename(path) for path in opened(sink).file_uris()}
    assert numbers(sink.location) == [1, 2, 3, 4, 5]
    assert vacuum(sink).files_deleted == 0


def test_file_of_a_batch_that_is_not_committed_yet_stays(sink: DeltaSink) -> None:
    """One that was given up a week ago goes, also if the table knows nothing of it."""
    fill(sink, 1)
    (committed,) = Path(sink.location).glob("*.parquet")
    for name, seconds in (("part-00000-under-way.parquet", 600), ("part-00000-given-up.parquet", WEEK_S + 600)):
        path = committed.with_name(name)
        path.write_bytes(committed.read_bytes())
        os.utime(path, (time.time() - seconds,) * 2)
    assert vacuum(sink).files_deleted == 1
    assert data_files(sink) == {committed.name, "part-00000-under-way.parquet"}
    with pytest.raises(PermanentDeliveryError, match=r"0 hours would delete files of batches that are being written"):
        vacuum(sink, 0, force=True)
    assert vacuum(sink, 1, force=True).files_deleted == 0


def test_fewer_hours_than_a_week_need_force(sink: DeltaSink) -> None:
    """As Delta asks for it."""
    fill(sink, 2)
    optimize(sink)
    age(sink, 2 * 3600)
    with pytest.raises(PermanentDeliveryError, match=r"167 hours are less than the 168 .* Add --force"):
        vacuum(sink, 167)
    assert vacuum(sink, 1, force=True).files_deleted == 2


@pytest.mark.parametrize("name", ["notes.txt", "inner/part-00000.parquet", "inner/_delta_log/0.json"])
def test_files_that_are_not_the_tables_are_never_deleted(sink: DeltaSink, name: str) -> None:
    """As those of another table in a directory below, which delta-rs would delete with its log."""
    fill(sink, 2)
    optimize(sink)
    path = Path(sink.location) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    age(sink)
    os.utime(path, (0, 0))
    with pytest.raises(PermanentDeliveryError, match=f"none of it, and vacuum would delete it: {name}"):
        vacuum(sink)
    assert path.read_text() == "mine"
    assert len(data_files(sink) - {path.name}) == 3


@VERSION
def test_old_spans_are_removed(tmp_path: Path, version: tables.Version) -> None:
    """Files of which all are old go whole; of the others, the rest is written anew."""
    sink = DeltaSink(str(tmp_path / "table"), version=version, create=True)
    for number, ages in enumerate([(9, 8), (7, 3), (2, 1)], start=1):
        sink.write(batch(number, [days_old(days) for days in ages]))
    kept = [row for row in rows(sink) if int(str(row["span_id"]), 16) <= 3]
    cutoff = START_NS - 5 * DAY_NS
    planned = remove_older(sink, cutoff, dry_run=True)
    assert (planned.rows_removed, planned.after) == (3, planned.before)
    done = remove_older(sink, cutoff)
    assert (done.rows_removed, done.after.files) == (3, 2)
    assert rows(sink) == kept
    again = remove_older(sink, cutoff)
    assert (again.rows_removed, again.after) == (0, done.after)


def test_span_that_started_at_the_cutoff_stays(sink: DeltaSink) -> None:
    """A trace that began before it keeps its later spans."""
    sink.write(batch(1, [replace_times(record(1), START_NS - 1), record(2)]))
    remove_older(sink, START_NS)
    assert numbers(sink.location) == [2]


def test_old_spans_that_arrive_meanwhile_are_removed_too(sink: DeltaSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """delta-rs refuses the commit; it is tried again with them."""
    sink.write(batch(1, [days_old(9), days_old(0)]))
    delete = DeltaTable.delete
    late = iter([2, 3])

    def overtaken(table: DeltaTable, *arguments: object, **options: object) -> object:
        for number in late:
            sink.write(batch(number, [days_old(number + 5)]))
            break
        return delete(table, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(DeltaTable, "delete", overtaken)
    remove_older(sink, START_NS - DAY_NS)
    assert numbers(sink.location) == [0]


def test_table_that_takes_no_deletes_says_so(sink: DeltaSink) -> None:
    """Its owner wants all spans kept; the others are done."""
    fill(sink, 2)
    opened(sink).alter.set_table_properties({"delta.appendOnly": "true"})
    with pytest.raises(PermanentDeliveryError, match=r"takes no deletes: its property delta\.appendOnly is true"):
        remove_older(sink, START_NS + 1)
    assert optimize(sink).after.files == 1


@COMMAND
def test_missing_table_is_an_error(sink: DeltaSink, work: Callable[[DeltaSink], Upkeep]) -> None:
    """And none is made."""
    with pytest.raises(PermanentDeliveryError, match=r"There is no table at .*tracelake status"):
        work(sink)
    assert not os.path.exists(sink.location)


@COMMAND
def test_table_of_something_else_is_left_alone(sink: DeltaSink, work: Callable[[DeltaSink], Upkeep]) -> None:
    """Only span tables are maintained."""
    DeltaTable.create(sink.location, pa.schema([("id", pa.int64())]))
    with pytest.raises(PermanentDeliveryError, match="not a span table"):
        work(sink)
    assert DeltaTable(sink.location).version() == 0


@COMMAND
def test_table_with_features_that_are_not_known_is_left_alone(
    tmp_path: Path, work: Callable[[DeltaSink], Upkeep]
) -> None:
    """A deletion vector, which vacuum would delete and optimize not look at, says which rows count."""
    sink = DeltaSink(str(tmp_path / "table"), version=2, create=True)
    fill(sink, 2)
    opened(sink).alter.add_feature(TableFeatures.DeletionVectors, allow_protocol_versions_increase=True)
    version = opened(sink).version()
    with pytest.raises(PermanentDeliveryError, match=r"left alone: it has deletionVectors, .*OPTIMIZE, VACUUM"):
        work(sink)
    assert opened(sink).version() == version


@COMMAND
def test_damaged_table_is_an_error_for_a_prompt(sink: DeltaSink, work: Callable[[DeltaSink], Upkeep]) -> None:
    """Nobody tries it again by itself, and the message does not say so."""
    fill(sink, 2)
    for log in (Path(sink.location) / "_delta_log").glob("*.json"):
        log.write_text("damaged")
    with pytest.raises(DeliveryError, match=r"could not be maintained: .* then run this again\.$"):
        work(sink)


@pytest.mark.slow
def test_shipper_keeps_the_number_of_files_small(sink: DeltaSink) -> None:
    """A table that tracelake made says so by Delta's own property; no span is lost or there twice."""
    fill(sink, 100)
    assert opened(sink).metadata().configuration[AUTO_COMPACT] == "true"
    assert len(opened(sink).file_uris()) < 70
    assert numbers(sink.location) == list(range(1, 101))
    sink.write(batch(100, spans(100)))
    assert len(numbers(sink.location)) == 100


@pytest.mark.parametrize("value", ["false", None])
@pytest.mark.slow
def test_shipper_leaves_the_files_of_others_alone(sink: DeltaSink, value: str | None) -> None:
    """Where the property is off, or was never set, only `tracelake optimize` puts files together."""
    sink.begin()
    log = Path(sink.location) / "_delta_log" / f"{0:020d}.json"
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for action in actions:
        if "metaData" in action:
            action["metaData"]["configuration"].pop(AUTO_COMPACT)
            action["metaData"]["configuration"] |= {AUTO_COMPACT: value} if value else {}
    log.write_text("\n".join(map(json.dumps, actions)))
    fill(sink, 62)
    assert len(opened(sink).file_uris()) == 62


@pytest.mark.slow
def test_shipper_delivers_while_another_maintains_the_table(sink: DeltaSink) -> None:
    """It leaves the files as they are until the turn is free."""
    sink.begin()
    with turn(opened(sink), sink.location, 600):
        fill(sink, 62)
        assert len(opened(sink).file_uris()) == 62
    assert numbers(sink.location) == list(range(1, 63))
