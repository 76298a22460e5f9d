"""Other users of the machine: code that runs in a forked child as one of them."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

# The user whose spans are at stake, and one who wants them.
VICTIM, STRANGER = 54_321, 54_322

T = TypeVar("T")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")


def in_child(function: Callable[[], T], *, uid: int | None = None, umask: int = 0o022, timeout_s: int = 20) -> T:
    """Return what `function` returns in a forked child, as a user; what waits for longer is ended."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(timeout_s)
        status = 1
        try:
            os.umask(umask)
            if uid is not None:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            found: Any = True, function()
            status = 0
        except BaseException:  # noqa: BLE001 - shown by the parent
            found = False, traceback.format_exc()
        with open(writer, "wb") as file:
            pickle.dump(found, file)
        os._exit(status)
    os.close(writer)
    with open(reader, "rb") as file:
        data = file.read()
    _, status = os.waitpid(pid, 0)
    assert data, f"the child ended without an answer, status {status}: it waited for too long, or was killed"
    done, found = pickle.loads(data)
    assert done, found
    return found  # type: ignore[no-any-return]


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory as /tmp is: everybody may make files there, and remove their own."""
    path = Path(tempfile.mkdtemp(prefix="tracelake-shared-", dir="/tmp"))
    path.chmod(0o1777)
    yield path
    shutil.rmtree(path, ignore_errors=True)
