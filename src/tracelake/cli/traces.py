"""`tracelake traces`: the traces that a search finds, the newest first."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import get_args

from tracelake.cli.options import (
    Commands,
    add_command,
    add_json,
    add_target,
    argument,
    at_least_one,
    chosen_destination,
)
from tracelake.cli.output import EXIT_OK, json_text, progress, say, style_of
from tracelake.cli.times import duration, moment, moment_text
from tracelake.query import filter as grammar
from tracelake.query.convert import info_fields
from tracelake.query.infos import State, TraceInfo
from tracelake.query.outline import label
from tracelake.query.search import Search, search_traces
from tracelake.query.text import counted, display_width, duration_text, fit, preview
from tracelake.query.tree import Style

_DETAILS = """
Lists the traces that meet all that is asked for: when each started (UTC), how long it
took, how it ended, its name and service; below that its id and what was asked.
"""

_EXAMPLES = """
  tracelake traces
  tracelake traces --service checkout --state ERROR --since 1h
  tracelake traces --min-duration 2s --attribute http.route=/orders --limit 100
  tracelake traces --filter "span.type = 'LLM'" --order-by "execution_time DESC"
  tracelake traces --text "lost parcel" --since 2026-01-31 --json
"""

_LIMIT = 20
_INDENT = "  "


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "traces", run, summary="list the traces that a search finds", details=_DETAILS, examples=_EXAMPLES
    )
    parser.add_argument(
        "--filter", type=filter_text, default="", metavar="FILTER", help="as mlflow.search_traces takes"
    )
    parser.add_argument(
        "--since", type=moment, metavar="TIME", help="started at this time (UTC) or so long ago, or later"
    )
    parser.add_argument("--until", type=moment, metavar="TIME", help="started before that")
    parser.add_argument("--service", default="", metavar="NAME", help="a span of it is of this service")
    parser.add_argument("--name", default="", metavar="NAME", help="its own name")
    parser.add_argument("--state", type=str.upper, choices=get_args(State), help="how it ended")
    parser.add_argument("--min-duration", type=duration, metavar="TIME", help="it took so long, as 250ms or 2s")
    parser.add_argument("--max-duration", type=duration, metavar="TIME", help="it took no longer")
    parser.add_argument(
        "--attribute", type=pair, action="append", default=[], metavar="KEY=VALUE", help="a span of it has all of these"
    )
    parser.add_argument(
        "--tag", type=pair, action="append", default=[], metavar="KEY=VALUE", help="it has all of these"
    )
    parser.add_argument("--session", default="", metavar="ID", help="it is part of this session")
    parser.add_argument("--user", default="", metavar="ID", help="it was made for this user")
    parser.add_argument("--text", default="", metavar="TEXT", help="inputs or outputs of a span have it, in any case")
    parser.add_argument(
        "--order-by",
        type=order_text,
        action="append",
        default=[],
        metavar="KEY",
        help="as mlflow.search_traces takes (default: timestamp DESC)",
    )
    parser.add_argument(
        "--limit", type=at_least_one, default=_LIMIT, metavar="N", help="traces of a page (default: %(default)s)"
    )
    parser.add_argument("--page-token", default="", metavar="TOKEN", help="go on after the page that ended with it")
    add_target(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the traces of one page."""
    destination = chosen_destination(arguments)
    with progress(f"searching {destination.target}"):
        page = search_traces(destination, _search(arguments))
    if arguments.json:
        print(
            json_text(
                {
                    "target": destination.target,
                    "traces": [info_fields(info) for info in page],
                    "next_page_token": page.next_page_token,
                }
            )
        )
        return EXIT_OK
    style = style_of(sys.stdout)
    for info in page:
        for line in info_lines(info, style):
            print(line)
    sys.stdout.flush()  # before what is said of it
    print(f"({counted(len(page), 'trace')})", file=sys.stderr)
    if page.next_page_token:
        # A page goes on with the same times, which `1h` is not a minute later.
        times = {"since": arguments.since, "until": arguments.until}
        same = "".join(f"--{name} {moment_text(ns).replace(' ', 'T')} " for name, ns in times.items() if ns is not None)
        say(f"there are more: ask the same with {same}--page-token {page.next_page_token}")
    return EXIT_OK


def info_lines(info: TraceInfo, style: Style) -> Iterator[str]:
    """Yield two lines, no wider than wanted: what a trace was, and its id with what was asked."""
    state = "..." if info.state == "IN_PROGRESS" else info.state
    left = f"{moment_text(info.start_time_unix_nano)}  {duration_text(info.duration_ns):>8}  {state:<5}  "
    right = f"  {counted(info.span_count, 'span')}"
    failed = f", {counted(info.error_count, 'error')}" if info.error_count else ""
    service = f" ({label(info.service_name)})" if info.service_name else ""
    # The name gives way last.
    room = max(0, style.width - len(left) - len(right) - len(failed))
    name = fit(label(info.name) or "(no name)", room)
    service = fit(service, room - display_width(name))
    gap = " " * (room - display_width(name) - display_width(service))
    if info.state == "ERROR":
        left = left.replace(state, style.red(state))
    yield f"{left}{style.bold(name)}{service}{gap}{right}{style.red(failed)}"
    below = f"{_INDENT}{info.trace_id}"
    asked = preview(info.request_preview or "")
    yield below + style.dim(fit(f"  {asked}", style.width - len(below))) if asked else below


def filter_text(text: str) -> str:
    """Return the filter of an argument, for argparse."""
    argument(grammar.parse, text)
    return text


def order_text(text: str) -> str:
    """Return the order of an argument, for argparse."""
    argument(grammar.parse_order, [text])
    return text


def pair(text: str) -> tuple[str, str]:
    """Return the key and the value of an argument, for argparse."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, as http.route=/orders")
    return key, value


def _search(arguments: argparse.Namespace) -> Search:
    return Search(
        filter=arguments.filter,
        start_ns=arguments.since,
        end_ns=arguments.until,
        service=arguments.service,
        name=arguments.name,
        state=arguments.state,
        min_duration_ns=arguments.min_duration,
        max_duration_ns=arguments.max_duration,
        attributes=dict(arguments.attribute),
        tags=dict(arguments.tag),
        session=arguments.session,
        user=arguments.user,
        text=arguments.text,
        order_by=tuple(arguments.order_by),
        max_results=arguments.limit,
        page_token=arguments.page_token,
    )
