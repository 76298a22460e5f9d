"""Traces in the words of MLflow's REST API: protobuf's JSON, with ids of spans in base64.

Messages: https://github.com/mlflow/mlflow/blob/master/mlflow/protos/databricks_tracing.proto
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import Any

from tracelake.spans import tables
from tracelake.spans.annotations import Annotation, own
from tracelake.spans.record import Attributes, SpanRecord
from tracelake.testing.tracking.trace_tables import Source
from tracelake.testing.web.http import ApiError, required

# MLflow's client cuts previews off here for Databricks.
_PREVIEW = 10_000
_STATES = ("STATE_UNSPECIFIED", "OK", "ERROR", "IN_PROGRESS")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")
# Of an assessment, what its `value` is in.
_FEEDBACK, _EXPECTATION = "feedback", "expectation"


def info_value(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the annotation of a trace's info holds, from a TraceInfo.

    Raises:
        ApiError: 400, a field of it is not what it has to be.
    """
    state = body.get("state", "STATE_UNSPECIFIED")
    if state not in _STATES:
        raise _invalid("state", state, f"one of {', '.join(_STATES)}")
    value = {
        "client_request_id": _text(body, "client_request_id"),
        "trace_metadata": texts(body, "trace_metadata"),
        "request_preview": _text(body, "request_preview"),
        "response_preview": _text(body, "response_preview"),
        "state": state,
        "timestamp_us": micros(body["request_time"], "request_time") if "request_time" in body else None,
        "duration_ns": _duration_ns(body["execution_duration"]) if "execution_duration" in body else None,
    }
    return {name: each for name, each in value.items() if each is not None}


