"""What the spans of traces, and the annotations of them, come to: a `TraceInfo` each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from tracelake.destinations.mlflow_trace import (
    CLIENT_REQUEST_ID,
    EXPERIMENT,
    MAX_PREVIEW,
    METADATA_PREFIX,
    PREVIEWS,
    TAG_PREFIX,
    carried,
    state_of,
)
from tracelake.query.annotations import Annotated, read_annotations
from tracelake.query.conditions import OF_SPANS, REQUEST, RESPONSE
from tracelake.query.dialect import IS_ROOT, Dialect
from tracelake.query.infos import TRACE_NAME, State, Tokens, TraceInfo
from tracelake.query.outline import STATUS_ERROR
from tracelake.query.reader import Reader
from tracelake.query.relations import Times, among
from tracelake.query.tokens import COST, INPUT, OUTPUT, USAGE, tokens_of
from tracelake.query.traces import Trace, traces_of
from tracelake.query.tree import service_name
from tracelake.spans import tables
from tracelake.spans.record import Attributes, SpanRecord
from tracelake.spans.values import json_text

_READ = {"usage": USAGE, "tokens_in": INPUT, "tokens_out": OUTPUT, "cost": COST, "experiment": EXPERIMENT}
_PLACE = (tables.TRACE_ID, tables.SPAN_ID, tables.PARENT_SPAN_ID, tables.NAME, tables.START_TIME, tables.END_TIME)
_OF_ROOT = (*_PLACE, tables.ATTRIBUTES, tables.STATUS)
_CODES = {code: number for number, code in enumerate(tables.STATUS_CODES)}


def infos_of(reader: Reader, trace_ids: Sequence[str], times: Times | None = None) -> dict[str, TraceInfo]:
    """Return the infos of those of these traces that are there and not deleted, by their ids.

    Args:
        trace_ids: 32 lowercase hex digits each.
        times: spans of theirs that started at others are left out; None for none.
    """
    if not trace_ids:
        return {}
    times = times or reader.times_of(trace_ids)
    where = " AND ".join([among(trace_ids), *times.conditions()])
    annotated = read_annotations(reader, trace_ids)
    services: dict[tuple[str, str], str] = {}
    traces = {trace.trace_id: trace for trace in traces_of(_narrow(reader, where, times, services))}
    roots = {trace.trace_id: trace for trace in traces_of(reader.spans(_OF_ROOT, f"{where} AND {IS_ROOT}", times))}
    found = {}
    for trace_id in trace_ids:
        known = annotated.get(trace_id) or Annotated()
        if known.deleted:
            continue
        if trace := traces.get(trace_id):
            rooted = roots.get(trace_id)
            root = rooted.roots[0] if rooted and rooted.roots else None
            first = root or trace.spans[0]
            found[trace_id] = _info(trace, root, known, services[first.trace_id, first.span_id])
        elif known.info:
            found[trace_id] = _posted(trace_id, known)
    return found


def _narrow(reader: Reader, where: str, times: Times, services: dict[tuple[str, str], str]) -> Iterable[SpanRecord]:
    """Yield the spans, with no more than their places, tokens and experiment; fill in their services."""
    dialect = Dialect.of(reader)
    counted = ", ".join(f"{dialect.attribute(key)} AS {name}" for name, key in _READ.items())
    found = reader.run(
        f"SELECT {', '.join(_PLACE)}, {tables.STATUS}.{tables.STATUS_CODE} AS code, {dialect.service()} AS service, "  # noqa: S608
        f"{counted} FROM spans WHERE {where}",
        times=times,
    )
    cells = (found.column(name).to_pylist() for name in found.column_names)
    for trace_id, span_id, parent, name, start, end, code, service, *counts in zip(*cells, strict=True):
        # A row of another writer may have no values; these are what `rows.from_arrow` gives.
        services[trace_id, span_id or ""] = service or ""
        yield SpanRecord(
            trace_id=trace_id,
            span_id=span_id or "",
            parent_span_id=parent or None,
            name=name or "",
            start_time_unix_nano=start or 0,
            end_time_unix_nano=end or 0,
            status_code=_CODES.get(code, 0),
            attributes={key: value for key, value in zip(_READ.values(), counts, strict=True) if value is not None},
        )


def info_of(trace: Trace, known: Annotated) -> TraceInfo:
    """Return the info of a trace whose spans are at hand, one at least, and of which this is known."""
    root = trace.roots[0] if trace.roots else None
    return _info(trace, root, known, service_name(root or trace.spans[0]))


def _info(trace: Trace, root: SpanRecord | None, known: Annotated, service: str) -> TraceInfo:
    shown = root or trace.spans[0]
    attributes: Attributes = root.attributes if root else {}
    info = known.info
    tags = {**carried(attributes, TAG_PREFIX), **known.tags}
    metadata = {**_of_span(attributes), **carried(attributes, METADATA_PREFIX), **(info.get("trace_metadata") or {})}
    duration_ns = shown.end_time_unix_nano - shown.start_time_unix_nano if root else trace.duration_ns
    return TraceInfo(
        trace_id=trace.trace_id,
        name=tags.get(TRACE_NAME) or shown.name,
        service_name=service,
        start_time_unix_nano=shown.start_time_unix_nano if root else _start(info) or shown.start_time_unix_nano,
        duration_ns=info.get("duration_ns", max(0, duration_ns)),
        state=_state(root, info),
        request_preview=_preview(attributes, "request_preview", REQUEST, info),
        response_preview=_preview(attributes, "response_preview", RESPONSE, info),
        span_count=len(trace.spans),
        error_count=sum(span.status_code == STATUS_ERROR for span in trace.spans),
        tokens=(tokens_of(trace) if any(span.attributes for span in trace.spans) else None) or Tokens(),
        client_request_id=info.get("client_request_id") or _text(attributes, CLIENT_REQUEST_ID),
        tags={key: text for key, text in tags.items() if text is not None},
        metadata=metadata,
        assessments=known.assessments,
        run_ids=known.run_ids,
        experiment_id=info.get("experiment_id") or _experiment(trace),
    )


def _posted(trace_id: str, known: Annotated) -> TraceInfo:
    """Return the info of a trace of which no span is there."""
    info = known.info
    tags = {key: text for key, text in known.tags.items() if text is not None}
    return TraceInfo(
        trace_id=trace_id,
        name=tags.get(TRACE_NAME, ""),
        service_name="",
        start_time_unix_nano=_start(info),
        duration_ns=info.get("duration_ns", 0),
        state=_state(None, info),
        request_preview=info.get("request_preview"),
        response_preview=info.get("response_preview"),
        client_request_id=info.get("client_request_id"),
        tags=tags,
        metadata=info.get("trace_metadata") or {},
        assessments=known.assessments,
        run_ids=known.run_ids,
        experiment_id=info.get("experiment_id") or _experiment(),
    )


def _experiment(trace: Trace | None = None) -> str:
    marked = (span.attributes.get(EXPERIMENT) for span in trace.spans) if trace else ()
    return max(filter(None, marked), default="0")


def _start(info: Mapping[str, Any]) -> int:
    return int(info.get("timestamp_us", 0)) * 1000


def _state(root: SpanRecord | None, info: Mapping[str, Any]) -> State:
    # What was posted is final once the trace has ended.
    posted = info.get("state")
    state = posted if posted in ("OK", "ERROR") else state_of(root) if root else "IN_PROGRESS"
    return next((known for known in get_args(State) if known == state), "IN_PROGRESS")


def _of_span(attributes: Attributes) -> dict[str, str]:
    return {key: json_text(attributes[of_span]) for key, of_span in OF_SPANS.items() if of_span in attributes}


def _preview(attributes: Attributes, field: str, keys: Iterable[str], info: Mapping[str, Any]) -> str | None:
    own = next(key for key, name in PREVIEWS.items() if name == field)
    carried_text = next((text for key in (own, *keys) if (text := _text(attributes, key)) is not None), None)
    text = info.get(field) or carried_text
    return None if text is None else str(text)[:MAX_PREVIEW]


def _text(attributes: Attributes, key: str) -> str | None:
    return json_text(attributes[key]) if key in attributes else None
