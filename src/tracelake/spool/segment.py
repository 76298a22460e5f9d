"""Segments: the append-only files of a lane, each written by one process.

A segment is named `<writer>-<sequence>.v<format>.jsonl` and holds one line a span. Its writer keeps it locked while it
may still append; the lock ends with the process, whatever ends it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tracelake.spool.files import is_locked, lock, open_file, open_own, remove_file

# The only line format so far. A segment of a newer one is left alone, and said to be there by `tracelake status`.
FORMAT_VERSION = 1

_NAME = re.compile(r"(?P<writer>[0-9a-f]{16}-\d+-[0-9a-f]{8})-(?P<sequence>\d{6,})\.v(?P<version>\d+)\.jsonl")
_NEW_SUFFIX = ".new"
_TAIL_BYTES = 64 * 1024
_READ_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Segment:
    """One segment file, as its name tells. Segments sort by the time their writers started."""

    path: str
    name: str
    writer: str
    version: int

    def size(self) -> int:
        """Return its bytes; 0 if it is gone."""
        try:
            return os.stat(self.path, follow_symlinks=False).st_size
        except FileNotFoundError:
            return 0

    def is_open(self) -> bool:
        """Say whether its writer may still append to it."""
        return is_locked(self.path)

    def count_lines(self, start: int, end: int) -> int:
        """Return how many whole lines there are from `start` to `end`; none if the file is gone."""
        try:
            with open_file(self.path) as file:
                file.seek(start)
                return file.read(max(0, end - start)).count(b"\n")
        except FileNotFoundError:
            return 0

    def end_of_lines(self, start: int, limit: int) -> int:
        """Return where the last whole line between `start` and `limit` ends; `start` if there is none."""
        with open_file(self.path) as file:
            end = limit
            while end > start:
                begin = max(start, end - _TAIL_BYTES)
                file.seek(begin)
                newline = file.read(end - begin).rfind(b"\n")
                if newline >= 0:
                    return begin + newline + 1
                end = begin
        return start

    def end_of_line(self, start: int, size: int) -> int:
        """Return where the line that begins at `start` ends; `start` if its newline is not written yet."""
        with open_file(self.path) as file:
            file.seek(start)
            position = start
            while position < size and (block := file.read(min(_READ_BYTES, size - position))):
                newline = block.find(b"\n")
                if newline >= 0:
                    return position + newline + 1
                position += len(block)
        return start

    def blocks(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, some whole lines) from `start` to `end`: a MiB or so, or more if a line is longer.

        A torn last line is a block of its own.
        """
        with open_file(self.path, buffering=0) as file:
            file.seek(start)
            offset = start
            rest = b""
            while piece := file.read(min(max(_READ_BYTES, len(rest)), end - offset - len(rest))):
                block = rest + piece if rest else piece
                whole = block.rfind(b"\n") + 1
                if whole:
                    yield offset, block[:whole]
                    offset += whole
                rest = block[whole:]
            if rest:
                yield offset, rest

    def lines(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, line) from `start` to `end`, newlines included; a torn last line has none."""
        with open_file(self.path, buffering=_READ_BYTES) as file:
            file.seek(start)
            offset = start
            while offset < end:
                line = file.readline(end - offset)
                if not line:
                    return
                yield offset, line
                offset += len(line)


def list_segments(directory: str) -> list[Segment]:
    """Return the segments in a directory, oldest first; what else is there, such as a link, is no segment."""
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = ((name, _NAME.fullmatch(name)) for name in names)
    segments = [
        Segment(os.path.join(directory, name), name, match["writer"], int(match["version"]))
        for name, match in found
        if match
    ]
    return sorted(segments, key=lambda segment: segment.name)


def new_writer_name() -> str:
    """Return a name for a writer that no other has, in any container or host that shares the spool."""
    return f"{time.time_ns():016x}-{os.getpid()}-{os.urandom(4).hex()}"


def open_segment(directory: str, writer: str, sequence: int) -> tuple[int, str]:
    """Create and lock the next segment of a writer; return its descriptor, opened to append, and its path.

    The file gets its name only once it is locked, so nobody can take it for one whose writer is gone. Call it with
    `files.no_fork` held.

    Raises:
        OSError: it cannot be created.
        SpoolError: the file system has no locks.
    """
    path = os.path.join(directory, f"{writer}-{sequence:06d}.v{FORMAT_VERSION}.jsonl")
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
    while True:
        descriptor = open_own(path + _NEW_SUFFIX, flags)
        try:
            lock(descriptor, wait=True)  # only `is_open` ever asks for it too, and lets go at once
            os.rename(path + _NEW_SUFFIX, path)
        except FileNotFoundError:
            # `remove_unfinished` came between the first two steps. Without its directory, the next `open` raises.
            os.close(descriptor)
        except BaseException:
            os.close(descriptor)
            remove_file(path + _NEW_SUFFIX)
            raise
        else:
            return descriptor, path


def remove_unfinished(directory: str) -> None:
    """Remove what writers left that died between making a segment and naming it. Nothing is ever written to those."""
    with os.scandir(directory) as entries:
        found = [
            item.path for item in entries if item.name.endswith(_NEW_SUFFIX) and item.is_file(follow_symlinks=False)
        ]
    for path in found:
        if not is_locked(path):
            remove_file(path)
