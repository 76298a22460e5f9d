from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lake import Lake, open_lake


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    """A table, a spool and the processes of a test."""
    with open_lake(tmp_path) as opened:
        yield opened
