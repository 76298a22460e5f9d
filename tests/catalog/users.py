"""Whoever has the address of a catalog server, a token for it if it wants one, and tracelake."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from deltalake import DeltaTable

from tests.cli.commands import Result
from tests.lake import Lake, wait_until
from tracelake.spool.lane import Lane
from tracelake.spool.ledger import pending_bytes, read_delivery, read_ledger

from .unity_server import UnityServer

# Records a span for each of its arguments, as soon as there is a file of that name; waits for delivery at its end.
STEPS = """
import sys, time
from pathlib import Path
import tracelake
tracelake.set_destination(sys.argv[1])
for step in sys.argv[2:]:
    while not Path(step).exists():
        time.sleep(0.02)
    with tracelake.start_span(step):
        pass
    print(step, flush=True)
print(tracelake.flush(60), flush=True)
"""


class User:
    """One machine of a user: commands and programs that have the same settings and spool."""

    def __init__(self, server: UnityServer, s3: str, lake: Lake, token: str = "") -> None:
        self.server = server
        self.lake = lake
        self._s3 = s3
        lake.environ |= {"TRACELAKE_CATALOG_URL": server.url, "AWS_ENDPOINT_URL": s3, "AWS_ALLOW_HTTP": "true"}
        lake.environ |= {"TRACELAKE_CATALOG_TOKEN": token} if token else {}

    def run(self, *arguments: str, **environ: str) -> Result:
        """Run `tracelake` to its end; it never shows a traceback, nor the token."""
        settings = {**self.lake.environ, **environ}
        done = subprocess.run(
            [sys.executable, "-m", "tracelake", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env=settings,
            cwd=self.lake.root,
        )
        assert "Traceback" not in done.stderr, done.stderr
        token = settings.get("TRACELAKE_CATALOG_TOKEN")
        assert not token or token not in done.stdout + done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def create_table(self, name: str, location: str, *more: str) -> str:
        """Make a table, and return what the command prints."""
        result = self.run("create-table", name, "--location", location, *more)
        assert result.code == 0, result.err
        return result.out

    def doctor(self, name: str, *more: str, **environ: str) -> list[dict[str, str]]:
        """Return what `tracelake doctor` finds; its exit code says whether an error is among it."""
        result = self.run("doctor", name, "--json", *more, **environ)
        (report,) = json.loads(result.out)["destinations"]
        found: list[dict[str, str]] = report["findings"]
        assert result.code == any(finding["severity"] == "error" for finding in found), result.err
        return found

    def errors(self, name: str, **environ: str) -> dict[str, dict[str, str]]:
        """Return the errors that `tracelake doctor` finds, by their codes."""
        return {found["code"]: found for found in self.doctor(name, **environ) if found["severity"] == "error"}

    def start_steps(self, name: str, *steps: str) -> subprocess.Popen[str]:
        """Start a program that records a span for each step, when `step` says so; its shipper stays between them."""
        return self.lake.start(sys.executable, "-c", STEPS, name, *steps, TRACELAKE_SHIPPER_IDLE="60")

    def step(self, name: str) -> None:
        """Let the program take a step."""
        (self.lake.root / name).touch()

    def end(self, program: subprocess.Popen[str]) -> None:
        """See that a program ends well, with all of its spans delivered."""
        assert program.wait(120) == 0, self.lake.output(program)
        assert " 0 pending, 0 dropped, 0 quarantined" in self.lake.output(program)

    def wait_for_delivered(self, count: int) -> None:
        """Wait until this many spans were delivered, and none is left."""
        wait_until(
            lambda: (
                self._lanes()
                and sum(read_ledger(lane).delivered for lane in self._lanes()) == count
                and not any(map(pending_bytes, self._lanes()))
            ),
            f"{count} spans are delivered",
            60,
        )

    def wait_for_error(self, state: str) -> str:
        """Wait until the lane is `retrying` or `stopped`, and return the error."""
        wait_until(lambda: [lane for lane in self._lanes() if read_delivery(lane).state == state], f"{state}", 60)
        (error,) = [read_delivery(lane).error for lane in self._lanes()]
        return error

    def table(self, name: str) -> DeltaTable:
        """Open a table by the credentials that the server gives to those who read."""
        vended = self.server.vend(name, "READ", token=self.lake.environ.get("TRACELAKE_CATALOG_TOKEN"))
        keys = vended["aws_temp_credentials"]
        if keys is None:
            return DeltaTable(vended["url"])
        options = {
            "AWS_ACCESS_KEY_ID": keys["access_key_id"],
            "AWS_SECRET_ACCESS_KEY": keys["secret_access_key"],
            "AWS_SESSION_TOKEN": keys["session_token"],
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self._s3,
            "AWS_ALLOW_HTTP": "true",
        }
        return DeltaTable(vended["url"], storage_options=options)

    def spans(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a table, by start time."""
        # DataFusion would keep the S3 server, which may be in this process, from answering.
        found: list[dict[str, Any]] = self.table(name).to_pyarrow_table().sort_by("start_time_unix_nano").to_pylist()
        return found

    def names(self, name: str) -> list[str]:
        """Return the names of the spans in a table, by start time."""
        return [span["name"] for span in self.spans(name)]

    def _lanes(self) -> list[Lane]:
        return list(self.lake.spool.lanes()) if Path(self.lake.spool.path).exists() else []


def act(server: UnityServer, command: str) -> None:
    """Do as the administrator what a `uc` command does, which is no part of the server."""
    program, kind, verb, *options = shlex.split(command)
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert (program, verb) == ("uc", "create"), command
    if kind == "catalog":
        server.create_catalog(given["--name"])
    elif kind == "schema":
        server.create_schema(f"{given['--catalog']}.{given['--name']}")
    else:
        assert kind == "permission", command
        server.grant(given["--principal"], given["--securable_type"], given["--name"], given["--privilege"])
