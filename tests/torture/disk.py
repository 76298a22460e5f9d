"""A small disk that can be filled."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path


class SmallDisk:
    """A file system of some MiB in a directory; where none can be mounted, the directory alone, which is never full.

    Attributes:
        path: the directory.
        unusable: why it cannot be filled.
    """

    def __init__(self, path: Path, mib: int) -> None:
        path.mkdir(parents=True)
        self.path = path
        self.unusable = ""
        self._filler = path / "filler"
        if os.geteuid() != 0:
            self.unusable = "a file system can be mounted by root only"
            return
        command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "tmpfs", str(path)]
        mounted = subprocess.run(command, capture_output=True, text=True)
        if mounted.returncode:
            self.unusable = f"no file system can be mounted: {mounted.stderr.strip()}"

    def fill(self) -> None:
        """Leave no byte of it, until `free`."""
        descriptor = os.open(self._filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for block in (2**20, 4096, 1):
                with contextlib.suppress(OSError):
                    while os.write(descriptor, b"\0" * block):
                        continue
        finally:
            os.close(descriptor)

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it; what was on it is gone."""
        if not self.unusable:
            subprocess.run(["umount", "-l", str(self.path)], check=True)
