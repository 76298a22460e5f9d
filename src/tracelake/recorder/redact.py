"""Mask what a program does not want in its traces, before a span touches the disk; docs/security.md has the rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from typing import Any

import msgspec

from tracelake.errors import ConfigurationError
from tracelake.spans.line import degraded, pack, resource_of, scope_of
from tracelake.spans.record import Attributes, Resource, Scope, SpanEvent, SpanLink, SpanRecord
from tracelake.spans.values import DEGRADED_KEY, has_text_keys, simple

# Takes an attribute's key and value, and returns what is recorded in place of the value; None drops the attribute.
Redact = Callable[[str, Any], Any]

MASK = "[redacted]"

STATUS_MESSAGE = "status_message"
_MESSAGE = "exception.message"
# What repeats a value, cut or within other text where nothing finds it again: masked as a whole if the value changed.
_COPIES = {
    _MESSAGE: ("exception.stacktrace",),
    "mlflow.spanInputs": ("mlflow.trace.request_preview", "mlflow.trace.metadata.mlflow.traceInputs"),
    "mlflow.spanOutputs": ("mlflow.trace.response_preview", "mlflow.trace.metadata.mlflow.traceOutputs"),
}
_BRACKETS = {"{", "["}
_QUOTED_KEY = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:')
# Paths and resources repeat from span to span; what was found out is kept for so many of them.
_MAX_KNOWN = 4096
_MAX_KNOWN_CHARS = 200


class Redactor:
    """Applies patterns and callables, one after the other, to whatever a span says in attributes and messages."""

    def __init__(self, steps: Sequence[Redact]) -> None:
        self._steps = steps
        # By the id() of the JSON, which is kept, so that its id stays its own: spans share that of a resource or scope.
        self._parts: dict[int, tuple[msgspec.Raw, msgspec.Raw]] = {}

    def __call__(self, record: SpanRecord) -> SpanRecord:
        """Return the record, redacted in place, or a copy. Raises what a callable raises."""
        if not _is_plain(record):
            record = degraded(record)  # objects become dicts, in which patterns find keys
        self._redact(record)
        for event in record.events:
            # OpenTelemetry makes the status message of the exception's.
            if _MESSAGE in self._redact(event) and record.status_message:
                record.status_message = MASK
        for link in record.links:
            self._redact(link)
        if record.status_message and record.status_message != MASK:
            message = self._value(STATUS_MESSAGE, record.status_message)
            record.status_message = "" if message is None else str(message)
        record.resource = self._part(record.resource, resource_of, record)
        record.scope = self._part(record.scope, scope_of, record)
        return record

    def _value(self, key: str, value: Any) -> Any:
        for step in self._steps:
            if value is None:
                break
            value = step(key, value)
        return value

    def _redact(self, part: Any) -> dict[str, Any]:
        """Redact the attributes of a part of a span; return those that changed."""
        changed: dict[str, Any] = {}
        for key, value in part.attributes.items():
            found = value if value is None or key == DEGRADED_KEY else self._value(key, value)
            if found is not value and found != value:
                changed[key] = found
        if changed:
            for key in changed.keys() & _COPIES.keys():
                changed.update((copy, MASK) for copy in _COPIES[key] if copy in part.attributes)
            both = {**part.attributes, **changed}
            part.attributes = {key: value for key, value in both.items() if value is not None or key not in changed}
            part.dropped_attributes_count += len(both) - len(part.attributes)
        return changed

    def _part(
        self, packed: msgspec.Raw, unpack: Callable[[SpanRecord], Resource | Scope], record: SpanRecord
    ) -> msgspec.Raw:
        known = self._parts.get(id(packed))
        if known is None or known[0] is not packed:
            part: Any = unpack(record)  # shared by others, and frozen
            own = SpanEvent("", 0, part.attributes, part.dropped_attributes_count)
            found = packed
            if self._redact(own):
                count = own.dropped_attributes_count
                found = pack(msgspec.structs.replace(part, attributes=own.attributes, dropped_attributes_count=count))
            if len(self._parts) >= _MAX_KNOWN:
                self._parts = {}
            known = self._parts[id(packed)] = packed, found
        return known[1]


class Patterns:
    """Masks the values whose path a glob pattern matches: the attribute's key, and the keys within, joined by dots."""

    def __init__(self, patterns: Iterable[str]) -> None:
        # `*.x` is for x at the top, too. Case does not count: headers and variables are written in any.
        texts = (f"(?:.*\\.)?{translate(text[2:])}" if text.startswith("*.") else translate(text) for text in patterns)
        self._match = re.compile("|".join(texts), re.IGNORECASE).match
        self._known: dict[str, bool] = {}

    def __call__(self, key: str, value: Any) -> Any:
        """Return the value with what a pattern names masked; the very same object if that is nothing."""
        # Written out, as it runs for all that is in an attribute: a known path, and a value with nothing in it.
        known = self._known.get(key)
        if self._names(key) if known is None else known:
            return MASK
        kind = type(value)
        if kind is str:
            return self._text(key, value) if value.lstrip()[:1] in _BRACKETS else value
        return self._within(key, value) if kind is dict or kind is list or kind is tuple else value

    def _within(self, path: str, value: Any) -> Any:
        masked: Any = None
        if type(value) is dict:
            for name, item in value.items():
                found = self(f"{path}.{name}", item)
                if found is not item:
                    masked = dict(value) if masked is None else masked
                    masked[name] = found
        else:
            for index, item in enumerate(value):
                kind = type(item)
                found = self._within(path, item) if kind is dict or kind is list else self(path, item)
                if found is not item:
                    masked = list(value) if masked is None else masked
                    masked[index] = found
        return value if masked is None else masked

    def _text(self, key: str, text: str) -> str:
        try:
            value = msgspec.json.decode(text)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            # Cut, or something else than JSON: a key that is named is enough to mask all of it.
            is_named = any(self._names(f"{key}.{name}") for name in _QUOTED_KEY.findall(text))
            return MASK if is_named else text
        found = self._within(key, value) if type(value) in (dict, list) else value
        return text if found is value else msgspec.json.encode(found).decode()

    def _names(self, path: str) -> bool:
        known = self._known.get(path)
        if known is None:
            known = self._match(path) is not None
            if len(path) <= _MAX_KNOWN_CHARS:
                if len(self._known) >= _MAX_KNOWN:
                    self._known = {}
                self._known[path] = known
        return known


