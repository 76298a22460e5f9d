"""What redaction adds to recording a span: microseconds of CPU with none, with patterns and with a callable, in turn.

Run: python -m benchmarks.redaction
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

SPANS = 20_000
WARM_UP = 2_000
ROUNDS = 5
PATTERNS = "*.password,*.api_key,*.authorization,http.request.header.*,db.query.parameter.*"
# A span of an agent: five plain attributes, and inputs of some 700 bytes of nested JSON.
ATTRIBUTES: dict[str, Any] = {
    "gen_ai.system": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.usage.input_tokens": 1234,
    "gen_ai.response.id": "chatcmpl-9f8e7d6c5b4a39281706f5e4d3c2b1a0",
    "cost.usd": 0.00123,
    "input": json.dumps(
        {
            "messages": [{"role": role, "content": "word " * 25} for role in ("system", "user", "assistant", "user")],
            "options": {"temperature": 0.1, "api_key": "none", "tools": ["search", "read"]},
        }
    ),
}


def _by_callable(key: str, value: Any) -> Any:
    return "[redacted]" if key.endswith((".password", ".api_key")) else value


CONTENDERS: dict[str, Callable[[], Any]] = {
    "no redaction": lambda: None,
    "five patterns": lambda: PATTERNS,
    "a callable": lambda: _by_callable,
}


def contender(name: str) -> None:
    """Record spans with one kind of redaction, and print the CPU a span."""
    from opentelemetry.sdk.trace import TracerProvider

    import tracelake

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(tracelake.SpanRecorder(redact=CONTENDERS[name]()))
    tracer = provider.get_tracer("bench", "1.0")

    def spans(number: int) -> None:
        for _ in range(number):
            with tracer.start_as_current_span("chat completion", attributes=ATTRIBUTES):
                pass

    spans(WARM_UP)
    before = time.process_time()
    spans(SPANS)
    print(json.dumps({"cpu_us": (time.process_time() - before) / SPANS * 1e6}), flush=True)
    os._exit(0)


def run() -> dict[str, float]:
    """Run them in turn, each in a process of its own; return the figures."""
    from benchmarks.compare.harness import environment, in_turn, program

    with tempfile.TemporaryDirectory() as directory:
        environ = environment(directory, TRACELAKE_DESTINATION=f"{directory}/spans", TRACELAKE_SHIPPER="external")

        def measure(name: str) -> dict[str, float]:
            return program("benchmarks.redaction", name, environ=environ)

        found = in_turn(tuple(CONTENDERS), ROUNDS, measure)
    medians = {name: statistics.median(columns["cpu_us"]) for name, columns in found.items()}
    base = medians["no redaction"]
    return {
        **{f"a span with {name}, CPU us": median for name, median in medians.items()},
        **{f"{name} / no redaction": median / base for name, median in medians.items() if median != base},
    }


if __name__ == "__main__":
    if sys.argv[1:]:
        contender(sys.argv[1])
    else:
        for label, figure in run().items():
            print(f"{label:40} {figure:8.2f}")
