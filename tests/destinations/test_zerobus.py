"""The sink for Zerobus: the real SDK, and a service on loopback that speaks its wire."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.numbered import record
from tests.spans.samples import SPANS
from tracelake import MissingDependencyError, PermanentDeliveryError, TransientDeliveryError
from tracelake.destinations import zerobus
from tracelake.destinations.zerobus import ZerobusSink
from tracelake.spans import tables
from tracelake.spans.json_rows import row_encoder

from .contract import SinkContract, batch, hopeless, spans
from .zerobus_server import CLIENT_ID, SECRET, ZerobusServer, grpc, run_zerobus

# Not imported for the look: that is when the SDK decides whether it logs to standard output.
if find_spec("zerobus") is None:
    pytest.skip("the Zerobus SDK is not installed, or not built for this Python and machine", allow_module_level=True)

Status = grpc.StatusCode


@pytest.fixture
def service() -> Iterator[ZerobusServer]:
    with run_zerobus() as service:
        yield service


def sink_for(service: ZerobusServer, **changes: Any) -> ZerobusSink:
    arguments: dict[str, Any] = {
        "endpoint": service.url,
        "workspace_url": service.workspace_url,
        "client_id": CLIENT_ID,
        "client_secret": SECRET,
        "schema": tables.span_schema(1),
    }
    return ZerobusSink(changes.pop("table", service.table), **{**arguments, **changes})


def numbers(service: ZerobusServer) -> list[int]:
    return [int(row["span_id"], 16) for row in service.rows]


def offered(service: ZerobusServer, number: int) -> int:
    """Return how often a span was sent."""
    return service.offered[f"{number:016x}"]


@pytest.fixture
def small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each span in a message of its own."""
    monkeypatch.setattr(zerobus, "_MESSAGE_BYTES", 1)


@dataclass
class Table:
    """The table of the service, for the contract."""

    service: ZerobusServer

    def open(self) -> ZerobusSink:
        return sink_for(self.service)

    def numbers(self) -> list[int]:
        return sorted(numbers(self.service))


class TestContract(SinkContract):
    """At least once."""

    exactly_once = False

    @pytest.fixture
    def place(self, service: ZerobusServer) -> Table:
        return Table(service)


@pytest.mark.parametrize("version", [1, 2])
def test_rows_are_those_of_the_table(service: ZerobusServer, version: tables.Version) -> None:
    """Every kind of span and value, in the columns of either version."""
    schema = tables.span_schema(version)
    written = [span for name, span in SPANS.items() if name != "ten_megabytes"]
    assert sink_for(service, schema=schema).write(batch(1, written)) == []
    assert service.rows == [json.loads(row_encoder(schema)(span)) for span in written]


def test_stream_stays_open(service: ZerobusServer) -> None:
    """One stream, and one token, for all batches."""
    sink = sink_for(service)
    for number in range(3):
        sink.write(batch(number, spans(number)))
    assert (service.streams, len(service.tokens)) == (1, 1)
    assert service.tokens[0]["grant_type"] == "client_credentials"
    assert service.table in service.tokens[0]["authorization_details"]


@pytest.mark.usefixtures("small_messages")
def test_batch_goes_in_messages(service: ZerobusServer) -> None:
    """Several are under way at once, more of them than wait for acknowledgement."""
    assert sink_for(service).write(batch(1, spans(*range(50)), piece=7)) == []
    assert numbers(service) == list(range(50))


def test_row_that_no_message_holds_is_named(service: ZerobusServer) -> None:
    """The others are sent."""
    too_large = record(2, "x" * 10_000_000)
    rejections = sink_for(service).write(batch(1, [record(1), too_large, record(3)]))
    assert [rejection.index for rejection in rejections] == [1]
    assert "10000000" in rejections[0].reason
    assert numbers(service) == [1, 3]


def test_largest_row_is_sent(service: ZerobusServer) -> None:
    """In a message of its own."""
    large = record(2, "x" * 9_990_000)
    assert sink_for(service).write(batch(1, [record(1), large, record(3)])) == []
    assert numbers(service) == [1, 2, 3]


def test_nothing_is_delivered_without_acknowledgement(service: ZerobusServer) -> None:
    """The batch comes again; closing waits for nothing."""
    service.acknowledges.clear()
    sink = sink_for(service, ack_timeout_s=0.3)
    with pytest.raises(TransientDeliveryError, match="Waiting for acknowledgement timed out"):
        sink.write(batch(1, spans(1)))
    started = time.monotonic()
    sink.close()
    assert time.monotonic() - started < 1
    service.acknowledges.set()
    sink.write(batch(1, spans(1)))
    assert set(numbers(service)) == {1}


@pytest.mark.usefixtures("small_messages")
def test_stream_that_breaks_is_mended(service: ZerobusServer) -> None:
    """By the SDK, which sends again only what was not acknowledged."""
    service.breaks.append((2, (Status.UNAVAILABLE, "the node goes away")))
    assert sink_for(service).write(batch(1, spans(*range(5)))) == []
    assert numbers(service) == list(range(5))
    assert all(offered(service, number) == 1 for number in range(5))
    assert service.streams == 2


