"""The recorder in an app: modes, reports, exit, forks, and that nothing of it ever gets in the app's way."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from tests.lake import Lake, wait_until
from tests.numbered import numbers, record
from tracelake.destinations.targets import parse_target
from tracelake.recorder import recorder as recorder_module
from tracelake.recorder.recorder import Recorder, Route
from tracelake.recorder.report import FlushReport
from tracelake.settings import Settings, ShipperMode
from tracelake.spool.files import open_locked
from tracelake.spool.ledger import read_ledger


def new_recorder(lake: Lake, shipper: ShipperMode, **settings: object) -> Recorder:
    settings = {"batch_max_age_s": 0.1, **settings}
    recorder = Recorder(Settings(shipper=shipper, **settings), lake.spool)  # type: ignore[arg-type]
    recorder.set_default((parse_target(lake.table),))
    return recorder


def add(recorder: Recorder, *spans: int, route: Route | None = None) -> None:
    for number in spans:
        recorder.record(record(number), (route or recorder.default_route()).writers)


def check_sum(report: FlushReport) -> None:
    assert report.recorded == report.delivered + report.pending + report.dropped + report.quarantined
    assert min(report.recorded, report.delivered, report.pending, report.dropped, report.quarantined) >= 0


@pytest.fixture
def threaded(lake: Lake) -> Iterator[Recorder]:
    """A recorder whose shipper is a thread of this process."""
    recorder = new_recorder(lake, "thread")
    yield recorder
    if recorder._thread is not None:
        recorder._thread.stop(20)


def test_inline_delivers_on_flush_only(lake: Lake) -> None:
    """Until then spans wait in the spool."""
    recorder = new_recorder(lake, "inline")
    add(recorder, 1, 2)
    assert recorder.report().pending == 2
    assert numbers(lake.table) == []
    report = recorder.flush(20)
    assert report.complete
    assert (report.recorded, report.delivered) == (2, 2)
    assert numbers(lake.table) == [1, 2]


def test_thread_delivers_by_itself(lake: Lake, threaded: Recorder) -> None:
    """No flush is needed, only time."""
    add(threaded, 1, 2)
    wait_until(lambda: numbers(lake.table) == [1, 2], "the spans are delivered")
    assert threaded.flush(20).complete


def test_external_only_records(lake: Lake) -> None:
    """Without a sidecar, flush says at once that spans are pending, and starts nothing."""
    recorder = new_recorder(lake, "external")
    add(recorder, 1)
    started_s = time.monotonic()
    report = recorder.flush(20)
    assert time.monotonic() - started_s < 5
    assert (report.pending, report.delivered) == (1, 0)
    assert lake.shippers() == []
    check_sum(report)


def test_flush_waits_no_longer_than_its_timeout(lake: Lake) -> None:
    """A shipper that is there but delivers nothing is waited for, for as long as was asked."""
    recorder = new_recorder(lake, "external")
    add(recorder, 1)
    lock = open_locked(lake.spool.lock_path({}))
    assert lock is not None
    started_s = time.monotonic()
    assert recorder.flush(0.5).pending == 1
    os.close(lock)
    assert 0.5 <= time.monotonic() - started_s < 5


def test_thread_delivers_where_no_process_can_be_started(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode is `process`, and the image has no shell."""
    monkeypatch.setattr(recorder_module.launch, "_SHELL", str(lake.root / "no-shell"))
    recorder = new_recorder(lake, "process")
    recorder.set_default((parse_target(lake.table),))
    add(recorder, 1, 2)
    try:
        assert recorder.flush(20).complete
    finally:
        assert recorder._thread is not None
        recorder._thread.stop(20)
    assert numbers(lake.table) == [1, 2]


def test_flush_of_a_busy_app_waits_for_earlier_spans_only(threaded: Recorder) -> None:
    """Spans that go on ending while it waits do not keep it waiting."""
    stop = threading.Event()

    def work() -> None:
        number = 0
        while not stop.wait(0.001):
            number += 1
            add(threaded, number)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        wait_until(lambda: threaded.report().recorded > 50, "some spans are recorded")
        started_s = time.monotonic()
        report = threaded.flush(30)
        assert time.monotonic() - started_s < 15
        assert report.delivered > 50
    finally:
        stop.set()
        worker.join()


