"""The few file operations that the spool's promises rest on."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
from typing import BinaryIO

from tracelake.errors import SpoolError

# Held from before a lock is taken, or let go of, until that is noted where `after_fork_in_child` looks; a recorder's
# process holds it while it forks. So no child has a copy of a lock that it does not know of, and keeps for its life.
no_fork = threading.RLock()

_TEMPORARY_SUFFIX = ".tmp"

# What the system says to those who open a link, a directory, a pipe without a reader, or a socket as a file.
NOT_A_FILE = {errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO, errno.EOPNOTSUPP, errno.EINVAL}


def make_private_dir(path: str) -> None:
    """Create a directory only its owner can enter, with its parents alike; fine if it is there already.

    Raises:
        SpoolError: it cannot be made, is a link, belongs to somebody else, or is open to others.
    """
    try:
        _make_dirs(path)
    except OSError as error:
        raise SpoolError(
            f"The spool directory {path} cannot be made: {error.strerror}. "
            "Set TRACELAKE_SPOOL_DIR to a directory this user can write to."
        ) from error
    check_private_dir(path)


def check_private_dir(path: str) -> None:
    """See that a directory, if it is there, is this user's own, and that nobody else can enter it.

    Raises:
        SpoolError: it is a link, belongs to somebody else, or is open to others.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SpoolError(f"{path} cannot be looked at: {error.strerror}. Run this as the user of the spool.") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise SpoolError(
            f"{path} must be a directory of user {os.geteuid()} with mode 700, and is "
            f"{stat.filemode(found.st_mode)} of user {found.st_uid}. "
            f"Run `chmod 700` on it, or set TRACELAKE_SPOOL_DIR to another directory."
        )


def _make_dirs(path: str) -> None:
    # `os.makedirs` gives its mode to the last one only, and whoever can write to a parent can replace what is in it.
    try:
        os.mkdir(path, 0o700)
    except FileNotFoundError:
        parent = os.path.dirname(path)
        if parent in ("", path):
            raise
        _make_dirs(parent)
        _make_dirs(path)
    except OSError:
        if not os.path.isdir(path):
            raise


def open_own(path: str, flags: int) -> int:
    """Open a regular file, made with mode 600 if `flags` have it made; never what a link points to, nor a pipe.

    Raises:
        OSError: it cannot be opened, or is something else than a file.
    """
    # O_NONBLOCK means nothing for files: it keeps the opening of a pipe from waiting for another process.
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", path)
    return descriptor


def open_file(path: str, buffering: int = -1) -> BinaryIO:
    """Open a regular file to read it. Raises as `open_own`."""
    return open(open_own(path, os.O_RDONLY), "rb", buffering)


def replace_file(path: str, data: bytes, *, durable: bool = True) -> None:
    """Put `data` at `path` so that a reader, or a crash at any point, sees all of the old or all of the new file.

    With `durable`, it survives a power loss when this returns.

    Raises:
        OSError: nothing changed.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.{os.urandom(4).hex()}{_TEMPORARY_SUFFIX}")
    descriptor = open_own(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        try:
            write_all(descriptor, data)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except OSError:
        remove_file(temporary)
        raise
    if durable:
        sync_dir(directory)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`, in as many calls as that takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_dir(path: str) -> None:
    """Make renames and removals in a directory survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: str) -> bytes | None:
    """Return what is in a file, or None if there is none."""
    try:
        with open_file(path) as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def remove_file(path: str) -> None:
    """Remove a file; fine if there is none."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_temporaries(directory: str, names: tuple[str, ...] = ()) -> None:
    """Remove what `replace_file` left in a directory when it was killed; of these files only, if any are named.

    Only for the one process that replaces them: another's `replace_file` under way would fail.
    """
    for found in os.listdir(directory):
        if found.startswith(".") and found.endswith(_TEMPORARY_SUFFIX):
            name = found[1 : -len(_TEMPORARY_SUFFIX)].rpartition(".")[0]
            if not names or name in names:
                remove_file(os.path.join(directory, found))


def is_at(descriptor: int, path: str) -> bool:
    """Say whether an open file is still the one at `path`: neither removed, nor moved, nor replaced."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return False


def lock(descriptor: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Take the lock of an open file; False if another holds it and `wait` is not set.

    The lock belongs to the open file, so it ends when the last process that holds it open closes it or dies.

    Raises:
        SpoolError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}:
            raise SpoolError(
                f"The file system of the spool has no file locks: {error.strerror}. "
                "Set TRACELAKE_SPOOL_DIR to a directory on a local disk."
            ) from error
        raise
    return True


def open_locked(path: str) -> int | None:
    """Open a lock file, made if missing, and take its lock; None if another process holds it.

    Call it with `no_fork` held. The lock is worth nothing once the file is not at `path` any more (`is_at`).
    """
    while True:
        descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
        try:
            taken = lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        if taken and is_at(descriptor, path):
            return descriptor
        os.close(descriptor)
        if not taken:
            return None


def is_locked(path: str) -> bool:
    """Say whether a file is there and its lock is held, by asking for it for a moment.

    Raises:
        OSError: it cannot be opened.
        SpoolError: the file system has no locks.
    """
    with no_fork:  # a child with a copy of this descriptor would hold the lock for its life
        try:
            descriptor = open_own(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            return not lock(descriptor, shared=True)
        finally:
            os.close(descriptor)
