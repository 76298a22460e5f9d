"""MLflow's experiments: made, found, renamed, deleted and restored, with their tags.

Any principal may do all of it: permissions on experiments are not imitated.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

from tracelake.testing.state import Experiment, State, Store, now_ms
from tracelake.testing.web.http import ApiError, invalid

# Experiments are files of the workspace, and `/Workspace` is its root.
_ROOT = "/Workspace"
_ARTIFACTS = "dbfs:/databricks/mlflow-tracking"


class Experiments:
    """The experiments of a workspace."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, experiment_id: str) -> Experiment:
        """Return an experiment, which may be a deleted one.

        Raises:
            ApiError: 404 RESOURCE_DOES_NOT_EXIST.
        """
        return _found(self._store.state, experiment_id)

    def active(self, experiment_id: str) -> Experiment:
        """Return an experiment that is not deleted.

        Raises:
            ApiError: 404 RESOURCE_DOES_NOT_EXIST, there is none; 400 INVALID_PARAMETER_VALUE, it is deleted.
        """
        return _active(self.get(experiment_id))

    def get_by_name(self, name: str) -> Experiment:
        """Return the experiment of a name, which may be a deleted one.

        Raises:
            ApiError: 404 RESOURCE_DOES_NOT_EXIST.
        """
        found = self._named(name)
        if found is None:
            raise ApiError(404, "RESOURCE_DOES_NOT_EXIST", f"Node {name} does not exist.")
        return found

    def all(self) -> list[Experiment]:
        """Return all experiments, also the deleted ones."""
        with self._store.lock:
            return list(self._store.state.experiments.values())

    def create(
        self, principal: str, name: str, *, tags: Mapping[str, str] | None = None, artifact_location: str = ""
    ) -> Experiment:
        """Make an experiment.

        Raises:
            ApiError: 400, the name is none of a workspace file (INVALID_PARAMETER_VALUE), or is taken
                (RESOURCE_ALREADY_EXISTS).
        """
        with self._store.changing() as state:
            path = self._free_name(name)
            experiment_id = str(secrets.randbelow(9 * 10**14) + 10**14)
            now = now_ms()
            owner = state.principals.get(principal)
            made = Experiment(
                experiment_id=experiment_id,
                name=path,
                artifact_location=artifact_location or f"{_ARTIFACTS}/{experiment_id}",
                creation_time=now,
                last_update_time=now,
                tags={
                    **(tags or {}),
                    "mlflow.experiment.sourceName": path,
                    "mlflow.experimentType": "MLFLOW_EXPERIMENT",
                    "mlflow.ownerEmail": principal,
                    "mlflow.ownerId": owner.id if owner else "",
                },
            )
            state.experiments[experiment_id] = made
        return made

    def rename(self, experiment_id: str, name: str) -> None:
        """Give an experiment another name; raises as `active` and `create` do."""

        def renamed(experiment: Experiment) -> None:
            _active(experiment)
            experiment.name = self._free_name(name)
            experiment.tags["mlflow.experiment.sourceName"] = experiment.name

        self._change(experiment_id, renamed)

    def delete(self, experiment_id: str) -> None:
        """Delete an experiment, which keeps its name and can be restored; raises as `active` does."""

        def deleted(experiment: Experiment) -> None:
            _active(experiment).lifecycle_stage = "deleted"

        self._change(experiment_id, deleted)

    def restore(self, experiment_id: str) -> None:
        """Make a deleted experiment an active one.

        Raises:
            ApiError: 404, there is none; 400 INVALID_PARAMETER_VALUE, it is not deleted.
        """

        def restored(experiment: Experiment) -> None:
            if experiment.lifecycle_stage == "active":
                raise invalid(f"Cannot restore an active experiment with ID {experiment_id}.")
            experiment.lifecycle_stage = "active"

        self._change(experiment_id, restored)

    def forget(self, experiment_id: str) -> None:
        """Take an experiment back that could not be made whole; its name is free."""
        with self._store.changing() as state:
            state.experiments.pop(experiment_id, None)

    def set_tags(self, experiment_id: str, tags: Mapping[str, str | None]) -> None:
        """Set tags of an experiment; a tag that is None is removed, if it is there. Raises as `active` does."""

        def tagged(experiment: Experiment) -> None:
            kept = {**_active(experiment).tags, **tags}
            experiment.tags = {key: value for key, value in kept.items() if value is not None}

        self._change(experiment_id, tagged)

    def _change(self, experiment_id: str, change: Callable[[Experiment], None]) -> None:
        with self._store.changing() as state:
            experiment = _found(state, experiment_id)
            change(experiment)
            experiment.last_update_time = now_ms()

    def _named(self, name: str) -> Experiment | None:
        name = _path(name)
        with self._store.lock:
            return next((each for each in self._store.state.experiments.values() if each.name == name), None)

    def _free_name(self, name: str) -> str:
        if not name.startswith("/") or name.endswith("/"):
            raise invalid(
                f"Got an invalid experiment name '{name}'. An experiment name must be an absolute path within the "
                "Databricks workspace, e.g. '/Users/<some-username>/my-experiment'."
            )
        taken = self._named(name)
        if taken is not None:
            raise ApiError(400, "RESOURCE_ALREADY_EXISTS", f"Node named '{taken.name}' already exists")
        return _path(name)


def _path(name: str) -> str:
    """Return the one of the two names that an experiment has: `/Workspace/Shared/agent` is `/Shared/agent`."""
    return name.removeprefix(_ROOT) if name.startswith(f"{_ROOT}/") else name


def _found(state: State, experiment_id: str) -> Experiment:
    found = state.experiments.get(experiment_id)
    if found is None:
        raise ApiError(404, "RESOURCE_DOES_NOT_EXIST", f"Node ID {experiment_id} does not exist.")
    return found


def _active(experiment: Experiment) -> Experiment:
    if experiment.lifecycle_stage != "active":
        raise invalid(
            f"The experiment {experiment.experiment_id} must be in the 'active' state, "
            f"and is in the '{experiment.lifecycle_stage}' state."
        )
    return experiment
