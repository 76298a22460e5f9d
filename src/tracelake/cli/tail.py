"""`tracelake tail`: traces, or spans, as they land in a table."""

from __future__ import annotations

import argparse
import sys
import time

from tracelake.cli.options import Commands, add_command, add_json, add_target, chosen_destination
from tracelake.cli.output import json_text, say, style_of
from tracelake.cli.times import duration, moment_text
from tracelake.errors import QueryError
from tracelake.query.arrivals import Arrivals
from tracelake.query.convert import span_fields
from tracelake.query.outline import STATUS_ERROR, label
from tracelake.query.text import display_width, duration_text, fit
from tracelake.query.tree import Style, service_name
from tracelake.spans.record import SpanRecord
from tracelake.spans.values import json_text as value_text

_DETAILS = """
Prints a line for each root span that lands in the table from now on, and with --spans for
every span: when it ended (UTC), how long it took, its trace, name and service. It reads
each new commit once, and waits for a table that is not there yet. Ctrl-C ends it.
"""

_EXAMPLES = """
  tracelake tail
  tracelake tail --spans --service checkout --errors
  tracelake tail --text timeout --target ./traces --json
"""

_INTERVAL = "1s"


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "tail", run, summary="print traces as they land", details=_DETAILS, examples=_EXAMPLES
    )
    parser.add_argument("--spans", action="store_true", help="every span, not roots alone")
    parser.add_argument("--service", default="", metavar="NAME", help="spans of this service alone")
    parser.add_argument("--errors", action="store_true", help="spans that failed alone")
    parser.add_argument(
        "--text", default="", metavar="TEXT", help="spans with this in their name, message or attributes, in any case"
    )
    parser.add_argument(
        "--interval",
        type=duration,
        default=_INTERVAL,
        metavar="TIME",
        help="how often to look for new commits (default: %(default)s)",
    )
    add_target(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print spans until Ctrl-C."""
    arrivals = Arrivals(chosen_destination(arguments))
    target = arrivals.destination.target
    say(f"waiting for spans in {target}" if arrivals.is_there else f"waiting for a table at {target}")
    style = style_of(sys.stdout)
    told = ""
    while True:
        try:
            for span in arrivals.poll():
                if _is_wanted(span, arguments):
                    print(json_text(span_fields(span)) if arguments.json else span_line(span, style), flush=True)
            told = ""
        except QueryError as error:
            # The network comes back; what is said once is not said every second.
            if told != str(error):
                told = str(error)
                say(told)
        time.sleep(arguments.interval / 1e9)  # there is nothing to wait on: commits tell nobody


def span_line(span: SpanRecord, style: Style) -> str:
    """Return what there is to see of a span at a glance, no wider than wanted."""
    took = span.end_time_unix_nano - span.start_time_unix_nano
    left = f"{moment_text(span.end_time_unix_nano)[-8:]}  {duration_text(took):>8}  "
    failed = "ERROR " if span.status_code == STATUS_ERROR else ""
    room = max(0, style.width - len(left) - len(span.trace_id) - len(failed) - 2)
    name = fit(label(span.name) or "(no name)", room)
    service = service_name(span)
    service = fit(f" ({label(service)})", room - display_width(name)) if service else ""
    return f"{left}{style.dim(label(span.trace_id))}  {style.red(failed)}{style.bold(name)}{service}"


def _is_wanted(span: SpanRecord, arguments: argparse.Namespace) -> bool:
    if not arguments.spans and span.parent_span_id is not None:
        return False
    if arguments.service and service_name(span) != arguments.service:
        return False
    if arguments.errors and span.status_code != STATUS_ERROR:
        return False
    wanted = arguments.text.lower()
    return not wanted or wanted in f"{span.name} {span.status_message} {value_text(span.attributes)}".lower()
