"""`tracelake workspace`: a Databricks workspace on this machine, to test tracing with."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
import threading

from tracelake.cli.options import Commands, add_command
from tracelake.cli.output import EXIT_OK, say

_SCHEMA = "main.obs"

_DETAILS = """
Serves the parts of a Databricks workspace that tracing needs: Unity Catalog, SQL, OTLP
ingestion, MLflow's experiments and traces. Prints two lines that have Databricks' clients
use it, and serves until Ctrl-C or SIGTERM. With --data, tables and all else are kept in a
directory, as Delta tables that any engine reads; without, they are gone in the end. It
begins with the schema main.obs. docs/testing.md says what it imitates.
"""

_EXAMPLES = """
  tracelake workspace --port 8080 --data ./workspace
  tracelake workspace > workspace.env & sleep 1; . ./workspace.env
"""


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "workspace", run, summary="serve a mocked Databricks workspace", details=_DETAILS, examples=_EXAMPLES
    )
    parser.add_argument("--port", type=int, default=8080, help="the port, 0 for any that is free (default: 8080)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--data", metavar="DIR", help="keep all of it in this directory (default: a temporary one)")


def run(arguments: argparse.Namespace) -> int:
    """Serve a workspace."""
    from tracelake.testing import MockWorkspace  # the other commands start faster without it

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with MockWorkspace(arguments.data) as workspace:
        url = workspace.serve(host=arguments.host, port=arguments.port)
        if workspace.is_new:
            workspace.create_schema(_SCHEMA)
        variables = workspace.environment(host=url)
        for name in ("DATABRICKS_HOST", "DATABRICKS_TOKEN"):
            print(f"export {name}={shlex.quote(variables[name])}")
        sys.stdout.flush()
        kept = f"kept in {os.path.abspath(arguments.data)}" if arguments.data else "gone in the end"
        say(f"a mocked Databricks workspace at {url}, {kept}; Ctrl-C ends it")
        stop.wait()
        say("ending")
    return EXIT_OK
