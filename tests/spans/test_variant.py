"""Tests of the VARIANT encoding: against itself, against the specification's bytes, and against DuckDB's own."""

from __future__ import annotations

import contextlib
import json
import math
import struct
from collections.abc import Iterator
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracelake.errors import DamageError
from tracelake.spans import variant

from .samples import LONG_TEXT, VALUES, attribute_maps, exact, keys, plain_values

EMPTY_DICTIONARY = b"\x11\x00\x00"

_DUCKDB_1_IS_WRONG = pytest.mark.skipif(
    duckdb.__version__.startswith("1."), reason="DuckDB 1 writes a text of 64 bytes with the header of a shorter one"
)


@pytest.fixture(scope="module")
def duck() -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection in memory."""
    with duckdb.connect() as connection:
        yield connection


@given(plain_values)
def test_value_comes_back_from_its_variant(value: Any) -> None:
    """Any plain value is the same after encoding and decoding, whatever its nesting."""
    assert exact(variant.decode(*variant.encode(value))) == exact(value)


@given(attribute_maps)
def test_attribute_map_comes_back_from_its_variant(attributes: dict[str, Any]) -> None:
    """The short cut for flat dicts gives the same as the general way."""
    assert exact(variant.decode(*variant.encode(attributes))) == exact(attributes)
    with_list = variant.decode(*variant.encode({**attributes, "list": []}))
    assert exact(with_list) == exact({**attributes, "list": []})


@pytest.mark.parametrize("name", list(VALUES))
def test_sample_comes_back_from_its_variant(name: str) -> None:
    """Each sample value survives, alone and in a dict, 10 MB and 300 keys among them."""
    assert exact(variant.decode(*variant.encode(VALUES[name]))) == exact(VALUES[name])
    assert exact(variant.decode(*variant.encode({"k": VALUES[name]}))) == exact({"k": VALUES[name]})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_duckdb_reads_the_same_value(duck: duckdb.DuckDBPyConnection, value: Any) -> None:
    """Another implementation of the specification sees what was written."""
    metadata, data = variant.encode(value)
    found = duck.execute("SELECT variant_bytes_to_variant($1)::JSON::VARCHAR", [metadata + data]).fetchall()
    assert json.loads(found[0][0]) == value


@pytest.mark.parametrize(("count", "text_bytes"), [(1, 250), (3, 80), (3, 70_000), (3, 6_000_000), (255, 1), (256, 1)])
def test_duckdb_reads_every_offset_and_id_width(duck: duckdb.DuckDBPyConnection, count: int, text_bytes: int) -> None:
    """Offsets and ids of one to four bytes, and large objects and arrays, are where the specification puts them."""
    value = {f"key {number}": str(number % 10) * text_bytes for number in range(count)}
    for each in (value, list(value.values())):
        metadata, data = variant.encode(each)
        found = duck.execute("SELECT variant_bytes_to_variant($1)::JSON::VARCHAR", [metadata + data]).fetchall()
        assert json.loads(found[0][0]) == each


def test_duckdb_reads_three_byte_ids(duck: duckdb.DuckDBPyConnection) -> None:
    """An object of more keys than two bytes number is read at its first, middle and last key."""
    value = {f"key {number:05}": number for number in range(70_000)}
    metadata, data = variant.encode(value)
    select = ", ".join(f"variant_extract(v, 'key {number}')::INTEGER" for number in ("00000", "34567", "69999"))
    found = duck.execute(f"SELECT {select} FROM (SELECT variant_bytes_to_variant($1) AS v)", [metadata + data])
    assert found.fetchall() == [(0, 34_567, 69_999)]
    assert variant.decode(metadata, data) == value


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("NULL", None),
        ("true", True),
        ("5::TINYINT", 5),
        ("-500::SMALLINT", -500),
        ("70000::INTEGER", 70_000),
        ("5000000000::BIGINT", 5_000_000_000),
        ("1.25::FLOAT", 1.25),
        ("0.1::DOUBLE", 0.1),
        ("1.50::DECIMAL(4,2)", 1.5),
        ("2.00::DECIMAL(4,2)", 2),
        ("12345678901.5::DECIMAL(15,1)", 12345678901.5),
        ("-12345678901234567890123.25::DECIMAL(38,2)", "-12345678901234567890123.25"),
        ("99999999999999999999::DECIMAL(38,0)", "99999999999999999999"),
        ("DATE '2024-02-29'", "2024-02-29"),
        ("DATE '20000-01-01'", "6585322 days since 1970-01-01"),
        ("TIME '01:02:03.000004'", "01:02:03.000004"),
        ("TIMESTAMP '1969-12-31 23:59:59.9'", "1969-12-31T23:59:59.900000"),
        ("TIMESTAMPTZ '2024-01-01 01:02:03+00'", "2024-01-01T01:02:03.000000Z"),
        ("TIMESTAMP '20000-01-01 00:00:00'", "568971820800000000 / 1000000 seconds since 1970-01-01T00:00:00"),
        ("TIMESTAMP_NS '2024-01-01 01:02:03.123456789'", "2024-01-01T01:02:03.123456789"),
        ("UUID '00112233-4455-6677-8899-aabbccddeeff'", "00112233-4455-6677-8899-aabbccddeeff"),
        ("'\\x00z'::BLOB", b"\x00z"),
        ("repeat('x', 63)", "x" * 63),
        pytest.param("repeat('x', 64)", "x" * 64, marks=_DUCKDB_1_IS_WRONG),
        ("{'b': [1.5, 2.5], 'a': {'c': 'd'}}", {"b": [1.5, 2.5], "a": {"c": "d"}}),
    ],
)
def test_value_that_duckdb_wrote_is_read(duck: duckdb.DuckDBPyConnection, expression: str, value: Any) -> None:
    """Types that we never write, but other writers do, become plain values."""
    duck.execute("SET TimeZone = 'UTC'")
    found = duck.execute(f"SELECT variant_to_parquet_variant(({expression})::VARIANT)").fetchall()[0][0]
    if found is None:
        found = {"metadata": EMPTY_DICTIONARY, "value": b"\x00"}
    assert exact(variant.decode(found["metadata"], found["value"])) == exact(value)


def test_timestamp_with_nanoseconds_and_zone_is_read() -> None:
    """The one type that DuckDB does not write: number 18, nanoseconds in UTC."""
    data = bytes([18 << 2]) + struct.pack("<q", -1)
    assert variant.decode(EMPTY_DICTIONARY, data) == "1969-12-31T23:59:59.999999999Z"


def test_bytes_are_those_of_the_specification() -> None:
    """A small object, byte by byte: a sorted dictionary, ids and offsets in the order of the names."""
    metadata, data = variant.encode({"b": "x", "a": 1})
    assert metadata == bytes([0x11, 2, 0, 1, 2]) + b"ab"
    assert data == bytes([0b10, 2, 0, 1, 0, 2, 4, 3 << 2, 1, 1 << 2 | 1]) + b"x"


def test_integers_take_their_smallest_width() -> None:
    """An integer has one, two, four or eight bytes after its head."""
    for bits, size in ((8, 2), (16, 3), (32, 5), (64, 9)):
        for number in (2 ** (bits - 1) - 1, -(2 ** (bits - 1))):
            data = variant.encode(number).value
            assert len(data) == size
            assert variant.decode(EMPTY_DICTIONARY, data) == number


def test_keys_are_sorted_by_their_bytes() -> None:
    """Names sort as UTF-8, not as UTF-16, which puts U+FFFF after U+10000."""
    metadata, data = variant.encode({"\U00010000": 2, "\uffff": 1, "a": 0})
    assert metadata.endswith("a\uffff\U00010000".encode())
    assert list(variant.decode(metadata, data)) == ["a", "\uffff", "\U00010000"]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (2**63, OverflowError, "a VARIANT integer has 64 bits, and this one 64"),
        ({"a": {"b": -(2**63) - 1}}, OverflowError, "a VARIANT integer has 64 bits, and this one 64"),
        ((1, 2), TypeError, "a VARIANT does not hold tuple values"),
        ({"a": {1}}, TypeError, "a VARIANT does not hold set values"),
        ({1: "a"}, TypeError, "a VARIANT key is text, not int"),
        ({"a": {None: "a"}}, TypeError, "a VARIANT key is text, not NoneType"),
        ("\ud800", UnicodeEncodeError, "surrogates not allowed"),
        ({"\ud800": 1}, UnicodeEncodeError, "surrogates not allowed"),
    ],
)
def test_value_that_is_not_plain_is_refused(value: Any, error: type[Exception], message: str) -> None:
    """Nothing is guessed: what a VARIANT cannot hold raises, and says what it was."""
    with pytest.raises(error, match=message):
        variant.encode(value)


GOOD = variant.encode({"a": [1, 2.5, "text"], "b": {"c": LONG_TEXT[:100]}})


@pytest.mark.parametrize(
    ("metadata", "data"),
    [
        (b"", b"\x00"),
        (b"\x12\x00\x00", b"\x00"),
        (b"\x11\x05\x00", b"\x00"),
        (EMPTY_DICTIONARY, b""),
        (EMPTY_DICTIONARY, bytes([63 << 2])),
        (EMPTY_DICTIONARY, GOOD.value),
        (EMPTY_DICTIONARY, bytes([16 << 2, 5, 0, 0, 0]) + b"abc"),
        (EMPTY_DICTIONARY, bytes([1 << 2 | 1, 0xFF])),
        (EMPTY_DICTIONARY, bytes([7 << 2, 1])),
        (EMPTY_DICTIONARY, bytes([20 << 2, 1])),
    ],
)
def test_damaged_variant_is_refused(metadata: bytes, data: bytes) -> None:
    """Damage raises a DamageError that shows the first bytes."""
    with pytest.raises(DamageError, match=r"^Not a VARIANT: .+ bytes beginning .*\. Read it with the engine"):
        variant.decode(metadata, data)


@given(st.binary(max_size=60), st.integers(0, len(GOOD.value)))
def test_garbage_raises_nothing_else(garbage: bytes, cut: int) -> None:
    """Whatever the bytes, decoding ends in a value or a DamageError."""
    for metadata, data in ((GOOD.metadata, garbage), (garbage, GOOD.value), (GOOD.metadata, GOOD.value[:cut])):
        with contextlib.suppress(DamageError):
            variant.decode(metadata, data)


def test_not_a_number_stays_one() -> None:
    """NaN and infinities are doubles like any other."""
    decoded = variant.decode(*variant.encode([math.nan, math.inf, -math.inf]))
    assert math.isnan(decoded[0])
    assert decoded[1:] == [math.inf, -math.inf]
