"""Have a shipper run for an identity: as a detached process, or as a thread of this one.

Loads nothing heavy: it runs in the app.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import posix
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from tracelake.settings import Settings
from tracelake.spool.files import no_fork, open_locked, open_own
from tracelake.spool.lane import Spool, identity_digest

if TYPE_CHECKING:
    from tracelake.shipper.service import Shipper

_log = logging.getLogger("tracelake.shipper")

_MAX_LOG_BYTES = 2**20
_SHELL = "/bin/sh"
# What `-P -m MODULE` does, which Python 3.10 does not have.
_RUN_MODULE = (
    "import sys; sys.path[:] = filter(None, sys.path); import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)

# Where the `sitecustomize` of `opentelemetry-instrument` is, which would instrument the shipper, too.
_AUTO_INSTRUMENTATION = os.path.join("opentelemetry", "instrumentation", "auto_instrumentation")

# Locks on their way to a shipper. A child forked at that moment must close its copies, or it would hold them on.
_locks_in_hand: set[int] = set()

# The descriptor under which a shipper gets its lock, the first after the standard streams.
_PASSED = 3


def start_process(spool: Spool, identity: Mapping[str, str]) -> Literal["running", "started", "impossible"]:
    """Start a detached shipper process for an identity, unless one is running.

    The lock is taken here and handed to the process, open, so that there is no moment in which two could start. The
    process is nobody's child: its end cannot be mistaken for that of a process the app started.

    Raises:
        SpoolError, OSError: the lock cannot be taken, or the log cannot be opened.
    """
    python = _python()
    if python is None:
        return "impossible"
    with no_fork:
        taken = open_locked(spool.lock_path(identity))
        if taken is None:
            return "running"
        lock = fcntl.fcntl(taken, fcntl.F_DUPFD_CLOEXEC, _PASSED + 1)  # so that it is never passed on as itself
        os.close(taken)
        _locks_in_hand.add(lock)
    try:
        command = [*module_command(python, "tracelake.shipper"), spool.path, identity_digest(identity), str(_PASSED)]
        log = _open_log(spool.log_path(identity))
        try:
            return "started" if _run_in_background(command, log, lock) else "impossible"
        finally:
            os.close(log)
    finally:
        with no_fork:
            _locks_in_hand.discard(lock)
            os.close(lock)


def module_command(python: str, module: str) -> list[str]:
    """Return the command that runs a module, and takes no module of the current directory for an installed one."""
    if sys.version_info >= (3, 11):
        return [python, "-P", "-m", module]
    return [python, "-c", _RUN_MODULE, module]


def after_fork_in_child() -> None:
    """Let go of what a thread of the parent was handing to a shipper at the moment of the fork."""
    while _locks_in_hand:
        os.close(_locks_in_hand.pop())


def _run_in_background(command: list[str], output: int, passed: int) -> bool:
    """Start a command that is nobody's child, in a session of its own, with no other descriptors than these.

    By the system's `posix_spawn`: where gevent has replaced `subprocess`, that forks and runs every library's fork
    handlers in the child, and when one of them waits, the child goes on to answer its parent's requests; and what it
    puts in place of `os.waitpid` may wait for ever. False where no process can be started, as without a shell.
    """
    try:
        # The shell puts the command in the background and ends, so that this waits for a millisecond only.
        shell = posix.posix_spawn(
            _SHELL,
            [_SHELL, "-c", '"$@" &', "sh", *command],
            _environment(),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, passed, _PASSED),
                *((os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in _inheritable()),
            ],
            setsid=True,
        )
        _, status = posix.waitpid(shell, 0)
    except ChildProcessError:
        return True  # it ended, and one who waits for all children of the process, as gevent does, has seen it first
    except (OSError, NotImplementedError):
        return False
    return status == 0


def _inheritable() -> list[int]:
    found = []
    for descriptor in map(int, os.listdir("/dev/fd")):
        with contextlib.suppress(OSError):  # closed since, as the one that listed them is
            if descriptor > _PASSED and os.get_inheritable(descriptor):
                found.append(descriptor)
    return found


class ShipperThread:
    """A shipper in a daemon thread of this process."""

    def __init__(self, spool: Spool, settings: Settings) -> None:
        self._spool = spool
        self._settings = settings
        self._identities: set[str] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._shipper: Shipper | None = None

    def serve(self, identity: Mapping[str, str]) -> None:
        """Deliver the lanes of an identity, too; starts the thread if it is not running.

        Raises:
            RuntimeError: no thread can be started any more, because the interpreter is ending.
        """
        self._identities.add(identity_digest(identity))
        if self._thread is None or not self._thread.is_alive():
            self._stop.clear()
            thread = threading.Thread(target=self._run, name="tracelake-shipper", daemon=True)
            thread.start()
            self._thread = thread

    def stop(self, timeout_s: float) -> None:
        """Ask the thread to end after the batch under way, and wait for that."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def after_fork_in_child(self) -> None:
        """Forget the thread, which stayed in the parent, and close the copies of its locks."""
        self._thread = None
        if self._shipper is not None:
            self._shipper.forget()

    def _run(self) -> None:
        from tracelake.shipper.service import Shipper

        self._shipper = Shipper(
            self._spool, self._settings, serves=lambda _, identity: identity_digest(identity) in self._identities
        )
        try:
            self._shipper.run(self._stop)
        except RuntimeError as error:
            _log.info("the shipper's thread ended, the recorder delivers by itself: %s", error)
        finally:
            self._shipper.release()


def _open_log(path: str) -> int:
    try:
        if os.stat(path, follow_symlinks=False).st_size > _MAX_LOG_BYTES:
            os.replace(path, path + ".1")
    except FileNotFoundError:
        pass
    return open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _environment() -> dict[str, str]:
    """Return the app's environment, for a process that is not traced."""
    environment = {**os.environ, "OTEL_SDK_DISABLED": "true"}
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if not path.endswith(_AUTO_INSTRUMENTATION))
    return environment


def _python() -> str | None:
    """Return the interpreter to run, or None: inside uWSGI and frozen programs `sys.executable` is something else."""
    candidates = [sys.executable, os.path.join(sys.exec_prefix, "bin", "python3")]
    for path in candidates:
        if path and os.path.basename(path).startswith(("python", "pypy")) and os.access(path, os.X_OK):
            return path
    return None
