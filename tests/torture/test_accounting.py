"""The accounts of the fault runs can fail: each kind of loss and of double is seen, and named."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.torture.accounting import Recorded, SpanKey, Totals, compare, doubles
from tests.torture.checks import Checks
from tests.torture.journal import Journal, read_journal, together
from tests.torture.newer import NewerSegment
from tests.torture.places import Place, held_in_directory
from tracelake.destinations.targets import parse_target
from tracelake.settings import Settings
from tracelake.shipper.service import Shipper
from tracelake.spans.line import encode_line
from tracelake.spans.record import SpanRecord
from tracelake.spool.lane import Lane, Spool
from tracelake.spool.segment import open_segment


def span(number: int) -> SpanKey:
    return f"{number:032x}", f"{number:016x}"


KEPT = {span(number) for number in range(1, 10)}
REFUSED = {span(20)}
UNKNOWN = {span(30)}
RECORDED = Recorded(KEPT, REFUSED, UNKNOWN)


def found(
    held: list[SpanKey], *, totals: Totals | None = None, exactly_once: bool = True, recorded: Recorded = RECORDED
) -> list[str]:
    counter = Counter(held)
    return compare(recorded, counter, totals or Totals(len(counter), 0, 0), exactly_once=exactly_once)


@pytest.mark.parametrize("unknown", [[], [span(30)]], ids=["lost", "delivered"])
def test_sound_accounts(unknown: list[SpanKey]) -> None:
    """A span that was being ended when its process died may be there, or not."""
    assert found([*KEPT, *unknown]) == []


def test_missing_row_is_named() -> None:
    assert found(sorted(KEPT - {span(4)})) == [
        f"1 spans are missing, and were acknowledged, such as {' '.join(span(4))}"
    ]


@pytest.mark.parametrize("twice", [span(5), span(30)], ids=["acknowledged", "unknown"])
def test_doubled_row_is_named(twice: SpanKey) -> None:
    """Also of a span that need not be there at all; where doubles may be, they are counted."""
    held = [*KEPT, span(30), twice]
    assert found(held) == [f"1 spans are there more than once, such as {' '.join(twice)}"]
    assert found(held, exactly_once=False) == []
    assert doubles(Counter(held)) == 1


def test_refused_span_that_is_there_is_named() -> None:
    assert found([*KEPT, span(20)]) == [f"1 spans are there, and were refused, such as {' '.join(span(20))}"]


def test_span_of_nobody_is_named() -> None:
    assert found([*KEPT, span(99)]) == [f"1 spans are there, and nobody recorded them, such as {' '.join(span(99))}"]


@pytest.mark.parametrize(
    ("totals", "said"),
    [
        (Totals(8, 0, 0), "the ledger says that 8 spans are delivered, and 9 are there"),
        (Totals(9, 2, 1), "the ledger says that 2 lines are quarantined, and the folder has 1"),
    ],
    ids=["delivered", "quarantined"],
)
def test_ledger_that_counts_wrong_is_named(totals: Totals, said: str) -> None:
    assert found(sorted(KEPT), totals=totals) == [said]


def test_journal_is_read(tmp_path: Path) -> None:
    """What was begun and not ended is unknown, for every lane; a torn last line says nothing."""
    path = tmp_path / "4711-1.journal"
    one, two, three = (" ".join(span(number)) for number in (1, 2, 3))
    path.write_text(f"lanes a b\n> {one}\n< {one} 10\n> {two}\n= 2 1 0 1 0\n> {three}\n< {three} 1")
    journal = read_journal(path)
    assert (journal.pid, journal.report, journal.findings) == (4711, (2, 1, 0, 1, 0), [])
    assert together([journal], "a") == Recorded({span(1)}, set(), {span(2), span(3)})
    assert together([journal], "b") == Recorded(set(), {span(1)}, {span(2), span(3)})
    assert journal.check_report() == []


@pytest.mark.parametrize("report", [(3, 1, 1, 1, 0), (2, 1, 1, 0, 0), (2, 0, 0, 1, 0)])
def test_report_that_counts_wrong_is_named(report: tuple[int, ...]) -> None:
    """Too many, a refusal that is not told, and a sum that is not one."""
    journal = Journal(1, {"a": Recorded({span(1)}, {span(2)})}, report)
    assert len(journal.check_report()) == 1


def test_span_that_no_lane_was_given_is_named(tmp_path: Path) -> None:
    path = tmp_path / "1-1.journal"
    path.write_text(f"lanes a\n> {' '.join(span(1))}\n< {' '.join(span(1))} ?\n")
    assert len(read_journal(path).findings) == 1


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(str(tmp_path / "spool"))
    spool.create()
    return spool


@pytest.fixture
def lane(spool: Spool, tmp_path: Path) -> Lane:
    target = parse_target(str(tmp_path / "table")).target
    lane = spool.lane(target, {})
    lane.create(target, {})
    return lane


def place(tmp_path: Path) -> Place:
    table = str(tmp_path / "table")
    return Place("delta", table, lambda: held_in_directory(table), exactly_once=True)


def write_segment(lane: Lane, numbers: range, torn: bytes = b"") -> None:
    """Write a segment of this process, and let go of it."""
    descriptor, path = open_segment(lane.segments_dir, f"{1:016x}-4711-0f6db66a", 1)
    with open(descriptor, "wb") as file:
        file.write(b"".join(encode_line(SpanRecord(*span(number), "x", 1, 2)) for number in numbers) + torn)
    assert path.endswith(".jsonl")


def ship(spool: Spool) -> None:
    shipper = Shipper(spool, Settings(), serves=lambda *_: True)
    for _ in range(2):  # the second removes what is delivered
        shipper.drain()
    shipper.release()


def test_round_that_went_well(spool: Spool, lane: Lane, tmp_path: Path) -> None:
    """Real files, a real table: nothing is found, and a torn line of a killed writer is no finding."""
    write_segment(lane, range(1, 10), torn=b'{"trace_id":')
    newer = NewerSegment.write(lane)
    ship(spool)
    assert newer.upgrade() == []
    ship(spool)
    journals = [Journal(4711, {lane.name: Recorded(KEPT)}), Journal(0, {lane.name: Recorded(newer.spans)})]
    checks = Checks(spool, [place(tmp_path)], journals, {4711}, tears_lines=False)
    (outcome,) = checks.lanes()
    assert (outcome.totals, outcome.doubles) == (Totals(29, 1, 1), 0)
    assert [*checks.findings, *checks.files(), *checks.reports()] == []


def test_what_is_left_is_named(spool: Spool, lane: Lane, tmp_path: Path) -> None:
    """A segment, a half-made note, a torn line of a writer that nobody killed, a note of refusals, a traceback."""
    write_segment(lane, range(1, 10), torn=b'{"trace_id":')
    ship(spool)
    write_segment(lane, range(20, 21))
    for name in (".ledger.json.0f6db66a.tmp", "segments/x.new", "quarantine/.x.0f6db66a.tmp", "in-flight.json"):
        (Path(lane.path) / name).touch()
    (Path(lane.refusals_dir) / f"{1:016x}-4711-0f6db66a.json").write_text(
        '{"spans":3,"reason":"","last_unix_nano":1,"version":1}'
    )
    (Path(spool.shippers_dir) / "x.log").write_text("Traceback (most recent call last):\n")
    journals = [Journal(4711, {lane.name: Recorded(KEPT)}, (9, 9, 0, 0, 0))]
    checks = Checks(spool, [place(tmp_path)], journals, set(), tears_lines=False)
    assert len(list(checks.lanes())) == 1
    findings = [*checks.findings, *checks.files(), *checks.reports()]
    assert [text.split(":")[0] for text in findings] == [
        f"5 files are left in the spool, such as {lane.path}/.ledger.json.0f6db66a.tmp, {lane.path}/in-flight.json",
        f"set aside in lane {lane.name}",
        f"the log {spool.shippers_dir}/x.log has 'Traceback (most recent call last)",
        f"process 4711 refused 0 spans of lane {lane.name}, and its note says 3",
    ]


def test_newer_segment_that_was_touched_is_named(lane: Lane) -> None:
    newer = NewerSegment.write(lane)
    Path(newer.path).write_bytes(newer.data[:-1])
    assert len(newer.upgrade()) == 1


def test_output_of_an_app_is_named(spool: Spool, tmp_path: Path) -> None:
    """But for what is documented."""
    said = tmp_path / "app"
    said.write_text("12 spans could not be put into the spool, the last because: x\nValueError: x\n")
    checks = Checks(spool, [], [], set(), tears_lines=False)
    assert list(checks.outputs([said])) == [f"an app said 'ValueError: x': {said}"]
