"""The edge between our code and the operating system: each call that changes something may be a process's last.

The functions of `os` and `fcntl` that the spool and the shipper call are wrapped, wherever they are bound; nothing of
ours is replaced. Processes are played one at a time, in this one: what a process opened is closed when it dies, so its
locks fall, and whatever it would still do in a `finally` has no effect.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from tests.protocol.disk import Disk

_CHANGING = (
    *("open", "close", "write", "writev", "pwrite", "ftruncate", "truncate", "fsync", "fdatasync"),
    *("rename", "replace", "link", "symlink", "unlink", "remove", "mkdir", "rmdir", "utime", "chmod"),
)
_WRITES = {"write", "writev", "pwrite"}


class Crash(BaseException):
    """The process that made a call is dead."""


@dataclass(frozen=True)
class Fault:
    """What becomes of the call number `at` of a process, counted from 1.

    `crash`: it is done, and the process dies. `torn`: half of a write is done, and the process dies. `short`: half of
    a write is done, and the process is told. `error`: it fails, and nothing is done.
    """

    at: int
    kind: Literal["crash", "torn", "short", "error"] = "crash"


@dataclass
class Process:
    """What the kernel knows of a process: `open` has the path of each descriptor, `made` those that it may write to.

    Of those that it only reads, file objects close some, so `open` may have more than there are.
    """

    open: dict[int, str] = field(default_factory=dict)
    made: set[int] = field(default_factory=set)
    dead: bool = False


class Edge:
    """Counts the calls of the process that runs, and lets one of them be its last.

    Attributes:
        calls: the names of the changing calls so far, of all processes.
        disk: what a power loss would leave.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.disk = Disk()
        self._running: Process | None = None
        self._fault: Fault | None = None
        self._fault_at = 0
        self._thread = threading.get_ident()
        self._patch = pytest.MonkeyPatch()
        self._real: dict[str, Any] = {name: getattr(os, name) for name in _CHANGING if hasattr(os, name)}
        self._real["flock"] = fcntl.flock

    def install(self) -> None:
        """Stand between this process and the operating system, for the modules of the protocol."""
        wrappers = {real: self._wrapper(name, real) for name, real in self._real.items()}
        ours = [module for name, module in sys.modules.items() if name.startswith("tracelake.")]
        for module in (os, fcntl, *ours):
            for name, value in list(vars(module).items()):
                if getattr(value, "__hash__", None) and callable(value) and value in wrappers:
                    self._patch.setattr(module, name, wrappers[value])

    def remove(self) -> None:
        """Step aside."""
        self._patch.undo()
        self.disk.close()

    @contextlib.contextmanager
    def running(self, process: Process, fault: Fault | None = None) -> Iterator[None]:
        """Have calls be those of a process, with at most one fault. Raises Crash if it died of it."""
        assert self._running is None
        assert not process.dead
        self._running, self._fault, self._fault_at = process, fault, len(self.calls) + (fault.at if fault else 0)
        try:
            yield
        finally:
            self._running = self._fault = None
            if process.dead:
                self.kill(process)

    def kill(self, process: Process) -> None:
        """End a process as SIGKILL does."""
        process.dead = True
        for descriptor in process.made:
            self._real["close"](descriptor)
        process.made.clear()

    def duplicate(self, descriptor: int, parent: Process, child: Process) -> int:
        """Give a child the descriptor of its parent, as fork does: both hold the one lock."""
        copy = os.dup(descriptor)
        child.open[copy] = parent.open[descriptor]
        child.made.add(copy)
        return copy

    def call(self, name: str, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Make a call of the running process, unless it is dead; it may die of it."""
        process = self._running
        assert process is not None
        if process.dead:
            raise Crash
        self.calls.append(name)
        fault = self._fault if self._fault and len(self.calls) == self._fault_at else None
        if fault and fault.kind == "error":
            if name == "close":  # it says how writing went, and closes all the same
                function(*arguments)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if fault and fault.kind in {"torn", "short"}:
            if name in _WRITES:
                descriptor, data = arguments
                arguments = (descriptor, bytes(data)[: len(data) // 2])
            elif fault.kind == "short":
                fault = None
        result = function(*arguments, **keywords)
        if fault and fault.kind in {"crash", "torn"}:
            process.dead = True
            raise Crash
        return result

    def _wrapper(self, name: str, real: Any) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            process = self._running
            if process is None or threading.get_ident() != self._thread:
                return real(*arguments, **keywords)
            if process.dead:
                if name == "close" and arguments[0] not in process.made:
                    real(*arguments)  # opened to read; what is made is closed by `kill`
                raise Crash
            if _changes(process, name, arguments):
                return self.call(name, done, *arguments, **keywords)
            return done(*arguments, **keywords)

        def done(*arguments: Any, **keywords: Any) -> Any:
            process = self._running
            assert process is not None
            if name == "fsync":  # the disk is a model, so nobody waits for the real one
                return self.disk.sync(process.open[arguments[0]])
            with self.disk.changing(name, arguments):
                result = real(*arguments, **keywords)
            if name == "open":
                process.open[result] = arguments[0]
                if arguments[1] & os.O_CREAT:
                    process.made.add(result)
            elif name == "close":
                process.open.pop(arguments[0], None)
                process.made.discard(arguments[0])
            return result

        return call


def _changes(process: Process, name: str, arguments: tuple[Any, ...]) -> bool:
    """Say whether a call changes what another process could see."""
    if name == "open":
        return bool(arguments[1] & os.O_CREAT)
    if name == "close":
        return arguments[0] in process.made
    if name == "flock":
        return bool(arguments[1] & fcntl.LOCK_EX)
    return True
