"""Values of a trace as safe, short text."""

from __future__ import annotations

import unicodedata

_PREVIEW_CHARS = 400


def clean(text: str) -> str:
    """Return `text` on one line, with what a terminal would obey (escapes, direction marks) spelled out."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def preview(text: str) -> str:
    """Return the beginning of a text that may be huge, cleaned and without runs of white space."""
    return clean(" ".join(text[:_PREVIEW_CHARS].split())) + ("..." if len(text) > _PREVIEW_CHARS else "")


def display_width(text: str) -> int:
    """Return how many columns a text takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(_char_width(char) for char in text)


def fit(text: str, width: int) -> str:
    """Return `text`, cut with three dots if it takes more than `width` columns."""
    if display_width(text) <= width:
        return text
    taken, dots = 0, min(3, max(0, width))
    for index, char in enumerate(text):
        taken += _char_width(char)
        if taken > width - dots:
            return text[:index] + "." * dots
    return text


def counted(count: int, noun: str) -> str:
    """Return `1 span`, `1,000 spans`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def duration_text(duration_ns: int) -> str:
    """Return a duration in the unit that suits it: `250 us`, `1.25 ms`, `12.5 s`, `3 m 05 s`, `2 h 10 m`."""
    sign, left = ("-", -duration_ns) if duration_ns < 0 else ("", duration_ns)
    if left < 1_000_000:
        return f"{sign}{left // 1_000} us"
    # Rounding must not make `1000 ms` or `60.0 s`.
    if left < 999_500_000:
        return f"{sign}{_three_digits(left / 1e6)} ms"
    if left < 59_950_000_000:
        return f"{sign}{_three_digits(left / 1e9)} s"
    seconds = (left + 500_000_000) // 1_000_000_000
    if seconds < 3_600:
        return f"{sign}{seconds // 60} m {seconds % 60:02d} s"
    if seconds < 86_400:
        return f"{sign}{seconds // 3_600} h {seconds % 3_600 // 60:02d} m"
    return f"{sign}{seconds // 86_400} d {seconds % 86_400 // 3_600:02d} h"


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _char_width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
