"""Which destinations hold when the code names none: the order of precedence, in one place.

And the rule that no destination may break: with a Databricks tracking URI, one of them is a Unity Catalog table.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tracelake.destinations.base import Destination, shown_target
from tracelake.destinations.targets import Target, parse_target, parse_targets, split_targets
from tracelake.errors import TargetError
from tracelake.redaction import one_line

# Where spans go when nothing at all is set: a table beside the program.
DEFAULT_TARGET = "./tracelake/spans"

# The target of code or environment that names none, and leaves it to the rest of the environment.
AUTO = "auto"

EXPERIMENT_ID = "MLFLOW_EXPERIMENT_ID"
_VARIABLES = (
    "TRACELAKE_DESTINATION",
    "MLFLOW_TRACING_DESTINATION",
    "MLFLOW_TRACKING_URI",
    EXPERIMENT_ID,
    "MLFLOW_EXPERIMENT_NAME",
)
_ID = re.compile(r"[\w-]+")
_DATABRICKS = re.compile(r"databricks(-uc)?(:|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Resolved:
    """Destinations and the name of the setting they come from."""

    destinations: tuple[Destination, ...]
    source: str


def read_environment() -> dict[str, str]:
    """Return the variables that name destinations, empty where not set.

    The tracking URI is MLflow's own where MLflow is loaded: a Databricks notebook has one without any variable.
    """
    environ = {name: os.environ.get(name, "").strip() for name in _VARIABLES}
    if not environ["MLFLOW_TRACKING_URI"]:
        ask = getattr(sys.modules.get("mlflow"), "get_tracking_uri", str)  # it may be on its way in
        with contextlib.suppress(Exception):  # that of mlflow-tracing alone looks for a local store, which it has not
            environ["MLFLOW_TRACKING_URI"] = str(ask())
    return environ


def resolve_environment(environ: Mapping[str, str] | None = None) -> Resolved:
    """Return the destinations that the environment names: `TRACELAKE_DESTINATION`, then MLflow's
    `MLFLOW_TRACING_DESTINATION`, then its tracking URI, then the embedded default.

    Args:
        environ: as of `read_environment`, which is the default.

    Raises:
        TargetError: what the environment names is not understood, or not allowed; the message starts with the variable.
    """
    environ = read_environment() if environ is None else environ
    for variable, targets_of in (
        ("TRACELAKE_DESTINATION", _own_targets),
        ("MLFLOW_TRACING_DESTINATION", _mlflow_destination),
        ("MLFLOW_TRACKING_URI", _mlflow_tracking_uri),
    ):
        text = environ.get(variable, "").strip()
        try:
            targets = targets_of(text, environ) if text else []
            if targets:
                destinations = parse_targets(targets)
                require_unity_catalog(destinations, environ.get("MLFLOW_TRACKING_URI", ""))
                return Resolved(destinations, variable)
        except TargetError as error:
            raise TargetError(f"{variable}: {error}") from error
    return Resolved((parse_target(DEFAULT_TARGET),), "the default")


def resolve_named(target: Target | Sequence[Target]) -> tuple[Destination, ...]:
    """Return the destinations that code names. A trace location of MLflow's is what MLflow means by it.

    Raises:
        TargetError: one is not understood, or not allowed.
    """
    destinations = parse_named(target)
    require_unity_catalog(destinations, read_environment()["MLFLOW_TRACKING_URI"])
    return destinations


def parse_named(target: Target | Sequence[Target]) -> tuple[Destination, ...]:
    """Return the destinations that code names, to read from: there the rule on Databricks workspaces says nothing.

    Raises:
        TargetError: a target is not understood.
    """
    environ = read_environment()
    if isinstance(target, (list, tuple)):
        return parse_targets([_without_location(item, environ) for item in target])
    return parse_targets(_without_location(target, environ))


def is_databricks(tracking_uri: str) -> bool:
    """Say whether a tracking URI is that of a Databricks workspace."""
    return bool(_DATABRICKS.match(tracking_uri))


def require_unity_catalog(destinations: Iterable[Destination], tracking_uri: str) -> None:
    """See that a destination is a Unity Catalog table if the tracking URI is that of a Databricks workspace.

    Raises:
        TargetError: none is; the message names the rule, what is set, and what to set instead.
    """
    if not is_databricks(tracking_uri):
        return
    targets = [destination.target for destination in destinations]
    if not any(target.startswith("uc://") for target in targets):
        now = f"the destination is {', '.join(map(shown_target, targets))}" if targets else "no destination is set"
        raise TargetError(
            f"With the tracking URI {shown_target(tracking_uri)}, distributed tracing needs a Unity Catalog table as "
            f"its destination, where the spans of all services meet, and {now}. "
            "Set TRACELAKE_DESTINATION=catalog.schema.table, or call "
            "tracelake.set_destination('catalog.schema.table'); to trace elsewhere, set another tracking URI."
        )


def _without_location(item: Any, environ: Mapping[str, str]) -> Any:
    if type(item).__module__ != "mlflow.entities.trace_location":
        return item
    parts = item.to_dict()
    names = [parts.get("catalog_name"), parts.get("schema_name"), parts.get("table_prefix")]
    if parts.get("experiment_id"):
        targets = _mlflow_tracking_uri(
            environ["MLFLOW_TRACKING_URI"], {**environ, EXPERIMENT_ID: str(parts["experiment_id"])}
        )
        if targets:
            return targets[0]
        remedy = "Set the tracking URI to that of the MLflow server that has the experiment"
    elif names[2] or not hasattr(item, "table_prefix"):
        table = ".".join(_quoted(str(name)) for name in names[:2])
        return f"{table}.{_quoted(names[2] + '_otel_spans')}" if names[2] else table
    else:
        remedy = "Give it a table_prefix"
    raise TargetError(f"{one_line(repr(item), 200)} names no place for spans. {remedy}, or name another destination.")


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"\w+", name) else "`" + name.replace("`", "``") + "`"


def _own_targets(text: str, _: Mapping[str, str]) -> list[str]:
    return [] if text == AUTO else split_targets(text)


def _mlflow_destination(text: str, environ: Mapping[str, str]) -> list[str]:
    """MLflow's own meaning: two parts a schema, three a schema and a table prefix, one an experiment id."""
    parts = text.split(".")
    if len(parts) == 3:
        return [f"{text}_otel_spans"]
    if len(parts) == 2:
        return [text]
    if _ID.fullmatch(text):
        return _mlflow_tracking_uri(environ.get("MLFLOW_TRACKING_URI", ""), {**environ, EXPERIMENT_ID: text})
    raise TargetError(
        f"{shown_target(text)} is neither an experiment id, nor 'catalog.schema', nor 'catalog.schema.table_prefix'. "
        "Write one of these, or set TRACELAKE_DESTINATION to where spans should go."
    )


def _mlflow_tracking_uri(text: str, environ: Mapping[str, str]) -> list[str]:
    if text.lower().startswith(("http://", "https://")):
        for variable, parameter in ((EXPERIMENT_ID, "experiment_id"), ("MLFLOW_EXPERIMENT_NAME", "experiment")):
            if value := environ.get(variable, "").strip():
                return [f"{text}?{parameter}={quote(value, safe='')}"]
        return [text]
    require_unity_catalog((), text)
    return []
