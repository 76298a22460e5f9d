"""Spans of real servers and real processes: each is in the table once, under its parent, however the process ends."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.lake import Lake, wait_until

APPS = str(Path(__file__).parent / "apps")
BIN = Path(sys.executable).parent
REQUESTS = 24


@dataclass
class Client:
    """Asks a server, each time as the caller of another trace."""

    port: int
    traces: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)

    def ask(self, count: int, path: str = "/") -> None:
        """Send requests from a few threads at once."""
        with ThreadPoolExecutor(4) as pool:
            for trace, answer in pool.map(lambda _: self._ask(path), range(count)):
                self.traces.append(trace)
                self.answers[answer] += 1

    def _ask(self, path: str) -> tuple[str, str]:
        trace = secrets.token_hex(16)
        headers = {"traceparent": f"00-{trace}-{caller_of(trace)}-01"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return trace, answer.read().decode()


def caller_of(trace: str) -> str:
    return trace[:15] + "1"


def start_server(lake: Lake, *command: str, **environ: str) -> tuple[subprocess.Popen[str], Client]:
    process = lake.start(*command, PYTHONPATH=APPS, **environ)
    port = wait_until(lambda: _port(lake, process), "the server listens")
    _wait_for_workers(lake, process)
    return process, Client(port)


def _port(lake: Lake, process: subprocess.Popen[str]) -> int:
    output = lake.output(process)
    assert process.poll() is None, output
    found = re.search(r"http://127\.0\.0\.1:([1-9]\d*)", output)
    if not found:
        return 0
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", int(found[1])), 5):
        return int(found[1])
    return 0


def gunicorn(*options: str) -> Sequence[str]:
    common = (f"--config={APPS}/gunicorn_hooks.py", "--bind=127.0.0.1:0", "--no-control-socket")
    return (str(BIN / "gunicorn"), *common, *options, "wsgi_app:application")


def _wait_for_workers(lake: Lake, process: subprocess.Popen[str]) -> None:
    """See that no worker of gunicorn is just starting: it forgets a SIGTERM that comes before it can handle it."""
    wanted = re.search(r"gunicorn_hooks.*--workers=(\d)", str(process.args))

    def ready() -> bool:
        output = lake.output(process)
        return output.count("Worker is ready") - output.count("Autorestarting") >= int(wanted[1] if wanted else 0)

    wait_until(ready, "all workers are up")


def end(lake: Lake, process: subprocess.Popen[str], *codes: int) -> None:
    _wait_for_workers(lake, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (codes or (0,)), lake.output(process)


def check_requests(rows: list[dict[str, Any]], client: Client, names: Sequence[str] = ("request", "work")) -> None:
    """See that each trace has its spans once, the first under the caller's span and the others under the first."""
    assert len({row["span_id"] for row in rows}) == len(rows)
    by_trace: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_trace.setdefault(row["trace_id"], {})[row["name"]] = row
    assert sorted(by_trace) == sorted(client.traces)
    assert len(rows) == len(names) * len(client.traces)
    for trace, spans in by_trace.items():
        assert sorted(spans) == sorted(names)
        assert spans["request"]["parent_span_id"] == caller_of(trace)
        assert all(spans[name]["parent_span_id"] == spans["request"]["span_id"] for name in names[1:])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--workers=3"], id="workers"),
        pytest.param(["--workers=2", "--preload"], id="preload", marks=pytest.mark.slow),
        pytest.param(["--workers=2", "--max-requests=5"], id="recycled", marks=pytest.mark.slow),
        pytest.param(["--workers=1", "--threads=4"], id="threads", marks=pytest.mark.slow),
        pytest.param(["--workers=2", "--worker-class=gevent"], id="gevent", marks=pytest.mark.slow),
    ],
)
def test_gunicorn_loses_no_span(lake: Lake, options: list[str]) -> None:
    """Whatever the workers are, and however often they are replaced."""
    process, client = start_server(lake, *gunicorn(*options))
    client.ask(REQUESTS)
    end(lake, process)
    check_requests(lake.rows(), client)
    if "--max-requests=5" in options:
        assert len(client.answers) > 2


@pytest.mark.slow
def test_gunicorn_master_that_records_is_not_disturbed(lake: Lake) -> None:
    """A shipper started by the master, before it forks, is none of its children and holds up none of its workers."""
    process, client = start_server(lake, *gunicorn("--workers=2", "--preload"), SPAN_AT_IMPORT="1")
    wait_until(lake.shippers, "a shipper starts")
    client.ask(REQUESTS)
    end(lake, process)
    output = lake.output(process)
    assert "Traceback" not in output
    assert "rror" not in output.replace("error_log", "")
    rows = lake.rows()
    assert [row["name"] for row in rows].count("import") == 1
    check_requests([row for row in rows if row["name"] != "import"], client)