@pytest.mark.usefixtures("small_messages")
def test_what_was_acknowledged_is_not_sent_again(service: ZerobusServer) -> None:
    """Also when the batch is tried again, by another sink of the same shipper."""
    service.breaks.append((3, (Status.UNAUTHENTICATED, "the token ran out")))
    tried = batch(1, [*spans(0, 1), hopeless(2), *spans(3, 4, 5)])
    with pytest.raises(TransientDeliveryError, match="UNAUTHENTICATED: the token ran out"):
        sink_for(service).write(tried)
    assert numbers(service) == [0, 1, 3]
    rejections = sink_for(service).write(tried)
    assert [rejection.index for rejection in rejections] == [2]
    assert numbers(service) == [0, 1, 3, 4, 5]
    assert (offered(service, 0), offered(service, 4)) == (1, 1)


def test_service_that_is_away_for_a_moment(service: ZerobusServer) -> None:
    """The SDK tries again by itself."""
    service.refusals.append((Status.UNAVAILABLE, "starting"))
    assert sink_for(service).write(batch(1, spans(1))) == []
    assert numbers(service) == [1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "failure",
    [(Status.UNAVAILABLE, "overloaded"), (Status.RESOURCE_EXHAUSTED, "quota"), (Status.INTERNAL, "oops")],
    ids=lambda failure: failure[0].name,
)
def test_service_that_stays_away(service: ZerobusServer, failure: tuple[Any, str]) -> None:
    """It is tried again by the shipper, and works when the service does."""
    service.refusals.extend([failure] * 4)
    sink = sink_for(service)
    with pytest.raises(TransientDeliveryError, match=f"{failure[1]}. It is tried again."):
        sink.write(batch(1, spans(1)))
    sink.write(batch(1, spans(1)))
    assert numbers(service) == [1]


