"""Feedback on traces and what is expected of them, made, changed and removed; wherever the traces are kept."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Collection, Mapping
from typing import Any

from tracelake.spans.annotations import Annotation
from tracelake.testing.state import now_ms
from tracelake.testing.tracking.annotations import Annotations
from tracelake.testing.tracking.trace_json import assessment_annotation, moment
from tracelake.testing.tracking.trace_search import Traces
from tracelake.testing.tracking.trace_tables import Source
from tracelake.testing.web.http import ApiError

# What an update may name.
_FIELDS = ("assessment_name", "feedback", "expectation", "rationale", "metadata", "valid")


class Assessments:
    """The assessments of traces. `trace_id` is bare or not, and an Assessment is as MLflow's REST API has it."""

    def __init__(self, traces: Traces, annotations: Annotations) -> None:
        self._traces = traces
        self._annotations = annotations
        self._changing = threading.Lock()

    def get(self, source: Source, trace_id: str, assessment_id: str) -> dict[str, Any]:
        """Return an Assessment.

        Raises:
            ApiError: 404 RESOURCE_DOES_NOT_EXIST, the trace or the assessment is not there.
        """
        for info in self._traces.infos(source, [trace_id]):
            for found in info["assessments"]:
                if found["assessment_id"] == assessment_id:
                    return dict(found)
        raise ApiError(
            404,
            "RESOURCE_DOES_NOT_EXIST",
            f"Assessment with ID '{assessment_id}' not found for trace '{trace_id}'.",
        )

    def create(self, source: Source, principal: str, trace_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Add an Assessment and return it; one that it overrides is valid no more.

        Raises:
            ApiError: 404, the one that it overrides is not there; 400, it is no Assessment.
        """
        now = moment(now_ms() * 1000)
        made = {"create_time": now, "last_update_time": now, "valid": True, **body}
        with self._changing:
            added = [new(source, trace_id, made)]
            if body.get("overrides"):
                overridden = {**self.get(source, trace_id, body["overrides"]), "valid": False}
                added.append(new(source, trace_id, overridden, body["overrides"]))
            self._annotations.add(source.annotations, principal, added)
        # Not read back: of a trace in Unity Catalog the rest may come later.
        return {
            **made,
            "assessment_id": added[0].annotation_id,
            "trace_id": source.id_prefix + source.bare(trace_id),
            "trace_location": source.trace_location,
        }

    def update(
        self,
        source: Source,
        principal: str,
        trace_id: str,
        assessment_id: str,
        body: Mapping[str, Any],
        fields: Collection[str],
    ) -> dict[str, Any]:
        """Take the named fields of an Assessment over into the one of an id, and return that.

        Raises:
            ApiError: 404, it is not there; 400, it would be no Assessment, or a field cannot be updated.
        """
        wrong = [field for field in fields if field not in _FIELDS]
        if wrong:
            raise ApiError(
                400,
                "INVALID_PARAMETER_VALUE",
                f"The update_mask names {wrong[0]}, and can name {', '.join(_FIELDS)}.",
            )
        with self._changing:
            changed = self.get(source, trace_id, assessment_id) | {field: body.get(field) for field in fields}
            annotation = new(source, trace_id, changed, assessment_id)
            self._annotations.add(source.annotations, principal, [annotation])
        return self.get(source, trace_id, assessment_id)

    def delete(self, source: Source, principal: str, trace_id: str, assessment_id: str) -> None:
        """Remove an Assessment; raises as `get` does."""
        with self._changing:
            annotation = new(source, trace_id, self.get(source, trace_id, assessment_id), assessment_id)
            annotation.deleted = True
            self._annotations.add(source.annotations, principal, [annotation])


def new(source: Source, trace_id: str, body: Mapping[str, Any], assessment_id: str = "") -> Annotation:
    """Return the annotation of an Assessment, with an id of its own unless it is given one.

    Raises:
        ApiError: 400, it is no Assessment.
    """
    return assessment_annotation(source.bare(trace_id), assessment_id or f"a-{uuid.uuid4().hex}", body)
