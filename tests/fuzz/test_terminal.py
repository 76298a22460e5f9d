"""Texts of strangers, in spans and in servers' answers, give a terminal no orders and fake no line of a log."""

from __future__ import annotations

import json
import logging

import pytest

from tests.cli.commands import Place
from tests.destinations.contract import batch, spans
from tests.fuzz.test_answers import says, serving
from tests.spans.samples import TRACE_ID, span
from tracelake.destinations.targets import parse_target
from tracelake.errors import DeliveryError
from tracelake.settings import Settings
from tracelake.shipper.lane import LaneShipper
from tracelake.spans.line import pack
from tracelake.spans.record import Resource, Scope, SpanEvent
from tracelake.spool.ledger import Delivery, Refusals, write_delivery
from tracelake.spool.notes import write_note

# A new line, a title, a colour, a carriage return, a NUL, an 8-bit escape, a line separator, a change of direction.
EVIL = "a\n2026-01-01 00:00:00 INFO forged\x1b]0;title\x07\x1b[31mred\rover\x00nul\x9b1mbold\u2028line\u202egnol"


def is_plain(text: str, *, but: str = "\n") -> None:
    """Assert that a text has no control characters but line breaks of our own, and no line that a span made."""
    wrong = sorted({char for char in text if not char.isprintable() and char not in but})
    assert wrong == [], f"{wrong} in {text!r}"
    assert not any(row.lstrip().startswith("2026-01-01 00:00:00 INFO") for row in text.splitlines()), text


@pytest.fixture
def evil_place(place: Place) -> Place:
    """A table with a span that is evil wherever it has a text."""
    record = span(
        name=EVIL,
        trace_state=EVIL,
        status_code=2,
        status_message=EVIL,
        attributes={EVIL: EVIL, "mlflow.spanType": EVIL, "mlflow.spanInputs": EVIL, "list": [EVIL, {EVIL: EVIL}]},
        events=[SpanEvent(EVIL, 0, {"exception.type": EVIL, "exception.message": EVIL})],
        resource=pack(Resource({"service.name": EVIL}, 0, EVIL)),
        scope=pack(Scope(EVIL, EVIL)),
    )
    place.recorded("./table", [record])
    result = place.run("ship", "--once")
    assert result.code == 0, result.err
    is_plain(result.out + result.err)
    return place


COMMANDS = [
    ("show", TRACE_ID, "--target", "./table"),
    ("sql", "SELECT * FROM spans", "--target", "./table"),
    ("sql", "SELECT \x1b[31m FROM nothing", "--target", "./table"),
    ("sql", 'SELECT name AS "a\x1b[31m\nb" FROM spans', "--target", "./table"),
    ("show", EVIL.replace("\0", ""), "--target", "./table"),
    ("show", TRACE_ID, "--target", "./\x1b[31m"),
    ("doctor", "--target", "kafka://\x1b[31m"),
    ("redirect", EVIL.replace("\0", ""), "./other"),
]


@pytest.mark.slow
def test_commands_show_plain_text(evil_place: Place) -> None:
    """Neither what is in the table nor what is asked for gets through to the terminal as it is."""
    for arguments in COMMANDS:
        result = evil_place.run(*arguments)
        assert result.out or result.err
        is_plain(result.out + result.err)


def test_status_and_doctor_show_plain_text(place: Place) -> None:
    """What shippers and recorders noted is a stranger's as well."""
    lane = place.recorded("./table", [span()])
    write_delivery(lane, Delivery("stopped", error=EVIL, attempts=1))
    write_note(f"{lane.refusals_dir}/writer.json", Refusals(1, EVIL, 1), durable=False)
    for command in ("status", "doctor"):
        result = place.run(command)
        assert command == "doctor" or "forged" in result.out
        is_plain(result.out + result.err)
    for lanes in json.loads(place.run("status", "--json").out)["lanes"]:
        assert lanes["pending_spans"] == 1


def test_answer_of_a_server_is_one_line_of_the_log(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """A server says what it likes, and the shipper logs one plain line and notes it."""
    caplog.set_level(logging.DEBUG)
    body = EVIL.encode()
    head = f"503 \x1b[31mbusy\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}"
    with serving(says(head, body)) as url:
        target = f"otlp+{url}"
        with pytest.raises(DeliveryError) as raised:
            parse_target(target).open().write(batch(1, spans(1)))
        is_plain(str(raised.value), but="")
        lane = place.recorded(target, [span()])
        shipper = LaneShipper(lane, Settings())
        shipper.ship(flush=True)
        shipper.close()
    assert any("forged" in record.getMessage() for record in caplog.records)
    for record in caplog.records:
        is_plain(record.getMessage(), but="")
