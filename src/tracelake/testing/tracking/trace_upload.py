"""The spans in a `traces.json`, as MLflow uploads it for a trace that is kept in an experiment.

Format: `Span.to_dict` of https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/entities/span.py
"""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec

from tracelake.spans.record import SpanEvent, SpanLink, SpanRecord

_STATUS_CODES = {"STATUS_CODE_OK": 1, "STATUS_CODE_ERROR": 2}


class _Event(msgspec.Struct):
    name: str
    time_unix_nano: int
    attributes: dict[str, Any] | None = None


class _Link(msgspec.Struct):
    trace_id: str
    span_id: str
    attributes: dict[str, Any] | None = None


class _Status(msgspec.Struct):
    code: str = ""
    message: str | None = None


class _Span(msgspec.Struct):
    """One span. Ids are base64; the value of an attribute is JSON text, that of an event's is not."""

    span_id: str
    name: str
    start_time_unix_nano: int
    parent_span_id: str | None = None
    end_time_unix_nano: int | None = None
    attributes: dict[str, Any] = {}
    events: list[_Event] = []
    links: list[_Link] = []
    status: _Status = msgspec.field(default_factory=_Status)


class _File(msgspec.Struct):
    spans: list[_Span] = []


def spans_of(content: bytes, trace_id: str) -> list[SpanRecord]:
    """Return the spans of a file, whose trace has this id (32 hex digits).

    Raises:
        ValueError: it is not of the format that MLflow writes since 3.6.
    """
    # Python's JSON has NaN and Infinity, and MLflow writes with it.
    try:
        file = msgspec.convert(json.loads(content), _File)
    except msgspec.ValidationError as error:  # in early versions of msgspec no ValueError
        raise ValueError(str(error)) from error
    return [_record(span, trace_id) for span in file.spans]


def _record(span: _Span, trace_id: str) -> SpanRecord:
    return SpanRecord(
        trace_id=trace_id,
        span_id=_hex(span.span_id),
        name=span.name,
        start_time_unix_nano=span.start_time_unix_nano,
        end_time_unix_nano=span.end_time_unix_nano or span.start_time_unix_nano,
        kind=0,
        parent_span_id=_hex(span.parent_span_id) if span.parent_span_id else None,
        attributes={key: _decoded(value) for key, value in span.attributes.items()},
        events=[SpanEvent(event.name, event.time_unix_nano, event.attributes or {}) for event in span.events],
        links=[
            SpanLink(
                link.trace_id.rpartition("/")[2].removeprefix("tr-"), link.span_id, attributes=link.attributes or {}
            )
            for link in span.links
        ],
        status_code=_STATUS_CODES.get(span.status.code, 0),
        status_message=span.status.message or "",
    )


def _hex(text: str) -> str:
    return base64.b64decode(text, validate=True).hex()


def _decoded(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
