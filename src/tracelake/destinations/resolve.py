"""Which destinations hold when the code names none: the order of precedence, in one place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from tracelake.destinations.base import Destination, shown_target
from tracelake.destinations.targets import parse_target, parse_targets, split_targets
from tracelake.errors import TargetError
from tracelake.redaction import one_line

# Where spans go when nothing at all is set: a table beside the program.
DEFAULT_TARGET = "./tracelake/spans"


@dataclass(frozen=True)
class Resolved:
    """Destinations and the name of the setting they come from."""

    destinations: tuple[Destination, ...]
    source: str


def resolve_environment(environ: Mapping[str, str] | None = None) -> Resolved:
    """Return the destinations that the environment names: `TRACELAKE_DESTINATION`, then MLflow's
    `MLFLOW_TRACING_DESTINATION`, then its tracking URI, then the embedded default.

    Raises:
        TargetError: what the environment names is not understood; the message starts with the variable.
    """
    environ = os.environ if environ is None else environ
    for variable, targets_of in (
        ("TRACELAKE_DESTINATION", split_targets),
        ("MLFLOW_TRACING_DESTINATION", _mlflow_destination),
        ("MLFLOW_TRACKING_URI", _mlflow_tracking_uri),
    ):
        text = environ.get(variable, "").strip()
        try:
            targets = targets_of(text) if text else []
            if targets:
                return Resolved(parse_targets(targets), variable)
        except TargetError as error:
            raise TargetError(f"{variable}: {error}") from error
    return Resolved((parse_target(DEFAULT_TARGET),), "the default")


def _mlflow_destination(text: str) -> list[str]:
    """MLflow's own meaning: two parts a schema, three a schema and a table prefix, one an experiment id."""
    parts = text.split(".")
    if len(parts) == 3:
        return [f"{text}_otel_spans"]
    if len(parts) == 2:
        return [text]
    what = "names an MLflow experiment, whose storage is not a table" if len(parts) == 1 else "has too many parts"
    raise TargetError(f"{one_line(text, 200)!r} {what}. Set TRACELAKE_DESTINATION to where spans should go.")


def _mlflow_tracking_uri(text: str) -> list[str]:
    lower = text.lower()
    if lower.startswith(("http://", "https://")):
        return [text]
    if lower == "databricks" or lower.startswith(("databricks:", "databricks-uc")):
        raise TargetError(
            f"The tracking URI is {shown_target(text)}, and distributed traces on Databricks need a Unity Catalog "
            "table. Set TRACELAKE_DESTINATION=catalog.schema.table, or call "
            "tracelake.set_destination('catalog.schema.table')."
        )
    return []
