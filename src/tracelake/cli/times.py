"""Times and durations, as commands take and print them. A time without an offset is UTC, like all that are printed."""

from __future__ import annotations

import argparse
import re
import time
from datetime import datetime, timedelta, timezone

from tracelake.reading import unix_nano

_UNITS_NS = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3_600 * 10**9,
    "d": 86_400 * 10**9,
    "w": 7 * 86_400 * 10**9,
}
_DURATION = re.compile(rf"([0-9]{{1,12}}(?:\.[0-9]{{1,9}})?) ?({'|'.join(_UNITS_NS)})")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def duration(text: str) -> int:
    """Return the nanoseconds of an argument such as `250ms`, `15m` or `2d`, for argparse."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no duration. Give a number and its unit ({', '.join(_UNITS_NS)}), as 250ms, 15m or 2d"
        )
    return int(float(match[1]) * _UNITS_NS[match[2]])


def moment(text: str) -> int:
    """Return the time of an argument in nanoseconds since the Unix epoch, for argparse: so long ago, or as ISO 8601."""
    if _DURATION.fullmatch(text.strip()):
        # To the second, as it is printed: whoever repeats it means the same.
        return max(0, time.time_ns() - duration(text)) // 10**9 * 10**9
    try:
        return unix_nano(datetime.fromisoformat(text.strip().replace("Z", "+00:00")))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time. Give how long ago it was, as 15m or 2d, or the time itself, as 2026-01-31, "
            "2026-01-31T12:00 or 2026-01-31T12:00:00+02:00; without an offset it is UTC"
        ) from None


def moment_text(unix_nano: int) -> str:
    """Return a time to the second, in UTC; what no calendar has is a number."""
    try:
        return f"{_EPOCH + timedelta(seconds=unix_nano // 10**9):%Y-%m-%d %H:%M:%S}"
    except OverflowError:
        return str(unix_nano)
