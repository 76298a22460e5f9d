"""A lane: the directory where the spans of one destination, written with one identity, wait for delivery."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Mapping

import msgspec

from tracelake.errors import LedgerError, SpoolError
from tracelake.spool.files import check_private_dir, is_locked, make_private_dir, open_own
from tracelake.spool.notes import NOTE_VERSION, read_note, write_note
from tracelake.spool.segment import Segment, list_segments


class LaneNote(msgspec.Struct, frozen=True):
    """`lane.json`: what the lane is for. `identity` holds non-secret settings only."""

    target: str
    identity: dict[str, str]
    created_unix_nano: int
    version: int = NOTE_VERSION


class Lane:
    """Paths and notes of one lane. Cheap to make; reads files only when asked."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = os.path.basename(path)
        self.note_path = os.path.join(path, "lane.json")
        self.segments_dir = os.path.join(path, "segments")
        self.quarantine_dir = os.path.join(path, "quarantine")
        self.refusals_dir = os.path.join(path, "refusals")
        self.ledger_path = os.path.join(path, "ledger.json")
        self.in_flight_path = os.path.join(path, "in-flight.json")
        self.delivery_path = os.path.join(path, "delivery.json")
        self.flush_path = os.path.join(path, "flush")

    def __repr__(self) -> str:
        return f"Lane({self.path!r})"

    def note(self) -> LaneNote:
        """Return what the lane is for.

        Raises:
            LedgerError: `lane.json` is missing, damaged or of a newer version.
        """
        note = read_note(self.note_path, LaneNote)
        if note is None:
            raise LedgerError(f"{self.note_path} is missing. Move the folder {self.path} out of the spool.")
        return note

    def segments(self) -> list[Segment]:
        """Return the lane's segments of every format version, oldest first."""
        return list_segments(self.segments_dir)

    def create(self, target: str, identity: Mapping[str, str]) -> None:
        """Make the lane's directories and note; fine if they are there already.

        Raises:
            SpoolError: a directory or the note cannot be made.
        """
        for directory in (self.path, self.segments_dir, self.quarantine_dir, self.refusals_dir):
            make_private_dir(directory)
        try:
            if not os.path.exists(self.note_path):
                note = LaneNote(target=target, identity=dict(identity), created_unix_nano=time.time_ns())
                write_note(self.note_path, note)
        except OSError as error:
            raise SpoolError(
                f"{self.note_path} cannot be written: {error.strerror}. "
                "Set TRACELAKE_SPOOL_DIR to a directory this user can write to."
            ) from error

    def request_flush(self) -> None:
        """Ask whoever ships this lane to deliver what it holds now, without waiting for a full batch."""
        try:
            descriptor = open_own(self.flush_path, os.O_WRONLY | os.O_CREAT)
            try:
                # The kernel's own file times stand still for milliseconds, in which a second request would go unseen.
                now_ns = time.time_ns()
                os.utime(descriptor, ns=(now_ns, now_ns))
            finally:
                os.close(descriptor)
        except OSError:
            return  # the batch is then delivered at its age

    def flush_requested_ns(self) -> int:
        """Return when delivery was last asked for, as a file time in nanoseconds; 0 for never.

        Only whether it is another time than before means something: clocks are set back.
        """
        try:
            return os.stat(self.flush_path, follow_symlinks=False).st_mtime_ns
        except OSError:
            return 0


class Spool:
    """The directory that holds every lane of a user, and the locks and logs of their shippers.

    Args:
        path: the directory; empty means `~/.local/state/tracelake/spool`, or one of this user's in the system's
            temporary directory where there is no home to write to.
    """

    def __init__(self, path: str = "") -> None:
        self.path = os.path.abspath(os.path.expanduser(path or default_spool_dir()))
        self.lanes_dir = os.path.join(self.path, "lanes")
        self.shippers_dir = os.path.join(self.path, "shippers")

    def __repr__(self) -> str:
        return f"Spool({self.path!r})"

    def create(self) -> None:
        """Make the spool's directories; fine if they are there already.

        Raises:
            SpoolError: they cannot be made, or are not safe to use.
        """
        if not os.path.isdir(self.path):
            make_private_dir(self.path)
        self._check_top()
        make_private_dir(self.lanes_dir)
        make_private_dir(self.shippers_dir)

    def check(self) -> None:
        """See that what is in the spool, if it is there, was put there by this user: before any of it is acted on.

        Raises:
            SpoolError: another user may have.
        """
        check_private_dir(self.lanes_dir)
        check_private_dir(self.shippers_dir)

    def _check_top(self) -> None:
        """See that no other user can replace the directories in the spool's own."""
        found = os.stat(self.path)
        # A link is its maker's, who could point it elsewhere.
        for owner in (os.lstat(self.path).st_uid, found.st_uid):
            if owner not in {0, os.geteuid()}:
                raise SpoolError(
                    f"The spool directory {self.path} belongs to user {owner}, who could replace what is in it. "
                    "Set TRACELAKE_SPOOL_DIR to a directory of this user or of root."
                )
        # One that root made for everybody is a container's volume: what others put there is refused for its owner.
        if found.st_uid and found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            raise SpoolError(
                f"The spool directory {self.path} has mode {stat.filemode(found.st_mode)}, so others could replace "
                "what is in it. Run `chmod go-w` on it, or set TRACELAKE_SPOOL_DIR to another directory."
            )

    def lane(self, target: str, identity: Mapping[str, str]) -> Lane:
        """Return the lane of a destination and an identity; it may not exist yet."""
        slug = re.sub(r"[^a-zA-Z0-9]+", "-", target).strip("-").lower()[-40:].strip("-") or "lane"
        digest = hashlib.sha256(msgspec.json.encode([target, sorted(identity.items())])).hexdigest()[:12]
        return Lane(os.path.join(self.lanes_dir, f"{slug}-{digest}"))

    def lanes(self) -> list[Lane]:
        """Return every lane, by name. What is no directory of the spool's own, such as a link, is no lane."""
        try:
            with os.scandir(self.lanes_dir) as entries:
                names = [
                    entry.name
                    for entry in entries
                    if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
                ]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [Lane(os.path.join(self.lanes_dir, name)) for name in sorted(names)]

    def lock_path(self, identity: Mapping[str, str]) -> str:
        """Return the path of the lock that the one shipper of an identity holds."""
        return os.path.join(self.shippers_dir, f"{identity_digest(identity)}.lock")

    def is_shipped(self, identity: Mapping[str, str]) -> bool:
        """Say whether a shipper of an identity runs.

        Raises:
            SpoolError: the file system has no locks.
        """
        try:
            return is_locked(self.lock_path(identity))
        except OSError:
            return False

    def log_path(self, identity: Mapping[str, str]) -> str:
        """Return the path of the log that a shipper process of an identity writes."""
        return os.path.join(self.shippers_dir, f"{identity_digest(identity)}.log")


def identity_digest(identity: Mapping[str, str]) -> str:
    """Return the short name of an identity: equal settings have equal names."""
    return hashlib.sha256(msgspec.json.encode(sorted(identity.items()))).hexdigest()[:12]


def default_spool_dir() -> str:
    """Return where the spool is when nothing says otherwise."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    # A user without a home, as in many containers, has "~" itself for one.
    if os.path.isabs(state):
        probe = state
        while not os.path.exists(probe):
            probe = os.path.dirname(probe)
        if os.access(probe, os.W_OK | os.X_OK):
            return os.path.join(state, "tracelake", "spool")
    return os.path.join(tempfile.gettempdir(), f"tracelake-{os.geteuid()}")