def steps(redact: str | Iterable[str] | Redact) -> list[Redact]:
    """Return what `redact=` stands for: patterns, also as one text with commas, or a callable.

    Raises:
        ConfigurationError: it is something else.
    """
    if isinstance(redact, str):
        redact = redact.split(",")
    if callable(redact):
        return [redact]
    patterns = list(redact) if isinstance(redact, Iterable) else [redact]
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigurationError(
            f"redact={redact!r:.100} is neither patterns of attribute keys nor a callable. "
            "Pass a list such as ['*.password', 'mlflow.spanInputs'], or a function of a key and a value."
        )
    patterns = [pattern.strip() for pattern in patterns if pattern.strip()]
    return [Patterns(patterns)] if patterns else []


def masked(record: SpanRecord, why: str) -> SpanRecord:
    """Return a record with every value masked, and a note that says why."""
    attributes: Attributes = _masked(record.attributes)
    attributes[DEGRADED_KEY] = [f"attributes: {why}, so all values are masked"]
    return msgspec.structs.replace(
        record,
        attributes=attributes,
        events=[msgspec.structs.replace(item, attributes=_masked(item.attributes)) for item in record.events],
        links=[msgspec.structs.replace(item, attributes=_masked(item.attributes)) for item in record.links],
        status_message=MASK if record.status_message else "",
        resource=_masked_part(record.resource, lambda: resource_of(record)),
        scope=_masked_part(record.scope, lambda: scope_of(record)),
    )


def _masked(attributes: Attributes) -> Attributes:
    return dict.fromkeys(list(attributes), MASK)


def _masked_part(packed: msgspec.Raw, unpack: Callable[[], Resource | Scope]) -> msgspec.Raw:
    part: Any = unpack()
    return pack(msgspec.structs.replace(part, attributes=_masked(part.attributes))) if part.attributes else packed


def _is_plain(record: SpanRecord) -> bool:
    parts: list[SpanRecord | SpanEvent | SpanLink] = [record, *record.events, *record.links]
    return all(has_text_keys(part.attributes) and simple(part.attributes.values()) for part in parts)
