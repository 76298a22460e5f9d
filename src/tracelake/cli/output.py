"""What commands print: data on stdout, messages and progress on stderr."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import msgspec

from tracelake.query.text import duration_text, fit
from tracelake.query.tree import Style

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

# Work that takes longer says that it is going on: a terminal every half second, a log every ten.
_QUIET_S = 1.0
_TERMINAL_S = 0.5
_LOG_S = 10.0

_JSON = msgspec.json.Encoder(decimal_format="number", enc_hook=str)


def say(text: str) -> None:
    """Print a message for the user on stderr."""
    print(f"tracelake: {text}", file=sys.stderr, flush=True)


def json_text(value: Any) -> str:
    """Return a value as JSON on one line: times as RFC 3339, bytes as base64, NaN and infinities as null."""
    return _JSON.encode(value).decode()


def style_of(stream: TextIO) -> Style:
    """Return how a tree is drawn on a stream: its width, and what it can show."""
    terminal = stream.isatty()
    return Style(
        width=shutil.get_terminal_size().columns,
        unicode=_can_draw(stream),
        colour=terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
    )


@contextlib.contextmanager
def progress(what: str, detail: Callable[[], str] | None = None) -> Iterator[None]:
    """Say on stderr that `what` goes on, if the with-body takes longer than a second.

    `detail` is called in a thread and says how far it is.
    """
    done = threading.Event()
    thread = threading.Thread(target=_report, args=(done, what, detail), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _report(done: threading.Event, what: str, detail: Callable[[], str] | None) -> None:
    terminal = sys.stderr.isatty()
    started_s = time.monotonic()
    wait_s = _QUIET_S
    shown = False
    while not done.wait(wait_s):
        taken = duration_text(int((time.monotonic() - started_s) * 1e9))
        text = f"{what}, {taken}{', ' + detail() if detail else ''}"
        if terminal:
            text = fit(text, shutil.get_terminal_size().columns - 1)
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        else:
            say(text)
        shown = True
        wait_s = _TERMINAL_S if terminal else _LOG_S
    if shown and terminal:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _can_draw(stream: TextIO) -> bool:
    try:
        "├─└│".encode(stream.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True