def trace_info(row: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Return the TraceInfo of a row of `traces_sql`, as plain values."""
    trace_id = f"{source.id_prefix}{row['trace_id']}"
    found = {
        "trace_id": trace_id,
        "trace_location": source.trace_location,
        "client_request_id": row["client_request_id"],
        "request_preview": _preview(row["request_preview"]),
        "response_preview": _preview(row["response_preview"]),
        "request_time": None if row["timestamp_us"] is None else moment(row["timestamp_us"]),
        "execution_duration": None if row["duration_ns"] is None else f"{Decimal(row['duration_ns']).scaleb(-9):f}s",
        "state": row["state"] or _STATES[0],
        "trace_metadata": row["trace_metadata"],
        # The name that MLflow shows is a tag, which nobody sets of a trace that OpenTelemetry alone made.
        "tags": {**({"mlflow.traceName": row["name"]} if row["name"] else {}), **row["tags"]},
        "assessments": [assessment(each, trace_id, source) for each in row["assessments"]],
    }
    return {name: each for name, each in found.items() if each is not None}


def assessment(row: Mapping[str, Any], trace_id: str, source: Source) -> dict[str, Any]:
    """Return the Assessment of an element of a row's `assessments`."""
    value = None if row["json"] is None else json.loads(row["json"])
    if row["kind"] == _FEEDBACK:
        error = json.loads(row["error"]) if row["error"] else None
        held: dict[str, Any] = {"value": value} | ({"error": error} if error else {})
    elif row["format"]:
        held = {"serialized_value": {"serialization_format": row["format"], "value": value}}
    else:
        held = {"value": value}
    found = {
        "assessment_id": row["assessment_id"],
        "assessment_name": row["assessment_name"],
        "trace_id": trace_id,
        "trace_location": source.trace_location,
        "span_id": row["span_id"],
        "source": {"source_type": row["source_type"], "source_id": row["source_id"] or ""},
        "create_time": moment(row["create_us"]),
        "last_update_time": moment(row["update_us"]),
        row["kind"]: held,
        "rationale": row["rationale"],
        "metadata": row["metadata"] or {},
        "overrides": row["overrides"],
        "valid": row["valid"],
    }
    return {name: each for name, each in found.items() if each is not None}


def assessment_annotation(trace_id: str, assessment_id: str, body: Mapping[str, Any]) -> Annotation:
    """Return the annotation of an Assessment.

    Raises:
        ApiError: 400, it has neither feedback nor an expectation, or both, or a field of it is not what it has to be.
    """
    kinds = [kind for kind in (_FEEDBACK, _EXPECTATION) if isinstance(body.get(kind), dict)]
    if len(kinds) != 1:
        raise ApiError(
            400,
            "INVALID_PARAMETER_VALUE",
            f"An assessment has either feedback or an expectation, and this has {' and '.join(kinds) or 'neither'}.",
        )
    held = body[kinds[0]]
    serialized = held.get("serialized_value") if kinds[0] == _EXPECTATION else None
    if serialized is not None and not isinstance(serialized, dict):
        raise _invalid("serialized_value", serialized, "an object")
    source = required(body, "source", dict)
    value = serialized.get("value") if serialized else held.get("value")
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise _invalid("value", value, "what JSON has") from None
    return Annotation(
        annotation_id=assessment_id,
        annotation_type="FEEDBACK" if kinds[0] == _FEEDBACK else "EXPECTATION",
        trace_id=trace_id,
        name=required(body, "assessment_name"),
        value=value,
        comment=_text(body, "rationale"),
        metadata=texts(body, "metadata")
        | own(
            source_type=required(source, "source_type"),
            source_id=_text(source, "source_id"),
            format=_text(serialized, "serialization_format") if serialized else None,
            error=json.dumps(held["error"]) if held.get("error") else None,
            span_id=_text(body, "span_id"),
            overrides=_text(body, "overrides"),
            valid=None if body.get("valid", True) else "false",
        ),
        created_us=micros(body["create_time"], "create_time") if "create_time" in body else 0,
    )


def span(record: SpanRecord, version: tables.Version) -> dict[str, Any]:
    """Return a span as OTLP's Span.

    In a version 1 table all values are text; text that is a JSON object or array becomes one.
    """
    found: dict[str, Any] = {
        "trace_id": _base64(record.trace_id),
        "span_id": _base64(record.span_id),
        "parent_span_id": _base64(record.parent_span_id or ""),
        "trace_state": record.trace_state,
        "flags": record.flags,
        "name": record.name,
        "kind": tables.SPAN_KINDS[record.kind],
        "start_time_unix_nano": str(record.start_time_unix_nano),
        "end_time_unix_nano": str(record.end_time_unix_nano),
        "attributes": _key_values(record.attributes, version),
        "dropped_attributes_count": record.dropped_attributes_count,
        "events": [
            {
                "time_unix_nano": str(event.time_unix_nano),
                "name": event.name,
                "attributes": _key_values(event.attributes, version),
                "dropped_attributes_count": event.dropped_attributes_count,
            }
            for event in record.events
        ],
        "dropped_events_count": record.dropped_events_count,
        "links": [
            {
                "trace_id": _base64(link.trace_id),
                "span_id": _base64(link.span_id),
                "trace_state": link.trace_state,
                "attributes": _key_values(link.attributes, version),
                "dropped_attributes_count": link.dropped_attributes_count,
                "flags": link.flags,
            }
            for link in record.links
        ],
        "dropped_links_count": record.dropped_links_count,
        "status": {"message": record.status_message, "code": tables.STATUS_CODES[record.status_code]},
    }
    # A root span has no parent_span_id, rather than an empty one.
    return {name: value for name, value in found.items() if value not in ("", 0, [])}


def texts(body: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return a field of a body that is a map of text to text; a missing one is empty.

    Raises:
        ApiError: 400, it is something else.
    """
    found = body.get(name) or {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _invalid(name, found, "an object whose values are text")
    return found


def objects(body: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return a field of a body that is a list of objects; a missing one is empty.

    Raises:
        ApiError: 400, it is something else.
    """
    found = body.get(name) or []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise _invalid(name, found, "a list of objects")
    return found


def whole(value: Any, name: str) -> int:
    """Return a whole number of 64 bits; protobuf's JSON has these also as text. `name` is the field that it is in.

    Raises:
        ApiError: 400, it is something else.
    """
    try:
        if -(2**63) <= int(value) < 2**63:
            return int(value)
    except (TypeError, ValueError):
        pass
    raise _invalid(name, value, "a whole number")


def moment(microseconds: int) -> str:
    """Return a time, given in microseconds since the Unix epoch, as RFC 3339 has it."""
    return (_EPOCH + timedelta(microseconds=microseconds)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def micros(text: Any, name: str) -> int:
    """Return a time of RFC 3339 in microseconds since the Unix epoch; `name` is the field that it is in.

    Raises:
        ApiError: 400, it is none.
    """
    found = _TIME.fullmatch(text) if isinstance(text, str) else None
    try:
        if found is None:
            raise ValueError
        zone = found[3].replace("Z", "+00:00")
        whole = datetime.fromisoformat(f"{found[1]}{zone}")
    except ValueError:
        raise _invalid(name, text, "a time as 2026-11-22T14:50:24.481Z") from None
    return (whole - _EPOCH) // timedelta(microseconds=1) + int((found[2] or "").ljust(6, "0")[:6])


def _text(body: Mapping[str, Any], name: str) -> str | None:
    found = body.get(name)
    if found is not None and not isinstance(found, str):
        raise _invalid(name, found, "text")
    return found


def _duration_ns(text: Any) -> int:
    try:
        if not isinstance(text, str) or not text.endswith("s"):
            raise InvalidOperation
        nanoseconds = Decimal(text[:-1]).scaleb(9)
        if not nanoseconds.is_finite() or abs(nanoseconds) >= 2**63:
            raise InvalidOperation
    except InvalidOperation:
        raise _invalid("execution_duration", text, "seconds as 0.099s") from None
    return int(nanoseconds)


def _key_values(attributes: Attributes, version: tables.Version) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": _any_value(_structured(value) if version == 1 else value)}
        for key, value in attributes.items()
    ]


def _structured(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _any_value(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, bool):
        return {"bool_value": value}
    if isinstance(value, int):
        return {"int_value": str(value)}
    if isinstance(value, float):
        return {"double_value": value if value - value == 0.0 else _name_of(value)}
    if isinstance(value, bytes):
        return {"bytes_value": b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {"kvlist_value": {"values": [{"key": key, "value": _any_value(item)} for key, item in value.items()]}}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return {"array_value": {"values": [_any_value(item) for item in value]}}
    return {"string_value": value}


def _name_of(value: float) -> str:
    if value != value:
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _base64(digits: str) -> str:
    return b64encode(bytes.fromhex(digits)).decode()


def _preview(text: str | None) -> str | None:
    return None if text is None else text[:_PREVIEW]


def _invalid(name: str, seen: Any, wanted: str) -> ApiError:
    return ApiError(400, "INVALID_PARAMETER_VALUE", f"The field {name} is {str(seen)[:200]!r}, and has to be {wanted}.")
