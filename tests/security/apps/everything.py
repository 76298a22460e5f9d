"""Does all that tracelake can do with one destination, and prints all that it hears: reports, errors, chains, reprs.

`python -m tests.security.apps.everything TARGET`; where each step fails, the next goes on.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import traceback
from collections.abc import Callable
from typing import Any

import tracelake
from tracelake.cli import main
from tracelake.destinations.base import Batch
from tracelake.destinations.targets import parse_target
from tracelake.spans.record import SpanRecord

TARGET = sys.argv[1]
COMMANDS = (
    ["doctor", TARGET],
    ["doctor", TARGET, "--write-test"],
    ["doctor", TARGET, "--json"],
    ["status"],
    ["status", "--json"],
    ["ship", "--once"],
    ["show", "0" * 31 + "1", "--target", TARGET],
    ["sql", "SELECT 1", "--target", TARGET],
    ["create-table", TARGET],
    ["optimize", TARGET],
    ["redirect", "nothing", TARGET],
)


def attempt(name: str, step: Callable[[], object]) -> Any:
    """Run a step, and print what comes of it, to the last of the exceptions behind an exception."""
    print(f"--- {name}", flush=True)
    try:
        found = step()
    except SystemExit as error:
        print("exit", error.code)
    except BaseException as error:  # noqa: BLE001 - shown
        print(traceback.format_exc())
        cause: BaseException | None = error
        while cause is not None:
            print(repr(cause), str(cause), cause.args)
            cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
        return None
    else:
        print(repr(found), str(found))
        return found
    return None


def record() -> object:
    """Record a span, and wait for its delivery."""
    tracelake.set_destination(TARGET)
    with tracelake.start_span("secretive"):
        pass
    return tracelake.flush(timeout=8)


def write() -> object:
    """Write a batch by a sink of our own."""
    span = SpanRecord("0" * 31 + "1", "0" * 15 + "1", "s", 1, 2)
    sink = parse_target(TARGET).open()
    print(repr(sink), str(sink))
    with contextlib.closing(sink):
        return sink.write(Batch("secrets", 1, 100, lambda: iter([[span]])))


def objects() -> str:
    """Return the repr of every object of ours, as a debugger or a crash report would show it."""
    kept = [
        item
        for item in gc.get_objects()
        if type(item).__module__.startswith("tracelake") and not isinstance(item, type)
    ]
    return "\n".join(map(repr, kept))


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
    attempt("destination", lambda: parse_target(TARGET))
    attempt("identity", lambda: dict(parse_target(TARGET).identity))
    attempt("record", record)
    attempt("check", lambda: parse_target(TARGET).check())
    attempt("write", write)
    for command in COMMANDS:
        attempt(" ".join(command), lambda command=command: main(command))  # type: ignore[misc]
    attempt("objects", objects)
