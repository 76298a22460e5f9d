"""The traces that are kept in experiments, and in no catalog.

Each experiment with traces has a span table and a table of annotations as a location in Unity Catalog has, which only
the workspace itself sees; so one search serves both.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tracelake.redaction import one_line
from tracelake.spans import rows, tables
from tracelake.spans.annotations import Annotation, annotations_schema, tag
from tracelake.spans.annotations import info as info_annotation
from tracelake.testing.state import Store, Table
from tracelake.testing.storage.lakehouse import Lakehouse
from tracelake.testing.tracking import assessments
from tracelake.testing.tracking.annotations import Annotations
from tracelake.testing.tracking.trace_files import TraceFiles
from tracelake.testing.tracking.trace_json import info_value, objects, texts
from tracelake.testing.tracking.trace_search import Traces
from tracelake.testing.tracking.trace_tables import Source
from tracelake.testing.tracking.trace_upload import spans_of
from tracelake.testing.web.http import ApiError

_PREFIX = "tr-"
_ID = re.compile(rf"{_PREFIX}[0-9a-f]{{32}}")

_log = logging.getLogger(__name__)


class ExperimentTraces:
    """The traces in experiments. Their ids are `tr-` and 32 hexadecimal digits.

    Attributes:
        files: what was uploaded of each trace.
    """

    def __init__(self, store: Store, lakehouse: Lakehouse, traces: Traces, annotations: Annotations) -> None:
        self.files = TraceFiles(store.directory, self._uploaded)
        self._directory = os.path.join(store.directory, "experiments")
        self._lakehouse = lakehouse
        self._traces = traces
        self._annotations = annotations
        self._sources: dict[str, Source] = {}
        self._lock = threading.Lock()

    def start(self, principal: str, experiment_id: str, trace_id: str, info: Mapping[str, Any]) -> None:
        """Keep the TraceInfo of a trace in an experiment, with its tags and assessments.

        Raises:
            ApiError: 400, a field of it is not what it has to be.
        """
        source = self.source(experiment_id)
        bare = source.bare(trace_id)
        kept = [info_annotation(bare, info_value(info))]
        kept += [tag(bare, key, value) for key, value in texts(info, "tags").items()]
        kept += [assessments.new(source, bare, each) for each in objects(info, "assessments")]
        # A trace that is known and has no info is sent again by the client; one with an info has to be known.
        self.files.begin(trace_id, experiment_id)
        self._annotations.add(source.annotations, principal, kept)

    def info(self, trace_id: str) -> dict[str, Any]:
        """Return the TraceInfo of a trace.

        Raises:
            ApiError: 404 RESOURCE_DOES_NOT_EXIST.
        """
        found = self._traces.infos(self.source_of(trace_id), [trace_id])
        if not found:
            raise _missing(trace_id)
        return found[0]

    def annotate(self, principal: str, trace_id: str, make: Callable[[str], Annotation]) -> None:
        """Add what `make` makes of the bare id of a trace.

        Raises:
            ApiError: 404 RESOURCE_DOES_NOT_EXIST, there is no such trace.
        """
        source = self.source_of(trace_id)
        self._annotations.add(source.annotations, principal, [make(source.bare(trace_id))])

    def delete(self, principal: str, experiment_id: str, trace_ids: Iterable[str]) -> int:
        """Remove those of these traces that are in an experiment, and return how many that were."""
        source = self.source(experiment_id)
        known = [each for each in dict.fromkeys(trace_ids) if self._owner(each) == experiment_id]
        gone = [info_annotation(source.bare(trace_id), {}, deleted=True) for trace_id in known]
        self._annotations.add(source.annotations, principal, gone)
        for trace_id in known:
            self.files.remove(trace_id)
        return len(known)

    def delete_oldest(self, principal: str, experiment_id: str, before_ms: int, at_most: int | None) -> int:
        """Remove the oldest traces of an experiment that began up to a time, in milliseconds since the Unix epoch."""
        oldest = self._traces.ids(self.source(experiment_id), before_ms=before_ms, limit=at_most)
        return self.delete(principal, experiment_id, oldest)

    def source_of(self, trace_id: str) -> Source:
        """Return where a trace is kept.

        Raises:
            ApiError: 404 RESOURCE_DOES_NOT_EXIST, there is no such trace.
        """
        experiment_id = self._owner(trace_id)
        if experiment_id is None:
            raise _missing(trace_id)
        return self.source(experiment_id)

    def source(self, experiment_id: str) -> Source:
        """Return where the traces of an experiment are; its tables are made when they are first asked for."""
        with self._lock:
            source = self._sources.get(experiment_id)
            if source is None:
                source = self._sources[experiment_id] = Source(
                    trace_location=_location(experiment_id),
                    spans=self._table(experiment_id, "spans", tables.delta_schema(2)),
                    annotations=self._table(experiment_id, "annotations", annotations_schema()),
                    version=2,
                    id_prefix=_PREFIX,
                )
        return source

    def _owner(self, trace_id: str) -> str | None:
        return self.files.experiment_of(trace_id) if is_trace_id(trace_id) else None

    def _table(self, experiment_id: str, kind: str, schema: dict[str, Any]) -> Table:
        table = Table(
            full_name=f"experiment {experiment_id}: {kind}",
            owner="",
            table_id=f"{experiment_id}-{kind}",
            storage_location=self._lakehouse.external_location(os.path.join(self._directory, experiment_id, kind)),
        )
        self._lakehouse.create(table, schema)
        return table

    def _uploaded(self, trace_id: str, content: bytes) -> None:
        experiment_id = self.files.experiment_of(trace_id)
        if experiment_id is None:
            return
        source = self.source(experiment_id)
        try:
            records = spans_of(content, source.bare(trace_id))
        except ValueError as error:
            # An object store takes whatever it is given.
            _log.warning("The spans of trace %s cannot be searched: %s", trace_id, one_line(str(error)))
            return
        converted, _ = rows.convert(records, self._lakehouse.schema(source.spans))
        if converted.num_rows:
            self._lakehouse.append(source.spans, converted)


def is_trace_id(text: str) -> bool:
    """Say whether this is an id as MLflow gives to traces in experiments."""
    return _ID.fullmatch(text) is not None


def _missing(trace_id: str) -> ApiError:
    return ApiError(404, "RESOURCE_DOES_NOT_EXIST", f"Trace with ID '{trace_id}' not found.")


def _location(experiment_id: str) -> dict[str, Any]:
    return {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment_id}}
