"""`tracelake doctor`: what stands between a span and its destination."""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import msgspec

from tracelake.cli.options import Commands, add_command, add_json, target
from tracelake.cli.output import EXIT_FAILED, EXIT_OK, json_text, progress
from tracelake.cli.status import remedy
from tracelake.destinations.base import Destination, Finding, is_confined
from tracelake.destinations.resolve import resolve_environment
from tracelake.destinations.unity.destination import UnityCatalogDestination
from tracelake.errors import QueryError, TracelakeError, TraceNotFoundError
from tracelake.query.text import clean
from tracelake.query.traces import get_trace
from tracelake.recorder.recorder import Recorder
from tracelake.redaction import one_line
from tracelake.settings import read_settings
from tracelake.shipper.status import read_status
from tracelake.spans import line
from tracelake.spans.record import Resource, SpanRecord
from tracelake.spool.lane import Spool

_DETAILS = """
Looks at everything between a span and the destination that TARGET or the environment
names: settings, access, the table and its columns, privileges, the way in, and what waits
in the spool. For each thing it prints what was seen, why it matters, and the statement or
setting that repairs it. Writes nothing, unless --write-test sends one span, named
`tracelake doctor`, all the way and reads it back. Exit code 1 means that an error was
found. docs/troubleshooting.md explains each finding.
"""

_EXAMPLES = """
  tracelake doctor
  tracelake doctor main.obs.spans
  tracelake doctor main.obs.spans --write-test
  tracelake doctor --json
"""

_SPAN_NAME = "tracelake doctor"
# Whoever looks for spans of ours in a table finds them, and nobody else's, by this.
_MARK = "tracelake.write_test"
_DELIVERY_S = 60.0
_VISIBLE_S = 60.0
_POLL_S = 0.5

