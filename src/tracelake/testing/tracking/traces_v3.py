"""MLflow's calls for traces that are kept in experiments, versions 2 and 3 of its API.

Calls: https://github.com/mlflow/mlflow/blob/master/mlflow/protos/service.proto
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tracelake.spans.annotations import run_link, tag
from tracelake.testing.tracking.assessments import Assessments
from tracelake.testing.tracking.experiment_traces import ExperimentTraces, is_trace_id
from tracelake.testing.tracking.experiments import Experiments
from tracelake.testing.tracking.trace_files import SPANS_FILE
from tracelake.testing.tracking.trace_json import texts, whole
from tracelake.testing.tracking.trace_search import Search, Traces
from tracelake.testing.web.http import ApiError, Request, Route, invalid, required

_V2, _V3 = "/api/2.0/mlflow/traces", "/api/3.0/mlflow/traces"
_TYPE = "MLFLOW_EXPERIMENT"
# The tag that tells MLflow where a trace's spans are; the path's fourth part makes them those of a trace.
_ARTIFACTS_TAG = "mlflow.artifactLocation"
# As `link_traces_to_run` of MLflow's client says.
_MAX_LINKED = 100


class TracesV3Api:
    """Answers for the traces of experiments."""

    def __init__(
        self, experiments: Experiments, kept: ExperimentTraces, traces: Traces, assessments: Assessments
    ) -> None:
        self._experiments = experiments
        self._kept = kept
        self._traces = traces
        self._assessments = assessments

    def routes(self) -> list[Route]:
        """Return what is answered."""
        trace, assessment = f"{_V3}/{{trace_id}}", f"{_V3}/{{trace_id}}/assessments/{{assessment_id}}"
        tags = [f"{version}/{{trace_id}}/tags" for version in (_V2, _V3)]
        return [
            Route("POST", _V3, self._start),
            Route("POST", f"{_V3}/search", self._search),
            Route("POST", f"{_V3}/delete-traces", self.delete),
            Route("GET", trace, self._get),
            *(Route("PATCH", path, self._set_tag) for path in tags),
            *(Route("DELETE", path, self._delete_tag) for path in tags),
            Route("POST", f"{trace}/assessments", self._assess),
            Route("GET", assessment, self._get_assessment),
            Route("PATCH", assessment, self._update_assessment),
            Route("DELETE", assessment, self._delete_assessment),
            Route("GET", f"{_V2}/{{trace_id}}/credentials-for-data-upload", self._upload),
            Route("GET", f"{_V2}/{{trace_id}}/credentials-for-data-download", self._download),
            Route("POST", f"{_V2}/link-to-run", self._link),
            *self._kept.files.routes(),
        ]

    def delete(self, request: Request) -> dict[str, Any]:
        """Answer a call to delete traces of an experiment: named ones, or the oldest."""
        body = request.json()
        experiment = self._experiments.get(required(body, "experiment_id"))
        named, before_ms = body.get("request_ids") or [], body.get("max_timestamp_millis")
        if bool(named) == (before_ms is not None):
            raise invalid("The body has to have either request_ids or max_timestamp_millis.")
        if named:
            if body.get("max_traces") is not None:
                raise invalid("The body has request_ids, and so cannot have max_traces.")
            ids = _texts(named, "request_ids")
            deleted = self._kept.delete(request.principal, experiment.experiment_id, ids)
        else:
            at_most = body.get("max_traces")
            deleted = self._kept.delete_oldest(
                request.principal,
                experiment.experiment_id,
                whole(before_ms, "max_timestamp_millis"),
                None if at_most is None else whole(at_most, "max_traces"),
            )
        return {"traces_deleted": deleted}

    def _start(self, request: Request) -> dict[str, Any]:
        info = required(required(request.json(), "trace", dict), "trace_info", dict)
        trace_id = required(info, "trace_id")
        if not is_trace_id(trace_id):
            raise invalid(f"The trace_id '{trace_id}' is not 'tr-' and 32 hexadecimal digits.")
        experiment = self._experiments.active(_experiment_id(required(info, "trace_location", dict)))
        location = f"{experiment.artifact_location}/{trace_id}/artifacts"
        kept = {**info, "tags": {**texts(info, "tags"), _ARTIFACTS_TAG: location}}
        self._kept.start(request.principal, experiment.experiment_id, trace_id, kept)
        return {"trace": {"trace_info": kept}}

    def _get(self, _: Request, trace_id: str) -> dict[str, Any]:
        return {"trace": {"trace_info": self._kept.info(trace_id)}}

    def _search(self, request: Request) -> dict[str, Any]:
        body = request.json()
        locations = required(body, "locations", list)
        ids = dict.fromkeys(_experiment_id(each) for each in locations)
        sources = [self._kept.source(self._experiments.get(each).experiment_id) for each in ids]
        infos, token = self._traces.search(sources, Search.of(body))
        return {"traces": infos, **({"next_page_token": token} if token else {})}

    def _set_tag(self, request: Request, trace_id: str) -> dict[str, Any]:
        body = request.json()
        key, value = required(body, "key"), str(body.get("value", ""))
        self._kept.annotate(request.principal, trace_id, lambda bare: tag(bare, key, value))
        return {}

    def _delete_tag(self, request: Request, trace_id: str) -> dict[str, Any]:
        key = required({**request.json(), **{name: request.text(name) for name in request.query}}, "key")
        if key not in self._kept.info(trace_id)["tags"]:
            raise ApiError(404, "RESOURCE_DOES_NOT_EXIST", f"No tag with key '{key}' on the trace with ID {trace_id}.")
        self._kept.annotate(request.principal, trace_id, lambda bare: tag(bare, key, deleted=True))
        return {}

    def _assess(self, request: Request, trace_id: str) -> dict[str, Any]:
        source = self._kept.source_of(trace_id)
        body = required(request.json(), "assessment", dict)
        return {"assessment": self._assessments.create(source, request.principal, trace_id, body)}

    def _get_assessment(self, _: Request, trace_id: str, assessment_id: str) -> dict[str, Any]:
        return {"assessment": self._assessments.get(self._kept.source_of(trace_id), trace_id, assessment_id)}

    def _update_assessment(self, request: Request, trace_id: str, assessment_id: str) -> dict[str, Any]:
        body = request.json()
        changed = self._assessments.update(
            self._kept.source_of(trace_id),
            request.principal,
            trace_id,
            assessment_id,
            required(body, "assessment", dict),
            # Protobuf's JSON has the names of a field mask in camel case.
            [_snake(field) for field in required(body, "update_mask").split(",")],
        )
        return {"assessment": changed}

    def _delete_assessment(self, request: Request, trace_id: str, assessment_id: str) -> dict[str, Any]:
        source = self._kept.source_of(trace_id)
        self._assessments.delete(source, request.principal, trace_id, assessment_id)
        return {}

    def _upload(self, request: Request, trace_id: str) -> dict[str, Any]:
        return self._credential(request, trace_id, "PUT")

    def _download(self, request: Request, trace_id: str) -> dict[str, Any]:
        return self._credential(request, trace_id, "GET")

    def _credential(self, request: Request, trace_id: str, method: str) -> dict[str, Any]:
        self._kept.source_of(trace_id)
        name = request.text("path") or SPANS_FILE
        url = self._kept.files.signed_url(request.base_url, method, trace_id, name)
        return {"credential_info": {"signed_uri": url, "type": "AWS_PRESIGNED_URL", "headers": []}}

    def _link(self, request: Request) -> dict[str, Any]:
        body = request.json()
        ids = _texts(required(body, "trace_ids", list), "trace_ids")
        run_id = required(body, "run_id")
        if len(ids) > _MAX_LINKED:
            raise invalid(f"The body has {len(ids)} trace_ids, and at most {_MAX_LINKED} can be linked at once.")
        for trace_id in ids:
            self._kept.source_of(trace_id)
        for trace_id in ids:
            self._kept.annotate(request.principal, trace_id, lambda bare: run_link(bare, run_id))
        return {}


def _experiment_id(location: Any) -> str:
    """Return the experiment of a TraceLocation."""
    if not isinstance(location, Mapping) or location.get("type") != _TYPE:
        raise invalid(f"The trace location {location} is not of the type {_TYPE}, which is all that this call takes.")
    experiment = location.get(_TYPE.lower())
    if not isinstance(experiment, Mapping):
        raise invalid(f"The trace location {location} has no {_TYPE.lower()}.")
    # A client that has set no experiment names none.
    return str(required(experiment, "experiment_id"))


def _texts(value: Any, name: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise invalid(f"The field {name} of the body is no list of text.")
    return value


def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda found: f"_{found[0].lower()}", name.strip())
