"""Tables to read back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.spans.samples import span
from tracelake.destinations.base import Batch, Destination
from tracelake.destinations.targets import parse_target
from tracelake.spans.line import pack
from tracelake.spans.record import Resource, Scope, SpanEvent, SpanLink, SpanRecord


def write_table(path: Path, records: Sequence[SpanRecord], version: int = 1, number: int = 1) -> Destination:
    """Commit records to a table, made if missing, and return its destination."""
    destination = parse_target(str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACELAKE_SCHEMA_VERSION", str(version))
        rejections = destination.open().write(Batch("tests", number, 1_000, lambda: iter([list(records)])))
    assert not rejections
    return destination


def service_span(number: int, service: str, **fields: Any) -> SpanRecord:
    """Return a span of a service."""
    return span(number, resource=pack(Resource({"service.name": service})), **fields)


def full_span(number: int = 1) -> SpanRecord:
    """Return a span with something in every column."""
    return service_span(
        number,
        "search",
        attributes={
            "mlflow.spanInputs": {"q": [1, None]},
            "mlflow.spanType": "TOOL",
            "count": 3,
            "it's": 'a "quote"',
        },
        events=[SpanEvent("exception", 5, {"exception.type": "ValueError", "n": 1.5})],
        links=[SpanLink("b" * 32, "c" * 16, attributes={"linked": True})],
        status_code=2,
        status_message="failed",
        scope=pack(Scope("scope", "1.0", {"x": 1})),
    )
