"""A program of MLflow code, with nothing that sends its traces, with tracelake, or with one of MLflow's exporters.

`python -m benchmarks.compare.mlflow_app CONTENDER SPANS` prints the CPU a span of its process over the making and the
sending, and the seconds of the making alone. Four spans a trace.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

CONTENDERS = ("nothing", "tracelake", "unity catalog", "server")
TRACE_SPANS = 4
WARM_UP = 20
PASSAGES = [{"id": number, "text": "A lakehouse keeps tables as open files. " * 3} for number in range(3)]
ANSWER = {"role": "assistant", "content": "A lakehouse keeps tables as open files, with transactions."}


def settings(name: str, directory: str, server: str) -> dict[str, str]:
    """Return the variables that lead a contender to its server, for `harness.environment`."""
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
    if name == "server":
        return quiet | {"MLFLOW_TRACKING_URI": server}
    if name == "unity catalog":
        access = {"DATABRICKS_HOST": server, "DATABRICKS_TOKEN": "token", "DATABRICKS_CONFIG_FILE": "/dev/null"}
        return quiet | access | {"MLFLOW_TRACKING_URI": "databricks"}
    alone = quiet | {"MLFLOW_TRACKING_URI": f"sqlite:///{directory}/mlflow.db"}
    return alone | ({"MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false"} if name == "nothing" else {})


def main(name: str, spans: int) -> None:
    """Make traces."""
    import mlflow
    from mlflow.entities.trace_location import UnityCatalog

    if name == "nothing":
        _export_nothing()
    elif name == "unity catalog":
        mlflow.set_experiment("/bench", trace_location=UnityCatalog("main", "obs", "agent"))
    elif name == "server":
        mlflow.set_experiment("bench")

    @mlflow.trace(span_type="RETRIEVER")  # type: ignore[untyped-decorator]
    def search(question: str) -> list[dict[str, Any]]:  # noqa: ARG001
        return PASSAGES

    def answer(question: str) -> None:
        with mlflow.start_span("answer", span_type="AGENT") as span:
            span.set_inputs({"question": question})
            search(question)
            for _ in range(2):
                with mlflow.start_span("chat completion", span_type="LLM", attributes={"temperature": 0.1}) as call:
                    call.set_inputs({"messages": [{"role": "user", "content": question}]})
                    call.set_outputs(ANSWER)
            span.set_outputs(ANSWER["content"])

    def make(traces: int) -> None:
        for number in range(traces):
            answer(f"What is a lakehouse, asked for the {number}th time?")

    make(WARM_UP)
    _flush(name)
    cpu, wall = time.process_time(), time.perf_counter()
    make(spans // TRACE_SPANS)
    made_s = time.perf_counter() - wall
    _flush(name)
    made = spans // TRACE_SPANS * TRACE_SPANS
    sent_s = time.perf_counter() - wall
    cpu_us = (time.process_time() - cpu) / made * 1e6
    print(json.dumps({"cpu_us": cpu_us, "app_s": made_s, "spans_s": made / sent_s}), flush=True)


def _export_nothing() -> None:
    """Leave MLflow what it does for a trace under way, and nothing of what it does with one that ended."""
    import mlflow
    from mlflow.entities.trace_location import MlflowExperimentLocation
    from mlflow.tracing.export.mlflow_v3 import MlflowV3SpanExporter
    from mlflow.tracing.trace_manager import InMemoryTraceManager

    def export(_: object, spans: Any) -> None:
        for span in spans:
            if span.parent is None:
                InMemoryTraceManager.get_instance().pop_trace(span.context.trace_id)

    MlflowV3SpanExporter.export = export
    mlflow.tracing.set_destination(MlflowExperimentLocation("0"))  # else it looks for the experiment with each trace


def _flush(name: str) -> None:
    """Wait until MLflow has sent what it has; tracelake's spans are in the spool by then."""
    import mlflow

    if name in ("unity catalog", "server"):
        mlflow.flush_trace_async_logging()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
