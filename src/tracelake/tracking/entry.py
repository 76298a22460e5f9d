"""What MLflow loads when its tracking module is imported: entry points of its groups of stores.

It is also how a program gets its spans recorded with no line of code, in whatever order it imports the two.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tracelake.errors import ConfigurationError
from tracelake.tracing.mlflow_hook import attach

if TYPE_CHECKING:
    from tracelake.tracking.store import LakeStore


def open_tracking_store(store_uri: str, artifact_uri: str | None = None) -> LakeStore:
    """Return the store of `tracelake://<SQLAlchemy URL>`; its traces are in the table that the environment names.

    Raises:
        ConfigurationError: the URI names no database, or the environment no table; or only a part of MLflow, such as
            `mlflow-tracing`, is installed.
        TargetError: the environment's destination is not understood.
    """
    from tracelake.tracking.uri import database_url, trace_destination

    url, destination = database_url(store_uri), trace_destination()
    _load("mlflow.store.tracking.sqlalchemy_store")
    from tracelake.tracking.store import LakeStore

    return LakeStore(url, artifact_uri or "./mlruns", destination)


def open_model_registry(store_uri: str) -> Any:
    """Return MLflow's own model registry in the database of `tracelake://<SQLAlchemy URL>`.

    Raises:
        ConfigurationError: the URI names no database, or only a part of MLflow is installed.
    """
    from tracelake.tracking.uri import database_url

    url = database_url(store_uri)
    return _load("mlflow.store.model_registry.sqlalchemy_store").SqlAlchemyStore(url)


def _load(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"A tracking store in the lake needs all of MLflow, and {error.name} is missing. Run `pip install mlflow`, "
            "or set the tracking URI to the address of a server: `tracelake ui` starts one."
        ) from error


attach()
