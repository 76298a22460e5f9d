"""Every setting: its name, environment variable, type, unit, default and meaning, in one table.

Settings come from the environment of the process that uses them; a shipper inherits that of the app that starts it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast, get_args

from tracelake.errors import SettingError

ShipperMode = Literal["process", "thread", "inline", "external"]
# How spans get into a Unity Catalog table.
Transport = Literal["auto", "delta", "otlp", "zerobus"]

_BYTE_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def _text(value: str) -> str:
    return value


def _list(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _bytes(value: str) -> int:
    match = re.fullmatch(r"(\d+) ?([a-zA-Z]*)", value)
    if match is None or match[2].upper() not in _BYTE_UNITS:
        raise ValueError("not a whole number, alone or with KB, MB, GB, KiB, MiB or GiB")
    size = int(match[1]) * _BYTE_UNITS[match[2].upper()]
    if size < 1024:
        raise ValueError("less than 1024 bytes")
    return size


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        raise ValueError("not a number") from None  # Python's own text repeats all of the value
    if not 0 <= seconds <= 86_400:
        raise ValueError("not between 0 and 86400 seconds")
    return seconds


def _mode(value: str) -> ShipperMode:
    if value not in get_args(ShipperMode):
        raise ValueError(f"not one of {', '.join(get_args(ShipperMode))}")
    return cast("ShipperMode", value)


def _transport(value: str) -> Transport:
    if value not in get_args(Transport):
        raise ValueError(f"not one of {', '.join(get_args(Transport))}")
    return cast("Transport", value)


def _url(value: str) -> str:
    if re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", value) is None:
        raise ValueError("not a URL such as http://host:8080, without a user, password or query")
    return value.rstrip("/")


def _schema_version(value: str) -> int:
    if value not in {"1", "2"}:
        raise ValueError("not 1 or 2")
    return int(value)


def _flag(value: str) -> bool:
    if value.lower() not in {"true", "false", "1", "0"}:
        raise ValueError("not true or false")
    return value.lower() in {"true", "1"}


def _setting(variable: str, parse: Callable[[str], Any], default: Any, kind: str, meaning: str) -> Any:
    metadata = {"variable": variable, "parse": parse, "kind": kind, "meaning": meaning}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """All settings of a process; `docs/settings.md` shows them as a table."""

    destination: str = _setting(
        "TRACELAKE_DESTINATION", _text, "", "targets, by comma", "Where spans go when the code names no destination."
    )
    spool_dir: str = _setting(
        "TRACELAKE_SPOOL_DIR",
        _text,
        "",
        "directory",
        "Where spans wait for delivery; empty means `~/.local/state/tracelake/spool`. Must be a local file system.",
    )
    spool_max_bytes: int = _setting(
        "TRACELAKE_SPOOL_MAX_BYTES",
        _bytes,
        2**30,
        "bytes",
        "Undelivered bytes a destination's lane may hold; past that, spans are refused and counted.",
    )
    segment_max_bytes: int = _setting(
        "TRACELAKE_SEGMENT_MAX_BYTES", _bytes, 16 * 2**20, "bytes", "Size at which a process starts its next segment."
    )
    shipper: ShipperMode = _setting(
        "TRACELAKE_SHIPPER", _mode, "process", "process, thread, inline or external", "Who delivers the spool."
    )
    shipper_idle_s: float = _setting(
        "TRACELAKE_SHIPPER_IDLE",
        _seconds,
        60.0,
        "seconds",
        "A shipper process ends after this long with nothing to do.",
    )
    batch_max_bytes: int = _setting(
        "TRACELAKE_BATCH_MAX_BYTES", _bytes, 32 * 2**20, "bytes", "Spool bytes at which a batch is delivered."
    )
    batch_max_age_s: float = _setting(
        "TRACELAKE_BATCH_MAX_AGE",
        _seconds,
        5.0,
        "seconds",
        "Age at which a smaller batch is delivered. Larger means fewer, bigger files in the table.",
    )
    exit_timeout_s: float = _setting(
        "TRACELAKE_EXIT_TIMEOUT",
        _seconds,
        5.0,
        "seconds",
        "How long a process that ends waits for its spans' delivery.",
    )
    schema_version: int = _setting(
        "TRACELAKE_SCHEMA_VERSION",
        _schema_version,
        1,
        "1 or 2",
        "Schema of a table that tracelake creates: 1 has MAP<STRING,STRING> attributes, 2 has VARIANT.",
    )
    create_table: bool = _setting(
        "TRACELAKE_CREATE_TABLE",
        _flag,
        True,
        "true or false",
        "Whether a Delta table that is not there is created at the first delivery.",
    )
    transport: Transport = _setting(
        "TRACELAKE_TRANSPORT",
        _transport,
        "auto",
        "auto, delta, otlp or zerobus",
        "How spans get into a Unity Catalog table: `docs/transports.md`.",
    )
    catalog_url: str = _setting(
        "TRACELAKE_CATALOG_URL",
        _url,
        "",
        "URL",
        "The open-source Unity Catalog server that has the tables; empty means the Databricks workspace.",
    )
    zerobus_url: str = _setting(
        "TRACELAKE_ZEROBUS_URL",
        _url,
        "",
        "URL",
        "The Zerobus endpoint, `https://<workspace-id>.zerobus.<region>.cloud.databricks.com`.",
    )
    accept_destinations: tuple[str, ...] = _setting(
        "TRACELAKE_ACCEPT_DESTINATIONS",
        _list,
        (),
        "targets, by comma",
        "Destinations of callers that this service may record to, for the requests they make.",
    )
    redact: tuple[str, ...] = _setting(
        "TRACELAKE_REDACT",
        _list,
        (),
        "patterns, by comma",
        "Attributes whose values are masked before they are recorded, such as `*.password`: `docs/security.md`.",
    )


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of the environment.

    Raises:
        SettingError: a variable has a value it cannot have; the message names all such variables.
    """
    settings, problems = read_settings(environ)
    if problems:
        raise SettingError(" ".join(problems))
    return settings


def read_settings(environ: Mapping[str, str] | None = None) -> tuple[Settings, list[str]]:
    """Return the settings of the environment with the default for each bad value, and one message for each of those."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    problems: list[str] = []
    for item in fields(Settings):
        text = environ.get(item.metadata["variable"], "").strip()
        if not text:
            continue
        try:
            values[item.name] = item.metadata["parse"](text)
        except (ValueError, KeyError) as error:
            problems.append(
                f"{item.metadata['variable']}={text[:80]!r} is not usable: {error}. "
                f"Set it to {item.metadata['kind']}, or unset it for the default, {item.default!r}."
            )
    return Settings(**values), problems
