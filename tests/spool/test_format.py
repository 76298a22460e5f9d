"""docs/spool-format.md: its examples are what the code reads and writes, and its repairs repair."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.lake import Lake
from tests.numbered import add_segment, line, lines, numbers
from tracelake.settings import Settings
from tracelake.shipper.lane import LaneShipper
from tracelake.spans.line import decode_line, encode_line, resource_of, scope_of
from tracelake.spans.record import Resource, Scope, SpanEvent, SpanLink, SpanRecord
from tracelake.spool.lane import Lane, LaneNote
from tracelake.spool.ledger import (
    Delivery,
    InFlight,
    Ledger,
    Quarantined,
    Range,
    Refusals,
    read_delivery,
    read_ledger,
    write_in_flight,
)
from tracelake.spool.notes import NOTE_VERSION
from tracelake.spool.segment import FORMAT_VERSION, list_segments, new_writer_name

PAGE = (Path(__file__).parents[2] / "docs" / "spool-format.md").read_text()
EXAMPLES = dict(re.findall(r"^<!-- example: ([^\n]+) -->\n\n```\w+\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL))
NOTES: dict[str, type[msgspec.Struct]] = {
    "lane.json": LaneNote,
    "ledger.json": Ledger,
    "in-flight.json": InFlight,
    "delivery.json": Delivery,
    "refusals": Refusals,
    "quarantine": Quarantined,
}


def section(title: str) -> str:
    """Return the text of a section, without its examples."""
    text = re.split(rf"^###? .*{re.escape(title)}.*$", PAGE, maxsplit=1, flags=re.MULTILINE)[1]
    return re.split(r"^##", text, maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("name", NOTES)
def test_example_of_a_note_is_one(name: str) -> None:
    """Each reads as its class, and is written byte by byte as the page shows it: no field is missing there."""
    note = msgspec.json.decode(EXAMPLES[name], type=NOTES[name])
    assert msgspec.json.encode(note).decode() == EXAMPLES[name]
    assert getattr(note, "version", NOTE_VERSION) == 1


@pytest.mark.parametrize("name", NOTES)
def test_every_field_of_a_note_is_explained(name: str) -> None:
    """A field that is added to a note is added to the page."""
    about = section(name)
    fields = [field for field in NOTES[name].__struct_fields__ if field != "version"]
    assert [field for field in fields if f'"{field}"' not in about] == []


def test_example_of_a_segment_name_is_one(tmp_path: Path) -> None:
    """The page's name is that of a segment, and what the code makes looks like it."""
    (tmp_path / EXAMPLES["segment name"]).touch()
    [segment] = list_segments(str(tmp_path))
    assert (segment.writer, segment.version) == ("18ea6c76b18e21b4-9597-0f6db66a", FORMAT_VERSION)
    assert re.fullmatch(r"[0-9a-f]{16}-\d+-[0-9a-f]{8}", new_writer_name())


def test_example_of_a_line_is_one() -> None:
    """It reads as the span that the page describes, tags untagged, and is written in the same words."""
    text = EXAMPLES["line"].encode() + b"\n"
    record = decode_line(text)
    attributes = dict(record.attributes)
    score = attributes.pop("score")
    assert score != score
    assert attributes == {"question": "why?", "blob": b"\x00\xff", "odd": {"$bytes": "text"}}
    assert resource_of(record) == Resource({"service.name": "shop"})
    assert scope_of(record) == Scope("tracelake", "0.1.0")
    assert encode_line(record) == text


@pytest.mark.parametrize("kind", [SpanRecord, SpanEvent, SpanLink, Resource, Scope])
def test_every_field_of_a_line_is_explained(kind: Any) -> None:
    """A field that is added to a span is added to the page."""
    assert [field for field in kind.__struct_fields__ if f"`{field}`" not in section("Lines")] == []


def test_tree_names_every_file_of_a_spool(lake: Lake, lane: Lane) -> None:
    """What a lane holds is in the page's picture."""
    paths = [
        lane.note_path,
        lane.segments_dir,
        lane.ledger_path,
        lane.in_flight_path,
        lane.delivery_path,
        lane.flush_path,
        lane.refusals_dir,
        lane.quarantine_dir,
        lake.spool.lanes_dir,
        lake.spool.shippers_dir,
    ]
    tree = PAGE.split("```")[1]
    assert [path for path in map(os.path.basename, paths) if path not in tree] == []


def ship_all(lane: Lane) -> None:
    shipper = LaneShipper(lane, Settings())
    while shipper.ship(flush=True):
        continue


def test_repair_of_a_damaged_in_flight_note_loses_nothing(lake: Lake, lane: Lane) -> None:
    """The batch had arrived when its note was damaged: as the page says, it is there twice, and nothing is missing."""
    add_segment(lane, lines([0]))
    ship_all(lane)
    ledger = Path(lane.ledger_path).read_text()
    add_segment(lane, lines([1, 2]))
    ship_all(lane)
    Path(lane.ledger_path).write_text(ledger)
    Path(lane.in_flight_path).write_bytes(b"\x00")
    add_segment(lane, line(3))
    ship_all(lane)
    assert read_delivery(lane).state == "stopped"
    app_id = read_ledger(lane).app_id
    repaired = ledger.replace(app_id, app_id + "-2").replace('"batch":1', '"batch":0')
    Path(lane.ledger_path).write_text(repaired)
    os.unlink(lane.in_flight_path)
    ship_all(lane)
    assert numbers(lake.table) == [0, 1, 1, 2, 2, 3]


def test_repair_of_a_damaged_ledger_loses_nothing(lake: Lake, lane: Lane) -> None:
    """Everything that is still in the segments is delivered under a new ledger."""
    path = add_segment(lane, lines([0, 1]))
    ship_all(lane)
    app_id = read_ledger(lane).app_id
    add_segment(lane, line(2))
    write_in_flight(lane, InFlight(app_id, 2, [Range(os.path.basename(path), 0, 10)], 1))
    Path(lane.ledger_path).write_bytes(b"{")
    ship_all(lane)
    assert read_delivery(lane).state == "stopped"
    os.unlink(lane.ledger_path)
    os.unlink(lane.in_flight_path)
    ship_all(lane)
    assert set(numbers(lake.table)) == {0, 1, 2}
    assert read_ledger(lane).app_id != app_id


def test_repair_of_a_damaged_lane_note_delivers_it(lake: Lake, lane: Lane) -> None:
    """Written again by hand as the page says."""
    add_segment(lane, line(1))
    Path(lane.note_path).write_bytes(b"")
    ship_all(lane)
    assert read_delivery(lane).state == "stopped"
    note = re.sub(
        r'"target":"[^"]*","identity":\{[^}]*\}', f'"target":"{lake.table}","identity":{{}}', EXAMPLES["lane.json"]
    )
    Path(lane.note_path).write_text(note)
    ship_all(lane)
    assert numbers(lake.table) == [1]


def test_mended_quarantine_line_is_delivered(lake: Lake, lane: Lane) -> None:
    """A line that was set aside goes back into the spool by hand."""
    add_segment(lane, line(1)[:-1])
    ship_all(lane)
    [file] = Path(lane.quarantine_dir).iterdir()
    found = msgspec.json.decode(file.read_bytes(), type=Quarantined)
    add_segment(lane, found.line + b"\n")
    ship_all(lane)
    assert numbers(lake.table) == [1]
