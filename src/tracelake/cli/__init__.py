"""The `tracelake` command. docs/cli.md documents its commands, JSON fields and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence

from tracelake import __version__
from tracelake.cli import (
    create_table,
    demo,
    doctor,
    maintain,
    redirect,
    ship,
    show,
    sql,
    stats,
    status,
    tail,
    traces,
    ui,
    workspace,
)
from tracelake.cli.output import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, say
from tracelake.errors import TracelakeError

_DESCRIPTION = """\
Distributed traces in one Delta table: try it, check it, look at traces, deliver what
waits, make a table and maintain it, serve a mocked Databricks workspace to test with.
"""

_EPILOG = """\
New here? Two services, one trace, in a few seconds:

  tracelake demo

Exit codes: 0 done, 1 could not be done, 2 the command is wrong, 130 interrupted.
"""

_COMMANDS = (
    demo,
    doctor,
    traces,
    show,
    tail,
    stats,
    sql,
    ui,
    status,
    ship,
    redirect,
    create_table,
    maintain,
    workspace,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` is without the program's name."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if "run" not in arguments:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stream put there by a test or a notebook
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    return _guarded(arguments.run, arguments)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="tracelake",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=_formatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"tracelake {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser


def _formatter(prog: str) -> argparse.HelpFormatter:
    formatter = argparse.RawDescriptionHelpFormatter(prog)
    # argparse leaves the indentation of commands out when it makes room for the longest.
    formatter._action_max_length = 4 + max(len(command.__name__.rpartition(".")[2]) for command in _COMMANDS)
    return formatter


def _guarded(run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    try:
        code = run(arguments)
        sys.stdout.flush()
        return code
    except TracelakeError as error:
        say(str(error))
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has seen enough. What is left in the buffer must not fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        say(f"{where}{error.strerror or error}. Check that this user may use it, then try again.")
    return EXIT_FAILED
