"""MLflow's calls about traces in Unity Catalog (its V4 API), and the deletion of traces wherever they are kept.

Calls: https://github.com/mlflow/mlflow/blob/master/mlflow/protos/databricks_tracing.proto
"""

from __future__ import annotations

import re
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

import msgspec

from tracelake.spans.annotations import Annotation, info, run_link, tag
from tracelake.testing.tracking.annotations import Annotations
from tracelake.testing.tracking.assessments import Assessments, new
from tracelake.testing.tracking.experiment_traces import ExperimentTraces
from tracelake.testing.tracking.locations import Locations, location_name, require_warehouse
from tracelake.testing.tracking.trace_json import info_value, objects, span, texts, whole
from tracelake.testing.tracking.trace_search import Search, Traces
from tracelake.testing.tracking.trace_tables import Source
from tracelake.testing.unity.catalog import Catalog
from tracelake.testing.web.http import ApiError, Request, Route, required

_V4 = "/api/4.0/mlflow/traces"
_TRACE = f"{_V4}/{{location}}/{{trace_id}}"
_ASSESSMENT = f"{_TRACE}/assessments/{{assessment_id}}"
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_URI = "trace:/"
# Results of searches that are kept for clients to come back for.
_MAX_OPERATIONS = 100


class TracesApi:
    """Answers MLflow's calls about traces."""

    def __init__(
        self,
        catalog: Catalog,
        locations: Locations,
        in_experiments: ExperimentTraces,
        delete_in_experiment: Callable[[Request], dict[str, Any]],
        traces: Traces,
        annotations: Annotations,
        assessments: Assessments,
    ) -> None:
        """`delete_in_experiment` answers a call to delete traces that are kept in an experiment."""
        self._catalog = catalog
        self._locations = locations
        self._in_experiments = in_experiments
        self._delete_in_experiment = delete_in_experiment
        self._traces = traces
        self._annotations = annotations
        self._assessments = assessments
        self._operations: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("POST", f"{_TRACE}/info", self._put_info),
            Route("GET", f"{_TRACE}/info", self._info),
            Route("GET", f"{_V4}/{{location}}/batchGet", self._batch_get),
            Route("PATCH", f"{_TRACE}/tags", self._set_tag),
            Route("DELETE", f"{_TRACE}/tags/{{key}}", self._delete_tag),
            Route("POST", f"{_TRACE}/assessments", self._create_assessment),
            Route("GET", _ASSESSMENT, self._assessment),
            Route("PATCH", _ASSESSMENT, self._update_assessment),
            Route("DELETE", _ASSESSMENT, self._delete_assessment),
            Route("POST", f"{_V4}/{{location}}/link-to-run/batchCreate", self._link),
            Route("DELETE", f"{_V4}/{{location}}/unlink-from-run/batchDelete", self._unlink),
            Route("POST", f"{_V4}/search", self._search),
            Route("POST", f"{_V4}/search-long-running", self._begin_search),
            Route("GET", f"{_V4}/search/operations/{{name}}", self._operation),
            Route("POST", "/api/2.0/mlflow/traces/delete-traces", self._delete),
        ]

    # --- one trace, or some of one location --------------------------------------------------------------------------

    def _put_info(self, request: Request, location: str, trace_id: str) -> dict[str, Any]:
        source = self._writable(request, location, trace_id)
        body = request.json()
        made = [info(trace_id, info_value(body))]
        made += [tag(trace_id, key, value) for key, value in texts(body, "tags").items()]
        made += [new(source, trace_id, each) for each in objects(body, "assessments")]
        self._write(request, source, made)
        return {**body, "trace_id": trace_id, "trace_location": source.trace_location}

    def _info(self, request: Request, location: str, trace_id: str) -> dict[str, Any]:
        found = self._traces.infos(self._readable(request, location, trace_id), [trace_id])
        if not found:
            raise ApiError(404, "RESOURCE_DOES_NOT_EXIST", f"Trace {trace_id} is not in {location}.")
        return {"trace": {"trace_info": found[0]}}

    def _batch_get(self, request: Request, location: str) -> dict[str, Any]:
        trace_ids = list(dict.fromkeys(request.query.get("trace_ids", ())))
        source = self._readable(request, location, *trace_ids)
        infos = {found["trace_id"]: found for found in self._traces.infos(source, trace_ids)}
        # Read after the infos: a trace that is there has its spans, even if they come right now.
        spans = self._traces.spans(source, trace_ids)
        return {
            "traces": [
                {
                    "trace_info": infos[trace_id],
                    "spans": [span(record, source.version) for record in spans[trace_id]],
                }
                for trace_id in trace_ids
                if trace_id in infos
            ]
        }

    def _set_tag(self, request: Request, location: str, trace_id: str) -> dict[str, Any]:
        body = request.json()
        key, value = required(body, "key"), body.get("value", "")
        if not isinstance(value, str):
            raise ApiError(400, "INVALID_PARAMETER_VALUE", f"The value of a tag is text, not {type(value).__name__}.")
        # The trace need not be there yet: clients send its parts in any order.
        self._write(request, self._writable(request, location, trace_id), [tag(trace_id, key, value)])
        return {}

    def _delete_tag(self, request: Request, location: str, trace_id: str, key: str) -> dict[str, Any]:
        source = self._writable(request, location, trace_id)
        annotated = self._traces.annotations(source, [trace_id])
        if not any(each.annotation_type == "TAG" and each.name == key for each in annotated):
            raise ApiError(404, "RESOURCE_DOES_NOT_EXIST", f"No tag with key '{key}' on trace {trace_id}.")
        self._write(request, source, [tag(trace_id, key, deleted=True)])
        return {}

    def _create_assessment(self, request: Request, location: str, trace_id: str) -> dict[str, Any]:
        source = self._writable(request, location, trace_id)
        return self._assessments.create(source, request.principal, trace_id, request.json())

    def _assessment(self, request: Request, location: str, trace_id: str, assessment_id: str) -> dict[str, Any]:
        return self._assessments.get(self._readable(request, location, trace_id), trace_id, assessment_id)

    def _update_assessment(self, request: Request, location: str, trace_id: str, assessment_id: str) -> dict[str, Any]:
        # MLflow's client writes no question mark before the mask unless it names a warehouse.
        assessment_id, _, rest = assessment_id.partition("&")
        mask = request.text("update_mask") or next(iter(parse_qs(rest).get("update_mask", ())), "")
        body = request.json()
        source = self._writable(request, location, trace_id)
        fields = mask.split(",") if mask else []
        return self._assessments.update(source, request.principal, trace_id, assessment_id, body, fields)

    def _delete_assessment(self, request: Request, location: str, trace_id: str, assessment_id: str) -> dict[str, Any]:
        source = self._writable(request, location, trace_id)
        self._assessments.delete(source, request.principal, trace_id, assessment_id)
        return {}

    def _link(self, request: Request, location: str) -> dict[str, Any]:
        return self._linked(request, location, linked=True)

    def _unlink(self, request: Request, location: str) -> dict[str, Any]:
        return self._linked(request, location, linked=False)

    def _linked(self, request: Request, location: str, *, linked: bool) -> dict[str, Any]:
        body = request.json()
        trace_ids, run_id = required(body, "trace_ids", list), required(body, "run_id")
        source = self._writable(request, location, *trace_ids)
        self._write(request, source, [run_link(trace_id, run_id, deleted=not linked) for trace_id in trace_ids])
        return {}

    # --- search ------------------------------------------------------------------------------------------------------

    def _search(self, request: Request) -> dict[str, Any]:
        body = request.json()
        require_warehouse(self._catalog, body.get("sql_warehouse_id"))
        search = Search.of(body)
        required(body, "locations", list)
        sources = [self._source(request.principal, each) for each in objects(body, "locations")]
        infos, token = self._traces.search(sources, search)
        return {"trace_infos": infos, "next_page_token": token}

    def _begin_search(self, request: Request) -> dict[str, Any]:
        # Clients poll once a second for what is not done at once, and nothing here takes as long.
        operation: dict[str, Any] = {"name": uuid.uuid4().hex, "done": True}
        try:
            operation |= {"metadata": {"state": "SUCCEEDED"}, "response": self._search(request)}
        except ApiError as error:
            if error.status == 400:
                raise
            operation |= {
                "metadata": {"state": "FAILED"},
                "error": {"error_code": error.error_code, "message": str(error)},
            }
        with self._lock:
            self._operations[operation["name"]] = operation
            if len(self._operations) > _MAX_OPERATIONS:
                self._operations.popitem(last=False)
        return operation

    def _operation(self, _: Request, name: str) -> dict[str, Any]:
        found = self._operations.get(name)
        if found is None:
            raise ApiError(404, "RESOURCE_DOES_NOT_EXIST", f"There is no search with the name {name}.")
        return found

    # --- deletion ----------------------------------------------------------------------------------------------------

    def _delete(self, request: Request) -> dict[str, Any]:
        """Answer for traces in Unity Catalog, by their ids or by the experiment that is linked to them."""
        body = request.json()
        experiment_id = required(body, "experiment_id")
        trace_ids = required(body, "request_ids", list) if "request_ids" in body else []
        by_location: dict[str, list[str]] = {}
        for trace_id in map(str, trace_ids):
            location, _, digits = trace_id.removeprefix(_URI).rpartition("/")
            by_location.setdefault(location, []).append(digits if trace_id.startswith(_URI) else "")
        linked = None if trace_ids else self._locations.linked(experiment_id)
        if len(by_location) > 1 and "" in by_location:
            raise ApiError(400, "INVALID_PARAMETER_VALUE", "Not all of request_ids are of traces in Unity Catalog.")
        if "" in by_location or not (trace_ids or linked):
            return self._delete_in_experiment(request)
        if linked:
            source = self._locations.source(request.principal, linked, write=True)
            at_most = body.get("max_traces")
            by_location[linked] = self._traces.ids(
                source,
                before_ms=whole(body.get("max_timestamp_millis"), "max_timestamp_millis"),
                limit=None if at_most is None else whole(at_most, "max_traces"),
            )
        sources = {name: self._locations.source(request.principal, name, write=True) for name in by_location}
        return {"traces_deleted": sum(self._deleted(sources[name], request, ids) for name, ids in by_location.items())}

    def _deleted(self, source: Source, request: Request, trace_ids: list[str]) -> int:
        there = [str(found["trace_id"]) for found in self._traces.infos(source, trace_ids)]
        annotated = self._traces.annotations(source, there)
        gone = [info(trace_id, {}, deleted=True) for trace_id in there]
        gone += [
            msgspec.structs.replace(each, deleted=True) for each in annotated if each.annotation_type != "METADATA"
        ]
        self._write(request, source, gone)
        return len(there)

    def _write(self, request: Request, source: Source, made: Sequence[Annotation]) -> None:
        self._annotations.add(source.annotations, request.principal, made)

    # --- where they are ----------------------------------------------------------------------------------------------

    def _readable(self, request: Request, location: str, *trace_ids: str) -> Source:
        return self._located(request, location, trace_ids, write=False)

    def _writable(self, request: Request, location: str, *trace_ids: str) -> Source:
        return self._located(request, location, trace_ids, write=True)

    def _located(self, request: Request, location: str, trace_ids: tuple[str, ...], *, write: bool) -> Source:
        require_warehouse(self._catalog, request.text("sql_warehouse_id"))
        for trace_id in trace_ids:
            if not isinstance(trace_id, str) or not _TRACE_ID.fullmatch(trace_id):
                raise ApiError(
                    400,
                    "INVALID_PARAMETER_VALUE",
                    f"The trace id {str(trace_id)[:80]!r} is not 32 lowercase hexadecimal digits.",
                )
        return self._locations.source(request.principal, location, write=write)

    def _source(self, principal: str, trace_location: Mapping[str, Any]) -> Source:
        if trace_location.get("type") != "MLFLOW_EXPERIMENT":
            return self._locations.source(principal, location_name(trace_location))
        experiment = required(trace_location, "mlflow_experiment", dict)
        experiment_id = required(experiment, "experiment_id")
        linked = self._locations.linked(experiment_id)
        return self._locations.source(principal, linked) if linked else self._in_experiments.source(experiment_id)
