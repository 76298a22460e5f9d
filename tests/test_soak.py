"""The soak of benchmarks/soak.py, short: each span is there once, and nothing grows by more than it may."""

from __future__ import annotations

import pytest

from benchmarks import soak


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["delta", "s3", "uc-delta", "otlp"])
def test_nothing_grows(transport: str) -> None:
    """Twenty thousand spans of a steady app, by a real shipper; `python -m benchmarks.soak` sends a million."""
    assert soak.run(transport, 20_000, 2_000)


def test_growth_is_seen() -> None:
    """A figure may be larger at the end by so much and no more, and one that has no bound may grow."""
    first = {"app, MB": 100.0, "active files": 10.0, "files on disk": 10.0}
    assert soak.grown([first, {"app, MB": 117.0, "active files": 90.0, "files on disk": 9000.0}]) == []
    assert soak.grown([first, {"app, MB": 119.0, "active files": 91.0, "files on disk": 10.0}]) == [
        "app, MB",
        "active files",
    ]
