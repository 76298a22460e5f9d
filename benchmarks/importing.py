"""What `import tracelake` adds to the OpenTelemetry SDK's own import, and which modules recording loads.

Run: make bench, or python -m benchmarks.importing
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

ROUNDS = 11
HEAVY = ("pyarrow", "deltalake", "databricks", "mlflow", "duckdb")

_SDK = "import opentelemetry.sdk.trace, opentelemetry.sdk.resources"
_RECORD = """
import sys, tracelake
with tracelake.start_span("one"):
    pass
print(",".join(name for name in sys.argv[1:] if name in sys.modules))
"""


def run() -> dict[str, float | str]:
    """Import in fresh interpreters, in turn; return milliseconds and the heavy modules that recording loaded."""
    times: dict[str, list[float]] = {_SDK: [], f"{_SDK}\nimport tracelake": []}
    for _ in range(ROUNDS):
        for program, found in times.items():
            timed = f"import time; start = time.perf_counter()\n{program}\nprint(time.perf_counter() - start)"
            found.append(float(subprocess.check_output([sys.executable, "-c", timed], text=True)) * 1000)
    sdk, both = (statistics.median(found) for found in times.values())
    with tempfile.TemporaryDirectory() as directory:
        environment = {
            **os.environ,
            "TRACELAKE_SPOOL_DIR": f"{directory}/spool",
            "TRACELAKE_DESTINATION": f"{directory}/spans",
            "TRACELAKE_SHIPPER": "external",
        }
        command = [sys.executable, "-c", _RECORD, *HEAVY]
        loaded = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()
    return {
        "OpenTelemetry SDK, ms": sdk,
        "tracelake adds, ms": both - sdk,
        "heavy modules that recording loads": loaded or "none",
    }


if __name__ == "__main__":
    for label, figure in run().items():
        print(f"{label:50} {figure:>10.1f}" if isinstance(figure, float) else f"{label:50} {figure:>10}")
