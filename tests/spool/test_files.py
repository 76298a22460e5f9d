"""The file operations: who may read what they make, and what a crash or a full disk leaves."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from tests.lake import Lake, wait_until
from tracelake.errors import SpoolError
from tracelake.spool.files import (
    is_at,
    make_private_dir,
    open_locked,
    read_file,
    remove_file,
    remove_temporaries,
    replace_file,
)


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.fixture
def open_umask() -> object:
    """A process that gives everything to everybody unless told otherwise."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_private_dir_is_its_owners_only(tmp_path: Path) -> None:
    """Whatever the umask, nobody else can enter a directory of the spool; making it again is fine."""
    path = str(tmp_path / "a" / "b")
    make_private_dir(path)
    make_private_dir(path)
    assert mode(path) == 0o700


@pytest.mark.parametrize("extra", [0o001, 0o010, 0o040])
def test_private_dir_open_to_others_is_refused(tmp_path: Path, extra: int) -> None:
    """A directory that others can enter or list is not used, and the message says how to close it."""
    path = tmp_path / "open"
    path.mkdir()
    path.chmod(0o700 | extra)
    with pytest.raises(SpoolError, match=r"open must be a directory .* mode 700.*chmod 700"):
        make_private_dir(str(path))
    assert mode(path) == 0o700 | extra


def test_private_dir_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """A link could be pointed elsewhere by whoever made it."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(SpoolError, match="must be a directory"):
        make_private_dir(str(tmp_path / "link"))


def test_private_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """A file in the way is named, with the setting to change."""
    (tmp_path / "file").touch()
    with pytest.raises(SpoolError, match=r"file cannot be made: .*TRACELAKE_SPOOL_DIR"):
        make_private_dir(str(tmp_path / "file"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_private_dir_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """A directory of another user is not used, even with the right mode."""
    path = tmp_path / "theirs"
    path.mkdir(mode=0o700)
    os.chown(path, 12345, 12345)
    with pytest.raises(SpoolError, match="user 12345"):
        make_private_dir(str(path))


@pytest.mark.usefixtures("open_umask")
def test_replaced_file_is_its_owners_only(tmp_path: Path) -> None:
    """Notes are readable by their owner only, and nothing else is left beside them."""
    path = tmp_path / "note"
    replace_file(str(path), b"one")
    replace_file(str(path), b"two", durable=False)
    assert path.read_bytes() == b"two"
    assert mode(path) == 0o600
    assert os.listdir(tmp_path) == ["note"]


def test_replace_that_fails_changes_nothing(tmp_path: Path) -> None:
    """After an error the old file is whole, and no temporary file is left."""
    path = tmp_path / "note"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        replace_file(str(path), b"new")
    assert os.listdir(tmp_path) == ["note"]


def test_replace_on_a_full_disk_changes_nothing(small_disk: Path) -> None:
    """A note that does not fit leaves the one before it."""
    path = small_disk / "note"
    replace_file(str(path), b"old")
    with pytest.raises(OSError, match="No space"):
        replace_file(str(path), bytes(9 * 2**20))
    assert path.read_bytes() == b"old"
    assert os.listdir(small_disk) == ["note"]


def test_temporaries_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    """Only the files that are named are cleaned up after, or all of them."""
    for name in (".ledger.json.01ab23cd.tmp", ".lane.json.01ab23cd.tmp", "ledger.json", ".hidden"):
        (tmp_path / name).touch()
    remove_temporaries(str(tmp_path), ("ledger.json",))
    assert sorted(os.listdir(tmp_path)) == [".hidden", ".lane.json.01ab23cd.tmp", "ledger.json"]
    remove_temporaries(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == [".hidden", "ledger.json"]


def test_missing_file_reads_as_none(tmp_path: Path) -> None:
    """Missing is an answer, and removing what is missing is fine."""
    assert read_file(str(tmp_path / "none")) is None
    remove_file(str(tmp_path / "none"))


def test_lock_is_held_by_one(tmp_path: Path) -> None:
    """A second opener gets nothing until the first closes; the lock file is private."""
    path = str(tmp_path / "lock")
    first = open_locked(path)
    assert first is not None
    assert open_locked(path) is None
    os.close(first)
    second = open_locked(path)
    assert second is not None
    os.close(second)
    assert mode(path) == 0o600


def test_lock_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """No lock is taken on a file that a link points to."""
    (tmp_path / "real").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match="symbolic links"):
        open_locked(str(tmp_path / "link"))


def test_lock_ends_with_its_process(lake: Lake) -> None:
    """A process that is killed holds no lock, and nobody has to clean up after it."""
    path = str(lake.root / "lock")
    holder = lake.start(
        sys.executable,
        "-c",
        f"import time; from tracelake.spool.files import open_locked; open_locked({path!r}); print(1, flush=True); "
        "time.sleep(60)",
    )
    wait_until(lambda: lake.output(holder), "the lock is taken")
    assert open_locked(path) is None
    holder.kill()
    holder.wait()
    descriptor = open_locked(path)
    assert descriptor is not None
    os.close(descriptor)


def test_locks_taken_while_their_file_is_removed_are_real(tmp_path: Path) -> None:
    """Whoever removes the lock file all the time, nobody is handed a lock on a file that others do not see."""
    path = str(tmp_path / "lock")
    stop = threading.Event()

    def remove() -> None:
        while not stop.is_set():
            remove_file(path)

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        for _ in range(300):
            descriptor = open_locked(path)
            assert descriptor is not None
            os.close(descriptor)
    finally:
        stop.set()
        remover.join()


@pytest.mark.parametrize("change", ["removed", "moved", "replaced", "directory replaced by a file"])
def test_open_file_that_is_not_at_its_path_is_told(tmp_path: Path, change: str) -> None:
    """An open file goes on existing for its process when others do not find it any more."""
    path = tmp_path / "dir" / "file"
    path.parent.mkdir()
    with open(path, "w") as file:
        assert is_at(file.fileno(), str(path))
        if change == "removed":
            path.unlink()
        elif change == "moved":
            path.rename(tmp_path / "elsewhere")
        elif change == "replaced":
            replace_file(str(path), b"")
        else:
            path.unlink()
            path.parent.rmdir()
            path.parent.touch()
        assert not is_at(file.fileno(), str(path))
