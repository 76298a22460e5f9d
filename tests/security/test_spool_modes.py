"""Every file of a spool is its owner's only, and another user gets nothing out of it, nor anything into it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.lake import Lake
from tests.numbered import record
from tracelake.destinations.targets import parse_target
from tracelake.recorder.recorder import Recorder
from tracelake.settings import Settings
from tracelake.spool.lane import Lane, Spool

from .users import STRANGER, VICTIM, in_child, needs_root, shared

__all__ = ["shared"]

ROOT = Path(__file__).parents[2]

# Records, has it delivered by a shipper process, leaves a torn line to quarantine and refuses some.
_APP = """
import os, sys, tracelake
os.umask(int(sys.argv[1], 8))
from tests.numbered import record
from tracelake.destinations.targets import parse_target
from tracelake.recorder.recorder import current_recorder
recorder = current_recorder()
route = recorder.route((parse_target(os.environ["TRACELAKE_DESTINATION"]),))
recorder.record(record(1), route.writers)
os.write(route.writers[0]._descriptor, b"no span\\n")
recorder.refuse(route.writers, ValueError("no"))
recorder.record(record(2), route.writers)
assert recorder.flush(20).delivered == 2
"""


@pytest.mark.parametrize("umask", ["000", *(pytest.param(umask, marks=pytest.mark.slow) for umask in ("022", "077"))])
def test_every_file_is_its_owners_only(lake: Lake, umask: str) -> None:
    """Whatever the umask: the recorder's files, the shipper's, its log and lock, and the directories above."""
    lake.environ |= {
        "TRACELAKE_SPOOL_DIR": str(lake.root / "made" / "by" / "us"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    lake.spool = Spool(lake.environ["TRACELAKE_SPOOL_DIR"])
    seen: dict[str, int] = {}
    lake.run(_APP, umask)
    lake.settle()
    for path in (lake.root / "made", *(lake.root / "made").rglob("*")):
        seen[path.name] = mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), (path, oct(mode))
    assert {"lane.json", "ledger.json", "flush"} <= seen.keys()
    for pattern in ("*.log", "*.lock", "quarantine/*.jsonl", "refusals/*.json"):
        assert list((lake.root / "made").rglob(pattern)), pattern


def victims_lane(path: Path) -> Lane:
    """Record a span as the user who runs this, and return the lane."""
    recorder = Recorder(Settings(shipper="external"), Spool(str(path)))
    recorder.set_default((parse_target(str(path / "table")),))
    (writer,) = recorder.default_route().writers
    recorder.record(record(1), [writer])
    assert recorder.report().pending == 1, recorder.report()
    writer.lane.request_flush()
    writer.close()
    return writer.lane


def attempts(path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what a stranger might try with each file and directory of a spool."""
    for found in (path, *path.rglob("*")):
        if found.is_dir():
            yield f"list {found}", partial(os.listdir, found)
            yield f"add to {found}", partial((found / "mine").write_text, "x")
            yield f"move {found}", partial(found.rename, f"{found}-away")
        else:
            yield f"read {found}", found.read_bytes
            yield f"write {found}", partial(found.open, "ab")
            yield f"remove {found}", found.unlink
            yield f"link {found}", partial(os.link, found, path.parent / "link")
            yield f"truncate {found}", partial(os.truncate, found, 0)
        yield f"look at {found}/x", (found / "x").stat
        yield f"change {found}", partial(found.chmod, 0o777)


@needs_root
def test_another_user_gets_nothing_out_and_nothing_in(shared: Path) -> None:
    """Not a name, a byte, a lock or a time: each attempt is refused by the system."""
    path = shared / "tracelake-victim"
    in_child(lambda: victims_lane(path).path, uid=VICTIM, umask=0)
    tries = list(attempts(path))
    assert len(tries) > 30

    def succeeded() -> list[str]:
        found = []
        for name, attempt in tries:
            with contextlib.suppress(PermissionError):
                attempt()
                found.append(name)
        return found

    assert in_child(succeeded, uid=STRANGER) == []
    assert in_child(lambda: len(Spool(str(path)).lanes()), uid=VICTIM) == 1
