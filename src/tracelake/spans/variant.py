"""The binary encoding of VARIANT values: `metadata`, the dictionary of all keys, and `value`, which refers to it.

Written after the Parquet specification: https://github.com/apache/parquet-format/blob/master/VariantEncoding.md
Comments name its sections. All numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import Any, NamedTuple
from uuid import UUID

from tracelake.errors import DamageError

# "Metadata encoding": version 1 in the low four bits, then whether the strings are sorted and unique.
_VERSION = 1
_SORTED = 1 << 4

# "Encoding types": the two low bits of a value's first byte are its basic type.
_SHORT_STRING, _OBJECT, _ARRAY = 1, 2, 3

# "Encoding types": the first byte of a primitive value is its type number times four.
_NULL, _TRUE, _FALSE, _INT8, _INT16, _INT32, _INT64, _DOUBLE = range(0, 32, 4)
_DECIMAL4, _DECIMAL8, _DECIMAL16, _DATE, _TIMESTAMP, _TIMESTAMP_NTZ = range(32, 56, 4)
_FLOAT, _BINARY, _STRING, _TIME, _TIMESTAMP_NANOS, _TIMESTAMP_NTZ_NANOS, _UUID = range(56, 84, 4)

_NULL_VALUE, _TRUE_VALUE, _FALSE_VALUE = bytes([_NULL]), bytes([_TRUE]), bytes([_FALSE])

# Spans of one program share few sets of attribute names; one with very many is not worth the memory.
_MAX_CACHED_KEYS = 64
_MAX_CACHED_BYTES = 4096
_MAX_CACHED = 256

_EPOCH = datetime(1970, 1, 1)

_pack_int16 = struct.Struct("<Bh").pack
_pack_int32 = struct.Struct("<Bi").pack
_pack_int64 = struct.Struct("<Bq").pack
_pack_double = struct.Struct("<Bd").pack
_pack_size = struct.Struct("<BI").pack

_SHORT_STRING_HEADS = tuple(bytes([size << 2 | _SHORT_STRING]) for size in range(64))


class Variant(NamedTuple):
    """The two binaries of one VARIANT."""

    metadata: bytes
    value: bytes


def encode(value: Any) -> Variant:
    """Return the VARIANT of a plain value: str, bool, 64-bit int, float, bytes, None, and lists and dicts of these.

    Integers take their smallest width, floats are doubles, keys are sorted.

    Raises:
        TypeError: a value is of another type, or a key is not text.
        OverflowError: an integer has more than 64 bits, or the whole more than 4 GiB.
        UnicodeEncodeError: a text has a lone surrogate.
    """
    if type(value) is dict and len(value) <= _MAX_CACHED_KEYS:
        shape = _SHAPES[tuple(value)]
        try:
            fields = [_SCALARS[type(item)](item) for item in shape.sorted_items(value)]
        except KeyError:
            return _encode_nested(value)
        return Variant(shape.metadata, shape.object(fields))
    return _encode_nested(value)


def decode(metadata: bytes, value: bytes) -> Any:
    """Return the plain value of a VARIANT, whoever wrote it.

    A decimal becomes an int if it has no fraction and fits 64 bits, a float if that is the same number, else text. A
    date, time, timestamp or UUID becomes its ISO 8601 or usual text; timestamps with a zone end in `Z`.

    Raises:
        DamageError: the two are not a VARIANT, or one of a later version of the specification.
    """
    try:
        cached = len(metadata) <= _MAX_CACHED_BYTES
        names = _cached_names(metadata) if cached else _names(metadata)
        return _decode(names, value, 0)
    except (ValueError, IndexError, KeyError, OverflowError, RecursionError, struct.error) as error:
        raise DamageError(
            f"Not a VARIANT: {type(error).__name__}: {error}, in a value of {len(value)} bytes beginning "
            f"{value[:16].hex()}. Read it with the engine that wrote it."
        ) from error


def _encode_nested(value: Any) -> Variant:
    names: set[str] = set()
    _collect_names(value, names)
    keys = frozenset(names)
    dictionary = _DICTIONARIES[keys] if len(keys) <= _MAX_CACHED_KEYS else _Dictionary(keys)
    return Variant(dictionary.metadata, _encode(value, dictionary.ids))


def _collect_names(value: Any, names: set[str]) -> None:
    kind = type(value)
    if kind is dict:
        names.update(value)
        value = value.values()
    elif kind is not list:
        return
    for item in value:
        if type(item) is dict or type(item) is list:
            _collect_names(item, names)


def _sorted_names(names: Collection[str]) -> list[str]:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"a VARIANT key is text, not {type(name).__name__}")
    # By code point, which is the order of the UTF-8 bytes that the specification asks for.
    return sorted(names)


def _metadata(names: Sequence[str]) -> bytes:
    texts = [name.encode() for name in names]
    offsets = list(accumulate(map(len, texts), initial=0))
    width = _width(max(offsets[-1], len(texts)))
    header = bytes([_VERSION | _SORTED | (width - 1) << 6])
    return b"".join([header, len(texts).to_bytes(width, "little"), _unsigned(offsets, width), *texts])


def _encode(value: Any, ids: dict[str, int]) -> bytes:
    kind = type(value)
    encoder = _SCALARS.get(kind)
    if encoder is not None:
        return encoder(value)
    if kind is dict:
        keys = tuple(value)
        shape = _SHAPES[keys] if len(keys) <= _MAX_CACHED_KEYS else _Shape(keys)
        fields = [_encode(item, ids) for item in shape.sorted_items(value)]
        return _object(tuple([ids[name] for name in shape.names]), len(ids), fields)
    if kind is list:
        return _array([_encode(item, ids) for item in value])
    raise TypeError(f"a VARIANT does not hold {kind.__qualname__} values")


def _array(items: Sequence[bytes]) -> bytes:
    offsets = list(accumulate(map(len, items), initial=0))
    width = _width(offsets[-1])
    large = len(items) > 255
    header = bytes([_ARRAY | (width - 1) << 2 | large << 4])
    return b"".join([header, len(items).to_bytes(4 if large else 1, "little"), _unsigned(offsets, width), *items])


def _object(ids: tuple[int, ...], dictionary_size: int, fields: Sequence[bytes]) -> bytes:
    offsets = list(accumulate(map(len, fields), initial=0))
    width = _width(offsets[-1])
    head = (_cached_object_head if len(ids) <= _MAX_CACHED_KEYS else _object_head)(ids, dictionary_size, width)
    return b"".join([head, _unsigned(offsets, width), *fields])


def _object_head(ids: tuple[int, ...], dictionary_size: int, offset_width: int) -> bytes:
    id_width = _width(max(dictionary_size - 1, 0))
    large = len(ids) > 255
    header = bytes([_OBJECT | (offset_width - 1) << 2 | (id_width - 1) << 4 | large << 6])
    return header + len(ids).to_bytes(4 if large else 1, "little") + _unsigned(ids, id_width)


_cached_object_head = lru_cache(maxsize=1024)(_object_head)


class _Dictionary:
    """What all values with the same keys, at whatever level, share."""

    __slots__ = ("ids", "metadata")

    def __init__(self, names: frozenset[str]) -> None:
        ordered = _sorted_names(names)
        self.ids = {name: number for number, name in enumerate(ordered)}
        self.metadata = _metadata(ordered)


class _Shape:
    """What all objects with the same keys share; the metadata and heads are those of flat ones."""

    __slots__ = ("_heads", "metadata", "names", "sorted_items")

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = _sorted_names(names)
        self.metadata = _metadata(self.names)
        self.sorted_items = _items_getter(self.names)
        self._heads = [_object_head(tuple(range(len(names))), len(names), width) for width in (1, 2, 3, 4)]

    def object(self, fields: Sequence[bytes]) -> bytes:
        """Return the value of the flat object whose encoded fields, in the order of the sorted keys, are these."""
        offsets = [0]
        end = 0
        for field in fields:  # for the few fields of a span, a loop is quicker than `accumulate`
            end += len(field)
            offsets.append(end)
        if end < 256:
            return b"".join([self._heads[0], bytes(offsets), *fields])
        width = _width(end)
        return b"".join([self._heads[width - 1], _unsigned(offsets, width), *fields])


class _Shapes(dict[tuple[str, ...], _Shape]):
    """The shapes that came so far, if their names are short."""

    def __missing__(self, names: tuple[str, ...]) -> _Shape:
        shape = _Shape(names)
        if len(shape.metadata) <= _MAX_CACHED_BYTES:
            if len(self) >= _MAX_CACHED:
                self.clear()
            self[names] = shape
        return shape


class _Dictionaries(dict[frozenset[str], _Dictionary]):
    """The dictionaries that came so far, if their names are short."""

    def __missing__(self, names: frozenset[str]) -> _Dictionary:
        dictionary = _Dictionary(names)
        if len(dictionary.metadata) <= _MAX_CACHED_BYTES:
            if len(self) >= _MAX_CACHED:
                self.clear()
            self[names] = dictionary
        return dictionary


_SHAPES = _Shapes()
_DICTIONARIES = _Dictionaries()


def _items_getter(names: Sequence[str]) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    # itemgetter gives a tuple only when it is asked for two items or more.
    if len(names) > 1:
        return itemgetter(*names)
    return lambda items: tuple(items.values())


def _width(largest: int) -> int:
    if largest < 256:
        return 1
    width = (largest.bit_length() + 7) // 8
    if width > 4:
        raise OverflowError(f"a VARIANT ends at 4 GiB, and this one has a part of {largest} bytes")
    return width


def _unsigned(numbers: Sequence[int], width: int) -> bytes:
    if width == 1:
        return bytes(numbers)
    if width == 3:
        return b"".join([number.to_bytes(3, "little") for number in numbers])
    return struct.pack(f"<{len(numbers)}{'H' if width == 2 else 'I'}", *numbers)


def _encode_text(text: str) -> bytes:
    data = text.encode()
    size = len(data)
    return _SHORT_STRING_HEADS[size] + data if size < 64 else _sized(_STRING, data)


def _encode_int(number: int) -> bytes:
    if -128 <= number < 128:
        return bytes((_INT8, number & 255))
    if -(2**15) <= number < 2**15:
        return _pack_int16(_INT16, number)
    if -(2**31) <= number < 2**31:
        return _pack_int32(_INT32, number)
    if -(2**63) <= number < 2**63:
        return _pack_int64(_INT64, number)
    raise OverflowError(f"a VARIANT integer has 64 bits, and this one {number.bit_length()}")


def _encode_bool(value: bool) -> bytes:
    return _TRUE_VALUE if value else _FALSE_VALUE


def _encode_none(_: None) -> bytes:
    return _NULL_VALUE


def _encode_float(number: float) -> bytes:
    return _pack_double(_DOUBLE, number)


def _encode_bytes(data: bytes) -> bytes:
    return _sized(_BINARY, data)


def _sized(head: int, data: bytes) -> bytes:
    if len(data) >= 2**32:
        raise OverflowError(f"a VARIANT ends at 4 GiB, and this one has a part of {len(data)} bytes")
    return _pack_size(head, len(data)) + data


_SCALARS: dict[type[Any], Callable[[Any], bytes]] = {
    str: _encode_text,
    bool: _encode_bool,
    int: _encode_int,
    float: _encode_float,
    bytes: _encode_bytes,
    type(None): _encode_none,
}


def _names(metadata: bytes) -> tuple[str, ...]:
    if metadata[0] & 15 != _VERSION:
        raise ValueError(f"metadata of version {metadata[0] & 15}")
    width = (metadata[0] >> 6) + 1
    count = _uint(metadata, 1, width)
    start = 1 + width * (count + 2)
    offsets = [start + _uint(metadata, 1 + width * (index + 1), width) for index in range(count + 1)]
    return tuple(_slice(metadata, begin, end).decode() for begin, end in pairwise(offsets))


_cached_names = lru_cache(maxsize=256)(_names)


def _decode(names: Sequence[str], data: bytes, at: int) -> Any:
    head = data[at]
    basic = head & 3
    if basic == _SHORT_STRING:
        return _slice(data, at + 1, at + 1 + (head >> 2)).decode()
    if basic == _OBJECT:
        return _decode_object(names, data, at)
    if basic == _ARRAY:
        return _decode_array(names, data, at)
    return _PRIMITIVES[head](data, at + 1)


def _decode_object(names: Sequence[str], data: bytes, at: int) -> dict[str, Any]:
    head = data[at]
    offset_width, id_width, count_width = (head >> 2 & 3) + 1, (head >> 4 & 3) + 1, 4 if head & 64 else 1
    count = _uint(data, at + 1, count_width)
    ids = at + 1 + count_width
    offsets = ids + count * id_width
    fields = offsets + (count + 1) * offset_width
    return {
        names[_uint(data, ids + index * id_width, id_width)]: _decode(
            names, data, fields + _uint(data, offsets + index * offset_width, offset_width)
        )
        for index in range(count)
    }


def _decode_array(names: Sequence[str], data: bytes, at: int) -> list[Any]:
    head = data[at]
    width, count_width = (head >> 2 & 3) + 1, 4 if head & 16 else 1
    count = _uint(data, at + 1, count_width)
    offsets = at + 1 + count_width
    items = offsets + (count + 1) * width
    return [_decode(names, data, items + _uint(data, offsets + index * width, width)) for index in range(count)]


def _uint(data: bytes, at: int, width: int) -> int:
    return int.from_bytes(_slice(data, at, at + width), "little")


def _int(data: bytes, at: int, width: int) -> int:
    return int.from_bytes(_slice(data, at, at + width), "little", signed=True)


def _slice(data: bytes, begin: int, end: int) -> bytes:
    if not begin <= end <= len(data):
        raise ValueError(f"bytes {begin} to {end} of {len(data)}")
    return data[begin:end]


def _decode_sized(data: bytes, at: int) -> bytes:
    return _slice(data, at + 4, at + 4 + _uint(data, at, 4))


def _decode_decimal(data: bytes, at: int, width: int) -> int | float | str:
    scale, unscaled = data[at], _int(data, at + 1, width)
    # Not by arithmetic, which rounds to 28 digits.
    number = Decimal(f"{unscaled}E-{scale}")
    if unscaled % 10**scale == 0 and -(2**63) <= number < 2**63:
        return int(number)
    return float(number) if Decimal(repr(float(number))) == number else format(number, "f")


def _decode_date(data: bytes, at: int) -> str:
    days = _int(data, at, 4)
    try:
        return (date(1970, 1, 1) + timedelta(days=days)).isoformat()
    except OverflowError:
        return f"{days} days since 1970-01-01"


def _decode_timestamp(data: bytes, at: int, zone: str, per_second: int) -> str:
    count = _int(data, at, 8)
    seconds, fraction = divmod(count, per_second)
    digits = len(str(per_second)) - 1
    try:
        moment = (_EPOCH + timedelta(seconds=seconds)).isoformat()
    except OverflowError:
        return f"{count} / {per_second} seconds since 1970-01-01T00:00:00{zone}"
    return f"{moment}.{fraction:0{digits}d}{zone}"


def _decode_time(data: bytes, at: int) -> str:
    return (_EPOCH + timedelta(microseconds=_int(data, at, 8))).time().isoformat("microseconds")


_PRIMITIVES: dict[int, Callable[[bytes, int], Any]] = {
    _NULL: lambda _data, _at: None,
    _TRUE: lambda _data, _at: True,
    _FALSE: lambda _data, _at: False,
    _INT8: lambda data, at: _int(data, at, 1),
    _INT16: lambda data, at: _int(data, at, 2),
    _INT32: lambda data, at: _int(data, at, 4),
    _INT64: lambda data, at: _int(data, at, 8),
    _DOUBLE: lambda data, at: struct.unpack_from("<d", data, at)[0],
    _DECIMAL4: lambda data, at: _decode_decimal(data, at, 4),
    _DECIMAL8: lambda data, at: _decode_decimal(data, at, 8),
    _DECIMAL16: lambda data, at: _decode_decimal(data, at, 16),
    _DATE: _decode_date,
    _TIMESTAMP: lambda data, at: _decode_timestamp(data, at, "Z", 10**6),
    _TIMESTAMP_NTZ: lambda data, at: _decode_timestamp(data, at, "", 10**6),
    _FLOAT: lambda data, at: struct.unpack_from("<f", data, at)[0],
    _BINARY: _decode_sized,
    _STRING: lambda data, at: _decode_sized(data, at).decode(),
    _TIME: _decode_time,
    _TIMESTAMP_NANOS: lambda data, at: _decode_timestamp(data, at, "Z", 10**9),
    _TIMESTAMP_NTZ_NANOS: lambda data, at: _decode_timestamp(data, at, "", 10**9),
    _UUID: lambda data, at: str(UUID(bytes=_slice(data, at, at + 16))),
}
