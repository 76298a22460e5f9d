"""Having a shipper run: exactly one, detached, revived, and gone without a trace."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.lake import Lake, wait_until
from tests.numbered import add_segment, line, lines, numbers
from tests.shipper.conftest import make_lane
from tracelake.settings import Settings
from tracelake.shipper import launch
from tracelake.spool.files import open_locked
from tracelake.spool.lane import Lane


@pytest.fixture
def environment(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shippers that this process starts have the settings of the lake."""
    for name, value in lake.environ.items():
        if name.startswith("TRACELAKE_"):
            monkeypatch.setenv(name, value)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout


@pytest.mark.usefixtures("environment")
def test_started_shipper_delivers_and_ends(lake: Lake, lane: Lane) -> None:
    """It is nobody's child, delivers, ends by itself, and is started again for the next span."""
    for number in range(2):
        add_segment(lane, line(number))
        assert launch.start_process(lake.spool, {}) == "started"
        wait_until(lambda seen=number: numbers(lake.table) == list(range(seen + 1)), "the span is delivered")  # type: ignore[misc]
        lake.settle()
    assert len(lake.shippers()) == 2
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    wait_until(lambda: not any(map(is_running, lake.shippers())), "the processes are gone")


def test_second_shipper_is_not_started(lake: Lake, lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one runs, there is nothing to do."""
    monkeypatch.setenv("TRACELAKE_SHIPPER_IDLE", "30")
    add_segment(lane, line(1))
    assert launch.start_process(lake.spool, {}) == "started"
    assert launch.start_process(lake.spool, {}) == "running"
    [pid] = wait_until(lake.shippers, "the shipper started")
    assert launch.start_process(lake.spool, {}) == "running"
    os.kill(pid, signal.SIGTERM)
    lake.settle()
    assert numbers(lake.table) == [1]


STARTER = """
import os, sys, time
from tracelake.shipper.launch import start_process
from tracelake.spool.lane import Spool

print("ready", flush=True)
while not os.path.exists(sys.argv[2]):
    time.sleep(0.001)
print(start_process(Spool(sys.argv[1]), {}), flush=True)
"""


@pytest.mark.slow
def test_processes_that_start_at_once_start_one_shipper(lake: Lake, lane: Lane) -> None:
    """Sixteen processes at the same moment: one starts it, the others find it running."""
    add_segment(lane, line(1))
    go = lake.root / "go"
    starters = [
        lake.start(sys.executable, "-c", STARTER, lake.spool.path, str(go), TRACELAKE_SHIPPER_IDLE="5")
        for _ in range(16)
    ]
    wait_until(lambda: all("ready" in lake.output(starter) for starter in starters), "all are ready")
    go.touch()
    assert [starter.wait(30) for starter in starters] == [0] * 16
    answers = sorted(lake.output(starter).split()[-1] for starter in starters)
    assert answers == ["running"] * 15 + ["started"]
    [pid] = wait_until(lake.shippers, "the shipper started")
    os.kill(pid, signal.SIGTERM)
    lake.settle()
    assert numbers(lake.table) == [1]


@pytest.mark.usefixtures("environment")
def test_killed_shipper_is_replaced(lake: Lake, lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kill -9` frees the lock, and nobody has to wait for anything."""
    monkeypatch.setenv("TRACELAKE_SHIPPER_IDLE", "30")
    launch.start_process(lake.spool, {})
    [pid] = wait_until(lake.shippers, "the shipper started")
    os.kill(pid, signal.SIGKILL)
    monkeypatch.setenv("TRACELAKE_SHIPPER_IDLE", "0.3")
    wait_until(lambda: launch.start_process(lake.spool, {}) == "started", "another is started")
    add_segment(lane, line(1))
    lake.settle()
    assert numbers(lake.table) == [1]
    assert len(lake.shippers()) == 2


def test_terminated_shipper_delivers_what_is_there(lake: Lake, lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM: everything in the spool is delivered first, batches under way and young ones."""
    monkeypatch.setenv("TRACELAKE_BATCH_MAX_AGE", "3600")
    monkeypatch.setenv("TRACELAKE_BATCH_MAX_BYTES", "100000")
    launch.start_process(lake.spool, {})
    [pid] = wait_until(lake.shippers, "the shipper started")
    for first in range(0, 5000, 1000):
        add_segment(lane, lines(range(first, first + 1000)))
    wait_until(lambda: numbers(lake.table), "the first batch is delivered")
    add_segment(lane, line(5000))
    os.kill(pid, signal.SIGTERM)
    lake.settle()
    assert numbers(lake.table) == list(range(5001))
    assert "shipper ended" in lake.log()


FORKING = """
import os, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, of what is tested here: fork with threads
from tracelake.recorder.recorder import current_recorder
from tracelake.shipper import launch

recorder = current_recorder()
recorder.spool.create()
stop = threading.Event()
children = []

def fork():
    while not stop.is_set():
        pid = os.fork()
        if not pid:
            held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd != "0"
                    and os.path.exists(f"/proc/self/fd/{fd}")]
            os._exit(any(".lock" in name for name in held))
        children.append(os.waitpid(pid, 0)[1])

threads = [threading.Thread(target=fork) for _ in range(2)]
for thread in threads:
    thread.start()
for number in range(60):
    launch.start_process(recorder.spool, {"n": str(number)})
stop.set()
for thread in threads:
    thread.join()
print(len(children), sum(map(bool, children)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs to see a process's open files")
def test_child_forked_during_a_launch_holds_no_lock(lake: Lake) -> None:
    """Or it would keep, for all its life, every later shipper from starting."""
    output = lake.run(FORKING, TRACELAKE_SHIPPER_IDLE="0.1")
    forked, holding = map(int, output.split())
    assert forked > 20
    assert holding == 0


def test_shipper_without_a_shell_is_impossible_and_leaves_the_lock(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image without one: the recorder then delivers in a thread, which needs the lock."""
    lake.spool.create()
    monkeypatch.setattr(launch, "_SHELL", str(lake.root / "no-shell"))
    assert launch.start_process(lake.spool, {}) == "impossible"
    descriptor = open_locked(lake.spool.lock_path({}))
    assert descriptor is not None
    os.close(descriptor)


def test_shipper_without_an_interpreter_is_impossible(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside uWSGI or a frozen program, `sys.executable` is not Python, and nothing is started."""
    monkeypatch.setattr(sys, "executable", "/usr/sbin/uwsgi")
    monkeypatch.setattr(sys, "exec_prefix", "/nowhere")
    lake.spool.create()
    assert launch.start_process(lake.spool, {}) == "impossible"
    lock = open_locked(lake.spool.lock_path({}))
    assert lock is not None
    os.close(lock)


@pytest.mark.usefixtures("environment")
def test_log_is_private_and_turned_over(lake: Lake) -> None:
    """The log says who wrote it and when, is its owner's only, and is kept once when it has grown large."""
    lake.spool.create()
    path = Path(lake.spool.log_path({}))
    path.write_bytes(b"x" * (2**20 + 1))
    launch.start_process(lake.spool, {})
    [pid] = wait_until(lake.shippers, "the shipper started")
    lake.settle()
    assert re.search(rf"^\d{{4}}-\d\d-\d\d .* {pid} INFO shipper of ", path.read_text())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.with_name(path.name + ".1").stat().st_size == 2**20 + 1


@pytest.mark.usefixtures("environment")
def test_shipper_takes_no_modules_of_the_apps_directory(
    lake: Lake, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `queue.py` or `logging.py` beside the app is not the shipper's."""
    (lake.root / "queue.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(lake.root)
    add_segment(lane, line(1))
    launch.start_process(lake.spool, {})
    lake.settle()
    assert numbers(lake.table) == [1]


def test_thread_delivers_stops_and_comes_back(lake: Lake, lane: Lane) -> None:
    """A shipper in a thread ends when told, frees its lock, and serves again when asked again."""
    thread = launch.ShipperThread(lake.spool, Settings(batch_max_age_s=0.1))
    for number in range(2):
        add_segment(lane, line(number))
        thread.serve({})
        wait_until(lambda seen=number: numbers(lake.table) == list(range(seen + 1)), "the span is delivered")  # type: ignore[misc]
        thread.stop(20)
        wait_until(lambda: "tracelake-shipper" not in [found.name for found in threading.enumerate()], "end")
        lock = open_locked(lake.spool.lock_path({}))
        assert lock is not None
        os.close(lock)


def test_thread_serves_identities_that_come_later(lake: Lake) -> None:
    """Each identity that a recorder names is served from then on; none before."""
    tables = {name: str(lake.root / name) for name in ("a", "b")}
    for name, table in tables.items():
        add_segment(make_lane(lake, table, {"profile": name}), line(1))
    thread = launch.ShipperThread(lake.spool, Settings(batch_max_age_s=0.1))
    try:
        thread.serve({"profile": "a"})
        wait_until(lambda: numbers(tables["a"]) == [1], "the first is delivered")
        time.sleep(0.3)  # three looks: that nothing happens has no event to wait for
        assert numbers(tables["b"]) == []
        thread.serve({"profile": "b"})
        wait_until(lambda: numbers(tables["b"]) == [1], "the second is delivered")
    finally:
        thread.stop(20)
