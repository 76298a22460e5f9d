"""A tracking store of its own for each test, and a database that the tests of a module share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tracelake.tracking.store import LakeStore


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URL of MLflow's database: it takes seconds to make one."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def store(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> LakeStore:
    """Return a store whose table is not there yet."""
    from tracelake.tracking.entry import open_tracking_store

    monkeypatch.setenv("TRACELAKE_DESTINATION", str(tmp_path / "spans"))
    return open_tracking_store(f"tracelake://{database}", str(tmp_path / "artifacts"))
