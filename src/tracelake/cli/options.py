"""Options that several commands share, and how their values are understood."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from tracelake.destinations.base import Destination
from tracelake.destinations.resolve import resolve_environment
from tracelake.destinations.targets import parse_target
from tracelake.errors import TracelakeError
from tracelake.query.traces import parse_trace_id
from tracelake.settings import read_settings
from tracelake.spool.lane import Spool

Commands = Any  # argparse keeps the class of its sub-parsers to itself

_Text = TypeVar("_Text")
_Value = TypeVar("_Value")


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    details: str,
    examples: str,
) -> argparse.ArgumentParser:
    """Add a command with its help and return its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n{details.strip()}",
        epilog="examples:\n" + examples.strip("\n"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add `--target`, which `chosen_destination` reads."""
    parser.add_argument(
        "--target",
        type=target,
        metavar="TARGET",
        help="the table to read: a directory such as ./traces, or s3://bucket/path "
        "(default: the first that TRACELAKE_DESTINATION names, else ./tracelake/spans)",
    )


def add_spool(parser: argparse.ArgumentParser) -> None:
    """Add `--spool`, which `chosen_spool` reads."""
    parser.add_argument(
        "--spool",
        metavar="DIR",
        help="the spool (default: TRACELAKE_SPOOL_DIR, else ~/.local/state/tracelake/spool)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON, with the fields that docs/cli.md lists")


def chosen_destination(arguments: argparse.Namespace) -> Destination:
    """Return the destination of `--target`, or else the first that the environment names.

    Raises:
        TargetError: the environment names one that is not understood.
    """
    given: Destination | None = arguments.target
    return resolve_environment().destinations[0] if given is None else given


def chosen_spool(arguments: argparse.Namespace) -> Spool:
    """Return the spool of `--spool`, or else the environment's."""
    return Spool(arguments.spool or read_settings()[0].spool_dir)


def target(text: str) -> Destination:
    """Return the destination of an argument, for argparse."""
    return argument(parse_target, text)


def trace_id(text: str) -> str:
    """Return the trace id of an argument, for argparse."""
    return argument(parse_trace_id, text)


def at_least_one(text: str) -> int:
    """Return the number of an argument, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too few; give 1 or more")
    return number


def argument(parse: Callable[[_Text], _Value], text: _Text) -> _Value:
    """Return what one of our parsers makes of an argument; its errors are argparse's."""
    try:
        return parse(text)
    except TracelakeError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
