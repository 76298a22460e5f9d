"""What delivery costs: CPU a span from spool to committed rows, spans a second, and memory, for a backlog.

The shipper runs in a process of its own, whose CPU and peak memory the system counts, start-up included.
Run: make bench, or python -m benchmarks.shipping [SPANS]
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time

from benchmarks.recording import ATTRIBUTES

SPANS = 200_000
BACKLOG = 1_000_000


def record(spans: int) -> None:
    """Fill the spool."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    import tracelake

    provider = TracerProvider(resource=Resource.create({"service.name": "bench"}), shutdown_on_exit=False)
    provider.add_span_processor(tracelake.SpanRecorder())
    tracer = provider.get_tracer("bench", "1.0")
    for _ in range(spans // 10):
        with tracer.start_as_current_span("agent", attributes=ATTRIBUTES):
            for _ in range(9):
                with tracer.start_as_current_span("chat completion", attributes=ATTRIBUTES):
                    pass


def ship(spans: int) -> None:
    """Deliver the spool, and print what it took."""
    from tracelake.settings import load_settings
    from tracelake.shipper.service import Shipper, own_process
    from tracelake.spool.lane import Spool

    own_process()
    settings = load_settings()
    shipper = Shipper(Spool(settings.spool_dir), settings, serves=lambda *_: True)
    wall, cpu = time.perf_counter(), time.process_time()
    shipper.drain()
    shipper.release()
    print(
        json.dumps(
            {
                "CPU us a span": (time.process_time() - cpu) / spans * 1e6,
                "spans a second": spans / (time.perf_counter() - wall),
                "spans a second of CPU": spans / (time.process_time() - cpu),
                "peak memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


def run(spans: int, schema_version: int) -> dict[str, float]:
    """Record and deliver `spans` spans; return the figures."""
    with tempfile.TemporaryDirectory() as directory:
        environment = {
            **os.environ,
            "TRACELAKE_SPOOL_DIR": f"{directory}/spool",
            "TRACELAKE_DESTINATION": f"{directory}/spans",
            "TRACELAKE_SPOOL_MAX_BYTES": "8GiB",
            "TRACELAKE_SHIPPER": "external",
            "TRACELAKE_EXIT_TIMEOUT": "0",
            "TRACELAKE_SCHEMA_VERSION": str(schema_version),
        }
        for step in ("record", "ship"):
            command = [sys.executable, "-m", "benchmarks.shipping", step, str(spans)]
            output = subprocess.run(
                command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            ).stdout
        from deltalake import DeltaTable

        table = DeltaTable(f"{directory}/spans")
        rows = table.to_pyarrow_dataset().count_rows()
        assert rows == spans, f"{rows} rows of {spans} spans"
        size = sum(os.path.getsize(path) for path in table.file_uris())
        return {**json.loads(output), "bytes a span in the table": size / spans}


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("record", "ship"):
        {"record": record, "ship": ship}[sys.argv[1]](int(sys.argv[2]))
    else:
        count = int(sys.argv[1]) if sys.argv[1:] else SPANS
        for version in (1, 2):
            for label, figure in run(count, version).items():
                print(f"v{version} {label:40} {figure:12.1f}")
