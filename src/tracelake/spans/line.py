"""A span record to and from one line of a spool segment; docs/spool-format.md has the format.

A line is the JSON of a `SpanRecord` and one newline. Bytes and non-finite floats are tagged (see `values`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from tracelake.errors import LineError
from tracelake.spans import values
from tracelake.spans.record import Attributes, Resource, Scope, SpanEvent, SpanLink, SpanRecord
from tracelake.spans.values import has_text_keys, simple

# The JSON of a resource or scope that is longer is not kept: a thousand of them would take the memory of all else.
MAX_SHARED_BYTES = 2**14

_HEX_DIGITS = b"0123456789abcdef"
_MAX_SHOWN = 100  # characters of an id that is none
_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines  # adds the newline without a copy
_DECODER = msgspec.json.Decoder(SpanRecord)
_UNREADABLE = (msgspec.MsgspecError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
_Part = TypeVar("_Part", Resource, Scope)


def encode_line(record: SpanRecord) -> bytes:
    """Return the line of a record, newline included. Whatever it cannot hold is degraded, and says so in the line.

    Takes any value in attributes and raises nothing for it.
    """
    try:
        if (
            simple(record.attributes.values())
            and (not record.events or all(_is_simple(event) for event in record.events))
            and (not record.links or all(_is_simple(link) for link in record.links))
        ):
            return _encode_lines([record])
    except Exception:  # noqa: BLE001, S110 - such a key, a lone surrogate, a value that another thread is changing
        pass
    return _encode_lines([_tagged(degraded(record))])


def decode_line(line: bytes) -> SpanRecord:
    """Return the record of a line.

    Raises:
        LineError: the line is not the JSON of a span; the message says where it goes wrong.
    """
    try:
        record = _DECODER.decode(line)
        _check_hex(record)
        if values.may_hold_tags(line):
            _untag(record)
    except _UNREADABLE as error:
        raise LineError(f"Not a span: {error}. The line is kept in the lane's quarantine folder.") from error
    return record


def decode_lines(block: bytes) -> list[SpanRecord] | None:
    """Return the records of whole lines, or None if there may be one among them that only `decode_line` can judge.

    Takes half the time of `decode_line` for each.
    """
    if values.may_hold_tags(block):
        return None
    try:
        records = _DECODER.decode_lines(block)
        for record in records:
            if record.links:
                _check_hex(record)
    except _UNREADABLE:
        return None
    # The decoder takes any space between two records, or none, for the end of a line.
    is_one_a_line = len(records) == block.count(b"\n") == block.count(b"}\n{") + 1
    ids = "".join([record.trace_id + record.span_id + (record.parent_span_id or "") for record in records])
    return records if is_one_a_line and _is_hex(ids) else None


def degraded(record: SpanRecord) -> SpanRecord:
    """Return a copy in which every value is plain; its `tracelake.degraded` attribute lists what had to change."""
    notes = values.Notes()
    attributes = values.degrade_attributes(record.attributes, "attributes", notes)
    events = [
        msgspec.structs.replace(
            event,
            name=values.clean_text(event.name, f"events[{index}].name", notes),
            attributes=values.degrade_attributes(event.attributes, f"events[{index}].attributes", notes),
        )
        for index, event in enumerate(record.events)
    ]
    links = [
        msgspec.structs.replace(
            link,
            trace_state=values.clean_text(link.trace_state, f"links[{index}].trace_state", notes),
            attributes=values.degrade_attributes(link.attributes, f"links[{index}].attributes", notes),
        )
        for index, link in enumerate(record.links)
    ]
    texts = {
        field: values.clean_text(getattr(record, field), field, notes)
        for field in ("name", "status_message", "trace_state")
    }
    _add_notes(attributes, notes)
    return msgspec.structs.replace(record, attributes=attributes, events=events, links=links, **texts)


def pack(part: Resource | Scope) -> msgspec.Raw:
    """Return the JSON of a resource or scope as a record holds it; degraded as in `encode_line`."""
    notes = values.Notes()
    attributes = values.degrade_attributes(part.attributes, "attributes", notes)
    texts = {
        field: values.clean_text(text, field, notes)
        for field in part.__struct_fields__
        if isinstance(text := getattr(part, field), str)
    }
    _add_notes(attributes, notes)
    replaced: Any = msgspec.structs.replace(part, attributes=values.tag_attributes(attributes), **texts)
    return msgspec.Raw(_encode(replaced))


def repacked(record: SpanRecord) -> SpanRecord:
    """Return a copy with its resource and scope degraded, for lines that something else than `pack` wrote.

    Raises:
        LineError: the JSON of one of them is not that of a resource or scope.
    """
    return msgspec.structs.replace(record, resource=pack(resource_of(record)), scope=pack(scope_of(record)))


def resource_of(record: SpanRecord) -> Resource:
    """Return the resource of a record. The object is shared by many: do not change its attributes.

    Raises:
        LineError: its JSON is not that of a resource.
    """
    text = bytes(record.resource)
    return _cached_resource(text) if len(text) <= MAX_SHARED_BYTES else _parse(text, Resource)


def scope_of(record: SpanRecord) -> Scope:
    """Return the instrumentation scope of a record. The object is shared by many: do not change its attributes.

    Raises:
        LineError: its JSON is not that of a scope.
    """
    text = bytes(record.scope)
    return _cached_scope(text) if len(text) <= MAX_SHARED_BYTES else _parse(text, Scope)


def _is_simple(part: SpanEvent | SpanLink) -> bool:
    return simple(part.attributes.values()) and has_text_keys(part.attributes)


def _add_notes(attributes: Attributes, notes: values.Notes) -> None:
    if notes:
        earlier = attributes.get(values.DEGRADED_KEY)
        attributes[values.DEGRADED_KEY] = [*(earlier if isinstance(earlier, list) else ()), *notes.texts()]


def _check_hex(record: SpanRecord) -> None:
    if not _is_hex(record.trace_id + record.span_id + (record.parent_span_id or "")):
        raise ValueError(
            f"trace_id {record.trace_id!r}, span_id {record.span_id!r} or parent_span_id {record.parent_span_id!r} "
            "is not lowercase hexadecimal"
        )
    for link in record.links:
        if len(link.trace_id) != 32 or len(link.span_id) != 16 or not _is_hex(link.trace_id + link.span_id):
            shown = f"{link.trace_id[:_MAX_SHOWN]!r} {link.span_id[:_MAX_SHOWN]!r}"
            raise ValueError(f"a link to {shown} is not lowercase hexadecimal, of 32 and 16 digits")


def _is_hex(text: str) -> bool:
    # Deleting the digits and looking at what is left takes half the time of a regular expression.
    return not text.encode().translate(None, _HEX_DIGITS)


def _tagged(record: SpanRecord) -> SpanRecord:
    return msgspec.structs.replace(
        record,
        attributes=values.tag_attributes(record.attributes),
        events=[_tagged_part(event) for event in record.events],
        links=[_tagged_part(link) for link in record.links],
    )


def _tagged_part(part: Any) -> Any:
    return msgspec.structs.replace(part, attributes=values.tag_attributes(part.attributes))


def _untag(record: SpanRecord) -> None:
    parts: list[SpanRecord | SpanEvent | SpanLink] = [record, *record.events, *record.links]
    for part in parts:
        part.attributes = values.untag_attributes(part.attributes)


@lru_cache(maxsize=1024)
def _cached_resource(text: bytes) -> Resource:
    return _parse(text, Resource)


@lru_cache(maxsize=1024)
def _cached_scope(text: bytes) -> Scope:
    return _parse(text, Scope)


def _parse(text: bytes, kind: type[_Part]) -> _Part:
    try:
        part = msgspec.json.decode(text, type=kind)
        return msgspec.structs.replace(part, attributes=values.untag_attributes(part.attributes))
    except _UNREADABLE as error:
        what = kind.__name__.lower()
        raise LineError(f"Not a {what}: {error}. The line is kept in the lane's quarantine folder.") from error