def test_flush_without_spans_is_done_at_once(lake: Lake) -> None:
    """Nothing is started, made or waited for."""
    recorder = new_recorder(lake, "process")
    assert recorder.flush(20) == FlushReport(0, 0, 0, 0, 0, lake.spool.path)
    assert not os.path.exists(lake.spool.path)


def test_report_counts_every_fate(lake: Lake) -> None:
    """Delivered, set aside, refused and lost: the sum is what was recorded, at every moment."""
    recorder = new_recorder(lake, "inline")
    add(recorder, 1, 2, 3)
    [writer] = recorder.default_route().writers
    check_sum(recorder.report())
    recorder.flush(20)
    writer.append(b"not a span\n")
    recorder.refuse([writer], ValueError("no line"))
    check_sum(recorder.report())
    report = recorder.flush(20)
    assert (report.recorded, report.delivered, report.quarantined, report.dropped) == (5, 3, 1, 1)
    assert not report.complete
    add(recorder, 4, 5)
    shutil.rmtree(writer.lane.segments_dir)
    report = recorder.flush(20)
    assert (report.recorded, report.delivered, report.quarantined, report.dropped) == (7, 3, 1, 3)
    assert any("removed before it was delivered" in error for error in report.errors), report
    add(recorder, 6)
    report = recorder.flush(20)
    assert (report.recorded, report.delivered, report.pending, report.dropped) == (8, 4, 0, 3)
    assert numbers(lake.table) == [1, 2, 3, 6]


def test_flush_does_not_wait_for_spans_that_were_removed(lake: Lake, threaded: Recorder) -> None:
    """The spool is gone: what was in it is reported as dropped, and at once."""
    foreign = str(lake.root / "foreign")
    write_deltalake(foreign, pa.table({"price": [1.5]}))
    add(threaded, 1, 2, route=threaded.route((parse_target(foreign),)))
    shutil.rmtree(lake.spool.path)
    started_s = time.monotonic()
    report = threaded.flush(20)
    assert time.monotonic() - started_s < 5
    assert (report.pending, report.dropped) == (0, 2)


def test_span_that_cannot_be_a_line_keeps_out_no_other(lake: Lake) -> None:
    """Only a disk that refuses is left alone for a moment: the spans after a broken one are recorded."""
    recorder = new_recorder(lake, "external")
    recorder.refuse(recorder.default_route().writers, ValueError("no line"))
    add(recorder, 1)
    report = recorder.report()
    assert (report.pending, report.dropped) == (1, 1)


def test_report_of_a_line_that_was_not_counted_adds_up(lake: Lake) -> None:
    """An exception that a signal handler raised between the write and its count, as Ctrl-C does."""
    recorder = new_recorder(lake, "inline")
    add(recorder, 1, 2)
    recorder.default_route().writers[0].written -= 1
    report = recorder.flush(20)
    check_sum(report)
    assert (report.recorded, report.delivered, report.dropped) == (2, 2, 0)


def test_report_of_a_damaged_ledger_says_so(lake: Lake) -> None:
    """What became of the spans is not known, and nothing is raised."""
    recorder = new_recorder(lake, "inline")
    add(recorder, 1)
    Path(recorder.default_route().writers[0].lane.ledger_path).write_bytes(b"{")
    report = recorder.flush(5)
    assert (report.pending, report.delivered) == (1, 0)
    assert any("is damaged" in error for error in report.errors)


def test_span_of_two_destinations_counts_for_each(lake: Lake) -> None:
    """Each has its own lane; one that is stopped keeps nothing from the other."""
    foreign = str(lake.root / "foreign")
    write_deltalake(foreign, pa.table({"price": [1.5]}))
    recorder = new_recorder(lake, "inline")
    recorder.set_default((parse_target(lake.table), parse_target(foreign)))
    add(recorder, 1)
    report = recorder.flush(20)
    assert (report.recorded, report.delivered, report.pending) == (2, 1, 1)
    assert any(foreign in error for error in report.errors)
    assert numbers(lake.table) == [1]


