"""Records one span with something huge in it, then one that is small, and prints what that took of its memory.

`python -m tests.security.apps.huge KIND`; the destination is the environment's.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

from opentelemetry.sdk.trace import TracerProvider

import tracelake


class Blocking:
    """Its text takes long, and is long."""

    def __repr__(self) -> str:
        time.sleep(0.2)
        return "r" * 2**20


class Broken:
    """Nothing can be said of it."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    __str__ = __repr__


def deep(levels: int) -> Any:
    value: Any = "end"
    for _ in range(levels):
        value = {"in": [value]}
    return value


def endless() -> Any:
    value: dict[str, Any] = {}
    value["self"] = [value]
    return value


ATTRIBUTES: dict[str, Any] = {
    "text": lambda: {"a": "x" * 100_000_000},
    "escapes": lambda: {"a": "\x00\n\x1b" * 4_000_000},
    "deep": lambda: {"a": deep(10_000)},
    "numbers": lambda: {"a": [2**70, -(2**64), float("nan"), float("inf"), float("-inf"), 10**5000]},
    "surrogates": lambda: {"a\udc80": "b\ud800\x00"},
    "objects": lambda: {"a": endless(), "b": Broken(), "c": Blocking(), 4: {None: {5: 6}}},
}


def memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)


def main(kind: str) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(tracelake.SpanRecorder())
    tracer = provider.get_tracer("huge")
    with tracer.start_as_current_span("first"):
        pass
    made = ATTRIBUTES[kind]()
    with tracelake.start_span(kind) if kind in ("deep", "numbers", "objects") else tracer.start_span("huge") as span:
        for key, value in made.items():
            span.set_attribute(key, value)
        before = memory_mb()
    after = memory_mb()
    with tracer.start_as_current_span("last"):
        pass
    report = tracelake.flush(120)
    print(json.dumps({"before": before, "after": after, "dropped": report.dropped}))
    print(report)


if __name__ == "__main__":
    main(sys.argv[1])
