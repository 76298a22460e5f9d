"""The servers of a run, each a process behind a proxy, that can be killed and started again where it was."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.lake import FOREIGN, wait_until
from tests.mlflow_server import QUIET
from tests.torture.proxy import Proxy

HERE = Path(__file__).parent
BUCKET = "lake"
PORT = "PORT"
S3_ACCESS = {
    "AWS_ACCESS_KEY_ID": "AKIATORTURE",
    "AWS_SECRET_ACCESS_KEY": "of-the-torture-runs",
    "AWS_REGION": "eu-west-1",
}

# Ends the server with its group when the run ends, however that ends: nobody holds the pipe open then.
_GUARDED = ["/bin/sh", "-c", '"$@" & cat > /dev/null; kill -9 0', "sh"]
_START_S = 90.0


class Server:
    """One server.

    Attributes:
        url: where it is itself; tests read there.
        proxy: what shippers talk to.
    """

    def __init__(self, name: str, root: Path, command: list[str], *, ready: str = "/", keeps: bool = True) -> None:
        """`PORT` stands for its port, and `ready` is a path that it answers; one that `keeps` what it has may die."""
        self.name = name
        self.keeps = keeps
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.proxy = Proxy(self._port)
        self.proxied_url = f"http://127.0.0.1:{self.proxy.port}"
        self._root = root
        self._command = [str(self._port) if word == PORT else word for word in command]
        self._ready = self.url + ready
        self.start()

    def start(self) -> None:
        """Start it; it may take a while until it answers."""
        with open(self._root / f"{self.name}.log", "ab") as log:
            self._process = subprocess.Popen(
                [*_GUARDED, *self._command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._root,
                env={key: value for key, value in os.environ.items() if not FOREIGN.match(key)}
                | QUIET
                | {"HOME": str(self._root), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it answers."""
        wait_until(self._answers, f"{self.name} answers", _START_S)

    def kill(self) -> None:
        """Kill it with its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and its children."""
        os.killpg(self._process.pid, number)

    def heal(self) -> None:
        """Let it run, answer, and be reached."""
        self.proxy.heal()
        if self._process.poll() is not None:
            self.start()
        self.signal(signal.SIGCONT)
        self.wait()

    def close(self) -> None:
        """Kill it for good."""
        self.kill()
        self.proxy.close()

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self._ready, timeout=5).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True


class Servers:
    """All that some kinds of destinations need.

    Attributes:
        root: the directory of the run.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._control = free_port()
        self._by_name: dict[str, Server] = {}
        self._principals: dict[bool, str] = {}

    def __getitem__(self, name: str) -> Server:
        return self._by_name[name]

    def start(self, names: tuple[str, ...]) -> None:
        """Start servers, those that are not there yet, and wait until they answer."""
        for name in names:
            if name not in self._by_name:
                self._by_name[name] = self._make(name)
        for name in names:
            self[name].wait()
        if "s3" in names:
            with contextlib.suppress(urllib.error.HTTPError):  # it is there
                request = urllib.request.Request(f"{self['s3'].url}/{BUCKET}", method="PUT")
                urllib.request.urlopen(request, timeout=10).close()
        if "workspace" in names and not self._principals:
            self._prepare_workspace()

    def heal(self) -> None:
        """Let all run, answer and be reached."""
        for server in self._by_name.values():
            server.heal()
        if "workspace" in self._by_name:
            self.ask("faults.clear")

    def close(self) -> None:
        """End all."""
        for server in self._by_name.values():
            server.close()

    def ask(self, call: str, *positional: Any, **arguments: Any) -> Any:
        """Call a method of the workspace."""
        body = json.dumps({"call": call, "positional": positional, "arguments": arguments}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self._control}", body, timeout=30) as answer:
            return json.load(answer)

    def workspace_access(self, *, logs_in_once: bool) -> dict[str, str]:
        """Return what gives a process access to the workspace, with a token for good or with ones that expire."""
        found: dict[str, str] = self.ask(
            "environment", self._principals[logs_in_once], host=self["workspace"].proxied_url
        )
        return {key: value for key, value in found.items() if key.startswith("DATABRICKS_")}

    def _prepare_workspace(self) -> None:
        self.ask("create_schema", "main.obs")
        self._principals = {
            True: self.ask("add_user", "agent@example.com"),
            False: self.ask("add_service_principal", "agent"),
        }
        for name in self._principals.values():
            privileges = ("USE CATALOG", "USE SCHEMA", "SELECT", "MODIFY", "EXTERNAL USE SCHEMA")
            self.ask("grant", *privileges, on="main", to=name)

    def use_s3(self) -> None:
        """Let the workspace have tables on the S3 server."""
        self.ask("use_s3", self["s3"].url, S3_ACCESS["AWS_ACCESS_KEY_ID"], S3_ACCESS["AWS_SECRET_ACCESS_KEY"])

    def _make(self, name: str) -> Server:
        python, root = sys.executable, self.root
        if name == "s3":
            # It has everything in memory, so it is not killed.
            command = [str(Path(python).parent / "moto_server"), "-H", "127.0.0.1", "-p", PORT]
            return Server(name, root, command, keeps=False)
        if name == "otlp":
            return Server(name, root, [python, str(HERE / "receiver.py"), PORT, str(root / "received")])
        if name == "workspace":
            control = [str(self._control), str(root / "workspace")]
            return Server(name, root, [python, str(HERE / "workspace_server.py"), PORT, *control])
        command = [python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", PORT, "--workers", "1"]
        command += [
            "--backend-store-uri",
            f"sqlite:///{root}/mlflow.db",
            "--artifacts-destination",
            f"{root}/artifacts",
        ]
        return Server(name, root, command, ready="/health")


@contextlib.contextmanager
def run_servers(root: Path) -> Iterator[Servers]:
    """Give the servers of a run, none of them started."""
    servers = Servers(root)
    try:
        yield servers
    finally:
        servers.close()


def free_port() -> int:
    """Return a port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
