"""What gunicorn calls: a worker says that it handles signals now."""

from __future__ import annotations

from typing import Any


def post_worker_init(worker: Any) -> None:
    worker.log.info("Worker is ready (pid: %s)", worker.pid)
