"""Tests of attribute values: what is plain, what is degraded, and how tags travel."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import math
import uuid
from collections import OrderedDict, namedtuple
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import given

from tracelake.spans import values

from .samples import VALUES, exact, nested, plain_values


class Colour(enum.Enum):
    RED = "red"


class Tone(str, enum.Enum):
    DARK = "dark"


@dataclasses.dataclass
class Node:
    name: str
    parent: Any = None
    children: list[Any] = dataclasses.field(default_factory=list)


class Model:
    def model_dump(self) -> dict[str, Any]:
        return {"field": (1, 2)}


class Array:
    def tolist(self) -> list[float]:
        return [1.0, 2.0]


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __str__(self) -> str:
        raise RuntimeError("no str")


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize("name", list(VALUES))
def test_plain_value_is_kept_without_a_note(name: str) -> None:
    """A value that a row can hold is not touched."""
    notes: list[str] = []
    assert exact(values.degrade(VALUES[name], "v", notes)) == exact(VALUES[name])
    assert notes == []


@given(plain_values)
def test_plain_value_comes_back_through_tags_and_json(value: Any) -> None:
    """Tagging makes JSON hold any plain value exactly."""
    text = msgspec.json.encode(values.tag(value))
    assert exact(values.untag(msgspec.json.decode(text))) == exact(value)
    assert values.may_hold_tags(text) or exact(msgspec.json.decode(text)) == exact(value)


@given(plain_values)
def test_simple_value_needs_no_tag(value: Any) -> None:
    """What `simple` lets through is the same in JSON with and without tags."""
    if values.simple([value]):
        assert exact(values.tag(value)) == exact(value)
        assert exact(msgspec.json.decode(msgspec.json.encode(value))) == exact(value)


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ((1, "a"), [1, "a"]),
        (Point(1, 2), [1, 2]),
        ({3}, [3]),
        (Colour.RED, "red"),
        (Tone.DARK, "dark"),
        ({Tone.DARK: 1, 2: "b"}, {"dark": 1, "2": "b"}),
        (OrderedDict(a=1), {"a": 1}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (bytearray(b"x"), b"x"),
        (memoryview(b"x"), b"x"),
        (Node("n"), {"name": "n", "parent": None, "children": []}),
        (Model(), {"field": [1, 2]}),
        (Array(), [1.0, 2.0]),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (decimal.Decimal("1.10"), "1.10"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_known_object_takes_its_json_shape_without_a_note(value: Any, shape: Any) -> None:
    """Objects with a usual JSON shape lose nothing."""
    notes: list[str] = []
    assert exact(values.degrade(value, "v", notes)) == exact(shape)
    assert notes == []


@pytest.mark.parametrize(
    ("value", "shape", "note"),
    [
        (2**63, "9223372036854775808", "v: integer of 64 bits written as text"),
        (-(2**63) - 1, "-9223372036854775809", "v: integer of 64 bits written as text"),
        ([1 << 20_000], [hex(1 << 20_000)], "v[0]: integer of 20001 bits written as text"),
        ("a\ud800b", "a\\ud800b", "v: lone surrogates escaped"),
        ({"\udfff": 1}, {"\\udfff": 1}, "v: lone surrogates escaped"),
        ({1: "a", "1": "b"}, {"1": "a", "1'": "b"}, "v: two keys are '1' as text, the later has quotes added"),
        (len, "<built-in function len>", "v: builtin_function_or_method written as its repr"),
        (Broken(), "<Broken, whose repr raised RuntimeError>", "v: Broken written as its repr"),
        ({Broken(): 1}, {"<Broken, whose repr raised RuntimeError>": 1}, None),
    ],
)
def test_value_that_no_row_holds_is_degraded_with_a_note(value: Any, shape: Any, note: str | None) -> None:
    """What has to change becomes text, and the note says where and what."""
    notes: list[str] = []
    assert exact(values.degrade(value, "v", notes)) == exact(shape)
    assert notes == ([] if note is None else [note])


def test_value_nested_too_deep_becomes_json_text() -> None:
    """Below the deepest level nothing is lost: it is there as JSON."""
    notes: list[str] = []
    value = values.degrade(nested(100), "v", notes)
    for _ in range(values.MAX_DEPTH - 1):
        value = value["down"] if isinstance(value, dict) else value[0]
    assert json.loads(value) == nested(100 - values.MAX_DEPTH + 1)
    assert len(notes) == 1
    assert notes[0].endswith("nested deeper than 30 levels, written as JSON text")


def test_value_nested_beyond_the_recursion_limit_still_becomes_something() -> None:
    """No depth of nesting raises or takes the process down."""
    notes: list[str] = []
    value: Any = []
    for _ in range(20_000):
        value = [value]
    values.degrade(value, "v", notes)
    assert notes


def test_object_that_contains_itself_is_left_out_once() -> None:
    """Objects that point at their parents, and these back, do not unfold without end."""
    parent = Node("parent")
    parent.children = [Node(f"child {number}", parent) for number in range(10)]
    notes: list[str] = []
    shape = values.degrade(parent, "v", notes)
    assert shape["children"][9] == {"name": "child 9", "parent": "<Node that contains itself>", "children": []}
    assert len(notes) == 10


@pytest.mark.slow
def test_value_that_shares_its_parts_stops_unfolding() -> None:
    """A value of few objects that unfolds into very many is cut, and says so."""
    shared: Any = []
    for _ in range(28):
        shared = [shared, shared]
    notes: list[str] = []
    values.degrade(shared, "v", notes)
    assert len(notes) == 1
    assert "unfolds to more than 268,435,456 bytes, what follows is left out" in notes[0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        (True, "true"),
        (7, "7"),
        (0.5, "0.5"),
        (None, "null"),
        (b"\x00\xff", "AP8="),
        (math.nan, "NaN"),
        (-math.inf, "-Infinity"),
        ([1, b"\x00", math.inf, {"a": "\u00e9"}], '[1,"AA==","Infinity",{"a":"\u00e9"}]'),
    ],
)
def test_json_text_of_a_value(value: Any, text: str) -> None:
    """A MAP<STRING,STRING> holds the protobuf JSON of a value, and strings as they are."""
    assert values.json_text(value) == text