_CODE_WIDTH = 17
_INDENT = 2 + 9 + _CODE_WIDTH
_WIDTH = 100


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "doctor",
        run,
        summary="check that spans reach their destination",
        details=_DETAILS,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "target",
        nargs="?",
        type=target,
        metavar="TARGET",
        help="a destination (default: those that the environment names)",
    )
    parser.add_argument("--write-test", action="store_true", help="send one span all the way and read it back")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check, and print what is found."""
    general, destinations, source = _resolved(arguments.target)
    if general and not arguments.json:
        _print("the environment", general)
    found: dict[str, list[Finding]] = {}
    for destination in destinations:
        found[destination.target] = _checked(destination, write_test=arguments.write_test)
        if not arguments.json:
            _print(f"{destination.target}  ({source})", found[destination.target])
    severities = [finding.severity for finding in chain(general, *found.values())]
    if arguments.json:
        reports = [{"target": target, "findings": list(map(_fields, each))} for target, each in found.items()]
        print(json_text({"source": source, "findings": list(map(_fields, general)), "destinations": reports}))
    else:
        print(_verdict(severities.count("error"), severities.count("warning")))
    return EXIT_FAILED if "error" in severities else EXIT_OK


def _checked(destination: Destination, *, write_test: bool) -> list[Finding]:
    with progress(f"checking {destination.target}"):
        found = [*destination.check(), *_spool(destination)]
    if write_test and not any(finding.severity == "error" for finding in found):
        with progress(f"sending a span to {destination.target}"):
            found.append(_write_test(destination))
    return found


def _resolved(named: Destination | None) -> tuple[list[Finding], list[Destination], str]:
    """Return what is to be said of the environment, the destinations to check, and where these are named."""
    # What cannot go on with the default is an error of its destination.
    general = [
        Finding("warning", problem, why="Where the default will do, it is used.", code="setting")
        for problem in read_settings()[1]
    ]
    if named is not None:
        return general, [named], "named on the command line"
    try:
        resolved = resolve_environment()
    except TracelakeError as error:
        why = "Apps go on, and their spans wait in the spool for a destination."
        remedy = "Then send on what waits already: tracelake redirect unresolved TARGET"
        return [*general, Finding("error", str(error), remedy, why, "target")], [], ""
    return general, list(resolved.destinations), f"named by {resolved.source}"


def _spool(destination: Destination) -> Iterator[Finding]:
    """Yield who delivers from here, and what is wrong with the lanes of a destination."""
    settings = read_settings()[0]
    if is_confined(destination.identity) and settings.shipper == "process":
        seen = "Access is this notebook's or job's own, so a thread of this process delivers."
        yield Finding("ok", seen, code="shipper")
    try:
        status = read_status(Spool(settings.spool_dir))
    except TracelakeError as error:
        yield Finding("error", str(error), why="Spans are recorded nowhere.", code="spool")
        return
    lanes = [lane for lane in status.lanes if lane.target == destination.target]
    for lane in lanes:
        if lane.error or lane.damage or lane.needs_action:
            seen = f"{lane.pending_spans:,} spans wait in {lane.path} ({lane.state}). " + " ".join(
                filter(None, (lane.error, *lane.damage))
            )
            yield Finding("error" if lane.needs_action else "warning", seen.strip(), remedy(lane), code="spool")
    if all(not (lane.error or lane.damage or lane.needs_action) for lane in lanes):
        waiting = sum(lane.pending_spans for lane in lanes)
        yield Finding("ok", f"{waiting:,} spans wait in {status.path}.", code="spool")


def _write_test(destination: Destination) -> Finding:
    """Send a span by a spool of its own, and look whether it arrived."""
    record = _span()
    with tempfile.TemporaryDirectory(prefix="tracelake-doctor-") as folder:
        settings = replace(read_settings()[0], shipper="inline", spool_dir=folder)
        recorder = Recorder(settings, Spool(folder))
        started_s = time.monotonic()
        recorder.record(record, recorder.route((destination,)).writers)
        report = recorder.flush(_DELIVERY_S)
    taken_s = time.monotonic() - started_s
    if not report.complete:
        why = " ".join(report.errors) or f"{report.quarantined} spans were set aside."
        return Finding("error", f"The span was not delivered: {why}", code="write-test")
    try:
        count = _read_back(destination, record)
    except TracelakeError as error:
        seen = f"The span was delivered in {taken_s:.1f} s, and could not be read back: {error}"
        return Finding("warning", seen, why="Where it is has to be seen with other tools.", code="write-test")
    if count == 0:
        seen = f"The span was delivered in {taken_s:.1f} s, and is not in the table after {_VISIBLE_S:.0f} s."
        return Finding("error", seen, why="Others will not find their spans either.", code="write-test")
    times = "" if count == 1 else f", {count} times, as at-least-once delivery may"
    seen = f"One span went all the way in {taken_s:.1f} s and was read back{times}: trace {record.trace_id}."
    return Finding("ok", seen, code="write-test")


def _span() -> SpanRecord:
    now = time.time_ns()
    resource = Resource(attributes={"service.name": "tracelake-doctor"})
    return SpanRecord(
        trace_id=os.urandom(16).hex(),
        span_id=os.urandom(8).hex(),
        name=_SPAN_NAME,
        start_time_unix_nano=now,
        end_time_unix_nano=now,
        attributes={_MARK: True},
        resource=msgspec.Raw(line.pack(resource)),
    )


def _read_back(destination: Destination, record: SpanRecord) -> int:
    """Return how often the span is there, once it is; a service may show it some seconds after it took it."""
    deadline_s = time.monotonic() + _VISIBLE_S
    while True:
        count = _count(destination, record)
        if count or time.monotonic() >= deadline_s:
            return count
        time.sleep(_POLL_S)


def _count(destination: Destination, record: SpanRecord) -> int:
    try:
        return len(get_trace(record.trace_id, destination).spans)
    except TraceNotFoundError:
        return 0
    except QueryError:
        # The files may be closed to us where SQL is not.
        if not isinstance(destination, UnityCatalogDestination):
            raise
        return destination.count_span(record.trace_id, record.span_id)


def _fields(finding: Finding) -> dict[str, str]:
    return {
        "code": finding.code,
        "severity": finding.severity,
        "seen": one_line(finding.seen),
        "why": one_line(finding.why),
        "remedy": finding.remedy,
    }


def _print(title: str, found: list[Finding]) -> None:
    print(f"{title}\n")
    for finding in found:
        word = finding.severity.upper() if finding.severity == "error" else finding.severity
        first, *rest = _wrapped(finding.seen)
        print(f"  {word:<9}{finding.code:<{_CODE_WIDTH}}{first}")
        for text in (*rest, *_wrapped(finding.why)):
            print(" " * _INDENT + text)
        for index, text in enumerate(_remedy(finding.remedy)):
            print(f"{' ' * _INDENT}{'   ' if index else '-> '}{text}")
    print()


def _remedy(text: str) -> list[str]:
    """Return the lines of a remedy; a statement or command is left on one, for it is there to be copied."""
    return [clean(one_line(text))] if re.search(r";$|^(tracelake|uc) ", text) else _wrapped(text, indent=3)


def _wrapped(text: str, indent: int = 0) -> list[str]:
    width = _WIDTH - _INDENT - indent
    return textwrap.wrap(clean(one_line(text)), width, break_long_words=False, break_on_hyphens=False)


def _verdict(errors: int, warnings: int) -> str:
    if errors:
        number, they = ("1 error", "it is") if errors == 1 else (f"{errors} errors", "they are")
        return f"{number}: spans wait in the spool until {they} repaired."
    if warnings:
        return f"No error, {warnings} warning{'s' * (warnings != 1)}."
    return "All is well."
