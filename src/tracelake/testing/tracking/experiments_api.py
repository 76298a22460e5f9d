"""MLflow's calls about experiments.

API: https://docs.databricks.com/api/workspace/experiments
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tracelake.testing.state import Experiment
from tracelake.testing.tracking.experiment_search import matching, ordered
from tracelake.testing.tracking.experiments import Experiments
from tracelake.testing.tracking.locations import Locations
from tracelake.testing.web.http import ApiError, Request, Route, invalid, required

_API = "/api/2.0/mlflow/experiments"
_PREFIX = re.compile(r"\w{1,238}", re.ASCII)
_STAGES: Mapping[str, tuple[str, ...]] = {
    "ACTIVE_ONLY": ("active",),
    "DELETED_ONLY": ("deleted",),
    "ALL": ("active", "deleted"),
}
_LISTED_AT_ONCE = 1000
_MAX_SEARCHED_AT_ONCE = 50_000


class ExperimentsApi:
    """Answers for experiments."""

    def __init__(self, experiments: Experiments, locations: Locations) -> None:
        self._experiments = experiments
        self._locations = locations

    def routes(self) -> list[Route]:
        """Return what is answered."""
        return [
            Route("POST", f"{_API}/create", self._create),
            Route("GET", f"{_API}/get", self._get),
            Route("GET", f"{_API}/get-by-name", self._get_by_name),
            Route("GET", f"{_API}/list", self._list),
            Route("POST", f"{_API}/search", self._search),
            Route("POST", f"{_API}/update", self._update),
            Route("POST", f"{_API}/delete", self._delete),
            Route("POST", f"{_API}/restore", self._restore),
            Route("POST", f"{_API}/set-experiment-tag", self._set_tag),
            Route("POST", f"{_API}/delete-experiment-tag", self._delete_tag),
        ]

    def _create(self, request: Request) -> dict[str, Any]:
        body = request.json()
        tags = body.get("tags") or []
        if not isinstance(tags, list) or not all(isinstance(each, dict) and each.get("key") for each in tags):
            raise invalid("The field tags of the body is no list of objects with key and value.")
        made = self._experiments.create(
            request.principal,
            required(body, "name"),
            tags={str(each["key"]): str(each.get("value", "")) for each in tags},
            artifact_location=str(body.get("artifact_location") or ""),
        )
        if body.get("trace_location"):
            try:
                self._locate(request.principal, made.experiment_id, required(body, "trace_location", dict))
            except ApiError:
                self._experiments.forget(made.experiment_id)
                raise
        return {"experiment_id": made.experiment_id}

    def _locate(self, principal: str, experiment_id: str, trace_location: Mapping[str, Any]) -> None:
        """Make the location in Unity Catalog that an experiment is to have from its beginning."""
        wanted = required(trace_location, "uc_trace_location", dict)
        prefix = wanted.get("table_prefix") or experiment_id
        if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
            raise invalid(f"The table_prefix is {prefix!r}, and can have at most 238 letters, digits and underscores.")
        name = f"{required(wanted, 'catalog')}.{required(wanted, 'schema')}.{prefix}"
        self._locations.create(principal, name)
        self._locations.link(principal, experiment_id, name)

    def _get(self, request: Request) -> dict[str, Any]:
        return {"experiment": self._shown(self._experiments.get(_parameter(request, "experiment_id")))}

    def _get_by_name(self, request: Request) -> dict[str, Any]:
        return {"experiment": self._shown(self._experiments.get_by_name(_parameter(request, "experiment_name")))}

    def _list(self, request: Request) -> dict[str, Any]:
        at_most = min(_count(request.text("max_results") or _LISTED_AT_ONCE), _LISTED_AT_ONCE)
        found = self._of_view(request.text("view_type"))
        return self._page(ordered(found, []), at_most, request.text("page_token"))

    def _search(self, request: Request) -> dict[str, Any]:
        body = request.json()
        at_most = _count(body.get("max_results") or _LISTED_AT_ONCE)
        order_by = body.get("order_by") or []
        if not isinstance(order_by, list):
            raise invalid("The field order_by of the body is no list.")
        found = matching(self._of_view(str(body.get("view_type") or "")), str(body.get("filter") or ""))
        return self._page(ordered(found, [str(each) for each in order_by]), at_most, str(body.get("page_token") or ""))

    def _update(self, request: Request) -> dict[str, Any]:
        body = request.json()
        self._experiments.rename(required(body, "experiment_id"), required(body, "new_name"))
        return {}

    def _delete(self, request: Request) -> dict[str, Any]:
        self._experiments.delete(required(request.json(), "experiment_id"))
        return {}

    def _restore(self, request: Request) -> dict[str, Any]:
        self._experiments.restore(required(request.json(), "experiment_id"))
        return {}

    def _set_tag(self, request: Request) -> dict[str, Any]:
        body = request.json()
        tag = {required(body, "key"): str(body.get("value", ""))}
        self._experiments.set_tags(required(body, "experiment_id"), tag)
        return {}

    def _delete_tag(self, request: Request) -> dict[str, Any]:
        body = request.json()
        experiment_id, key = required(body, "experiment_id"), required(body, "key")
        if key not in self._experiments.active(experiment_id).tags:
            raise ApiError(
                404, "RESOURCE_DOES_NOT_EXIST", f"No tag with key '{key}' on the experiment with ID {experiment_id}."
            )
        self._experiments.set_tags(experiment_id, {key: None})
        return {}

    def _of_view(self, view_type: str) -> list[Experiment]:
        stages = _STAGES.get(view_type or "ACTIVE_ONLY")
        if stages is None:
            raise invalid(f"The view_type is '{view_type}', and can be {', '.join(_STAGES)}.")
        return [each for each in self._experiments.all() if each.lifecycle_stage in stages]

    def _shown(self, experiment: Experiment) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "experiment_id": experiment.experiment_id,
            "name": experiment.name,
            "artifact_location": experiment.artifact_location,
            "lifecycle_stage": experiment.lifecycle_stage,
            "last_update_time": experiment.last_update_time,
            "creation_time": experiment.creation_time,
            "tags": [{"key": key, "value": value} for key, value in sorted(experiment.tags.items())],
        }
        parts = (self._locations.linked(experiment.experiment_id) or "").split(".")
        if len(parts) == 3:
            catalog, schema, prefix = parts
            named = {} if prefix == experiment.experiment_id else {"table_prefix": prefix}
            place = {"catalog": catalog, "schema": schema, "effective_table_prefix": prefix, **named}
            shown["trace_location"] = {"uc_trace_location": place}
        return shown

    def _page(self, found: Sequence[Experiment], at_most: int, token: str) -> dict[str, Any]:
        """Return the experiments after the one whose id the token is."""
        ids = [each.experiment_id for each in found]
        if token and token not in ids:
            raise invalid(f"The page_token '{token}' is none that this search gave.")
        start = ids.index(token) + 1 if token else 0
        page = found[start : start + at_most]
        answer: dict[str, Any] = {"experiments": [self._shown(each) for each in page]}
        if start + at_most < len(found):
            answer["next_page_token"] = page[-1].experiment_id
        return answer


def _parameter(request: Request, name: str) -> str:
    return str(required({name: request.text(name)}, name))


def _count(value: Any) -> int:
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = 0
    if not 0 < count <= _MAX_SEARCHED_AT_ONCE:
        raise invalid(f"The max_results is {value!r}, and must be from 1 to {_MAX_SEARCHED_AT_ONCE}.")
    return count
