"""The pytest plugin of tracelake: the fixture `mock_workspace`.

It is a module of its own because pytest loads it at each start: tracelake is imported with the first test that asks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING
from unittest import mock

import pytest

if TYPE_CHECKING:
    from tracelake.testing import MockWorkspace

# What MLflow keeps of `set_tracking_uri` and `set_experiment`, beside the environment: module and name.
_MLFLOW_STATE = (
    ("mlflow.tracking._tracking_service.utils", "_tracking_uri"),
    ("mlflow.tracking.fluent", "_active_experiment_id"),
)


@pytest.fixture
def mock_workspace() -> Iterator[MockWorkspace]:
    """A Databricks workspace with the catalog `main` and the schema `main.obs`, which the environment names.

    What uses the package `requests`, as databricks-sdk and MLflow do, reaches it within this process; for other
    processes and clients, `mock_workspace.environment()` has the variables and `mock_workspace.url` the address.
    """
    from tracelake.testing import MockWorkspace

    with MockWorkspace() as workspace, workspace.in_process() as host, mock.patch.dict(os.environ):
        workspace.create_schema("main.obs")
        for name in [name for name in os.environ if name.startswith(("DATABRICKS_", "MLFLOW_"))]:
            del os.environ[name]
        os.environ.update(workspace.environment(host=host))
        before = _exchange_mlflow_state((None, None))
        try:
            yield workspace
        finally:
            workspace.faults.clear()
            _end_tracing()
            _exchange_mlflow_state(before)


def _end_tracing() -> None:
    """Have MLflow send what it still has, and forget this workspace: it keeps threads and clients for itself."""
    mlflow = sys.modules.get("mlflow")
    if mlflow is not None:
        # Its threads would each be waited for at the end of the process.
        mlflow.flush_trace_async_logging(terminate=True)
        mlflow.tracing.reset()


def _exchange_mlflow_state(new: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """Have MLflow use other values of `_MLFLOW_STATE`, and return those before; None is the environment's."""
    before: list[str | None] = []
    for (module, name), value in zip(_MLFLOW_STATE, new, strict=True):
        state = vars(sys.modules[module]) if module in sys.modules else {}
        before.append(state.get(name))
        if name in state:
            state[name] = value
    return tuple(before)
