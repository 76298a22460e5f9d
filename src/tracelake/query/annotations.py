"""What is known of traces beside their spans, read back: the annotations that count."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tracelake.query.dialect import Dialect
from tracelake.query.infos import Assessment
from tracelake.query.reader import Reader
from tracelake.query.relations import among
from tracelake.spans.annotations import OWN_METADATA, unix_micros


@dataclass(frozen=True)
class Annotated:
    """What is known of one trace.

    Attributes:
        info: what was posted of it, as `spans.annotations.info` describes it.
        deleted: whether the trace is.
        tags: text by key; None for a tag that is removed, whatever the root span carries.
        assessments: in the order in which they were made.
        run_ids: in the order in which they were linked.
    """

    info: Mapping[str, Any] = field(default_factory=dict)
    deleted: bool = False
    tags: Mapping[str, str | None] = field(default_factory=dict)
    assessments: tuple[Assessment, ...] = ()
    run_ids: tuple[str, ...] = ()


def read_annotations(reader: Reader, trace_ids: Sequence[str]) -> dict[str, Annotated]:
    """Return what is known of traces, by their ids; a trace that nothing is known of is not there.

    Args:
        trace_ids: 32 lowercase hex digits each.
    """
    if not trace_ids:
        return {}
    dialect = Dialect.of(reader)
    trace_id = "split_part(target_id, ':', 1)"
    found = reader.run(
        f"SELECT {trace_id} AS trace_id, target_id, annotation_id, annotation_type, name, comment, created_at, "  # noqa: S608
        f"updated_at, deleted_at, {dialect.json('value')} AS value, {dialect.json('metadata')} AS metadata "
        f"FROM annotations WHERE {among(trace_ids, trace_id)}"
    )
    latest: dict[str, dict[str, Any]] = {}
    for row in found.to_pylist():
        known = latest.get(row["annotation_id"])
        if known is None or _version(row) > _version(known):
            latest[row["annotation_id"]] = row
    by_trace: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(latest.values(), key=lambda row: (row["created_at"], row["annotation_id"])):
        by_trace.setdefault(row["trace_id"], []).append(row)
    return {trace_id: _annotated(rows) for trace_id, rows in by_trace.items()}


def _version(row: Mapping[str, Any]) -> tuple[datetime, bool, str]:
    """Return what is greatest of the row that counts; see `spans.annotations`."""
    return row["updated_at"], row["deleted_at"] is not None, _text(row["value"]) or ""


def _annotated(rows: Iterable[Mapping[str, Any]]) -> Annotated:
    info: Mapping[str, Any] = {}
    deleted = False
    tags: dict[str, str | None] = {}
    assessments, run_ids = [], []
    for row in rows:
        removed = row["deleted_at"] is not None
        match row["annotation_type"]:
            case "METADATA":
                value = _plain(row["value"])
                info, deleted = value if isinstance(value, dict) else {}, removed
            case "TAG":
                tags[row["name"]] = None if removed else _text(row["value"]) or ""
            case "RUN_LINK" if not removed:
                run_ids.append(_text(row["value"]) or "")
            case "FEEDBACK" | "EXPECTATION" if not removed:
                assessments.append(_assessment(row))
    return Annotated(info, deleted, tags, tuple(assessments), tuple(run_ids))


def _assessment(row: Mapping[str, Any]) -> Assessment:
    held = _plain(row["metadata"])
    metadata = held if isinstance(held, dict) else {}
    own = {key.removeprefix(OWN_METADATA): text for key, text in metadata.items() if key.startswith(OWN_METADATA)}
    error = _plain(own.get("error"))
    return Assessment(
        assessment_id=row["annotation_id"],
        kind="feedback" if row["annotation_type"] == "FEEDBACK" else "expectation",
        name=row["name"] or "",
        value=_plain(row["value"]),
        source_type=own.get("source_type") or "CODE",
        source_id=own.get("source_id") or "",
        rationale=row["comment"],
        metadata={key: str(text) for key, text in metadata.items() if not key.startswith(OWN_METADATA)},
        span_id=own.get("span_id") or row["target_id"].partition(":")[2] or None,
        error=error if isinstance(error, dict) else None,
        overrides=own.get("overrides"),
        valid=own.get("valid") != "false",
        serialization_format=own.get("format"),
        create_time_us=unix_micros(row["created_at"]),
        update_time_us=unix_micros(row["updated_at"]),
    )


def _plain(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return text


def _text(text: str | None) -> str | None:
    value = _plain(text)
    return value if isinstance(value, str) else text
