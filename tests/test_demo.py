from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lake import Lake, open_lake, wait_until

DEMO = (sys.executable, "-m", "tracelake", "demo")


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    """A directory, a spool and the processes of a test."""
    with open_lake(tmp_path) as opened:
        del opened.environ["TRACELAKE_DESTINATION"]
        yield opened
        end_shippers(opened)


def end_shippers(lake: Lake) -> None:
    """End the shippers that still have something to deliver, and would try for ever."""
    for pid in lake.shippers():
        command = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
        if lake.spool.path in subprocess.run(command, capture_output=True, text=True).stdout:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def run(lake: Lake, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*DEMO, *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=lake.root,
        env={**lake.environ, **environ},
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert wait_until(lambda: not services(lake), "the services ended")
    return done


def services(lake: Lake) -> list[str]:
    """Return the commands of the demo's services that run with the test's spool."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environ = (directory / "environ").read_bytes()
        except OSError:
            continue
        if "tracelake.cli.demo_" in command and lake.spool.path.encode() in environ:
            found.append(command)
    return found


def test_the_demo_prints_one_trace_of_two_services(lake: Lake) -> None:
    """Stitched, in the table it names, within seconds."""
    started_s = time.monotonic()
    done = run(lake, "--dir", str(lake.root / "here"))
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started_s < 30
    lines = [line[20:] for line in done.stdout.splitlines() if re.match(r" *[\d.]+ [mu]s", line)]
    assert lines == [
        "answer question (AGENT, demo-agent)",
        "├─ search passages (RETRIEVER, demo-search)",
        "│  └─ rank passages (RERANKER, demo-search)",
        "└─ write answer (LLM, demo-agent)",
    ]
    assert "4 spans of 2 services" in done.stdout
    assert max(map(len, done.stdout.split("Look further")[0].splitlines())) <= 80 + len(str(lake.root))
    assert len(lake.rows(str(lake.root / "here" / "tracelake" / "spans"))) == 4


@pytest.mark.parametrize("arguments", [(), ("--dir", "there and then")])
@pytest.mark.slow
def test_the_command_that_the_demo_prints_works_when_pasted(lake: Lake, arguments: tuple[str, ...]) -> None:
    """In the same shell, with or without an option for the table."""
    done = run(lake, *arguments)
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if re.match(r"  \S*python\S* -m tracelake ", line)]
    assert len(commands) == 1
    assert ("--target" in commands[0]) == bool(arguments)
    pasted = subprocess.run(
        commands[0], shell=True, capture_output=True, text=True, timeout=60, cwd=lake.root, env=lake.environ
    )
    assert pasted.returncode == 0, pasted.stderr
    assert "search passages" in pasted.stdout


@pytest.mark.slow
def test_the_demo_takes_the_table_of_the_environment_and_runs_again(lake: Lake) -> None:
    """Version 2 of the schema as well; each run is a trace of its own."""
    environ = {"TRACELAKE_DESTINATION": lake.table, "TRACELAKE_SCHEMA_VERSION": "2"}
    for _ in range(2):
        assert run(lake, **environ).returncode == 0
    assert len({row["trace_id"] for row in lake.rows()}) == 2


@pytest.mark.slow
def test_settings_of_the_shell_do_not_keep_the_demo_from_working(lake: Lake) -> None:
    """Nor does a module in the current directory that has the name of one it needs."""
    (lake.root / "requests.py").write_text("raise RuntimeError('not this one')")
    environ = {
        "TRACELAKE_SHIPPER": "external",
        "OTEL_SDK_DISABLED": "true",
        "OTEL_TRACES_SAMPLER": "always_off",
        "http_proxy": "http://127.0.0.1:1",
        "PYTHONIOENCODING": "ascii",
        "PYTHONSAFEPATH": "1",
    }
    done = run(lake, **environ)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_demo_that_cannot_deliver_fails_and_says_why(lake: Lake) -> None:
    """Its services end all the same."""
    (lake.root / "file").write_text("no directory")
    done = run(lake, TRACELAKE_DESTINATION=str(lake.root / "file" / "table"))
    assert done.returncode == 1
    assert "of the agent, 0 were delivered in time" in done.stderr
    assert "tracelake status" in done.stderr


def test_a_service_that_does_not_start_is_reported_with_its_own_words(lake: Lake) -> None:
    """And the demo does not wait for it."""
    (lake.root / "fastapi.py").write_text("raise RuntimeError('broken installation')")
    done = subprocess.run(
        DEMO,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=lake.root,
        env={**lake.environ, "PYTHONPATH": str(lake.root)},
    )
    assert done.returncode == 1
    assert "The service ended with code 1." in done.stderr
    assert "broken installation" in done.stderr


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_ends_its_services(lake: Lake, number: signal.Signals) -> None:
    """At whatever it is."""
    process = lake.start(*DEMO)
    wait_until(lambda: services(lake), "a service started")
    process.send_signal(number)
    assert process.wait(30) == 130, lake.output(process)
    assert not services(lake)
    assert "Traceback" not in lake.output(process)
