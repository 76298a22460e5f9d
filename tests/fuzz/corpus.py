"""The inputs that are kept, `corpus/<target>/<name>`: good ones, and each that went wrong once."""

from __future__ import annotations

from pathlib import Path

_CORPUS = Path(__file__).parent / "corpus"


def seeds(target: str) -> list[bytes]:
    """Return the inputs that are kept for a target."""
    return [path.read_bytes() for path in paths(target)]


def paths(target: str) -> list[Path]:
    """Return the files of a target's inputs."""
    return sorted((_CORPUS / target).iterdir())
