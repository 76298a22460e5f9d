"""The grammar of targets, and the registry of the kinds of destination that answer to them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol

from tracelake.destinations.base import Destination, shown_target
from tracelake.destinations.delta import DeltaDestination
from tracelake.destinations.mlflow_server import MlflowServerDestination
from tracelake.destinations.otlp_server import OtlpDestination
from tracelake.destinations.unity.destination import UnityCatalogDestination
from tracelake.errors import TargetError, TracelakeError
from tracelake.redaction import one_line

PLUGIN_GROUP = "tracelake.destinations"


class TraceLocation(Protocol):
    """A trace location of MLflow's, such as `UnityCatalog(...)` or `MlflowExperimentLocation(...)`."""

    def to_dict(self) -> dict[str, Any]:
        """Return its parts by name."""


# What code may name as a destination.
Target = str | os.PathLike[str] | Destination | TraceLocation

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_NAME_PART = r"(?:`(?:[^`]|``)+`|[^\s./\\`:]+)"
_DOTTED_NAME = re.compile(rf"{_NAME_PART}(?:\.{_NAME_PART}){{1,2}}")

_BUILT_IN: dict[str, Callable[[str], Destination]] = {
    **dict.fromkeys(("file", "s3", "s3a", "abfss", "gs"), DeltaDestination.parse),
    **dict.fromkeys(("http", "https"), MlflowServerDestination.parse),
    **dict.fromkeys(("otlp+http", "otlp+https"), OtlpDestination.parse),
    "uc": UnityCatalogDestination.parse,
}

# What the target is called in an error when nothing answers to its scheme.
_KINDS = {
    "databricks": "a Databricks workspace, which is no place for spans without a table",
}


def parse_target(target: str) -> Destination:
    """Return the destination that one target names. Does no I/O but look for plugins.

    Raises:
        TargetError: no kind of destination answers to it; the message says what to write instead.
    """
    text = target.strip()
    if not text:
        raise TargetError(f"The target is empty. {_examples()}")
    if not text.isprintable():
        raise TargetError(f"The target {shown_target(text)} holds control characters. {_examples()}")
    scheme = _scheme(text)
    parse = _parser(scheme)
    if parse is None:
        kind = _KINDS.get(scheme, f"something with the scheme {one_line(scheme, 50)!r}")
        raise TargetError(
            f"The target {shown_target(text)} names {kind}, and no destination of that kind is installed "
            f"(there are: {', '.join(registered_schemes())}). {_examples()}"
        )
    try:
        destination = parse(text)
    except TracelakeError:
        raise
    except Exception as error:
        raise TargetError(
            f"The plugin for {scheme}:// failed on {shown_target(text)}: {one_line(repr(error))}. "
            "Report it to its authors."
        ) from error
    if not _is_destination(destination):
        raise TargetError(
            f"The plugin for {scheme}:// made a {type(destination).__name__} of {shown_target(text)}, which is no "
            "hashable Destination. Report it to its authors."
        )
    return destination


def parse_targets(targets: Target | Sequence[Target]) -> tuple[Destination, ...]:
    """Return the destinations that code names: a target, a destination, or a list of these, each once.

    Raises:
        TargetError: one of them is not understood, or there is none.
    """
    several = isinstance(targets, Iterable) and not isinstance(targets, (str, bytes, os.PathLike, Destination))
    items: Any = targets if several else [targets]
    found: dict[Destination, None] = {}
    for item in items:
        if isinstance(item, str):
            found[parse_target(item)] = None
        elif isinstance(item, os.PathLike):
            found[_parse_path(os.fsdecode(item))] = None
        elif _is_destination(item):
            found[item] = None
        else:
            raise TargetError(
                f"A destination is a text, a path or a hashable Destination, and this is a {type(item).__name__}. "
                f"{_examples()}"
            )
    if not found:
        raise TargetError(f"The list of destinations is empty. {_examples()}")
    return tuple(found)


def split_targets(text: str) -> list[str]:
    """Return the targets in the text of an environment variable, which separates them by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def registered_schemes() -> list[str]:
    """Return the URL schemes that something answers to, with those of plugins."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=PLUGIN_GROUP))})


def _parse_path(path: str) -> Destination:
    if path != path.strip():
        raise TargetError(f"The path {one_line(path, 200)!r} begins or ends with a space. Name a directory without it.")
    return parse_target(os.path.join(".", path))


def _is_destination(item: object) -> bool:
    # A class has the attributes of its instances, too.
    return isinstance(item, Destination) and isinstance(item, Hashable) and not isinstance(item, type)


def _scheme(text: str) -> str:
    match = _SCHEME.match(text)
    if match:
        return match[1].lower()
    if text.startswith(("/", "./", "../", "~")) or text in {".", ".."}:
        return "file"
    if _DOTTED_NAME.fullmatch(text):
        return "uc"
    if re.match(r"databricks(-uc)?(:|$)", text):
        return "databricks"
    hint = "It looks like a table name with too many or empty parts. " if "." in text and "/" not in text else ""
    raise TargetError(
        f"The target {shown_target(text)} is neither a path, nor a table name, nor a URL. {hint}{_examples()}"
    )


def _parser(scheme: str) -> Callable[[str], Destination] | None:
    if scheme in _BUILT_IN:
        return _BUILT_IN[scheme]
    for point in entry_points(group=PLUGIN_GROUP, name=scheme):
        try:
            parse: Callable[[str], Destination] = point.load()
        except Exception as error:
            raise TargetError(
                f"The plugin {point.value!r} for {scheme}:// cannot be loaded: {one_line(repr(error))}. "
                "Repair or uninstall the package that brings it."
            ) from error
        return parse
    return None


def _examples() -> str:
    return (
        "Write './traces' or '/data/traces' for a directory, 's3://bucket/path' for an object store, "
        "'http://host:5000' for an MLflow server"
        + (", 'catalog.schema.table' for a Unity Catalog table" if _parser("uc") else "")
        + "."
    )
