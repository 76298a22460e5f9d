"""The store URI `tracelake://<SQLAlchemy URL>`: in which database MLflow keeps all but the traces."""

from __future__ import annotations

import os

from tracelake.destinations.base import Destination
from tracelake.destinations.delta import DeltaDestination
from tracelake.destinations.resolve import resolve_environment
from tracelake.errors import ConfigurationError
from tracelake.query.table import ReadableDestination

SCHEME = "tracelake://"
_DEFAULT_DATABASE = "sqlite:///./tracelake/mlflow.db"
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_TARGET = "TRACELAKE_DESTINATION"


def database_url(store_uri: str) -> str:
    """Return the URL of the database that a store URI names; for the default one, its directory is made.

    Raises:
        ConfigurationError: it names no database that MLflow knows. The text has nothing of the URI, for its password.
    """
    url = store_uri.removeprefix(SCHEME)
    if not url:
        os.makedirs("tracelake", exist_ok=True)
        return _DEFAULT_DATABASE
    scheme, separator, _ = url.partition("://")
    if not separator or scheme.partition("+")[0] not in _DATABASES:
        raise ConfigurationError(
            f"What follows {SCHEME} in the store URI is no database URL of MLflow's. Give one, as "
            f"{SCHEME}sqlite:////data/mlflow.db or {SCHEME}postgresql://user@host/mlflow, or nothing for "
            f"{_DEFAULT_DATABASE}; the table of the traces is named by {_TARGET}."
        )
    return url


def trace_destination() -> Destination:
    """Return the first destination of `TRACELAKE_DESTINATION`, or else the embedded table.

    Raises:
        TargetError: it is not understood.
        ConfigurationError: it is no table, and could not be read.
    """
    found = resolve_environment({_TARGET: os.environ.get(_TARGET, "")}).destinations[0]
    if not isinstance(found, (DeltaDestination, ReadableDestination)):
        raise ConfigurationError(
            f"{_TARGET} is {found.target}, which is no table, so that MLflow could not read its traces back. "
            f"Name a table there; the database of the experiments is named by the store URI, {SCHEME}<URL>."
        )
    return found
