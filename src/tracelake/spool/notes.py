"""Read and write the small JSON files of a lane; each has a `version` and is replaced as a whole."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from tracelake.errors import LedgerError
from tracelake.spool.files import NOT_A_FILE, read_file, replace_file

# Version of every file in the spool but the segments, which carry theirs in their name.
NOTE_VERSION = 1

Note = TypeVar("Note", bound=msgspec.Struct)


def read_note(path: str, kind: type[Note]) -> Note | None:
    """Return the note at `path`, or None if there is none.

    Raises:
        LedgerError: it is damaged, is no file, or a newer tracelake wrote it.
        OSError: it cannot be read.
    """
    try:
        data = read_file(path)
        if data is None:
            return None
        version = msgspec.json.decode(data, type=_Versioned).version
        if version > NOTE_VERSION:
            raise LedgerError(
                f"{path} has version {version}, and this tracelake knows versions up to {NOTE_VERSION}. "
                "Update the tracelake that ships this spool."
            )
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NOT_A_FILE:
            raise
        raise LedgerError(
            f"{path} is damaged: {error}. docs/spool-format.md says what it held and how to repair the lane."
        ) from error


def write_note(path: str, note: msgspec.Struct, *, durable: bool = True) -> None:
    """Replace the note at `path`.

    Raises:
        OSError: nothing changed.
    """
    replace_file(path, msgspec.json.encode(note), durable=durable)


class _Versioned(msgspec.Struct):
    version: int
