"""Attribute values: what a row can hold, and how a value that it cannot hold is degraded in sight.

A plain value is a str of valid Unicode, a bool, an int of 64 bits, a float, bytes, None, or a list or str-keyed dict of
plain values. JSON knows neither bytes nor NaN, so in a spool line these travel as one-key objects, the tags:
`{"$bytes": "<base64>"}`, `{"$float": "NaN" | "Infinity" | "-Infinity"}`; a dict that looks like a tag is wrapped as
`{"$map": {...}}`.
"""

from __future__ import annotations

import dataclasses
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping, Set
from itertools import islice, takewhile
from typing import Any

import msgspec

from tracelake.spans.record import Attributes

# The attribute that lists what was degraded in this span, one "where: what" text an entry.
DEGRADED_KEY = "tracelake.degraded"

# Lists and dicts nested deeper are written as JSON text. Each level of dicts takes three levels of OTLP protobuf, and
# protobuf parsers refuse a message of more than 100 (a span itself takes seven):
# https://protobuf.dev/programming-guides/proto-limits/
MAX_DEPTH = 30

# Objects that share parts can unfold into more than any memory holds, and some iterate without end. What is in the
# lists and dicts of one attribute map counts by its characters and by these sizes; what follows so much is left out.
_MAX_SIZE = 2**28
_ITEM_SIZE = 32
_CONTAINER_SIZE = 256

# Such a value would note much, and each note has a path made of its keys.
_MAX_NOTES = 100
_MAX_KEY_SHOWN = 100

_INT64_MIN, _INT64_END = -(2**63), 2**63
_NON_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_TAG_MARK = b'{"$'
_encode = msgspec.json.Encoder().encode


class Notes(list[str]):
    """The first hundred things that had to change in a span, and how many more there were."""

    more = 0

    def append(self, note: str) -> None:
        """Add one, or count it."""
        if len(self) < _MAX_NOTES:
            super().append(note)
        else:
            self.more += 1

    def texts(self) -> list[str]:
        """Return them as the attribute `DEGRADED_KEY` has them."""
        return [*self, f"and {self.more} more"] if self.more else list(self)


def simple(values: Iterable[Any], depth: int = 1) -> bool:
    """Say whether JSON holds each of these attribute values as it is, with no tag and nothing to degrade.

    Strings are taken to be valid Unicode: the JSON encoder finds out, and raises UnicodeEncodeError. `depth` is that of
    the values, 1 in an attribute map.
    """
    # Written out for scalars: this runs for every attribute of every span, in the app.
    for value in values:
        kind = type(value)
        if kind is str or kind is bool:
            continue
        if kind is int:
            if _INT64_MIN <= value < _INT64_END:
                continue
        elif kind is float:
            if value - value == 0.0:
                continue
        elif _simple_container(value, kind, depth):
            continue
        return False
    return True


def has_text_keys(attributes: Mapping[Any, Any]) -> bool:
    """Say whether every key is text. JSON would make text of the others, and of 1 and "1" the same key."""
    try:
        # The quickest loop over keys there is: it stops with a TypeError at one that is not text.
        "".join(attributes)
    except TypeError:
        return False
    return True


def degrade_attributes(attributes: Mapping[Any, Any], path: str, notes: list[str]) -> Attributes:
    """Return a plain copy of `attributes`; each thing that had to change is added to `notes` as "path: what"."""
    return _Degrader(notes).mapping(attributes, path, 0)


def degrade(value: Any, path: str, notes: list[str]) -> Any:
    """Return `value` as a plain value; each thing that had to change is added to `notes` as "path: what".

    Tuples, sets, dataclasses, pydantic and msgspec models, enums, dates, UUIDs, decimals and NumPy values become their
    usual JSON shape without a note. Anything else becomes its `repr`, with one. Raises nothing, whatever the value's
    own code does.
    """
    return _Degrader(notes).plain(value, _shown(_key_text(path)), 1)


