"""Every test has an environment of its own, without the settings of the machine it runs on."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lake import Lake, open_lake

_FOREIGN = ("TRACELAKE_", "OTEL_", "MLFLOW_", "DATABRICKS_", "AWS_", "ARM_", "AZURE_", "GOOGLE_", "XDG_")


# A shell starts what it runs in the background with SIGINT ignored, and so would each program of a test be.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """A process for each core, and one for when others wait: `-n auto`."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the machine's settings away, and put the spool into the test's directory."""
    for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TRACELAKE_SPOOL_DIR", str(tmp_path / "spool"))


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    """A table, a spool and the processes of a test."""
    with open_lake(tmp_path) as opened:
        yield opened


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB, mounted for the test."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a file system can be mounted by root only, and not in every container")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 server with STS, that has a bucket `lake`."""
    import requests
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    requests.put(f"{url}/lake", timeout=10).raise_for_status()
    yield url
    server.stop()