@pytest.mark.slow
def test_fork_in_a_request_handler(lake: Lake) -> None:
    """A child that records and ends with `os._exit` leaves its span in the spool, for whoever delivers."""
    process, client = start_server(lake, *gunicorn("--workers=2"))
    client.ask(8, "/fork")
    end(lake, process)
    check_requests(lake.rows(), client, ("request", "work", "forked"))


@pytest.mark.slow
def test_uvicorn_workers(lake: Lake) -> None:
    """Workers that uvicorn spawns and ends by a signal, without their exit handlers."""
    command = (str(BIN / "uvicorn"), "--host=127.0.0.1", "--port=0", "--workers=2", "asgi_app:application")
    process, client = start_server(lake, *command)
    client.ask(REQUESTS)
    end(lake, process, 0, -signal.SIGTERM)
    rows = {row["span_id"]: row for row in lake.rows()}
    ours = [row for row in rows.values() if row["instrumentation_scope"]["name"] == "tracelake"]
    assert sorted(row["trace_id"] for row in ours if row["name"] == "request") == sorted(client.traces)
    assert len(ours) == 2 * len(client.traces)
    for row in ours:
        if row["name"] == "work":
            assert rows[row["parent_span_id"]]["name"] == "request"
        root = row  # newer versions of FastAPI make spans of their own
        while root["parent_span_id"] in rows:
            root = rows[root["parent_span_id"]]
        assert root["parent_span_id"] == caller_of(row["trace_id"])


def test_server_killed_after_its_answers(lake: Lake) -> None:
    """Nobody gets to say goodbye, and the spans of every answered request are delivered."""
    process, client = start_server(lake, *gunicorn("--workers=1"))
    client.ask(REQUESTS)
    (worker,) = map(int, client.answers)
    process.kill()
    process.wait()
    os.kill(worker, signal.SIGKILL)
    check_requests(lake.rows(), client)


def test_shipper_keeps_nothing_of_the_server(lake: Lake) -> None:
    """The shipper outlives the server, is no child of it, and does not hold its listening socket."""
    process, client = start_server(lake, *gunicorn("--workers=2"), TRACELAKE_SHIPPER_IDLE="30")
    client.ask(4)
    (shipper,) = wait_until(lake.shippers, "a shipper starts")
    parent, state = _ps(shipper)
    assert parent not in {process.pid, *map(int, client.answers)}
    assert not state.startswith("Z")
    assert all(_ps(int(worker))[1] != "Z" for worker in client.answers)
    end(lake, process)
    os.kill(shipper, 0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", client.port), timeout=5)
    os.kill(shipper, signal.SIGTERM)
    check_requests(lake.rows(), client)


def _ps(pid: int) -> tuple[int, str]:
    parent, state = subprocess.check_output(["ps", "-o", "ppid=,state=", "-p", str(pid)], text=True).split()
    return int(parent), state


MULTIPROCESSING = """
import multiprocessing, sys
import tracelake
from tracelake import set_tracing_context_from_http_request_headers as within

def work(headers):
    with within(headers), tracelake.start_span("work"):
        pass

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with tracelake.start_span("request"):
        headers = tracelake.get_tracing_context_headers_for_http_request()
        children = [context.Process(target=work, args=(headers,)) for _ in range(4)]
        for child in children:
            child.start()
        for child in children:
            child.join()
    assert [child.exitcode for child in children] == [0] * 4
"""


@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(method, marks=pytest.mark.slow) for method in ("spawn", "forkserver"))]
)
def test_multiprocessing(lake: Lake, method: str) -> None:
    """Children are parts of their parent's trace, and record for themselves."""
    output = lake.run(MULTIPROCESSING, method)
    assert output == ""
    rows = lake.rows()
    (root,) = [row for row in rows if row["name"] == "request"]
    children = [row for row in rows if row["name"] == "work"]
    assert len(rows) == 5
    assert {row["parent_span_id"] for row in children} == {root["span_id"]}
    assert len({row["span_id"] for row in children}) == 4


POOL = """
import os
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
import tracelake

def work(number):
    with tracelake.start_span("work", attributes={"number": number}):
        return os.getpid()

if __name__ == "__main__":
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        list(pool.map(work, range(20)))
"""


