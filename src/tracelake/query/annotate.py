"""Say something of a trace: tags, feedback, links to runs, deletion; each is a row beside the spans.

A trace need not be there: what is said of one whose spans are still on their way is found with them. Ids of traces are
as `traces.parse_trace_id` takes them. Every function blocks until its rows are committed, and raises what
`destinations.annotations.add` does, and QueryError for an id that is none.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from tracelake.destinations.annotations import add
from tracelake.destinations.base import Destination
from tracelake.errors import QueryError
from tracelake.query.annotations import Annotated, read_annotations
from tracelake.query.infos import Assessment
from tracelake.query.reader import open_reader
from tracelake.query.traces import parse_trace_id
from tracelake.redaction import one_line
from tracelake.spans.annotations import Annotation, info, own, run_link, tag


def set_tags(destination: Destination, trace_id: str, tags: Mapping[str, str]) -> None:
    """Give a trace tags; those that it has of these keys are replaced."""
    wanted = parse_trace_id(trace_id)
    add(destination, [tag(wanted, key, value) for key, value in tags.items()])


def delete_tag(destination: Destination, trace_id: str, key: str) -> None:
    """Take a tag from a trace, also one that its root span carries."""
    add(destination, [tag(parse_trace_id(trace_id), key, deleted=True)])


def put_info(destination: Destination, trace_id: str, value: Mapping[str, Any]) -> None:
    """Say of a trace as a whole what `spans.annotations.info` describes; it replaces what was said before."""
    add(destination, [info(parse_trace_id(trace_id), value)])


def delete_traces(destination: Destination, trace_ids: Iterable[str]) -> None:
    """Have these traces found no more; their spans stay in the table."""
    add(destination, [info(trace_id, {}, deleted=True) for trace_id in dict.fromkeys(map(parse_trace_id, trace_ids))])


def link_run(destination: Destination, trace_ids: Iterable[str], run_id: str) -> None:
    """Link traces to a run of MLflow's."""
    add(destination, [run_link(trace_id, run_id) for trace_id in dict.fromkeys(map(parse_trace_id, trace_ids))])


def unlink_run(destination: Destination, trace_ids: Iterable[str], run_id: str) -> None:
    """Take links back."""
    ids = dict.fromkeys(map(parse_trace_id, trace_ids))
    add(destination, [run_link(trace_id, run_id, deleted=True) for trace_id in ids])


def log_assessment(destination: Destination, trace_id: str, assessment: Assessment) -> Assessment:
    """Add feedback on a trace, or what is expected of it, and return it with its id and times.

    Without an id it is given one. The one that it `overrides` is not valid any more.

    Raises:
        QueryError: the one that it overrides is not there.
    """
    wanted = parse_trace_id(trace_id)
    now_us = time.time_ns() // 1000
    made = replace(
        assessment,
        assessment_id=assessment.assessment_id or f"a-{uuid.uuid4().hex}",
        create_time_us=assessment.create_time_us or now_us,
        update_time_us=now_us,
    )
    changes = [_annotation(wanted, made)]
    if made.overrides:
        changes.append(_annotation(wanted, replace(_find(destination, wanted, made.overrides), valid=False)))
    add(destination, changes)
    return made


def get_assessment(destination: Destination, trace_id: str, assessment_id: str) -> Assessment:
    """Return an assessment of a trace.

    Raises:
        QueryError: it is not there.
    """
    return _find(destination, parse_trace_id(trace_id), assessment_id)


def update_assessment(destination: Destination, trace_id: str, assessment: Assessment) -> Assessment:
    """Put an assessment in the place of the one of its id, and return it.

    Raises:
        QueryError: there is none of this id.
    """
    wanted = parse_trace_id(trace_id)
    known = _find(destination, wanted, assessment.assessment_id)
    made = replace(assessment, create_time_us=known.create_time_us, update_time_us=time.time_ns() // 1000)
    add(destination, [_annotation(wanted, made)])
    return made


def delete_assessment(destination: Destination, trace_id: str, assessment_id: str) -> None:
    """Remove an assessment; one that it overrode is valid again.

    Raises:
        QueryError: it is not there.
    """
    wanted = parse_trace_id(trace_id)
    known = _read(destination, wanted)
    removed = _named(known, wanted, assessment_id)
    annotation = _annotation(wanted, removed)
    annotation.deleted = True
    overridden = [each for each in known.assessments if each.assessment_id == removed.overrides]
    add(destination, [annotation, *(_annotation(wanted, replace(each, valid=True)) for each in overridden)])


def _find(destination: Destination, trace_id: str, assessment_id: str) -> Assessment:
    return _named(_read(destination, trace_id), trace_id, assessment_id)


def _named(known: Annotated, trace_id: str, assessment_id: str) -> Assessment:
    for each in known.assessments:
        if each.assessment_id == assessment_id:
            return each
    raise QueryError(
        f"The trace {trace_id} has no assessment {one_line(assessment_id, 100)!r}. Look at those that it has with "
        "`tracelake show --json`."
    )


def _read(destination: Destination, trace_id: str) -> Annotated:
    with open_reader(destination) as reader:
        return read_annotations(reader, [trace_id]).get(trace_id, Annotated())


def _annotation(trace_id: str, assessment: Assessment) -> Annotation:
    """Return the annotation that has an assessment; `query.annotations` reads it back."""
    return Annotation(
        annotation_id=assessment.assessment_id,
        annotation_type="FEEDBACK" if assessment.kind == "feedback" else "EXPECTATION",
        trace_id=trace_id,
        span_id=assessment.span_id or "",
        name=assessment.name,
        value=assessment.value,
        comment=assessment.rationale,
        metadata={
            **assessment.metadata,
            **own(
                source_type=assessment.source_type,
                source_id=assessment.source_id or None,
                format=assessment.serialization_format,
                error=json.dumps(dict(assessment.error)) if assessment.error else None,
                span_id=assessment.span_id,
                overrides=assessment.overrides,
                valid=None if assessment.valid else "false",
            ),
        },
        created_us=assessment.create_time_us,
    )
