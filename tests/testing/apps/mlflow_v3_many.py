"""A program that makes many traces of MLflow at once, in an experiment; the experiment and the number are arguments."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import mlflow


def make(number: int) -> None:
    """Make one trace of two spans."""
    with mlflow.start_span("outer") as span:
        span.set_inputs({"number": number})
        with mlflow.start_span("inner"):
            pass


if __name__ == "__main__":
    mlflow.set_experiment(sys.argv[1])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(int(sys.argv[2]))))
    mlflow.flush_trace_async_logging()
