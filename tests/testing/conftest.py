from __future__ import annotations

from collections.abc import Iterator

import pytest

from tracelake.testing import MockWorkspace


@pytest.fixture
def workspace() -> Iterator[MockWorkspace]:
    """A workspace with the catalog `main` and the schema `main.obs`; `workspace.url` serves it."""
    with MockWorkspace() as made:
        made.create_schema("main.obs")
        yield made