def test_flush_returns_early_when_what_is_left_is_stopped(lake: Lake, threaded: Recorder) -> None:
    """A lane that is delivered does not make flush wait for another that somebody has to mend."""
    foreign = str(lake.root / "foreign")
    write_deltalake(foreign, pa.table({"price": [1.5]}))
    threaded.set_default((parse_target(lake.table), parse_target(foreign)))
    add(threaded, 1)
    started_s = time.monotonic()
    report = threaded.flush(30)
    assert time.monotonic() - started_s < 10
    assert (report.delivered, report.pending) == (1, 1)


def test_full_lane_is_said_once_with_totals(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of refused spans make one warning a minute."""
    recorder = new_recorder(lake, "external", spool_max_bytes=16 * 1024)
    add(recorder, *range(2000))
    report = recorder.report()
    assert report.dropped > 1000
    check_sum(report)
    assert any("TRACELAKE_SPOOL_MAX_BYTES" in error for error in report.errors)
    assert len([entry for entry in caplog.records if entry.levelno >= logging.WARNING]) == 1


def test_many_destinations_do_not_run_out_of_files(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred tenants, written by several threads in turn: 128 segments are open, no span is lost, none waits."""
    monkeypatch.setattr(recorder_module, "_MAX_OPEN", 128)  # what a limit of 512 files or fewer gives
    recorder = new_recorder(lake, "external")
    routes = [recorder.route((parse_target(f"{lake.root}/tenant {number}"),)) for number in range(200)]

    def work(first: int) -> None:
        for turn in range(3):
            for number, route in enumerate(routes):
                add(recorder, first + 1000 * turn + number, route=route)

    threads = [threading.Thread(target=work, args=(first,), daemon=True) for first in (10_000, 20_000, 30_000, 40_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    report = recorder.report()
    assert (report.recorded, report.pending, report.dropped) == (2400, 2400, 0)
    open_segments = sum(segment.is_open() for lane in lake.spool.lanes() for segment in lane.segments())
    assert open_segments <= 128 + len(threads)
    assert len(lake.records()) == 2400


@pytest.mark.slow
def test_sparse_app_has_its_shipper_back_each_time(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shipper that delivered and ended because nothing came is no failure: the next span need not wait longer."""
    for name in ("TRACELAKE_SHIPPER_IDLE", "TRACELAKE_BATCH_MAX_AGE"):
        monkeypatch.setenv(name, "0.1")
    recorder = new_recorder(lake, "process")
    for number in range(4):
        add(recorder, number)
        recorder._watch_all(patiently=False)
        lake.settle()
    [watch] = recorder._watches.values()
    assert watch.starts <= 1
    assert numbers(lake.table) == [0, 1, 2, 3]


def test_shipper_that_dies_at_once_is_started_ever_less_often(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that cannot even start is not tried every few seconds for ever."""
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    recorder = new_recorder(lake, "process")
    add(recorder, 1)
    for _ in range(5):
        wait_until(lambda: _is_free(lake), "the shipper has died")
        recorder._watch_all(patiently=False)
    [watch] = recorder._watches.values()
    assert watch.starts >= 5
    assert watch.next_s - time.monotonic() > 60


def _is_free(lake: Lake) -> bool:
    lock = open_locked(lake.spool.lock_path({}))
    if lock is not None:
        os.close(lock)
    return lock is not None


APP = """
import sys, tracelake
for number in range(int(sys.argv[1])):
    with tracelake.start_span(f"span {number}"):
        pass
"""


@pytest.mark.parametrize("mode", ["process", "thread", "inline"])
@pytest.mark.parametrize(
    "pause",
    ["", pytest.param("import time; time.sleep(1)\nwith tracelake.start_span('last'): pass\n", marks=pytest.mark.slow)],
)
def test_exit_waits_for_delivery(lake: Lake, mode: str, pause: str) -> None:
    """When a program has ended, its spans are in the table, and it said nothing; short or long, in each mode."""
    output = lake.run(APP + pause, "3", TRACELAKE_SHIPPER=mode)
    assert len(numbers(lake.table)) == 3 + bool(pause)
    assert output == ""
    lake.settle()


@pytest.mark.parametrize("mode", ["process", "thread", "inline", "external"])
def test_exit_says_what_is_left(lake: Lake, mode: str) -> None:
    """A program whose spans cannot be delivered ends in time, with the numbers, the spool and the reason."""
    write_deltalake(lake.table, pa.table({"price": [1.5]}))
    output = lake.run(APP, "3", TRACELAKE_SHIPPER=mode, TRACELAKE_EXIT_TIMEOUT="10")
    assert "tracelake at exit: 3 spans recorded: 0 delivered, 3 pending, 0 dropped, 0 quarantined" in output
    assert lake.spool.path in output
    assert (lake.table in output) == (mode != "external")
    assert ("Run `tracelake ship`" in output) == (mode != "process")
    assert len(lake.records()) == 3
    for pid in lake.shippers():
        os.kill(pid, signal.SIGTERM)


MIDDLE = """
import os, sys, time
import tracelake
from tracelake.recorder.recorder import current_recorder

def record(count):
    for _ in range(count):
        with tracelake.start_span("span", attributes={"text": "x" * 200}):
            pass

record(10_000)
lane = current_recorder().default_route().writers[0].lane
# On a slow machine all of these may have been delivered by now, so there have to be more.
while not os.path.exists(lane.in_flight_path):
    record(20)
time.sleep(float(sys.argv[1]))
"""


@pytest.mark.parametrize("pause_s", ["0.01", "0.03", "0.1"])
@pytest.mark.slow
def test_exit_in_the_middle_of_a_batch_is_no_crash(lake: Lake, pause_s: str) -> None:
    """The thread that delivers has ended when the interpreter goes, also if the program does not wait for its spans."""
    settings = {"TRACELAKE_SHIPPER": "thread", "TRACELAKE_EXIT_TIMEOUT": "0", "TRACELAKE_BATCH_MAX_AGE": "60"}
    lake.run(MIDDLE, pause_s, **settings, TRACELAKE_BATCH_MAX_BYTES="2MB")
    assert list(Path(lake.spool.lanes_dir).glob("*/in-flight.json")) == []


@pytest.mark.parametrize(
    "variable",
    [
        "TRACELAKE_SPOOL_MAX_BYTES",
        pytest.param("TRACELAKE_SEGMENT_MAX_BYTES", marks=pytest.mark.slow),
        pytest.param("TRACELAKE_SHIPPER", marks=pytest.mark.slow),
        pytest.param("TRACELAKE_SHIPPER_IDLE", marks=pytest.mark.slow),
        pytest.param("TRACELAKE_BATCH_MAX_BYTES", marks=pytest.mark.slow),
        pytest.param("TRACELAKE_BATCH_MAX_AGE", marks=pytest.mark.slow),
        pytest.param("TRACELAKE_EXIT_TIMEOUT", marks=pytest.mark.slow),
        pytest.param("TRACELAKE_SCHEMA_VERSION", marks=pytest.mark.slow),
        pytest.param("TRACELAKE_CREATE_TABLE", marks=pytest.mark.slow),
    ],
)
def test_nonsense_in_a_setting_is_said_once_and_the_app_goes_on(lake: Lake, variable: str) -> None:
    """The default holds instead, in the app and in its shipper."""
    output = lake.run(APP, "3", **{variable: "n☃nsense"})
    assert len(re.findall(f"^{variable}='n☃nsense' is not usable", output, re.MULTILINE)) == 1
    assert "for the default" in output
    assert len(lake.records()) in {0, 3}
    if variable in {"TRACELAKE_SCHEMA_VERSION", "TRACELAKE_CREATE_TABLE"}:
        # What a table is made like is not guessed: the shipper waits until it is said.
        assert "3 pending" in output
    else:
        assert len(numbers(lake.table)) == 3
    for pid in lake.shippers():
        os.kill(pid, signal.SIGTERM)


@pytest.mark.parametrize("nonsense", ["nosuch://place", "a.b.c.d.e", "n☃nsense", "s3://", "./good,nosuch://x"])
def test_unusable_destination_keeps_spans_in_a_lane_of_its_own(lake: Lake, nonsense: str) -> None:
    """The error is logged once, the app goes on, and its spans wait where `tracelake status` shows them."""
    output = lake.run(APP, "3", TRACELAKE_DESTINATION=nonsense)
    assert output.count("No destination for spans. TRACELAKE_DESTINATION") == 1
    assert "3 pending" in output
    [lane] = lake.spool.lanes()
    assert lane.note().identity == {"unresolved": "TRACELAKE_DESTINATION"}
    assert len(lake.records()) == 3


def test_unusable_spool_is_said_and_counted(lake: Lake) -> None:
    """A file where the spool should be: no span can be kept, and the program hears of it twice, not three times."""
    Path(lake.spool.path).touch()
    output = lake.run(APP, "3")
    assert output.count("spans could not be put into the spool") == 1
    assert "3 spans recorded: 0 delivered, 0 pending, 3 dropped" in output


def test_directory_that_was_removed_is_no_destination(lake: Lake) -> None:
    """A program whose working directory is gone has no default table; its spans wait all the same."""
    gone = lake.root / "gone"
    gone.mkdir()
    program = f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})\n" + APP
    output = lake.run(program, "2", TRACELAKE_DESTINATION="")
    assert "No destination for spans" in output
    assert len(lake.records()) == 2


LOADED = """
import sys, threading
import tracelake
heavy = {"pyarrow", "deltalake", "duckdb", "databricks", "mlflow", "numpy", "requests", "grpc"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
tracelake.set_destination(sys.argv[1])
for number in range(100):
    with tracelake.start_span("span") as span:
        span.set_inputs({"number": number, "text": ["a", b"b"]})
assert tracelake.flush(30).complete
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert threading.active_count() == 1, threading.enumerate()
print(*sorted(name for name in sys.modules if name.startswith("tracelake.")))
"""


def test_app_loads_nothing_heavy_and_starts_no_thread(lake: Lake) -> None:
    """Importing, naming a destination, recording and flushing: the app's process stays what it was."""
    output = lake.run(LOADED, lake.table)
    assert "tracelake.shipper.service" not in output
    assert len(lake.rows()) == 100


WEIRD = """
import sys, tracelake
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from tracelake import SpanRecorder

class Broken:
    def __repr__(self): raise RuntimeError("repr")
    def __str__(self): raise SystemError("str")
    def __eq__(self, other): raise ValueError("eq")
    __hash__ = None
    def __getattr__(self, name): raise KeyError(name)

loop = []
loop.append(loop)
with tracelake.start_span("weird") as span:
    for number, value in enumerate([Broken(), loop, {1: {2: Broken()}}, 2**200, float("nan"), "\\ud800", b"\\xff"]):
        span.set_attribute(f"value {number}", value)
    span.set_inputs(Broken())
recorder = SpanRecorder()
context = trace.SpanContext(1, 1, False, trace.TraceFlags(1))
recorder.on_end(ReadableSpan("no times", context=context))
recorder.on_end(ReadableSpan("broken", context=context, attributes=Broken(), events=Broken()))
recorder.on_end(ReadableSpan("no context"))
recorder.on_end(ReadableSpan(Broken(), context=context))
print(tracelake.flush(30))
"""


def test_nothing_of_ours_is_raised_into_the_app(lake: Lake) -> None:
    """Objects that break whatever touches them, spans without times: recorded as far as they go, or counted."""
    output = lake.run(WEIRD)
    report = re.search(r"(\d+) spans recorded: (\d+) delivered, (\d+) pending, (\d+) dropped", output)
    assert report is not None, output
    recorded, delivered, pending, dropped = map(int, report.groups())
    assert (recorded, pending) == (delivered + dropped, 0)
    assert {"weird", "no times"} <= {row["name"] for row in lake.rows()}
    assert "Traceback" not in output


FORKS = """
import os, sys, multiprocessing, threading, tracelake

def child(number):
    with tracelake.start_span(f"child {number}"):
        pass

def main(kind):
    with tracelake.start_span("parent"):
        pass
    if kind == "os.fork":
        for number in range(4):
            if not os.fork():
                child(number)
                sys.exit() if number % 2 else os._exit(0)
        for number in range(4):
            os.wait()
    else:
        context = multiprocessing.get_context(kind)
        processes = [context.Process(target=child, args=(number,)) for number in range(4)]
        [process.start() for process in processes]
        [process.join() for process in processes]
        assert [process.exitcode for process in processes] == [0] * 4
    with tracelake.start_span("parent again"):
        pass

if __name__ == "__main__":
    main(sys.argv[1])
"""


@pytest.mark.parametrize("mode", ["process", "thread"])
@pytest.mark.parametrize(
    "kind", ["os.fork", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("fork", "spawn"))]
)
def test_forked_children_record_for_themselves(lake: Lake, kind: str, mode: str) -> None:
    """Spans of a child are delivered once, whether it ends as Python does or at once, and its parent's as well."""
    lake.run(FORKS, kind, TRACELAKE_SHIPPER=mode)
    if mode == "thread":
        # A child whose parent's shipper is a thread has nobody once both are gone; the next program delivers.
        lake.run(APP, "1", TRACELAKE_SHIPPER="inline")
    names = [row["name"] for row in lake.rows() if row["name"] != "span 0"]
    assert sorted(names) == ["child 0", "child 1", "child 2", "child 3", "parent", "parent again"]


CROWD = """
import asyncio, sys, threading, tracelake

def work(number):
    for turn in range(50):
        with tracelake.start_span(f"thread {number}.{turn}"):
            pass

async def task(number):
    with tracelake.start_span(f"task {number}"):
        await asyncio.sleep(0)

async def main():
    await asyncio.gather(*[task(number) for number in range(100)])

threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
[thread.start() for thread in threads]
asyncio.run(main())
[thread.join() for thread in threads]
"""


def test_threads_and_tasks_record(lake: Lake) -> None:
    """All at once, each span once."""
    lake.run(CROWD)
    names = [row["name"] for row in lake.rows()]
    assert len(names) == len(set(names)) == 600


def test_terminated_app_loses_nothing(lake: Lake) -> None:
    """SIGTERM ends a program without its exit handlers; what it recorded is delivered by the shipper it left."""
    app = lake.start(sys.executable, "-c", APP + "print('recorded', flush=True)\nimport time; time.sleep(60)", "50")
    wait_until(lambda: "recorded" in lake.output(app), "the spans are recorded")
    app.send_signal(signal.SIGTERM)
    assert app.wait(20) == -signal.SIGTERM
    assert len(lake.rows()) == 50


SHUT_DOWN = """
import sys, time, tracelake
from opentelemetry.sdk.trace import TracerProvider
from tracelake import SpanRecorder

provider = TracerProvider(shutdown_on_exit=False)
recorder = SpanRecorder()
provider.add_span_processor(recorder)
tracer = provider.get_tracer("t")
tracer.start_span("before").end()
recorder.shutdown()
late = tracer.start_span("after")
time.sleep(1)
late.end()
"""


@pytest.mark.parametrize("mode", ["process", "thread", "inline"])
def test_spans_after_a_shutdown_are_delivered(lake: Lake, mode: str) -> None:
    """A provider that is shut down early delivers what there is; what ends later is waited for at exit."""
    output = lake.run(SHUT_DOWN, TRACELAKE_SHIPPER=mode, TRACELAKE_EXIT_TIMEOUT="10")
    assert output == ""
    assert len(numbers(lake.table)) == 2


def test_shipper_of_a_killed_one_takes_over_at_the_next_flush(lake: Lake) -> None:
    """A recorder that flushes looks whether its shipper still lives, as often as needed."""
    program = APP + (
        "import os, signal, time\n"
        "while not (pids := [line.split()[2] for line in open(sys.argv[2]) if 'started' in line]): time.sleep(0.01)\n"
        "os.kill(int(pids[0]), signal.SIGKILL)\n"
        "print(tracelake.flush(30).complete)\n"
    )
    log = lake.spool.log_path({})
    output = lake.run(program, "3", log, TRACELAKE_BATCH_MAX_AGE="60")
    assert output == "True\n"
    assert len(lake.rows()) == 3
    assert len(lake.shippers()) == 2


def test_delivered_counts_stay_with_the_writer(lake: Lake, threaded: Recorder) -> None:
    """Counts are of this process, whatever others deliver to the same lane."""
    other = new_recorder(lake, "external")
    add(other, *range(100, 150))
    add(threaded, 1, 2)
    report = threaded.flush(20)
    assert (report.recorded, report.delivered) == (2, 2)
    wait_until(lambda: other.report().delivered == 50, "the others' are delivered")
    [lane] = lake.spool.lanes()
    assert read_ledger(lane).delivered == 52