def clean_text(text: str, path: str, notes: list[str]) -> str:
    """Return `text` with lone surrogates escaped as `\\udXXX`, which UTF-8 cannot hold."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        notes.append(f"{path}: lone surrogates escaped")
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def tag(value: Any) -> Any:
    """Replace what JSON cannot hold in a plain value by tags."""
    kind = type(value)
    if kind is float:
        return value if value - value == 0.0 else {"$float": _non_finite_name(value)}
    if kind is bytes:
        return {"$bytes": b64encode(value).decode()}
    if kind is list:
        return [tag(item) for item in value]
    if kind is dict:
        tagged = {key: tag(item) for key, item in value.items()}
        return {"$map": tagged} if _looks_like_tag(tagged) else tagged
    return value


def untag(value: Any) -> Any:
    """Undo `tag`."""
    kind = type(value)
    if kind is list:
        return [untag(item) for item in value]
    if kind is dict:
        if len(value) == 1:
            ((key, item),) = value.items()
            if key in _UNTAG:
                return _UNTAG[key](item)
        return {key: untag(item) for key, item in value.items()}
    return value


def tag_attributes(attributes: Attributes) -> Attributes:
    """Tag the values of an attribute map; its own keys are never taken for a tag."""
    return {key: tag(value) for key, value in attributes.items()}


def untag_attributes(attributes: Attributes) -> Attributes:
    """Undo `tag_attributes`."""
    return {key: untag(value) for key, value in attributes.items()}


def may_hold_tags(text: bytes) -> bool:
    """Say whether JSON text made by `msgspec` may hold a tag."""
    # One byte is found ten times faster than three.
    return b"$" in text and _TAG_MARK in text


def json_text(value: Any) -> str:
    """Return the JSON text of a plain value as a MAP<STRING,STRING> column holds it.

    As in the protobuf JSON mapping, bytes are base64 and non-finite floats their name, quoted when nested.
    Source: https://protobuf.dev/programming-guides/json/
    """
    kind = type(value)
    if kind is float:
        return _encode(value).decode() if value - value == 0.0 else _non_finite_name(value)
    if kind is str:
        return str(value)
    if kind is bytes:
        return b64encode(value).decode()
    return _encode(_jsonable(value)).decode()


def _jsonable(value: Any) -> Any:
    kind = type(value)
    if kind is float:
        return value if value - value == 0.0 else _non_finite_name(value)
    if kind is list:
        return [_jsonable(item) for item in value]
    if kind is dict:
        return {key: _jsonable(item) for key, item in value.items()}
    return value


def _non_finite_name(value: float) -> str:
    if value != value:
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _simple_container(value: Any, kind: type[Any], depth: int) -> bool:
    if value is None:
        return True
    if depth >= MAX_DEPTH:
        return False
    if kind is list or kind is tuple:
        return simple(value, depth + 1)
    if kind is dict:
        return has_text_keys(value) and not _looks_like_tag(value) and simple(value.values(), depth + 1)
    return False


def _looks_like_tag(value: Mapping[Any, Any]) -> bool:
    return len(value) == 1 and str(next(iter(value))).startswith("$")


def _untag_bytes(text: str) -> bytes:
    return b64decode(text, validate=True)


_UNTAG: dict[str, Callable[[Any], Any]] = {
    "$bytes": _untag_bytes,
    "$float": _NON_FINITE.__getitem__,
    "$map": untag_attributes,
}


class _Degrader:
    """Makes plain values and keeps count of what it met; one for each attribute map."""

    def __init__(self, notes: list[str]) -> None:
        self._notes = notes
        self._open: set[int] = set()
        self._room = _MAX_SIZE
        self._is_cut = False

    def plain(self, value: Any, path: str, depth: int) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind is float:
            return value
        try:
            if isinstance(value, str):
                return clean_text(str.__str__(value), path, self._notes)
            if isinstance(value, int):
                return self._integer(int(value), path)
            if isinstance(value, float):
                return float(value)
            if isinstance(value, (bytes, bytearray, memoryview)):
                return bytes(value)
            return self._container(value, path, depth)
        except Exception:  # noqa: BLE001 - a value's own code may raise anything, and the span must still be recorded
            self._notes.append(f"{path}: {kind.__qualname__} written as its repr")
            return clean_text(repr_of(value), path, self._notes)

    def mapping(self, value: Mapping[Any, Any], path: str, depth: int) -> Attributes:
        plain: Attributes = {}
        repeated: dict[str, int] = {}
        # A copy, because another thread of the app may be filling the dict.
        items = list(islice(value.items(), max(0, self._room) // _ITEM_SIZE + 1) if depth else value.items())
        for key, item in items:
            if depth and not self._has_room(path, key, item):
                break
            name = text = clean_text(_key_text(key), path, self._notes)
            if text in plain:
                self._notes.append(f"{path}: two keys are {_shown(text)!r} as text, the later has quotes added")
            while name in plain:
                count = repeated[text] = repeated.get(text, 0) + 1
                name = f"{text}'{count if count > 1 else ''}"
            plain[name] = self.plain(item, f"{path}.{_shown(name)}", depth + 1)
        return plain

    def _container(self, value: Any, path: str, depth: int) -> Any:
        # Objects point at their parents, and those back at them.
        if id(value) in self._open:
            self._notes.append(f"{path}: {type(value).__qualname__} that contains itself, left out")
            return f"<{type(value).__qualname__} that contains itself>"
        self._room -= _CONTAINER_SIZE
        self._open.add(id(value))
        try:
            return self._unfold(value, path, depth)
        finally:
            self._open.discard(id(value))

    def _unfold(self, value: Any, path: str, depth: int) -> Any:
        is_mapping = isinstance(value, Mapping)
        if not is_mapping and not isinstance(value, (list, tuple, Set)):
            return self.plain(_builtin_shape(value), path, depth)
        if depth == MAX_DEPTH:
            self._notes.append(f"{path}: nested deeper than {MAX_DEPTH} levels, written as JSON text")
            return json_text(self._unfold(value, path, depth + 1))
        if is_mapping:
            return self.mapping(value, path, depth)
        items = takewhile(lambda item: self._has_room(path, item), value)
        return [self.plain(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(items)]

    def _has_room(self, path: str, *parts: Any) -> bool:
        """Say whether the next item of a list or dict may be kept, and count it."""
        if self._is_cut:
            return False
        self._room -= _ITEM_SIZE + sum([len(part) for part in parts if isinstance(part, (str, bytes, bytearray))])
        if self._room < 0:
            self._is_cut = True
            self._notes.append(f"{path}: the value unfolds to more than {_MAX_SIZE:,} bytes, what follows is left out")
        return not self._is_cut

    def _integer(self, value: int, path: str) -> int | str:
        if _INT64_MIN <= value < _INT64_END:
            return value
        bits = value.bit_length()
        self._notes.append(f"{path}: integer of {bits} bits written as text")
        # Python refuses to write integers of more than 4,300 digits (some 14,000 bits) in decimal.
        return str(value) if bits <= 14_000 else hex(value)


def _builtin_shape(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if hasattr(value, "tolist"):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return msgspec.to_builtins(value)


def _shown(key: str) -> str:
    return key if len(key) <= _MAX_KEY_SHOWN else f"{key[:_MAX_KEY_SHOWN]}..."


def _key_text(key: Any) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    try:
        return str(key)
    except Exception:  # noqa: BLE001 - as in _Degrader.plain
        return repr_of(key)


def repr_of(value: Any) -> str:
    """Return the `repr` of a value, whatever its own code does."""
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001 - as in _Degrader.plain
        return f"<{type(value).__qualname__}, whose repr raised {type(error).__qualname__}>"
