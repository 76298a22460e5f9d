"""The few file operations that the spool's promises rest on."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading

from tracelake.errors import SpoolError

# Held from before a lock is taken, or let go of, until that is noted where `after_fork_in_child` looks; a recorder's
# process holds it while it forks. So no child has a copy of a lock that it does not know of, and keeps for its life.
no_fork = threading.RLock()

_TEMPORARY_SUFFIX = ".tmp"


def make_private_dir(path: str) -> None:
    """Create a directory only its owner can enter, with its parents; fine if it is there already.

    Raises:
        SpoolError: it cannot be made, is a link, belongs to somebody else, or is open to others.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        found = os.lstat(path)
    except OSError as error:
        raise SpoolError(
            f"The spool directory {path} cannot be made: {error.strerror}. "
            "Set TRACELAKE_SPOOL_DIR to a directory this user can write to."
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise SpoolError(
            f"{path} must be a directory of user {os.geteuid()} with mode 700, and is "
            f"{stat.filemode(found.st_mode)} of user {found.st_uid}. "
            f"Run `chmod 700` on it, or set TRACELAKE_SPOOL_DIR to another directory."
        )


def replace_file(path: str, data: bytes, *, durable: bool = True) -> None:
    """Put `data` at `path` so that a reader, or a crash at any point, sees all of the old or all of the new file.

    With `durable`, it survives a power loss when this returns.

    Raises:
        OSError: nothing changed.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.{os.urandom(4).hex()}{_TEMPORARY_SUFFIX}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
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
        with open(path, "rb") as file:
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
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
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
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            return not lock(descriptor, shared=True)
        finally:
            os.close(descriptor)
