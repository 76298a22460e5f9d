"""What is known of traces beside their spans: tags, feedback, links to runs, deletion. A row each, only ever added.

Of the rows with one `annotation_id` the latest by `updated_at` counts; of two of one time, the one that deletes, and
then the greater value as text. What has a `deleted_at` is gone. It is the annotations table of Databricks:
https://docs.databricks.com/aws/en/mlflow3/genai/tracing/observe-with-traces/query-dbsql
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from tracelake.spans import tables, variant

if TYPE_CHECKING:
    import pyarrow as pa

AnnotationType = Literal["METADATA", "TAG", "FEEDBACK", "EXPECTATION", "RUN_LINK"]

# The metadata of an annotation is its user's, and beside it, under keys that begin so, what has no column of its own.
OWN_METADATA = "mlflow.annotation."

# Makes the id of an annotation that has none of its own from what it is about.
_IDS = uuid.UUID("b6f7cbd5-55d4-4d8e-9f2f-0f0b5f6f6c6e")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_VARIANTS = ("value", "metadata")
_COLUMNS = {
    "annotation_id": "string",
    "target_type": "string",
    "target_id": "string",
    "trace_id": "string",
    "annotation_type": "string",
    "name": "string",
    "value": "variant",
    "comment": "string",
    "metadata": "variant",
    "created_at": "timestamp",
    "created_by": "string",
    "updated_at": "timestamp",
    "updated_by": "string",
    "deleted_at": "timestamp",
    "deleted_by": "string",
}


class Annotation(msgspec.Struct, kw_only=True):
    """One version of an annotation.

    Attributes:
        trace_id: 32 lowercase hex digits.
        span_id: 16 lowercase hex digits; empty if it is about the whole trace.
        value: a plain value.
        metadata: text by key.
        created_us: microseconds since the Unix epoch; 0 is now.
        deleted: whether this version removes the annotation.
    """

    annotation_id: str
    annotation_type: AnnotationType
    trace_id: str
    span_id: str = ""
    name: str
    value: Any = None
    comment: str | None = None
    metadata: dict[str, str] | None = None
    created_us: int = 0
    deleted: bool = False


def info(trace_id: str, value: Mapping[str, Any], *, deleted: bool = False) -> Annotation:
    """Return the annotation that has the info of a trace; the trace is gone with it.

    Beside what Databricks keeps there (client_request_id, trace_metadata, request_preview, response_preview), `value`
    has `timestamp_us`, `duration_ns` and `state`, so that a trace with no spans has them too.
    """
    return Annotation(
        annotation_id=_id(trace_id, "metadata"),
        annotation_type="METADATA",
        trace_id=trace_id,
        name="metadata",
        value=dict(value),
        deleted=deleted,
    )


def tag(trace_id: str, key: str, value: str = "", *, deleted: bool = False) -> Annotation:
    """Return the annotation of a trace's tag."""
    return Annotation(
        annotation_id=_id(trace_id, "tag", key),
        annotation_type="TAG",
        trace_id=trace_id,
        name=key,
        value=value,
        deleted=deleted,
    )


def run_link(trace_id: str, run_id: str, *, deleted: bool = False) -> Annotation:
    """Return the annotation that links a trace to a run."""
    return Annotation(
        annotation_id=_id(trace_id, "run", run_id),
        annotation_type="RUN_LINK",
        trace_id=trace_id,
        name="run_link",
        value=run_id,
        deleted=deleted,
    )


def own(**values: str | None) -> dict[str, str]:
    """Return the metadata of an annotation that is not its user's, of the values that there are."""
    return {f"{OWN_METADATA}{name}": value for name, value in values.items() if value is not None}


def annotations_schema() -> dict[str, Any]:
    """Return the Delta schema of a table of annotations, as the dict of its JSON; all columns are nullable.

    `target_id` is the trace id, and for a span `<trace id>:<span id>`. `trace_id` is in some descriptions of this
    table, and `target_id` in others; so both are there.
    """
    fields = [{"name": name, "type": kind, "nullable": True, "metadata": {}} for name, kind in _COLUMNS.items()]
    return {"type": "struct", "fields": fields}


class Clock:
    """Times of versions, of which each is later than those before, however short after them it is made."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_us = 0

    def now_us(self) -> int:
        """Return a time in microseconds since the Unix epoch."""
        with self._lock:
            self._last_us = max(time.time_ns() // 1000, self._last_us + 1)
            return self._last_us


def to_rows(annotations: Sequence[Annotation], principal: str, clock: Clock) -> list[dict[str, Any]]:
    """Return a row for each annotation, as plain values by column; each is later than the one before.

    Args:
        principal: who made them; may be empty.
    """
    return [_row(annotation, principal, clock.now_us()) for annotation in annotations]


def to_arrow(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Return rows of `to_rows` in the columns and types of `schema`, the table's own, matched by name.

    Raises:
        OverflowError, UnicodeEncodeError: a value cannot be in a VARIANT.
    """
    import pyarrow as pa

    return pa.RecordBatch.from_arrays(
        [
            pa.array([_cell(field.name, row.get(field.name)) for row in rows], field.type, from_pandas=False)
            for field in schema
        ],
        schema=schema,
    )


def _row(annotation: Annotation, principal: str, now_us: int) -> dict[str, Any]:
    updated_at = _moment(now_us)
    span = annotation.span_id
    return {
        "annotation_id": annotation.annotation_id,
        "target_type": "SPAN" if span else "TRACE",
        "target_id": f"{annotation.trace_id}:{span}" if span else annotation.trace_id,
        "trace_id": annotation.trace_id,
        "annotation_type": annotation.annotation_type,
        "name": annotation.name,
        "value": annotation.value,
        "comment": annotation.comment,
        "metadata": annotation.metadata,
        "created_at": _moment(annotation.created_us) if annotation.created_us else updated_at,
        "created_by": principal,
        "updated_at": updated_at,
        "updated_by": principal,
        "deleted_at": updated_at if annotation.deleted else None,
        "deleted_by": principal if annotation.deleted else None,
    }


def _cell(column: str, value: Any) -> Any:
    if column not in _VARIANTS or value is None:
        return value
    encoded = variant.encode(value)
    return {tables.VARIANT_METADATA: encoded.metadata, tables.VARIANT_VALUE: encoded.value}


def unix_micros(moment: datetime) -> int:
    """Return a time in microseconds since the Unix epoch."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _moment(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _id(*parts: str) -> str:
    return str(uuid.uuid5(_IDS, "\0".join(parts)))
