"""What arrives of a burst: spans ended as fast as can be, at default settings, to a server that takes 50 ms an answer.

Every app ends as its SDK asks it to: it flushes or shuts down, and so has the time that its SDK gives it to send. The
server counts what arrived. tracelake's shipper goes on after the app, and is given until nothing waits.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request

from benchmarks.compare import mlflow_app
from benchmarks.compare.harness import (
    Measured,
    Options,
    Table,
    Values,
    environment,
    in_turn,
    program,
    served,
    workplace,
)

ROUNDS = 2
SPANS = 50_000
DELAY_MS = 50

TABLE = Table(
    "burst",
    f"Spans that arrived, of a burst of {SPANS:,}",
    "spans",
    {"arrived": "spans that arrived", "app_s": "s for the app to end them", "exit_s": "s for its start and its end"},
    chart="arrived",
    log=False,
)
TABLES = (TABLE,)

_OPENTELEMETRY = {"tracelake": "tracelake", "BatchSpanProcessor, OTLP/HTTP": "batch"}
_MLFLOW = {
    "tracelake, for MLflow": "tracelake",
    "MLflow's Unity Catalog exporter": "unity catalog",
    "MLflow's server exporter": "server",
}
_SETTLE_S = 300.0


def run(options: Options) -> dict[str, Values]:
    """Run a burst a contender, each against a server of its own."""
    spans = options.spans or SPANS

    def measure(label: str) -> Measured:
        name = _MLFLOW.get(label) or _OPENTELEMETRY[label]
        server = "benchmarks.compare.receiver" if name in ("tracelake", "batch") else "benchmarks.instant_workspace"
        arguments = ("--delay", DELAY_MS) if name in ("tracelake", "batch") else (DELAY_MS,)
        with workplace() as directory, served(server, *arguments) as url:
            environ = environment(directory)
            if name == "tracelake":
                environ |= {"TRACELAKE_DESTINATION": f"otlp+{url}/v1/traces", "TRACELAKE_SHIPPER_IDLE": "1"}
            before = 0
            begun = time.perf_counter()
            if label in _MLFLOW:
                environ |= mlflow_app.settings(name, directory, url)
                found = program("benchmarks.compare.mlflow_app", name, spans, environ=environ)
                before = mlflow_app.WARM_UP * mlflow_app.TRACE_SPANS
            else:
                environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = f"{url}/v1/traces"  # which MLflow would take as well
                found = program("benchmarks.compare.burst", name, spans, environ=environ)
            lasted = time.perf_counter() - begun
            if name == "tracelake":
                _wait_until_empty(environ["TRACELAKE_SPOOL_DIR"])
            with urllib.request.urlopen(f"{url}/counts") as answer:
                counts = json.load(answer)
            if counts.get("unknown"):
                raise RuntimeError(f"The server has no answer to what was asked: {counts['unknown']}.")
        return {"arrived": counts["spans"] - before, "app_s": found["app_s"], "exit_s": lasted - found["app_s"]}

    return {TABLE.name: in_turn([*_OPENTELEMETRY, *_MLFLOW], options.rounds or ROUNDS, measure)}


def _wait_until_empty(spool: str) -> None:
    from tracelake.spool.lane import Spool
    from tracelake.spool.ledger import pending_bytes

    deadline_s = time.monotonic() + _SETTLE_S
    while any(pending_bytes(lane) for lane in Spool(spool).lanes()):
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"Spans were still in {spool} after {_SETTLE_S:.0f} s.")
        time.sleep(0.05)


def app(name: str, spans: int) -> None:
    """End spans of six attributes as fast as can be, then end as an app does."""
    from opentelemetry.sdk.trace import TracerProvider

    from benchmarks.recording import ATTRIBUTES

    provider = TracerProvider(shutdown_on_exit=False)
    if name == "tracelake":
        import tracelake

        provider.add_span_processor(tracelake.SpanRecorder())
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer = provider.get_tracer("bench", "1.0")
    begun = time.perf_counter()
    for _ in range(spans):
        with tracer.start_as_current_span("chat completion", attributes=ATTRIBUTES):
            pass
    print(json.dumps({"app_s": time.perf_counter() - begun}), flush=True)
    provider.shutdown()


if __name__ == "__main__":
    app(sys.argv[1], int(sys.argv[2]))
