"""`tracelake show`: one trace as a tree."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tracelake.cli.options import Commands, add_command, add_json, add_target, chosen_destination, trace_id
from tracelake.cli.output import EXIT_OK, json_text, progress, say, style_of
from tracelake.destinations.base import Destination
from tracelake.errors import DeliveryError, MissingDependencyError, QueryError
from tracelake.query.convert import info_fields
from tracelake.query.infos import TraceInfo
from tracelake.query.search import get_info
from tracelake.query.text import counted
from tracelake.query.traces import Trace, get_trace
from tracelake.query.tree import render

_DETAILS = """
Reads the trace from the table and prints what called what, in which service, when, and
for how long, with inputs, outputs and errors; above it its session, tags and feedback.
"""

_EXAMPLES = """
  tracelake show 4bf92f3577b34da6a3ce929d0e0e4736
  tracelake show 4bf92f3577b34da6a3ce929d0e0e4736 --target ./traces
  tracelake show tr-4bf92f3577b34da6a3ce929d0e0e4736 --json
"""


# Spans that are drawn; more are more than anybody reads.
_LIMIT = 500


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "show", run, summary="show one trace as a tree", details=_DETAILS, examples=_EXAMPLES
    )
    parser.add_argument("trace_id", type=trace_id, metavar="TRACE_ID", help="32 hex digits, or MLflow's tr-<digits>")
    parser.add_argument("--all", action="store_true", help=f"draw every span, not {_LIMIT} at most")
    add_target(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print a trace."""
    destination = chosen_destination(arguments)
    with progress(f"reading {destination.target}"):
        trace = get_trace(arguments.trace_id, destination)
        info = _info(trace, destination)
    if arguments.json:
        print(json_text(trace_fields(trace, destination.target, info)))
        return EXIT_OK
    print_trace(trace, info, None if arguments.all else _LIMIT)
    if len(trace.spans) > _LIMIT and not arguments.all:
        sys.stdout.flush()  # before what is said of it
        say(f"{_LIMIT} of {counted(len(trace.spans), 'span')} are shown; see the others with --all or --json")
    return EXIT_OK


def print_trace(trace: Trace, info: TraceInfo | None = None, limit: int | None = None) -> None:
    """Print a trace as a tree, as far as the terminal can show it."""
    for text in render(trace, style_of(sys.stdout), info=info, limit=limit):
        print(text)


def trace_fields(trace: Trace, target: str, info: TraceInfo | None = None) -> dict[str, Any]:
    """Return the fields of `show --json`."""
    return {
        "trace_id": trace.trace_id,
        "target": target,
        "start_time_unix_nano": trace.start_time_unix_nano,
        "duration_ns": trace.duration_ns,
        "duplicates": trace.duplicates,
        "info": None if info is None else info_fields(info),
        "spans": trace.to_dicts(),
    }


def _info(trace: Trace, destination: Destination) -> TraceInfo | None:
    """Return what is known beside the spans; None of a trace that is deleted, or if it cannot be read."""
    try:
        found = get_info(destination, trace)
    except MissingDependencyError:
        return None
    except (QueryError, DeliveryError) as error:
        say(f"tags and feedback are left out. {error}")
        return None
    if found is None:
        say(f"trace {trace.trace_id} is deleted; its spans stay in the table until it is rewritten")
    return found
