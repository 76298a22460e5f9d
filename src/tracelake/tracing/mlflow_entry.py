"""What MLflow loads when its tracking module is imported: an entry point of the group `mlflow.tracking_store`.

It is how a program gets its spans recorded with no line of code, in whatever order it imports the two.
"""

from __future__ import annotations

from typing import NoReturn

from tracelake.errors import ConfigurationError
from tracelake.tracing.mlflow_hook import attach


def open_tracking_store(store_uri: str | None = None, artifact_uri: str | None = None) -> NoReturn:  # noqa: ARG001
    """Refuse a tracking URI of `tracelake://...`.

    Raises:
        ConfigurationError: always.
    """
    raise ConfigurationError(
        "tracelake is a destination of traces, and no tracking store. Set the tracking URI to that of an MLflow server "
        "or a workspace, and name the destination by TRACELAKE_DESTINATION or tracelake.set_destination."
    )


attach()
