"""The spans of the comparisons: traces of an agent whose texts differ from span to span, and pack as English does."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

    from tracelake.spans.record import SpanRecord

# A trace: the agent, a search, two calls to a model, and a tool.
NAMES = ("answer", "search documents", "chat completion", "chat completion", "get_weather")
TRACE_SPANS = len(NAMES)
SERVICES = tuple(f"agent-{number}" for number in range(5))
_TYPES = ("AGENT", "RETRIEVER", "LLM", "LLM", "TOOL")
_TEXT_WORDS = {"AGENT": (20, 60), "RETRIEVER": (15, 120), "LLM": (60, 80), "TOOL": (8, 15)}
_MODELS = ("gpt-4o-mini", "gpt-4o", "claude-sonnet", "llama-3.3-70b")
_ONE_IN_AN_ERROR = 50


@cache
def _words() -> list[str]:
    # Drawn at random from prose, each word comes as often as it does there, and texts pack about as well.
    from pydoc_data.topics import topics

    return [word for text in topics.values() for word in text.split()]


def attributes(number: int) -> dict[str, Any]:
    """Return the attributes of the span with this number."""
    chance = random.Random(number)
    kind = _TYPES[number % TRACE_SPANS]
    asked, answered = (" ".join(chance.choices(_words(), k=words)) for words in _TEXT_WORDS[kind])
    common = {
        "mlflow.spanType": kind,
        "mlflow.spanInputs": json.dumps({"messages": [{"role": "user", "content": asked}]}),
        "mlflow.spanOutputs": json.dumps({"role": "assistant", "content": answered}),
        "user.id": f"user-{chance.randrange(10_000)}",
        "session.id": f"{chance.getrandbits(64):016x}",
    }
    if kind != "LLM":
        return common
    return common | {
        "gen_ai.operation.name": "chat",
        "gen_ai.system": "openai",
        "gen_ai.request.model": chance.choice(_MODELS),
        "gen_ai.request.temperature": chance.choice((0.0, 0.2, 0.7, 1.0)),
        "gen_ai.usage.input_tokens": chance.randrange(4000),
        "gen_ai.usage.output_tokens": chance.randrange(800),
        "gen_ai.response.id": f"chatcmpl-{chance.getrandbits(128):032x}",
        "cost.usd": round(chance.random() / 50, 6),
    }


def records(count: int) -> list[SpanRecord]:
    """Return finished spans, whole traces if `count` is a multiple of `TRACE_SPANS`."""
    from tracelake.spans import line
    from tracelake.spans.record import Resource, Scope, SpanRecord

    scope = line.pack(Scope("bench", "1.0"))
    resources = [line.pack(Resource({"service.name": name, "telemetry.sdk.name": "x"})) for name in SERVICES]
    made = [
        SpanRecord(
            "",
            "",
            NAMES[number % TRACE_SPANS],
            0,
            0,
            attributes=attributes(number),
            status_code=2 if number % _ONE_IN_AN_ERROR == 2 else 0,
            resource=resources[number // TRACE_SPANS % len(SERVICES)],
            scope=scope,
        )
        for number in range(count)
    ]
    renew(made, 0)
    return made


def renew(made: Sequence[SpanRecord], seed: int) -> None:
    """Give spans the ids and times of others: those of traces that just ended."""
    chance = random.Random(seed)
    now = time.time_ns()
    trace_id = root_id = ""
    for number, record in enumerate(made):
        record.span_id = f"{chance.getrandbits(64):016x}"
        place = number % TRACE_SPANS
        if place == 0:
            trace_id, root_id = f"{chance.getrandbits(128) | 1:032x}", record.span_id
            now += 50_000
        record.trace_id = trace_id
        record.parent_span_id = root_id if place else None
        record.start_time_unix_nano = now + place * 1_000_000
        record.end_time_unix_nano = record.start_time_unix_nano + 1_000_000 + chance.getrandbits(30)


def end_spans(processor: SpanProcessor, count: int) -> None:
    """End as many spans in OpenTelemetry's SDK, before one processor."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider(resource=Resource.create({"service.name": SERVICES[0]}), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("bench", "1.0")
    for first in range(0, count, TRACE_SPANS):
        with tracer.start_as_current_span(NAMES[0], attributes=attributes(first)):
            for number in range(first + 1, min(first + TRACE_SPANS, count)):
                name = NAMES[number % TRACE_SPANS]
                with tracer.start_as_current_span(name, attributes=attributes(number)):
                    pass
