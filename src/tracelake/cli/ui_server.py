"""MLflow's server as `tracelake ui` runs it: it ends with the process that holds the other end of its input."""

from __future__ import annotations

import os
import signal
import sys
import threading


def main() -> None:
    """Run `mlflow server` with the arguments of this process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from mlflow.cli import cli

    cli(["server", *sys.argv[1:]], prog_name="mlflow")


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written there
    os.killpg(os.getpgrp(), signal.SIGTERM)


if __name__ == "__main__":
    main()
