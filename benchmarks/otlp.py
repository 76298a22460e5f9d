"""What delivery over OTLP/HTTP costs: CPU a span of the shipper, beside OpenTelemetry's own exporter.

Both send the same spans to the same local server, which is in a process of its own and answers at once: the shipper
from its spool, the exporter from finished spans in memory, 512 a request as the batch processor hands them over. The
CPU of the client is counted, from the first to the last span. Each contender runs in a process of its own, several
rounds of all in turn. Run: make bench, or python -m benchmarks.otlp
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

SPANS = 40_000
EXPORTED = 512
ROUNDS = 5
COMPRESSIONS = ("gzip", "none")
CONTENDERS = ("tracelake", "exporter")

_TEXT = (
    "weather Paris sunny degrees agent tool search result customer order invoice please answer the question with a "
    "short list of sources because model said that user wants more detail about delivery dates and prices in euros"
)
_WORDS = _TEXT.split()


def attributes(number: int) -> dict[str, Any]:
    """Return those of a call to a model: no two spans have the same texts, as in life."""
    chance = random.Random(number)
    prompt, answer = (" ".join(chance.choices(_WORDS, k=words)) for words in (40, 60))
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.system": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.request.temperature": 0.2,
        "gen_ai.usage.input_tokens": chance.randrange(2000),
        "gen_ai.usage.output_tokens": chance.randrange(500),
        "gen_ai.response.id": f"chatcmpl-{chance.getrandbits(128):032x}",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.input.messages": json.dumps([{"role": "user", "content": prompt}]),
        "gen_ai.output.messages": json.dumps([{"role": "assistant", "content": answer}]),
        "user.id": f"user-{chance.randrange(1000)}",
        "cost.usd": chance.random(),
    }


def make(processor: Any) -> None:
    """End the spans, a trace of ten at a time."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider(resource=Resource.create({"service.name": "bench"}), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("bench", "1.0")
    for first in range(0, SPANS, 10):
        with tracer.start_as_current_span("agent", attributes=attributes(first)):
            for number in range(first + 1, first + 10):
                with tracer.start_as_current_span("chat completion", attributes=attributes(number)):
                    pass


def record() -> None:
    """Fill the spool."""
    import tracelake

    make(tracelake.SpanRecorder())


def tracelake() -> float:
    """Deliver the spool; return the CPU a span, in us."""
    import requests  # noqa: F401 - the exporter's process has loaded it, too

    from tracelake.settings import load_settings
    from tracelake.shipper.service import Shipper
    from tracelake.spool.lane import Spool

    settings = load_settings()
    shipper = Shipper(Spool(settings.spool_dir), settings, serves=lambda *_: True)
    cpu = time.process_time()
    shipper.drain()
    took = time.process_time() - cpu
    shipper.release()
    return took / SPANS * 1e6


def exporter() -> float:
    """Export as many spans; return the CPU a span, in us."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    memory = InMemorySpanExporter()
    make(SimpleSpanProcessor(memory))
    spans: Sequence[ReadableSpan] = memory.get_finished_spans()
    sender = OTLPSpanExporter()
    cpu = time.process_time()
    for first in range(0, SPANS, EXPORTED):
        if sender.export(spans[first : first + EXPORTED]) is not SpanExportResult.SUCCESS:
            raise RuntimeError("The server did not take a request.")
    return (time.process_time() - cpu) / SPANS * 1e6


def run() -> dict[str, float]:
    """Run both in turn with each compression; return the figures."""
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.recording", "--collector"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}/v1/traces"
    cpu: dict[tuple[str, str], list[float]] = {}
    try:
        for _ in range(ROUNDS):
            for compression in COMPRESSIONS:
                for contender in CONTENDERS:
                    found = _measured(contender, endpoint, compression)
                    cpu.setdefault((compression, contender), []).append(found)
    finally:
        server.terminate()
        server.wait()
    figures: dict[str, float] = {}
    for compression in COMPRESSIONS:
        ours, theirs = (statistics.median(cpu[compression, contender]) for contender in CONTENDERS)
        figures |= {
            f"{compression}: tracelake's shipper, CPU us a span": ours,
            f"{compression}: OpenTelemetry's exporter, CPU us a span": theirs,
            f"{compression}: the shipper, of what the exporter takes": ours / theirs,
        }
    return figures


def _measured(contender: str, endpoint: str, compression: str) -> float:
    with tempfile.TemporaryDirectory() as directory:
        environment = {
            **os.environ,
            "TRACELAKE_SPOOL_DIR": f"{directory}/spool",
            "TRACELAKE_DESTINATION": f"otlp+{endpoint}",
            "TRACELAKE_SHIPPER": "external",
            "TRACELAKE_EXIT_TIMEOUT": "0",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_COMPRESSION": compression,
            "NO_PROXY": "127.0.0.1",
        }
        steps = ("record", contender) if contender == "tracelake" else (contender,)
        for step in steps:
            command = [sys.executable, "-m", "benchmarks.otlp", step]
            output = subprocess.run(
                command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            ).stdout
    return float(output)


if __name__ == "__main__":
    if sys.argv[1:]:
        print({"record": record, "tracelake": tracelake, "exporter": exporter}[sys.argv[1]]())
    else:
        for label, figure in run().items():
            print(f"{label:60} {figure:10.2f}")
