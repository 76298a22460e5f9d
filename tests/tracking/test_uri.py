"""What a store URI and the environment name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tracelake.errors import ConfigurationError
from tracelake.tracking.uri import database_url, trace_destination


def test_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert database_url("tracelake://sqlite:////data/m.db") == "sqlite:////data/m.db"
    assert database_url("tracelake://postgresql+psycopg2://h/d") == "postgresql+psycopg2://h/d"
    assert database_url("tracelake://") == "sqlite:///./tracelake/mlflow.db"
    assert os.path.isdir("tracelake")
    with pytest.raises(ConfigurationError) as wrong:
        database_url("tracelake://ann:secret@host/db")
    assert "secret" not in str(wrong.value)
    monkeypatch.setenv("TRACELAKE_DESTINATION", "http://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="is no table"):
        trace_destination()
