"""Tests of the spool line: every record comes back, every bad line is refused."""

from __future__ import annotations

import io

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracelake.errors import LineError
from tracelake.spans import line, values
from tracelake.spans.record import Resource, Scope, SpanEvent, SpanLink, SpanRecord

from .samples import SPANS, attribute_maps, exact, exact_record, records, span


@given(records)
def test_record_comes_back_from_its_line(record: SpanRecord) -> None:
    """A line holds all of a plain record, and is one line."""
    text = line.encode_line(record)
    assert text.index(b"\n") == len(text) - 1
    assert exact_record(line.decode_line(text)) == exact_record(record)


@pytest.mark.parametrize("name", list(SPANS))
def test_sample_comes_back_from_its_line(name: str) -> None:
    """Each sample, 10 MB values among them, is the same after the spool."""
    assert exact_record(line.decode_line(line.encode_line(SPANS[name]))) == exact_record(SPANS[name])


def one_by_one(block: bytes) -> list[SpanRecord] | None:
    try:
        return [line.decode_line(text) for text in io.BytesIO(block)]
    except LineError:
        return None


@given(st.lists(records, max_size=5))
@pytest.mark.slow
def test_lines_together_are_the_lines_one_by_one(spans: list[SpanRecord]) -> None:
    """Or are left to be looked at one by one: those with tags."""
    block = b"".join(map(line.encode_line, spans))
    together = line.decode_lines(block)
    if together is None:
        assert values.may_hold_tags(block) or not spans
    else:
        assert list(map(exact_record, together)) == list(map(exact_record, spans))


GOOD = line.encode_line(span())
BLOCKS = {
    "two on one line": GOOD[:-1] + GOOD,
    "two on one line and an empty one": GOOD[:-1] + b" " + GOOD + b"\n",
    "empty line": GOOD + b"\n" + GOOD,
    "newline within": GOOD.replace(b",", b",\n", 1),
    "torn": GOOD + GOOD[:-1],
    "cut": GOOD + GOOD[:30] + b"\n" + GOOD,
    "not hexadecimal": GOOD + line.encode_line(span(span_id="G" * 16)),
    "link not hexadecimal": line.encode_line(span(links=[SpanLink("G" * 32, "2" * 16)])),
    "of another kind": GOOD + b"[]\n",
    "zeros": GOOD + b"\0" * 100 + b"\n",
    "nothing": b"",
}


@pytest.mark.parametrize("name", list(BLOCKS))
def test_lines_with_a_doubtful_one_are_left_to_be_looked_at(name: str) -> None:
    """Which of them is no span, and where it begins, is for `decode_line` to say."""
    assert line.decode_lines(GOOD + GOOD) is not None
    assert line.decode_lines(BLOCKS[name]) is None


@given(st.integers(0, 3 * len(GOOD) - 1), st.binary(max_size=3))
def test_damaged_lines_are_judged_as_one_by_one(place: int, bytes_: bytes) -> None:
    """Whatever a few bytes become, there is never another record, nor one more or less."""
    block = GOOD * 3
    damaged = block[:place] + bytes_ + block[place + len(bytes_) :]
    together = line.decode_lines(damaged)
    if together is not None:
        alone = one_by_one(damaged)
        assert alone is not None
        assert list(map(exact_record, together)) == list(map(exact_record, alone))


@given(attribute_maps)
def test_resource_and_scope_come_back_packed(attributes: dict[str, object]) -> None:
    """Packing keeps every attribute of a resource and of a scope."""
    resource, scope = Resource(attributes, 1, "url"), Scope("name", "1", attributes, 2, "url")
    record = span(resource=line.pack(resource), scope=line.pack(scope))
    assert exact(line.resource_of(record)) == exact(resource)
    assert exact(line.scope_of(record)) == exact(scope)
    assert exact_record(line.repacked(record)) == exact_record(record)


def test_degraded_span_says_what_changed_and_where() -> None:
    """Every part of a span that had to change is named in one attribute."""
    record = span(
        name="n\ud800",
        trace_state="t\ud800",
        status_message="s\ud800",
        attributes={"big": 2**70, "kept": 1},
        events=[SpanEvent("e\ud800", 1, {"o": object})],
        links=[SpanLink("1" * 32, "2" * 16, "l\ud800", {"big": -(2**70)})],
    )
    back = line.decode_line(line.encode_line(record))
    assert back.attributes.pop(values.DEGRADED_KEY) == [
        "attributes.big: integer of 71 bits written as text",
        "events[0].name: lone surrogates escaped",
        "events[0].attributes.o: type written as its repr",
        "links[0].trace_state: lone surrogates escaped",
        "links[0].attributes.big: integer of 71 bits written as text",
        "name: lone surrogates escaped",
        "status_message: lone surrogates escaped",
        "trace_state: lone surrogates escaped",
    ]
    assert back.attributes == {"big": str(2**70), "kept": 1}
    assert (back.name, back.trace_state, back.status_message) == ("n\\ud800", "t\\ud800", "s\\ud800")
    assert back.events[0].attributes == {"o": "<class 'object'>"}
    assert back.links[0].attributes == {"big": str(-(2**70))}


