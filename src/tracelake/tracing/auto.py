"""Recording with no code at all: what `opentelemetry-instrument` calls once OpenTelemetry is set up.

An entry point of the group `opentelemetry_post_instrument`. An exporter would not do: those stand behind a
`BatchSpanProcessor`, whose queue drops spans.
"""

from __future__ import annotations

import logging
import os

from tracelake.errors import TracelakeError
from tracelake.tracing.install import install

_log = logging.getLogger("tracelake")


def install_from_environment() -> None:
    """Record the spans of the global tracer provider if `TRACELAKE_DESTINATION` is set. Never raises."""
    if not os.environ.get("TRACELAKE_DESTINATION", "").strip():
        return
    try:
        install()
    except TracelakeError as error:
        _log.error("Spans are not recorded. %s", error)
    except Exception:  # noqa: BLE001 - the app is not ours
        _log.exception("Spans are not recorded. Report this with its traceback.")
