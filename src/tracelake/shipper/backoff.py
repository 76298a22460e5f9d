"""When to try a destination again."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

# Transient failures: 0.5 s, doubled each time up to a minute. Permanent ones, which somebody has to mend: a slow clock.
_FIRST_S = 0.5
_LONGEST_S = 60.0
_PERMANENT_S = 60.0
# What a destination may ask for: no header of its keeps spans back for a day.
_LONGEST_ASKED_S = 300.0


@dataclass
class Backoff:
    """Waits longer after each failure, with jitter, so that many shippers do not return to a server at once.

    Attributes:
        attempts: failures since the last success.
        next_try_s: monotonic time before which nothing is tried; 0 after a success.
        asked_until_s: monotonic time before which the destination asked for nothing to be tried, in a hurry or not.
    """

    random: random.Random = field(default_factory=random.Random)
    attempts: int = 0
    next_try_s: float = 0.0
    asked_until_s: float = 0.0

    def failed(self, now_s: float, *, permanent: bool, at_least_s: float = 0.0) -> None:
        """Count a failure at the monotonic time `now_s`; the destination asks to be left alone for `at_least_s`."""
        self.attempts += 1
        longest = _PERMANENT_S if permanent else min(_LONGEST_S, _FIRST_S * 2 ** min(self.attempts - 1, 10))
        wait_s = longest * self.random.uniform(0.5, 1.0)
        self.asked_until_s = now_s + min(at_least_s, _LONGEST_ASKED_S)
        self.next_try_s = max(now_s + wait_s, self.asked_until_s)

    def succeeded(self) -> None:
        """Forget past failures."""
        self.attempts = 0
        self.next_try_s = self.asked_until_s = 0.0