def test_degraded_resource_says_what_changed() -> None:
    """A resource and a scope carry their own notes."""
    record = span(
        resource=line.pack(Resource({"big": 2**64})), scope=line.pack(Scope("\ud800", attributes={"c": complex(1, 2)}))
    )
    assert line.resource_of(record).attributes == {
        "big": str(2**64),
        values.DEGRADED_KEY: ["attributes.big: integer of 65 bits written as text"],
    }
    assert line.scope_of(record).name == "\\ud800"
    assert len(line.scope_of(record).attributes[values.DEGRADED_KEY]) == 2


def test_notes_of_an_earlier_degrading_are_kept() -> None:
    """Degrading a span again adds to its notes."""
    record = span(attributes={values.DEGRADED_KEY: ["earlier"], "big": 2**64})
    notes = line.degraded(record).attributes[values.DEGRADED_KEY]
    assert notes == ["earlier", "attributes.big: integer of 65 bits written as text"]


def test_notes_are_bounded() -> None:
    """A value with very many faults does not fill its span with notes."""
    notes = line.degraded(span(attributes={"v": [2**64] * 1_000})).attributes[values.DEGRADED_KEY]
    assert len(notes) == 101
    assert notes[-1] == "and 900 more"


@pytest.mark.parametrize("key", [None, 1, 1.5, (1, 2), True])
def test_key_that_is_not_text_becomes_text(key: object) -> None:
    """A key of any type gives a line that can be read."""
    back = line.decode_line(line.encode_line(span(attributes={key: "v"})))  # type: ignore[dict-item]
    assert back.attributes == {str(key): "v"}


def test_keys_that_are_the_same_as_text_lose_no_value() -> None:
    """JSON would make one key of 1 and "1"; both values are kept, in events too, and the span says so."""
    same: dict[object, str] = {1: "number", "1": "text"}
    record = span(attributes=same, events=[SpanEvent("e", 1, same)])  # type: ignore[arg-type]
    back = line.decode_line(line.encode_line(record))
    assert len(back.attributes.pop(values.DEGRADED_KEY)) == 2
    assert back.attributes == back.events[0].attributes == {"1": "number", "1'": "text"}


def _changed(**fields: object) -> bytes:
    return msgspec.json.encode({**msgspec.json.decode(line.encode_line(span())), **fields})


BAD_LINES = {
    "empty": b"",
    "cut": line.encode_line(span())[:50],
    "other_json": b"[1,2]",
    "no_name": b'{"trace_id":"' + b"0" * 32 + b'","span_id":"' + b"0" * 16 + b'"}',
    "surrogate": _changed(name="X").replace(b"X", rb"\ud800"),
    "short_trace_id": _changed(trace_id="0"),
    "trace_id_not_hex": _changed(trace_id="z" * 32),
    "span_id_with_spaces": _changed(span_id=" " * 16),
    "span_id_in_capitals": _changed(span_id="A" * 16),
    "parent_not_hex": _changed(parent_span_id="g" * 16),
    "link_not_hex": _changed(links=[{"trace_id": "0" * 32, "span_id": "-" * 16}]),
    "link_too_short": _changed(links=[{"trace_id": "0", "span_id": "0" * 16}]),
    "time_before_1970": _changed(start_time_unix_nano=-1),
    "time_over_64_bits": _changed(end_time_unix_nano=2**63),
    "unknown_kind": _changed(kind=6),
    "unknown_status": _changed(status_code=3),
    "count_over_31_bits": _changed(dropped_events_count=2**31),
    "bytes_tag_of_a_number": _changed(attributes={"a": {"$bytes": 5}}),
    "bytes_tag_not_base64": _changed(attributes={"a": {"$bytes": "!!!!"}}),
    "float_tag_unknown": _changed(attributes={"a": {"$float": "Nope"}}),
    "float_tag_of_a_list": _changed(attributes={"a": {"$float": []}}),
    "map_tag_of_a_number": _changed(attributes={"a": {"$map": 5}}),
    "nested_without_end": _changed(attributes={"a": "X"}).replace(b'"X"', b"[" * 100_000),
}


@pytest.mark.parametrize("name", list(BAD_LINES))
def test_bad_line_is_refused_with_the_reason(name: str) -> None:
    """Whatever is wrong with a line, the error is a LineError that says what happens to it."""
    with pytest.raises(LineError, match=r"^Not a span: .+\. The line is kept in the lane's quarantine folder\.$"):
        line.decode_line(BAD_LINES[name])


def test_bad_resource_is_refused_when_asked_for() -> None:
    """The resource is parsed only on demand, and refused then."""
    record = line.decode_line(_changed(resource={"attributes": 5}, scope=[]))
    with pytest.raises(LineError, match="Not a resource"):
        line.resource_of(record)
    with pytest.raises(LineError, match="Not a scope"):
        line.scope_of(record)
