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
        try:
            yield workspace
        finally:
            workspace.faults.clear()
            _end_tracing()


def _end_tracing() -> None:
    """Have MLflow send what it still has, and forget this workspace: it keeps threads and clients for itself."""
    mlflow = sys.modules.get("mlflow")
    if mlflow is not None:
        mlflow.flush_trace_async_logging()
        mlflow.tracing.reset()
