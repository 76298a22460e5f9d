"""Items made ahead of whoever takes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.lake import wait_until
from tracelake.destinations.ahead import ahead


def makers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tracelake-rows"]


def test_items_come_in_their_order() -> None:
    """Many and none; the thread ends with them."""
    assert list(ahead(iter(range(1000)))) == list(range(1000))
    assert list(ahead(iter(()))) == []
    assert not makers()


def test_items_are_made_before_they_are_taken_but_few() -> None:
    """What waits is bounded: an item may be megabytes."""
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    taken = ahead(items())
    assert next(taken) == 0
    wait_until(lambda: len(made) >= 3, "items are made ahead")
    for number in range(1, 50):
        assert next(taken) == number
        assert len(made) <= number + 5
    taken.close()  # type: ignore[attr-defined]
    assert not makers()
    assert len(made) < 100


def test_error_comes_after_the_items_before_it() -> None:
    """As it would without a thread."""

    def items() -> Iterator[int]:
        yield 1
        raise KeyError("no row")

    taken = ahead(items())
    assert next(taken) == 1
    with pytest.raises(KeyError, match="no row"):
        next(taken)
    assert not makers()


def test_iterator_that_is_dropped_ends_its_thread() -> None:
    """A writer that fails takes no more, and closes nothing."""
    taken = ahead(iter(range(100)))
    next(taken)
    assert makers()
    del taken
    assert not makers()


def test_items_are_made_where_no_thread_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system has no more of them, or the interpreter is ending."""

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    assert list(ahead(iter(range(10)))) == list(range(10))
