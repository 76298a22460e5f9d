"""The fixture `mock_workspace`, as pytest gives it to users' tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lake import FOREIGN

PROGRAM = Path(__file__).parent / "apps" / "fixture_program.py"


@pytest.mark.slow
def test_users_tests_pass(tmp_path: Path) -> None:
    """In a process of their own, in which warnings are no errors: those of other packages are not ours."""
    (tmp_path / "test_program.py").write_text(PROGRAM.read_text())
    environ = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "test_program.py"],
        cwd=tmp_path,
        env={**environ, "HOME": str(tmp_path), "DATABRICKS_CONFIG_PROFILE": "of-the-developer"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 passed" in done.stdout
    assert "before program exit" not in done.stderr, "threads of MLflow outlived their test"
