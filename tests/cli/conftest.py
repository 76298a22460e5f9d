from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.cli.commands import Place

_FOREIGN = re.compile(r"TRACELAKE_|OTEL_|MLFLOW_|AWS_|XDG_|COLUMNS$|NO_COLOR$")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A current directory and a spool of the test's own, and none of the machine's settings."""
    for name in filter(_FOREIGN.match, list(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.setenv("TRACELAKE_SPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("TRACELAKE_SHIPPER", "external")
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path)
