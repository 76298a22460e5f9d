"""`tracelake demo`: two services, one trace, one table, in a few seconds."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import socket
import sys
import time
from typing import Any

from tracelake.cli.options import Commands, add_command
from tracelake.cli.output import EXIT_OK, progress, say
from tracelake.cli.processes import ProcessError, ended_by_signals, remaining, started
from tracelake.cli.show import print_trace
from tracelake.destinations.base import Destination
from tracelake.destinations.delta import DeltaDestination
from tracelake.destinations.resolve import DEFAULT_TARGET, resolve_environment
from tracelake.destinations.targets import parse_target
from tracelake.errors import MissingDependencyError, QueryError, TracelakeError
from tracelake.query.traces import Trace, get_trace
from tracelake.query.tree import service_name
from tracelake.shipper.launch import module_command
from tracelake.spans.record import SpanRecord

_DETAILS = """
Starts a FastAPI service on a free local port, and an agent that asks it something: two
processes, and one trace. Waits until the trace is in the table, prints it, checks that it
is whole, and ends. The table is ./tracelake/spans, or the path that TRACELAKE_DESTINATION
names. Needs: pip install 'tracelake[demo]'
"""

_EXAMPLES = """
  tracelake demo
  tracelake demo --dir /tmp/demo
"""

# One slow machine's worth of time for everything; it takes some three seconds.
_TIMEOUT_S = 60.0
_NEEDED = ("fastapi", "uvicorn", "requests", "deltalake", "pyarrow")
_SERVICES = {
    "answer question": "demo-agent",
    "search passages": "demo-search",
    "rank passages": "demo-search",
    "write answer": "demo-agent",
}
_PARENTS = {
    "answer question": None,
    "search passages": "answer question",
    "rank passages": "search passages",
    "write answer": "answer question",
}
_SQL = "SELECT name, kind, count(*) AS spans FROM spans GROUP BY name, kind"


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "demo", run, summary="trace two services into one table", details=_DETAILS, examples=_EXAMPLES
    )
    parser.add_argument("--dir", metavar="DIR", help="put the table at DIR/tracelake/spans")


def run(arguments: argparse.Namespace) -> int:
    """Run the demo."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"The demo needs {', '.join(missing)}, not installed here. Run: pip install 'tracelake[demo]'"
        )
    destination = _destination(arguments.dir)
    print(f"Two services record one trace to {destination.target}", flush=True)
    with ended_by_signals(), progress("running the demo"):
        trace_id = _run_services(destination)
    trace = get_trace(trace_id, destination)
    print()
    print_trace(trace)
    problems = _problems(trace)
    if problems:
        raise QueryError(
            f"The trace {trace_id} in {destination.target} is not whole: {'; '.join(problems)}. "
            "Look with `tracelake status` whether spans wait or were refused, then run the demo again."
        )
    program, option = _program(), _target_option(destination)
    print(f"\nOne trace, two services, one table: {destination.target}")
    print("Look further with:\n")
    print(f'  {program} sql "{_SQL}"{option}')
    return EXIT_OK


def _destination(directory: str | None) -> Destination:
    """Return the table to write: in `directory`, or where the environment says, if that is a path."""
    if directory is not None:
        return parse_target(os.path.abspath(os.path.join(directory, DEFAULT_TARGET)))
    try:
        named = resolve_environment()
    except TracelakeError as error:
        say(f"{error} The demo writes to {DEFAULT_TARGET} meanwhile.")
        return parse_target(DEFAULT_TARGET)
    if isinstance(named.destinations[0], DeltaDestination):
        return named.destinations[0]
    say(f"the demo writes to {DEFAULT_TARGET}, and leaves {named.destinations[0].target} of {named.source} alone.")
    return parse_target(DEFAULT_TARGET)


