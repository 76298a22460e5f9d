"""One call for many threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tracelake.testing.storage.together import Together

TIMEOUT_S = 20


def test_items_that_wait_share_a_call() -> None:
    calls: list[list[int]] = []
    entered, gate = threading.Event(), threading.Event()

    def double(items: list[int]) -> list[int]:
        calls.append(items)
        entered.set()
        assert gate.wait(TIMEOUT_S)
        return [2 * item for item in items]

    together = Together(double)
    with ThreadPoolExecutor(10) as pool:
        first = pool.submit(together, 0)
        assert entered.wait(TIMEOUT_S)
        others = [pool.submit(together, number) for number in range(1, 10)]
        while len(together._waiting) < len(others):
            threading.Event().wait(0.001)
        gate.set()
        assert [each.result(TIMEOUT_S) for each in (first, *others)] == list(range(0, 20, 2))
    assert calls[0] == [0]
    assert sorted(calls[1]) == list(range(1, 10))


def test_an_error_is_everybodys_and_does_not_stay() -> None:
    def invert(items: list[int]) -> list[float]:
        return [1 / item for item in items]

    together = Together(invert)
    with pytest.raises(ZeroDivisionError):
        together(0)
    assert together(2) == 0.5
