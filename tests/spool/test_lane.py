"""The directories of a spool: whose they are, where they are, and which lane is whose."""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
import time
from pathlib import Path

import pytest

from tests.lake import Lake
from tests.numbered import line, numbers
from tracelake.errors import LedgerError, SpoolError
from tracelake.settings import Settings
from tracelake.shipper.lane import LaneShipper
from tracelake.spool.lane import Lane, Spool, default_spool_dir, identity_digest
from tracelake.spool.writer import LaneWriter


def test_spool_is_its_owners_only(lake: Lake, lane: Lane) -> None:
    """Nobody else can list lanes, or read a span, a note or a lock."""
    LaneWriter(lane, prepare=lambda: None, max_bytes=10**9, segment_max_bytes=10**6).append(line(1))
    lane.request_flush()
    found = list(Path(lake.spool.path).rglob("*"))
    modes = {stat.S_IMODE(path.stat().st_mode) for path in found if path != Path(lake.spool.path)}
    assert len(found) >= 8
    assert modes == {0o700, 0o600}


def test_spool_in_a_directory_of_somebody_else_is_refused(lake: Lake) -> None:
    """Whoever owns the directory above could put another spool in its place."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    os.makedirs(lake.spool.path, 0o777)
    os.chown(lake.spool.path, 12345, 12345)
    with pytest.raises(SpoolError, match=r"belongs to user 12345.*TRACELAKE_SPOOL_DIR"):
        lake.spool.create()


@pytest.mark.parametrize("name", ["a b", "spööl-目录", "quo'te\"", "%41#?", "-rf"])
def test_spool_path_may_hold_anything(lake: Lake, name: str) -> None:
    """Spaces, other scripts and what shells and URLs mean something by: spans go in and are delivered."""
    spool = Spool(str(lake.root / name))
    spool.create()
    lane = spool.lane(lake.table, {})
    lane.create(lake.table, {})
    writer = LaneWriter(lane, prepare=lambda: None, max_bytes=10**9, segment_max_bytes=10**6)
    writer.append(line(1))
    writer.close()
    LaneShipper(lane, Settings()).ship(flush=True)
    assert numbers(lake.table) == [1]


@pytest.mark.parametrize("target", ["/data/t", "s3://bucket/" + "x" * 300, "uc://a.b.c", "目录", "..", "", "a/../b"])
def test_lane_name_is_one_safe_file_name(lake: Lake, target: str) -> None:
    """Whatever the target, the lane's folder is one in the spool, and has a short name."""
    lane = lake.spool.lane(target, {})
    assert os.path.dirname(lane.path) == lake.spool.lanes_dir
    assert os.path.abspath(lane.path) == lane.path
    assert len(lane.name) <= 60
    assert lane.name.isascii()


def test_identities_have_lanes_and_locks_of_their_own(lake: Lake) -> None:
    """Two profiles that write to one table do not share a lane; the same settings in another order do."""
    one, two = {"AWS_PROFILE": "a", "store": "s3"}, {"AWS_PROFILE": "b", "store": "s3"}
    assert lake.spool.lane("t", one).path != lake.spool.lane("t", two).path
    assert lake.spool.lock_path(one) != lake.spool.lock_path(two)
    assert lake.spool.lane("t", one).path == lake.spool.lane("t", dict(reversed(one.items()))).path
    assert identity_digest(one) == identity_digest(dict(reversed(one.items())))


def test_lane_note_tells_what_the_lane_is_for(lane: Lane, lake: Lake) -> None:
    """Made once: a second `create` leaves it as it is."""
    before = Path(lane.note_path).read_bytes()
    lane.create(lake.table, {})
    assert Path(lane.note_path).read_bytes() == before
    assert (lane.note().target, lane.note().identity) == (lake.table, {})


def test_lane_without_a_note_is_told(lane: Lane) -> None:
    """A folder that is no lane is named, with what to do about it."""
    os.unlink(lane.note_path)
    with pytest.raises(LedgerError, match=r"lane\.json is missing\. Move the folder"):
        lane.note()


def test_only_directories_are_lanes(lake: Lake, lane: Lane) -> None:
    """Files, links and hidden folders beside the lanes are left alone."""
    Path(lake.spool.lanes_dir, "README").touch()
    Path(lake.spool.lanes_dir, ".hidden").mkdir()
    Path(lake.spool.lanes_dir, "link").symlink_to(lane.path)
    assert [found.path for found in lake.spool.lanes()] == [lane.path]


def test_missing_spool_has_no_lanes(tmp_path: Path) -> None:
    """Looking makes nothing."""
    assert Spool(str(tmp_path / "none")).lanes() == []
    assert not (tmp_path / "none").exists()


def test_every_flush_request_is_a_new_one(lane: Lane) -> None:
    """Two requests in a row are two, also when a clock stands still or is set back in between."""
    assert lane.flush_requested_ns() == 0
    seen = []
    for _ in range(50):
        lane.request_flush()
        seen.append(lane.flush_requested_ns())
    assert len(set(seen)) == 50


def test_flush_request_is_seen_after_the_clock_was_set_back(lake: Lake, lane: Lane) -> None:
    """A request with an earlier time than the one before is a request all the same."""
    writer = LaneWriter(lane, prepare=lambda: None, max_bytes=10**9, segment_max_bytes=10**6)
    shipper = LaneShipper(lane, Settings(batch_max_age_s=3600))
    writer.append(line(1))
    lane.request_flush()
    shipper.ship()
    writer.append(line(2))
    shipper.ship()
    assert numbers(lake.table) == [1]
    hour_ago_ns = time.time_ns() - 3600 * 10**9
    os.utime(lane.flush_path, ns=(hour_ago_ns, hour_ago_ns))
    shipper.ship()
    assert numbers(lake.table) == [1, 2]


def test_request_for_a_lane_that_is_gone_is_no_error(lake: Lake) -> None:
    """Nobody has to be asked for what is not there."""
    lane = lake.spool.lane("gone", {})
    lane.request_flush()
    assert lane.flush_requested_ns() == 0


def test_default_spool_is_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting, spans wait where state of a user belongs."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_spool_dir() == f"{tmp_path}/.local/state/tracelake/spool"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert Spool().path == f"{tmp_path}/state/tracelake/spool"


@pytest.mark.parametrize("home", ["relative/state", ""])
def test_default_spool_without_a_usable_home_is_temporary(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative state directory, or a user without any home, gives a directory of the user's own in the system's."""
    monkeypatch.setenv("XDG_STATE_HOME", home)
    monkeypatch.delenv("HOME", raising=False)
    if not home:
        monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])  # a user id that the system does not know
    assert default_spool_dir() == os.path.join(tempfile.gettempdir(), f"tracelake-{os.geteuid()}")
