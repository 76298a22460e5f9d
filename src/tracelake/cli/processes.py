"""Child processes that talk in lines, and that end when this process is done with them."""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

from tracelake.errors import TracelakeError

_END_S = 5.0
_KEEP_CHARS = 4_000


class ProcessError(TracelakeError):
    """A child process did not do what it was started for."""


class Child:
    """A running program, in a session of its own: Ctrl-C reaches this process only, which then ends the program."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], pass_fds: tuple[int, ...] = ()
    ) -> None:
        self.name = name
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._said = ""
        self._process = subprocess.Popen(  # noqa: S603 - our own programs
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=dict(environment),
            pass_fds=pass_fds,
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._read_lines, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._keep_errors, args=(self._process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def line(self, timeout_s: float) -> str:
        """Return the next line that the program prints.

        Raises:
            ProcessError: it ended without one, or printed none in `timeout_s` seconds.
        """
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise self._failed(f"has said nothing for {timeout_s:.0f} seconds") from None
        if line is None:
            raise self._failed(f"ended with code {self._process.wait()}")
        return line.rstrip("\n")

    def ask_to_end(self) -> None:
        """Send SIGTERM."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """See to it that the program has ended when this returns: asked first, then killed."""
        try:
            self.ask_to_end()
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
        for reader in self._readers:
            reader.join(1.0)

    def _failed(self, what: str) -> ProcessError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)
        if self._process.poll() is not None:
            self._readers[1].join(1.0)
        said = self._said.strip()
        return ProcessError(
            f"The {self.name} {what}. "
            + (f"This is what it said:\n{said}" if said else "It said nothing; run this again to see if it stays so.")
        )

    def _read_lines(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._lines.put(line)
        self._lines.put(None)

    def _keep_errors(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._said = (self._said + line)[-_KEEP_CHARS:]


@contextlib.contextmanager
def started(
    name: str, command: Sequence[str], environment: Mapping[str, str], pass_fds: tuple[int, ...] = ()
) -> Iterator[Child]:
    """Start a program for the with-body, and end it, whatever ends that."""
    child: Child | None = None
    try:
        with _signals_wait():
            child = Child(name, command, environment, pass_fds)
        yield child
    finally:
        if child is not None:
            child.end()


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the with-body as Ctrl-C does, so that what it started is ended, too."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt):
        yield


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Put off an interrupt to the end of the with-body: a program that was just started must not be forgotten."""
    came: list[object] = []
    with _handled(lambda *_: came.append(None)):
        yield
    if came:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _handled(handler: Callable[..., object]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def remaining(deadline_s: float) -> float:
    """Return the seconds until a monotonic time, at least 0."""
    return max(0.0, deadline_s - time.monotonic())
