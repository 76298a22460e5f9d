"""When a destination is tried again."""

from __future__ import annotations

import random

import pytest

from tracelake.shipper.backoff import Backoff


def waits(permanent: bool, failures: int, seed: int = 1) -> list[float]:
    backoff = Backoff(random.Random(seed))
    found = []
    for _ in range(failures):
        backoff.failed(100.0, permanent=permanent)
        found.append(backoff.next_try_s - 100.0)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_transient_failures_wait_twice_as_long_each_time(seed: int) -> None:
    """From half a second up to a minute, each wait cut by at most a half, also after very many failures."""
    longest = [min(60.0, 0.5 * 2**number) for number in range(40)]
    for wait, limit in zip(waits(False, 40, seed), longest, strict=True):
        assert limit / 2 <= wait <= limit


def test_permanent_failures_wait_half_a_minute_to_a_minute() -> None:
    """What somebody has to mend is tried on a slow clock from the start."""
    assert all(30 <= wait <= 60 for wait in waits(True, 20))


def test_shippers_do_not_return_all_at_once() -> None:
    """Shippers that fail at the same moment try again at different ones."""
    assert len({waits(False, 8, seed)[-1] for seed in range(50)}) == 50


def test_success_forgets_failures() -> None:
    """After a success the next failure waits as briefly as the first."""
    backoff = Backoff(random.Random(1))
    for _ in range(10):
        backoff.failed(100.0, permanent=False)
    backoff.succeeded()
    assert (backoff.attempts, backoff.next_try_s) == (0, 0.0)
    backoff.failed(100.0, permanent=False)
    assert backoff.next_try_s <= 100.5


def test_destination_is_left_alone_for_as_long_as_it_asks() -> None:
    """If that is longer than we would have waited, and up to five minutes; a success ends it."""
    backoff = Backoff(random.Random(1))
    backoff.failed(100.0, permanent=False, at_least_s=30)
    assert (backoff.next_try_s, backoff.asked_until_s) == (130.0, 130.0)
    backoff.failed(100.0, permanent=False, at_least_s=0.01)
    assert backoff.next_try_s > backoff.asked_until_s == 100.01
    backoff.failed(100.0, permanent=False, at_least_s=86_400)
    assert backoff.next_try_s == 400.0
    backoff.succeeded()
    assert (backoff.next_try_s, backoff.asked_until_s) == (0.0, 0.0)
