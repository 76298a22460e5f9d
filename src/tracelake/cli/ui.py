"""`tracelake ui`: MLflow's server and web page, over the traces of a table."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from tracelake.cli.options import Commands, add_command, add_target, chosen_destination
from tracelake.cli.output import EXIT_OK, progress, say
from tracelake.cli.processes import ProcessError, ended_by_signals
from tracelake.errors import MissingDependencyError, MissingTableError, SettingError
from tracelake.query.reader import open_reader
from tracelake.shipper.launch import module_command

_DETAILS = """
Starts MLflow's own server, whose traces are those of the table: list, search, tree with
inputs and outputs, sessions, tags, feedback, deletion. Its experiments and runs are in a
database. Prints its address, and serves until Ctrl-C or SIGTERM. MLflow clients and OTLP
clients that send traces to it write into the table. docs/mlflow-ui.md says more.
"""

_EXAMPLES = """
  tracelake ui
  tracelake ui --target ./traces --port 8080
  tracelake ui --target main.obs.spans --db postgresql://mlflow@db.internal/mlflow
"""

_OLDEST = (3, 9)
_INSTALL = "pip install 'tracelake[sql]' 'mlflow>=3.9'"

# The database and what runs upload, beside the table that is there if nothing is set.
_ARTIFACTS = "./tracelake/mlartifacts"

# What leads MLflow elsewhere: here the server itself is where it tracks.
_ELSEWHERE = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_TRACING_DESTINATION")

_START_S = 120.0
_END_S = 10.0
_KEPT_LINES = 40


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "ui", run, summary="look at traces in MLflow's web page", details=_DETAILS, examples=_EXAMPLES
    )
    add_target(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", type=int, default=5000, help="the port, 0 for any that is free (default: 5000)")
    parser.add_argument(
        "--db",
        metavar="URL",
        default="",
        help="SQLAlchemy's URL of MLflow's database (default: sqlite:///./tracelake/mlflow.db)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve MLflow until a signal comes."""
    version = _mlflow_version()
    destination = chosen_destination(arguments)
    try:
        with progress(f"opening {destination.target}"), open_reader(destination):
            pass  # whatever is wrong with the table is said here, and not by a page
    except MissingTableError:
        say(f"there is no table at {destination.target} yet; the first span that is recorded makes it")
    port = _free_port(arguments.host, arguments.port)
    environ = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # eight processes, which no page of traces needs
    # By a variable, since the database's password is in it, and arguments are for all to see.
    environ["MLFLOW_BACKEND_STORE_URI"] = f"tracelake://{arguments.db}"
    if arguments.target is not None:
        environ["TRACELAKE_DESTINATION"] = destination.target
    else:
        environ.setdefault("TRACELAKE_DESTINATION", destination.target)
    options = ["--host", arguments.host, "--port", str(port), "--workers", "1"]
    options += ["--artifacts-destination", _ARTIFACTS, "--uvicorn-opts", "--log-level warning"]
    command = [*module_command(sys.executable, "tracelake.cli.ui_server"), *options]
    with contextlib.suppress(KeyboardInterrupt), ended_by_signals(), _serving(command, environ) as server:
        with progress("starting MLflow"):
            server.wait_until_up(_reached(arguments.host), port)
        print(f"http://{_in_url(_reached(arguments.host))}:{port}", flush=True)
        say(f"MLflow {version} shows the traces of {destination.target}; Ctrl-C ends it")
        raise ProcessError(f"The MLflow server ended by itself, with code {server.wait()}. Look above for why.")
    say("ended")
    return EXIT_OK


def _mlflow_version() -> str:
    """Return the version of MLflow, which is not imported.

    Raises:
        MissingDependencyError: it is not installed, or too old.
    """
    try:
        version = importlib.metadata.version("mlflow")
    except importlib.metadata.PackageNotFoundError:
        raise MissingDependencyError(
            f"This needs MLflow with its server, the package 'mlflow', which is not installed here. Run: {_INSTALL}"
        ) from None
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise MissingDependencyError(f"MLflow {version} is installed here, and it has to be {oldest}. Run: {_INSTALL}")
    return version


def _free_port(host: str, port: int) -> int:
    """Return the port that the server is to take.

    Raises:
        SettingError: another program has it, or it cannot be had.
    """
    try:
        if port:  # on macOS two programs may listen on one port, for different addresses
            with contextlib.suppress(OSError), socket.create_connection((_reached(host), port), timeout=1.0):
                raise SettingError(f"Port {port} of {host} is taken by another program. Choose another with --port.")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family) as listener:
            return int(listener.getsockname()[1])
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SettingError(
            f"Nothing can listen on port {port} of {host}: {reason}. Choose others with --port and --host."
        ) from error


def _reached(host: str) -> str:
    """Return the address by which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, and not listened on


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class _Server:
    """MLflow's server in a process group of its own."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._said: deque[str] | None = deque(maxlen=_KEPT_LINES)
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            command,
            stdin=subprocess.PIPE,  # it ends when this is closed, so with us, too
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=dict(environ),
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_until_up(self, host: str, port: int) -> None:
        """Return once it answers; from then on what it says is for the user.

        Raises:
            ProcessError: it ended, or takes too long.
        """
        for _ in range(int(_START_S / 0.1)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(0.1)
                self._reader.join(1.0)
                raise ProcessError(f"The MLflow server ended with code {code}. This is what it said:\n{self._kept()}")
            if _answers(host, port):
                self._said = None
                return
        raise ProcessError(f"The MLflow server has not answered in {_START_S:.0f} s. It said:\n{self._kept()}")

    def wait(self) -> int:
        """Return its exit code once it has ended."""
        return self._process.wait()

    def end(self) -> None:
        """See to it that all its processes have ended when this returns: asked first, then killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.terminate()
            self._process.wait(_END_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses where only zombies are left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(1.0)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                said = self._said
                if said is not None:
                    said.append(line)
                else:
                    print(line, end="", file=sys.stderr, flush=True)

    def _kept(self) -> str:
        return "".join(self._said or ()).strip()


@contextlib.contextmanager
def _serving(command: Sequence[str], environ: Mapping[str, str]) -> Iterator[_Server]:
    server = _Server(command, environ)
    try:
        yield server
    finally:
        server.end()


def _answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=2.0)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
