"""`tracelake show`: one trace as a tree."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tracelake.cli.options import Commands, add_command, add_json, add_target, chosen_destination, trace_id
from tracelake.cli.output import EXIT_OK, json_text, progress, style_of
from tracelake.query.traces import Trace, get_trace
from tracelake.query.tree import render

_DETAILS = """
Reads the trace from the table and prints what called what, in which service, when, and
for how long, with inputs, outputs and errors.
"""

_EXAMPLES = """
  tracelake show 4bf92f3577b34da6a3ce929d0e0e4736
  tracelake show 4bf92f3577b34da6a3ce929d0e0e4736 --target ./traces
  tracelake show tr-4bf92f3577b34da6a3ce929d0e0e4736 --json
"""


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "show", run, summary="show one trace as a tree", details=_DETAILS, examples=_EXAMPLES
    )
    parser.add_argument("trace_id", type=trace_id, metavar="TRACE_ID", help="32 hex digits, or MLflow's tr-<digits>")
    add_target(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print a trace."""
    destination = chosen_destination(arguments)
    with progress(f"reading {destination.target}"):
        trace = get_trace(arguments.trace_id, destination)
    if arguments.json:
        print(json_text(trace_fields(trace, destination.target)))
    else:
        print_trace(trace)
    return EXIT_OK


def print_trace(trace: Trace) -> None:
    """Print a trace as a tree, as far as the terminal can show it."""
    for text in render(trace, style_of(sys.stdout)):
        print(text)


def trace_fields(trace: Trace, target: str) -> dict[str, Any]:
    """Return the fields of `show --json`."""
    return {
        "trace_id": trace.trace_id,
        "target": target,
        "start_time_unix_nano": trace.start_time_unix_nano,
        "duration_ns": trace.duration_ns,
        "duplicates": trace.duplicates,
        "spans": trace.to_dicts(),
    }
