"""What recording costs the app: CPU a span, over no processor at all, beside OpenTelemetry's batching OTLP exporter.

Each contender runs in a process of its own, several rounds of all contenders in turn, so that a noisy machine is noisy
for all of them. Run: make bench, or python -m benchmarks.recording
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

SPANS = 20_000
ROUNDS = 5
# The app's span: six attributes, and some 700 bytes as a line of the spool.
ATTRIBUTES = {
    "gen_ai.system": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    "mlflow.spanType": "LLM",
    "gen_ai.usage.input_tokens": 1234,
    "gen_ai.response.id": "chatcmpl-9f8e7d6c5b4a39281706f5e4d3c2b1a0",
    "cost.usd": 0.00123,
}


def contender(name: str, endpoint: str) -> None:
    """Make spans with one kind of processor, and print the CPU a span of this process."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider(resource=Resource.create({"service.name": "bench"}), shutdown_on_exit=False)
    if name == "tracelake":
        import tracelake

        provider.add_span_processor(tracelake.SpanRecorder())
    elif name == "batch":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # A queue that holds the whole run: dropped spans would cost nothing.
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint), max_queue_size=2 * SPANS))
    tracer = provider.get_tracer("bench", "1.0")

    def spans(count: int) -> None:
        for _ in range(count):
            with tracer.start_as_current_span("chat completion", attributes=ATTRIBUTES):
                pass

    spans(1000)
    provider.force_flush()  # the shipper has started, and the exporter has its connection
    cpu, wall = time.process_time(), time.perf_counter()
    spans(SPANS)
    made = time.perf_counter() - wall
    if name == "batch":
        provider.force_flush()  # its work is done by a thread of the app, so the app pays for it
    print(json.dumps({"cpu_us": (time.process_time() - cpu) / SPANS * 1e6, "wall_us": made / SPANS * 1e6}), flush=True)
    os._exit(0)


def collector() -> None:
    """Answer every export at once, as a collector in another process would."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


def run() -> dict[str, float]:
    """Run all contenders in turn; return the figures."""
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.recording", "--collector"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}/v1/traces"
    cpu: dict[str, list[float]] = {"none": [], "tracelake": [], "batch": []}
    wall: dict[str, list[float]] = {name: [] for name in cpu}
    try:
        with tempfile.TemporaryDirectory() as directory:
            environment = {
                **os.environ,
                "TRACELAKE_SPOOL_DIR": f"{directory}/spool",
                "TRACELAKE_DESTINATION": f"{directory}/spans",
                "TRACELAKE_SHIPPER_IDLE": "1",
            }
            for _ in range(ROUNDS):
                for name in cpu:
                    command = [sys.executable, "-m", "benchmarks.recording", "--contender", name, endpoint]
                    found = json.loads(subprocess.check_output(command, env=environment, text=True))
                    cpu[name].append(found["cpu_us"])
                    wall[name].append(found["wall_us"])
    finally:
        server.terminate()
        server.wait()
    base, ours, theirs = (statistics.median(cpu[name]) for name in ("none", "tracelake", "batch"))
    return {
        "span alone, CPU us": base,
        "tracelake adds, CPU us": ours - base,
        "BatchSpanProcessor + OTLP/HTTP adds, CPU us": theirs - base,
        "tracelake / BatchSpanProcessor": (ours - base) / (theirs - base),
        "tracelake adds, wall us": statistics.median(wall["tracelake"]) - statistics.median(wall["none"]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--contender", nargs=2)
    parser.add_argument("--collector", action="store_true")
    arguments = parser.parse_args()
    if arguments.collector:
        collector()
    elif arguments.contender:
        contender(*arguments.contender)
    else:
        for label, figure in run().items():
            print(f"{label:50} {figure:10.2f}")