@pytest.mark.slow
def test_process_pool(lake: Lake) -> None:
    """Workers of a pool end with `os._exit`."""
    lake.run(POOL)
    rows = lake.rows()
    assert sorted(int(row["attributes"]["number"]) for row in rows) == list(range(20))


ASYNCIO = """
import asyncio
import tracelake

@tracelake.trace
async def leaf(number):
    await asyncio.sleep(0)
    return number

@tracelake.trace
async def branch(number):
    await asyncio.gather(leaf(number), leaf(-number))

async def main():
    with tracelake.start_span("root"):
        await asyncio.gather(*map(branch, range(50)))

asyncio.run(main())
"""


@pytest.mark.slow
def test_asyncio_tasks(lake: Lake) -> None:
    """A hundred and fifty spans in tasks that run across each other, each under its own parent."""
    lake.run(ASYNCIO)
    rows = {row["span_id"]: row for row in lake.rows()}
    assert Counter(row["name"] for row in rows.values()) == {"root": 1, "branch": 50, "leaf": 100}
    for row in rows.values():
        if row["name"] == "leaf":
            parent = rows[row["parent_span_id"]]
            number = abs(int(row["attributes"]["mlflow.spanOutputs"]))
            assert parent["attributes"]["mlflow.spanInputs"] == f'{{"number":{number}}}'
            assert rows[parent["parent_span_id"]]["name"] == "root"


THREADS = """
import contextvars, threading
import tracelake

def work():
    for number in range(100):
        with tracelake.start_span("work"):
            pass

with tracelake.start_span("root"):
    threads = [threading.Thread(target=contextvars.copy_context().run, args=(work,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
late = threading.Thread(target=work)
late.start()  # not waited for: the interpreter does
"""


@pytest.mark.slow
def test_threads(lake: Lake) -> None:
    """Threads given the context continue the trace; one that is not starts traces of its own."""
    assert lake.run(THREADS) == ""
    rows = lake.rows()
    (root,) = [row for row in rows if row["name"] == "root"]
    parents = Counter(row["parent_span_id"] for row in rows if row is not root)
    assert parents == {root["span_id"]: 800, None: 100}


NO_EXPORTERS = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}


def run_instrumented(lake: Lake, **environ: str) -> str:
    command = (str(BIN / "opentelemetry-instrument"), sys.executable, f"{APPS}/untraced.py", "5")
    process = lake.start(*command, **NO_EXPORTERS, OTEL_SERVICE_NAME="untraced", **environ)
    assert process.wait(60) == 0, lake.output(process)
    return lake.output(process)


def test_opentelemetry_instrument_needs_no_code(lake: Lake) -> None:
    """Two variables and a command record every outgoing request of a program that knows nothing of it."""
    output = run_instrumented(lake)
    rows = lake.rows()
    assert [(row["name"], row["kind"]) for row in rows] == [("GET", "SPAN_KIND_CLIENT")] * 5
    assert [f"00-{row['trace_id']}-{row['span_id']}" for row in rows] == [line[:52] for line in output.split()]
    assert {dict(row["resource"]["attributes"])["service.name"] for row in rows} == {"untraced"}
    assert len(lake.shippers()) == 1


def test_opentelemetry_instrument_with_a_wrong_destination(lake: Lake) -> None:
    """The program runs on, is told once, and its spans wait in the spool."""
    output = run_instrumented(lake, TRACELAKE_DESTINATION="nowhere")
    assert output.count("TRACELAKE_DESTINATION: The target 'nowhere'") == 1
    assert len(lake.records()) == 5
    assert not Path(lake.table).exists()


GEVENT = """
from gevent import monkey; monkey.patch_all()
import os
import gevent, tracelake

# As OpenTelemetry's own fork handler does, which starts threads.
os.register_at_fork(after_in_child=lambda: gevent.sleep(0.05))

def work():
    for _ in range(10):
        with tracelake.start_span("work", attributes={"pid": os.getpid()}):
            pass
        gevent.sleep(0.01)

gevent.joinall([gevent.spawn(work) for _ in range(8)])
print(os.getpid())
"""


@pytest.mark.slow
def test_gevent_goes_on_in_no_other_process(lake: Lake) -> None:
    """Starting a shipper forks no copy of the program, in which its greenlets would run a second time."""
    pids = lake.run(GEVENT).split()
    rows = lake.rows()
    assert len(pids) == 1
    assert {row["attributes"]["pid"] for row in rows} == set(pids)
    assert len(rows) == 80