def _run_services(destination: Destination) -> str:
    """Run both services until their spans are delivered; return the trace's id."""
    deadline_s = time.monotonic() + _TIMEOUT_S
    environment = _environment(destination)
    with contextlib.ExitStack() as stack:
        # Bound here and handed over, so that no other program can take the port in between.
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port, number = listener.getsockname()[1], listener.fileno()
            service = ["tracelake.cli.demo_callee:app", "--fd", str(number), "--log-level", "warning"]
            uvicorn = module_command(sys.executable, "uvicorn")
            callee = stack.enter_context(started("service", [*uvicorn, *service], environment, (number,)))
        if callee.line(remaining(deadline_s)) != "ready":
            raise ProcessError("The service did not start as it should. Run the demo again.")
        agent = module_command(sys.executable, "tracelake.cli.demo_caller")
        with started("agent", [*agent, f"http://127.0.0.1:{port}"], environment) as caller:
            answer = json.loads(caller.line(remaining(deadline_s)))
        _check_delivered("agent", answer["report"])
        callee.ask_to_end()
        _check_delivered("service", json.loads(callee.line(remaining(deadline_s))))
        return str(answer["trace_id"])


def _environment(destination: Destination) -> dict[str, str]:
    """Return the environment of the services: this one, with nothing in it that keeps spans or requests from coming."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("OTEL_") and name != "TRACELAKE_SHIPPER"
    }
    ours = {"TRACELAKE_SHIPPER_IDLE": "2", "NO_PROXY": "127.0.0.1"}  # the shipper ends soon after the demo
    return {**kept, **ours, "TRACELAKE_DESTINATION": destination.target}


def _check_delivered(name: str, report: dict[str, Any]) -> None:
    if report["delivered"] < report["recorded"] or not report["recorded"]:
        raise ProcessError(
            f"Of {report['recorded']} spans of the {name}, {report['delivered']} were delivered in time. "
            f"{' '.join(report['errors'])} Look with `tracelake status` at what waits in {report['spool']}."
        )


def _problems(trace: Trace) -> list[str]:
    """Return what of the demo's trace is not as it has to be. Spans of instrumented libraries may be among its own."""
    names = [span.name for span in trace.spans if span.name in _SERVICES]
    if sorted(names) != sorted(_SERVICES):
        found = ", ".join(span.name for span in trace.spans)
        return [f"it has the spans {found}, and should have {', '.join(_SERVICES)}, each once"]
    problems = []
    services = {service_name(span) for span in trace.spans}
    if services != set(_SERVICES.values()):
        problems.append(f"it is of the services {', '.join(sorted(services))}")
    for span in trace.spans:
        if span.name not in _SERVICES:
            continue
        above = _above(trace, span)
        if above != _PARENTS[span.name]:
            problems.append(f"{span.name!r} is a child of {above!r}, and should be one of {_PARENTS[span.name]!r}")
        if service_name(span) != _SERVICES[span.name]:
            problems.append(f"{span.name!r} is of the service {service_name(span)!r}")
    return problems


def _above(trace: Trace, span: SpanRecord) -> str | None:
    """Return the name of the nearest span of the demo's own above `span`; None if there is none."""
    seen = {span.span_id}
    parent = trace.span(span.parent_span_id or "")
    while parent is not None and parent.name not in _SERVICES and parent.span_id not in seen:
        seen.add(parent.span_id)
        parent = trace.span(parent.parent_span_id or "")
    return None if parent is None else parent.name


def _target_option(destination: Destination) -> str:
    try:
        if resolve_environment().destinations[0] == destination:
            return ""
    except TracelakeError:
        pass
    return f" --target {shlex.quote(_short_path(destination.target))}"


def _program() -> str:
    """Return what to type to run tracelake the way it runs now."""
    path = os.path.abspath(sys.argv[0])
    if os.path.basename(path) == "tracelake":
        return _typed(path)
    return f"{_typed(sys.executable)} -m tracelake"


def _typed(path: str) -> str:
    name = os.path.basename(path)
    found = shutil.which(name)
    return name if found and os.path.abspath(found) == path else shlex.quote(_short_path(path).removeprefix("./"))


def _short_path(path: str) -> str:
    """Return a path relative to the current directory, if it is below it."""
    here = os.path.join(os.getcwd(), "")
    return os.path.join(".", path[len(here) :]) if path.startswith(here) else path
