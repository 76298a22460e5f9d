"""What recording costs the app: CPU a span, over the same SDK with nothing that records.

Servers answer at once, in processes of their own that are not counted; neither is tracelake's shipper, see `delivery`.
"""

from __future__ import annotations

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

ROUNDS, MLFLOW_ROUNDS = 5, 3
SPANS, MLFLOW_SPANS = 20_000, 6_000
# So many that the queues of MLflow's exporters hold them: a span that is discarded costs nothing.
QUEUED_SPANS = 900
# One request a span.
SIMPLE_SPANS = 1_000

_COLUMNS = {"cpu_us": "CPU us a span", "added_us": "added to the SDK's own"}
OPENTELEMETRY = Table(
    "recording",
    "What recording adds to a span of OpenTelemetry, CPU of the app",
    "us a span",
    _COLUMNS,
    chart="added_us",
    reference="tracelake",
)
MLFLOW = Table(
    "recording-mlflow",
    "What recording adds to a span of MLflow, CPU of the app",
    "us a span",
    _COLUMNS,
    chart="added_us",
    reference="tracelake, for MLflow",
)
TABLES = (OPENTELEMETRY, MLFLOW)

_OPENTELEMETRY = {
    "OpenTelemetry alone": "none",
    "floor: the same bytes by plain write()": "write",
    "floor: read, encode by msgspec, and write()": "least",
    "tracelake": "tracelake",
    "BatchSpanProcessor, OTLP/HTTP": "batch",
    "SimpleSpanProcessor, OTLP/HTTP": "simple",
}
_MLFLOW = {
    "MLflow alone": "nothing",
    "tracelake, for MLflow": "tracelake",
    "MLflow's Unity Catalog exporter": "unity catalog",
    "MLflow's server exporter": "server",
}
_QUEUELESS = ("nothing", "tracelake")


def run(options: Options) -> dict[str, Values]:
    """Measure all contenders, and take off what their SDK costs alone."""
    with (
        served("benchmarks.compare.receiver") as receiver,
        served("benchmarks.instant_workspace") as mlflow_server,
    ):

        def measure(label: str) -> Measured:
            with workplace() as directory:
                environ = environment(directory, TRACELAKE_DESTINATION=f"{directory}/spans", TRACELAKE_SHIPPER_IDLE="1")
                if label not in _MLFLOW:
                    name = _OPENTELEMETRY[label]
                    spans = min(options.spans or SPANS, SIMPLE_SPANS if name == "simple" else SPANS)
                    endpoint = f"{receiver}/v1/traces"
                    return program("benchmarks.recording", name, endpoint, spans, environ=environ)
                name = _MLFLOW[label]
                if name != "tracelake":
                    del environ["TRACELAKE_DESTINATION"]  # which would take MLflow's spans
                environ |= mlflow_app.settings(name, directory, mlflow_server)
                spans = min(options.spans or MLFLOW_SPANS, MLFLOW_SPANS if name in _QUEUELESS else QUEUED_SPANS)
                return program("benchmarks.compare.mlflow_app", name, spans, environ=environ)

        return {
            OPENTELEMETRY.name: _added(in_turn([*_OPENTELEMETRY], options.rounds or ROUNDS, measure)),
            MLFLOW.name: _added(in_turn([*_MLFLOW], options.rounds or MLFLOW_ROUNDS, measure)),
        }


def _added(found: Values) -> Values:
    """Return the CPU a span of each contender, and what it adds to that of the first, round by round."""
    (first, alone), *others = [(label, columns["cpu_us"]) for label, columns in found.items()]
    values: Values = {first: {"cpu_us": alone}}
    for label, cpu in others:
        values[label] = {"cpu_us": cpu, "added_us": [each - base for each, base in zip(cpu, alone, strict=True)]}
    return values
