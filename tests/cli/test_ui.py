"""MLflow's server as `tracelake ui` runs it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from tests.cli.commands import Place
from tests.lake import wait_until
from tests.mlflow_server import QUIET

pytest.importorskip("mlflow")


def test_port_that_is_taken_is_named(place: Place) -> None:
    """Before MLflow is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = place.run("ui", "--target", "./traces", "--port", port)
    assert result.code == 1
    assert f"Port {port} of 127.0.0.1 is taken" in result.err
    assert "--port" in result.err


def test_table_that_is_none(place: Place) -> None:
    """Whatever is wrong with it is said before MLflow is started."""
    write_deltalake(str(place.path / "other"), pa.table({"a": [1]}))
    result = place.run("ui", "--target", "./other", "--port", "0")
    assert result.code == 1
    assert "cannot be read as spans" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["int", "term", "kill"])
def test_all_of_it_ends_with_the_command(place: Place, number: signal.Signals) -> None:
    """However that ends; a signal that can be handled is no failure."""
    with Path(place.path, "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "tracelake", "ui", "--target", "./traces", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            cwd=place.path,
            env={**os.environ, **QUIET},
        )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), Path(place.path, "said").read_text()
        with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
            assert answer.status == 200
    finally:
        process.send_signal(number)
        code = process.wait(30)
        process.stdout.close()
    assert code == (-signal.SIGKILL if number is signal.SIGKILL else 0)
    port = int(url.rpartition(":")[2])
    wait_until(lambda: not listens(port), "nothing listens any more")


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
