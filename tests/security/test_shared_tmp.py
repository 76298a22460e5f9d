"""Attacks on a spool in a directory that everybody may write to, such as /tmp: made first, linked, swapped."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lake import Lake
from tests.numbered import numbers, record
from tracelake.cli import main
from tracelake.destinations.targets import parse_target
from tracelake.errors import SpoolError
from tracelake.recorder.recorder import Recorder
from tracelake.settings import Settings
from tracelake.shipper import launch
from tracelake.shipper.service import Shipper
from tracelake.shipper.status import read_status
from tracelake.spool.lane import Lane, Spool, default_spool_dir
from tracelake.spool.writer import LaneWriter

from .test_spool_modes import victims_lane
from .users import STRANGER, VICTIM, in_child, needs_root, shared

__all__ = ["shared"]


def made(path: Path) -> Path:
    path.mkdir()
    path.chmod(0o777)
    return path


def linked(path: Path, to: Path) -> Path:
    path.symlink_to(to)
    return path


# What a stranger makes at the place of the victim's spool, before the victim comes; `home` is the victim's own.
PRE_MADE: dict[str, Callable[[Path, Path], object]] = {
    "a directory": lambda spool, _: made(spool),
    "a directory that is closed": lambda spool, _: spool.mkdir(0o700),
    "lanes that are theirs": lambda spool, _: made(made(spool) / "lanes"),
    "lanes that are a link": lambda spool, home: linked(made(spool) / "lanes", home),
    "shippers that are a link": lambda spool, home: linked(made(spool) / "shippers", home),
    "a link to a directory of theirs": lambda spool, _: linked(spool, made(spool.with_name("theirs"))),
    "a link to the victim's home": lambda spool, home: linked(spool, home),
    "a link to nothing": lambda spool, home: linked(spool, home / "new"),
    "a file": lambda spool, _: spool.touch(),
    "a pipe": lambda spool, _: os.mkfifo(spool, 0o666),
}


@needs_root
@pytest.mark.parametrize("what", PRE_MADE)
def test_spool_that_a_stranger_made_first_is_not_used(shared: Path, what: str) -> None:
    """The app goes on, its span is refused with the reason, and nothing is written anywhere."""
    home, spool = shared / "home", shared / "tracelake-victim"
    in_child(lambda: home.mkdir(0o700), uid=VICTIM)
    in_child(lambda: bool(PRE_MADE[what](spool, home)), uid=STRANGER, umask=0)
    before = sorted(map(str, shared.rglob("*")))

    def app() -> tuple[int, str]:
        recorder = Recorder(Settings(shipper="external"), Spool(str(spool)))
        route = recorder.route((parse_target(str(home / "table")),))
        recorder.record(record(1), route.writers)
        return recorder.report().dropped, str(recorder.report())

    dropped, text = in_child(app, uid=VICTIM, umask=0)
    assert dropped == 1, text
    assert "TRACELAKE_SPOOL_DIR" in text or "Permission denied" in text
    assert sorted(map(str, shared.rglob("*"))) == before


@needs_root
def test_default_spool_in_tmp_is_kept_apart(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no home to write to, the spool is a directory of the user's own, made with mode 700."""
    for name in ("TRACELAKE_SPOOL_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setattr("tempfile.tempdir", str(shared))

    def app() -> tuple[str, int]:
        path = default_spool_dir()
        victims_lane(Path(path))
        return path, os.stat(path).st_mode & 0o777

    assert in_child(app, uid=VICTIM, umask=0) == (str(shared / f"tracelake-{VICTIM}"), 0o700)


@needs_root
@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_spool_that_others_may_write_to_is_refused(shared: Path, mode: int) -> None:
    """They could put another `lanes` in the place of ours. The message says how to close it."""
    spool = made(shared / "spool")
    os.chown(spool, VICTIM, VICTIM)
    spool.chmod(mode)

    def create() -> str:
        with pytest.raises(SpoolError) as raised:
            Spool(str(spool)).create()
        return str(raised.value)

    assert "chmod go-w" in in_child(create, uid=VICTIM)
    spool.chmod(0o1777)  # where nobody can move what is another's
    in_child(lambda: Spool(str(spool)).create(), uid=VICTIM)


def forged(lane: Lane) -> Lane:
    """Make a lane as a stranger would: with spans in it, and of the very name and identity of another's."""
    for directory in (lane.path, lane.segments_dir, lane.quarantine_dir, lane.refusals_dir):
        os.makedirs(directory, exist_ok=True)
    Path(lane.note_path).write_text(
        f'{{"target":"{os.path.dirname(lane.path)}/../../stolen","identity":{{}},"created_unix_nano":1,"version":1}}'
    )
    writer = LaneWriter(lane, prepare=lambda: None, max_bytes=10**9, segment_max_bytes=10**6)
    from tracelake.spans.line import encode_line

    assert writer.append(encode_line(record(666)))
    writer.close()
    return lane


@needs_root
def test_swapped_lanes_are_not_delivered(shared: Path) -> None:
    """In a volume that everybody may write to: a shipper that runs takes nothing from a stranger's directory."""
    spool_dir = made(shared / "volume")  # root's, as that of a container

    def swap() -> None:
        (spool_dir / "lanes").rename(spool_dir / "mine")
        made(spool_dir / "lanes")
        forged(Spool(str(spool_dir)).lane(str(spool_dir / "table"), {}))

    in_child(lambda: victims_lane(spool_dir).path, uid=VICTIM, umask=0)
    in_child(swap, uid=STRANGER, umask=0)

    def ship() -> bool:
        shipper = Shipper(Spool(str(spool_dir)), Settings(), serves=lambda *_: True)
        shipper.drain()
        shipper.release()
        return (spool_dir / "stolen").exists() or (spool_dir / "table").exists()

    assert in_child(ship, uid=VICTIM) is False


@needs_root
def test_segment_that_is_under_way_stays_the_victims(shared: Path) -> None:
    """A writer whose directory is swapped notices it, and writes nothing where a stranger could read it."""
    spool_dir = made(shared / "volume")

    def app() -> str:
        recorder = Recorder(Settings(shipper="external"), Spool(str(spool_dir)))
        writers = recorder.route((parse_target(str(shared / "table")),)).writers
        recorder.record(record(1), writers)

        def swap() -> None:
            (spool_dir / "lanes").rename(spool_dir / "mine")
            made(spool_dir / "lanes")

        in_child(swap, uid=None)  # root could, a stranger may in such a volume: the effect is the same
        os.chown(spool_dir / "lanes", STRANGER, STRANGER)
        deadline_s = time.monotonic() + 10
        while not writers[0].refused and time.monotonic() < deadline_s:
            recorder.record(record(2), writers)
            time.sleep(0.05)
        return str(recorder.report())

    text = in_child(app)
    assert f"of user {STRANGER}" in text
    assert list((spool_dir / "lanes").rglob("*")) == []


@needs_root
@pytest.mark.parametrize("command", [["ship", "--once"], ["redirect", "table", "./elsewhere"]])
def test_root_does_not_act_on_another_users_spool(
    shared: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its owner could have links in it to files that only root may write to."""
    spool = shared / "spool"
    target = shared / "root-only"
    target.mkdir(0o700)

    def prepare() -> None:
        lane = victims_lane(spool)
        os.rmdir(lane.quarantine_dir)
        os.symlink(target, lane.quarantine_dir)

    in_child(prepare, uid=VICTIM)
    before = sorted(map(str, shared.rglob("*")))
    assert main([*command, "--spool", str(spool)]) != 0
    assert f"must be a directory of user 0 with mode 700, and is drwx------ of user {VICTIM}" in capsys.readouterr().err
    assert sorted(map(str, shared.rglob("*"))) == before


def _fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def _link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def _socket(path: Path, _: Path) -> None:
    place = os.getcwd()
    os.chdir(path.parent)  # its name may be no longer than 108 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(place)


def _device(path: Path, _: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("put", [_fifo, _link, _socket, _device, lambda path, _: path.mkdir()])
@pytest.mark.parametrize(
    "name",
    ["lane.json", "ledger.json", "in-flight.json", "delivery.json", "flush", "refusals/x.json", "segment", "new"],
)
def test_what_is_no_file_is_not_followed_and_nobody_waits(
    lake: Lake, name: str, put: Callable[[Path, Path], None]
) -> None:
    """Pipes, links, sockets and devices in the place of each file: status, shipper and recorder come to an end."""
    target = lake.root / "mine"
    target.write_text("mine")
    lane = victims_lane(Path(lake.spool.path))
    names = {
        "segment": "segments/0000000000000001-1-00000000-000001.v1.jsonl",
        "new": "segments/0000000000000001-1-00000000-000001.v1.jsonl.new",
    }
    path = Path(lane.path) / names.get(name, name)
    path.unlink(missing_ok=True)
    put(path, target)

    def use() -> None:
        lane.request_flush()
        lane.flush_requested_ns()
        read_status(lake.spool)
        recorder = Recorder(Settings(shipper="external"), lake.spool)
        recorder.record(record(2), recorder.route((parse_target(str(Path(lake.spool.path) / "table")),)).writers)
        recorder.report()
        recorder.flush(0.1)
        shipper = Shipper(lake.spool, Settings(), serves=lambda *_: True)
        shipper.drain()
        shipper.release()

    lake_before = target.read_text(), target.stat().st_mtime_ns
    use()
    assert (target.read_text(), target.stat().st_mtime_ns) == lake_before
    if name in ("segment", "new", "refusals/x.json", "flush", "delivery.json"):
        assert numbers(str(Path(lake.spool.path) / "table")) == [1, 2]


@pytest.mark.parametrize("put", [_fifo, _link, _socket, _device])
@pytest.mark.parametrize("which", ["lock", "log"])
def test_lock_and_log_are_files(lake: Lake, which: str, put: Callable[[Path, Path], None]) -> None:
    """A shipper is not started with others, and nothing is written through them."""
    target = lake.root / "mine"
    target.write_text("mine")
    lake.spool.create()
    path = Path(lake.spool.lock_path({}) if which == "lock" else lake.spool.log_path({}))
    put(path, target)
    with pytest.raises(OSError, match=r"symbolic link|regular file|No such device"):
        launch.start_process(lake.spool, {})
    assert target.read_text() == "mine"
    assert lake.spool.is_shipped({}) is False
    path.unlink()