@pytest.mark.slow
def test_service_that_is_not_there(service: ZerobusServer) -> None:
    """And one that speaks another protocol."""
    for endpoint in ("http://127.0.0.1:1", service.workspace_url):
        with pytest.raises(TransientDeliveryError, match=f"No stream is opened at {endpoint} for main.obs.spans"):
            sink_for(service, endpoint=endpoint).write(batch(1, spans(1)))


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (Status.UNAUTHENTICATED, "Set DATABRICKS_CLIENT_ID"),
        (Status.PERMISSION_DENIED, "SELECT and MODIFY"),
        (Status.NOT_FOUND, "create it first"),
        (Status.INVALID_ARGUMENT, "managed Delta tables"),
        (Status.UNIMPLEMENTED, "managed Delta tables"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_refused_stream_says_what_to_do(service: ZerobusServer, status: Any, remedy: str) -> None:
    """By the service's code; what it says of secrets is not repeated."""
    service.refusals.extend([(status, f'"no" to {SECRET}, Bearer abcdefghijk')] * 2)
    with pytest.raises(PermanentDeliveryError) as caught:
        sink_for(service).begin()
    assert f"{status.name}: " in str(caught.value)
    assert remedy in str(caught.value)
    assert_no_secret(caught.value)
    assert "abcdefghijk" not in str(caught.value)


def assert_no_secret(error: BaseException) -> None:
    shown = "".join(map(str, (error, error.__cause__, error.__suppress_context__ or error.__context__)))
    assert SECRET not in shown
    assert base64.b64encode(f"{CLIENT_ID}:{SECRET}".encode()).decode() not in shown


def test_other_table(service: ZerobusServer) -> None:
    """One that is not there."""
    with pytest.raises(PermanentDeliveryError, match=r"NOT_FOUND: Table main\.obs\.other cannot be found"):
        sink_for(service, table="main.obs.other").write(batch(1, spans(1)))


@pytest.mark.parametrize("status", [400, 401, 403])
def test_refused_token(service: ZerobusServer, status: int) -> None:
    """The workspace does not know the service principal; its answer may hold what it was sent."""
    service.token_status = status
    with pytest.raises(PermanentDeliveryError, match=rf"gives no token .* \({status}\).*DATABRICKS_CLIENT") as caught:
        sink_for(service).write(batch(1, spans(1)))
    assert_no_secret(caught.value)
    assert service.streams == 0


def test_wrong_secret(service: ZerobusServer) -> None:
    """Once it is right, all is well."""
    with pytest.raises(PermanentDeliveryError, match=r"gives no token .* \(401\)"):
        sink_for(service, client_secret="another-secret").begin()
    sink_for(service).begin()


def test_token_endpoint_that_is_busy(service: ZerobusServer) -> None:
    """That is no matter of the service principal."""
    service.token_status = 429
    with pytest.raises(TransientDeliveryError, match="429"):
        sink_for(service).begin()


@pytest.mark.slow
def test_token_endpoint_that_fails(service: ZerobusServer) -> None:
    """Its answer may hold what it was sent."""
    service.token_status = 503
    with pytest.raises(TransientDeliveryError, match="503") as caught:
        sink_for(service).begin()
    assert_no_secret(caught.value)


@pytest.mark.parametrize("bad", [{3}, {0}, {9}, {0, 1, 5}, {7, 8, 9}], ids=str)
@pytest.mark.parametrize("size", [1, 300, 2**20], ids=["alone", "some", "all"])
def test_row_that_is_refused_is_found(
    service: ZerobusServer, monkeypatch: pytest.MonkeyPatch, size: int, bad: set[int]
) -> None:
    """However many rows are in a message; the others are sent, those that were acknowledged before it once."""
    monkeypatch.setattr(zerobus, "_MESSAGE_BYTES", size)
    service.invalid = lambda row: int(row["span_id"], 16) in bad
    rejections = sink_for(service).write(batch(1, spans(*range(10))))
    assert {rejection.index for rejection in rejections} == bad
    assert all("Record does not fit the table" in rejection.reason for rejection in rejections)
    assert sorted(numbers(service)) == [number for number in range(10) if number not in bad]


@pytest.mark.parametrize("count", [1, 30])
def test_table_that_takes_no_row_sets_none_aside(service: ZerobusServer, count: int) -> None:
    """Its columns were changed a moment ago. Someone has to act, and then all spans are delivered."""
    sink = sink_for(service)
    sink.write(batch(1, spans(1000)))
    service.invalid = lambda _: True
    tried = batch(2, spans(*range(count)))
    with pytest.raises(PermanentDeliveryError, match=r"takes no span for main\.obs\.spans: .*does not fit the table"):
        sink.write(tried)
    assert service.streams < 25
    service.invalid = lambda _: False
    assert sink.write(tried) == []
    assert numbers(service) == [1000, *range(count)]


@pytest.mark.parametrize("table", ["main.obs", "main.obs.späns", "main.obs.a b", "a.b.c;DROP", "a.b.c\n", "a.b.c.d"])
def test_name_that_zerobus_does_not_take(service: ZerobusServer, table: str) -> None:
    """It is refused before anything is sent."""
    with pytest.raises(PermanentDeliveryError, match="ASCII letters, digits and underscores"):
        sink_for(service, table=table)


def test_without_the_sdk(service: ZerobusServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "zerobus.sdk.sync", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tracelake\[zerobus\]'"):
        sink_for(service)


def test_secret_is_not_shown(service: ZerobusServer) -> None:
    """By the sink, while it is open."""
    sink = sink_for(service)
    sink.begin()
    assert SECRET not in repr(sink) + repr(sink._connection)


def start_python(service: ZerobusServer, program: str) -> subprocess.Popen[str]:
    """Start a program that may open a sink."""
    opening = f"""
import os, signal, sys, threading
from tests.destinations.contract import batch, spans
from tracelake.destinations.zerobus import ZerobusSink
from tracelake.spans import tables
def sink():
    return ZerobusSink({service.table!r}, endpoint={service.url!r}, workspace_url={service.workspace_url!r},
        client_id={CLIENT_ID!r}, client_secret={SECRET!r}, schema=tables.span_schema(1))
"""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", opening + program],
        cwd=Path(__file__).parents[2],
        env={name: value for name, value in os.environ.items() if name != "RUST_LOG"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str], text: str = "") -> tuple[int, str, str]:
    """Return the status, the output and the errors of a process that is given a text and ends by itself."""
    try:
        output, errors = process.communicate(text, timeout=20)
    finally:
        process.kill()
    return process.returncode, output, errors


def test_process_ends_with_an_open_stream(service: ZerobusServer) -> None:
    """And the SDK, which logs what the service says, has printed nothing."""
    process = start_python(
        service, "opened = sink(); opened.write(batch(1, spans(1))); print('RUST_LOG' in os.environ)"
    )
    assert ended(process) == (0, "False\n", "")
    assert numbers(service) == [1]


def test_process_ends_while_a_thread_waits(service: ZerobusServer) -> None:
    """As a notebook does that is closed: what was not acknowledged is still in the spool."""
    service.acknowledges.clear()
    program = """
threading.Thread(target=lambda: sink().write(batch(1, spans(1))), daemon=True).start()
sys.stdin.readline()
"""
    process = start_python(service, program)
    assert service.received.acquire(timeout=20)
    assert ended(process, "end\n") == (0, "", "")


def test_forked_child_ends(service: ZerobusServer) -> None:
    """It has none of the SDK's threads; it may let go of the sink, or write by it."""
    program = """
opened = sink()
opened.write(batch(1, spans(1)))
for child in range(3):
    if os.fork() == 0:
        signal.alarm(15)
        if child == 0:
            opened.close()
        if child == 1:
            opened.write(batch(2, spans(2)))
        sys.exit(0)
    assert os.wait()[1] == 0
opened.write(batch(3, spans(3)))
"""
    assert ended(start_python(service, program)) == (0, "", "")
    assert numbers(service) == [1, 2, 3]
