"""Programs that end spans of OpenTelemetry with one kind of processor, and say what CPU a span takes.

`python -m benchmarks.recording CONTENDER ENDPOINT SPANS` runs one; without arguments, three of them in turn.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from functools import partial

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

SPANS = 20_000
ROUNDS = 5
WARM_UP = 1_000
# The app's span: six attributes, and so many bytes as a line of the spool.
LINE_BYTES = 673
ATTRIBUTES: dict[str, str | int | float] = {
    "gen_ai.system": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    "mlflow.spanType": "LLM",
    "gen_ai.usage.input_tokens": 1234,
    "gen_ai.response.id": "chatcmpl-9f8e7d6c5b4a39281706f5e4d3c2b1a0",
    "cost.usd": 0.00123,
}


def contender(name: str, endpoint: str, count: int) -> None:
    """Make spans with one kind of processor, and print the CPU a span of this process."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider(resource=Resource.create({"service.name": "bench"}), shutdown_on_exit=False)
    if name == "tracelake":
        import tracelake

        provider.add_span_processor(tracelake.SpanRecorder())
    elif name in ("batch", "simple"):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        exporter = OTLPSpanExporter(endpoint=endpoint)
        # A queue that holds the whole run: dropped spans would cost nothing.
        batching = partial(BatchSpanProcessor, max_queue_size=count + WARM_UP)
        provider.add_span_processor((batching if name == "batch" else SimpleSpanProcessor)(exporter))
    elif name == "write":
        provider.add_span_processor(_LineWriter())
    elif name == "least":
        provider.add_span_processor(_LeastRecorder())
    tracer = provider.get_tracer("bench", "1.0")

    def spans(number: int) -> None:
        for _ in range(number):
            with tracer.start_as_current_span("chat completion", attributes=ATTRIBUTES):
                pass

    spans(WARM_UP)
    provider.force_flush()  # the shipper has started, and the exporter has its connection
    cpu, wall = time.process_time(), time.perf_counter()
    spans(count)
    made = time.perf_counter() - wall
    if name == "batch":
        provider.force_flush()  # its work is done by a thread of the app, so the app pays for it
    print(json.dumps({"cpu_us": (time.process_time() - cpu) / count * 1e6, "wall_us": made / count * 1e6}), flush=True)
    os._exit(0)


class _LineWriter(SpanProcessor):
    """Appends as many bytes a span as tracelake does, and knows nothing of the span: the floor of any that keeps it."""

    def __init__(self) -> None:
        directory = os.environ["TRACELAKE_SPOOL_DIR"]
        os.makedirs(directory, exist_ok=True)
        self._descriptor = os.open(f"{directory}/lines", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._line = b"x" * (LINE_BYTES - 1) + b"\n"

    def on_end(self, span: ReadableSpan) -> None:  # noqa: ARG002
        os.write(self._descriptor, self._line)


class _LeastRecorder(_LineWriter):
    """Reads a span, has C code encode it, and appends it: no lock, no bound, no look at its values.

    A recorder in Python that keeps all of a span costs this much before it promises anything.
    """

    def __init__(self) -> None:
        import msgspec

        from tracelake.tracing.otel_span import Origins, to_record

        super().__init__()
        self._to_record, self._origins, self._encode = to_record, Origins(), msgspec.json.Encoder().encode_lines

    def on_end(self, span: ReadableSpan) -> None:
        context = span.context
        assert context is not None
        os.write(self._descriptor, self._encode([self._to_record(span, context, self._origins)]))


def run() -> dict[str, float]:
    """Run those that matter most in turn; return the figures. benchmarks/compare/recording.py has all of them."""
    from benchmarks.compare.harness import environment, in_turn, program, served, workplace

    with served("benchmarks.compare.receiver") as url, workplace() as directory:
        environ = environment(directory, TRACELAKE_DESTINATION=f"{directory}/spans", TRACELAKE_SHIPPER_IDLE="1")

        def measure(name: str) -> dict[str, float]:
            return program("benchmarks.recording", name, f"{url}/v1/traces", SPANS, environ=environ)

        found = in_turn(("none", "tracelake", "batch"), ROUNDS, measure)
    base, ours, theirs = (statistics.median(columns["cpu_us"]) for columns in found.values())
    return {
        "span alone, CPU us": base,
        "tracelake adds, CPU us": ours - base,
        "BatchSpanProcessor + OTLP/HTTP adds, CPU us": theirs - base,
        "tracelake / BatchSpanProcessor": (ours - base) / (theirs - base),
        "tracelake adds, wall us": statistics.median(found["tracelake"]["wall_us"])
        - statistics.median(found["none"]["wall_us"]),
    }


if __name__ == "__main__":
    if sys.argv[1:]:
        contender(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        for label, figure in run().items():
            print(f"{label:50} {figure:10.2f}")
