"""What a power loss leaves of the files that were changed: what was synced, and any part of the rest.

The content of a file is safe up to its last sync; of what was written since, some first part is there, or zeros are in
its place. Names are safe up to the last sync of their directory; of its changes since, the first few are there. Files
and directories do not wait for each other. Directories themselves are taken to be safe once they are made.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from random import Random
from typing import Any

_open, _close = os.open, os.close  # not those of the edge
_NAMING = {"rename", "replace", "link", "unlink", "remove"}


class Disk:
    """Follows every change of files, by the calls that make it."""

    def __init__(self) -> None:
        self._held: dict[int, int] = {}  # a descriptor for each inode: its content and number stay, whatever its names
        self._safe: dict[int, int] = {}  # bytes of each inode that are synced
        self._names: dict[
            str, list[dict[str, int]]
        ] = {}  # of each directory: synced names, and those after each change

    def close(self) -> None:
        """Forget everything: what is there now is safe."""
        for descriptor in self._held.values():
            _close(descriptor)
        self._held.clear()
        self._safe.clear()
        self._names.clear()

    @contextlib.contextmanager
    def changing(self, name: str, arguments: tuple[Any, ...]) -> Iterator[None]:
        """Follow one call."""
        creates = name == "open" and arguments[1] & os.O_CREAT
        paths = arguments if name in _NAMING else arguments[:1] if creates else ()
        directories = {os.path.dirname(path) for path in paths if os.path.isdir(os.path.dirname(path))}
        for directory in directories - self._names.keys():
            self._names[directory] = [self._look(directory, safe=True)]
        yield
        for directory in directories:
            self._names[directory].append(self._look(directory, safe=False))
        if name == "ftruncate":
            inode = os.fstat(arguments[0]).st_ino
            self._safe[inode] = min(self._safe[inode], arguments[1])

    def sync(self, path: str) -> None:
        """Follow an fsync of a file or a directory."""
        if os.path.isdir(path):
            self._names[path] = self._names.get(path, [{}])[-1:]
        elif os.path.exists(path):
            found = os.stat(path)
            self._safe[found.st_ino] = found.st_size

    def lose_power(self, random: Random) -> None:
        """Leave what a power loss may leave; no process may have a file open."""
        for directory, states in self._names.items():
            kept = random.choice(states)
            for name in sorted(set().union(*states)):
                path = os.path.join(directory, name)
                data = self._left(kept[name], random) if name in kept else None
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                if data is not None:
                    with open(path, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                        file.write(data)
        self.close()

    def _left(self, inode: int, random: Random) -> bytes:
        size = os.fstat(self._held[inode]).st_size
        data = os.pread(self._held[inode], size, 0)
        kept = random.choice([self._safe[inode], random.randint(self._safe[inode], size), size])
        return data[:kept] + (b"\0" * (size - kept) if random.random() < 0.5 else b"")

    def _look(self, directory: str, *, safe: bool) -> dict[str, int]:
        names = {}
        with os.scandir(directory) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not entry.is_file(follow_symlinks=False):
                    continue
                inode = names[entry.name] = entry.inode()
                if inode not in self._held:
                    self._held[inode] = _open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
                    self._safe[inode] = entry.stat().st_size if safe else 0
        return names
