"""The OTLP sink with a real receiver: that of the mocked workspace, whose tables show what arrived."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

import msgspec
import pytest

from tests.lake import Lake
from tests.numbered import add_segment, lines
from tests.shipper.conftest import Clock, make_lane
from tracelake import Batch, PermanentDeliveryError, Sink, SpanRecord, TransientDeliveryError
from tracelake.destinations.targets import parse_target
from tracelake.settings import Settings
from tracelake.shipper.lane import LaneShipper
from tracelake.spans.line import pack
from tracelake.spans.record import Resource, Scope
from tracelake.spool.ledger import pending_bytes, read_delivery
from tracelake.testing import MockWorkspace
from tracelake.testing.storage.ingestion import MAX_BODY_BYTES, PATH

from .contract import SinkContract, batch, spans

TABLE = "main.obs.spans"


@pytest.fixture(scope="module")
def workspace() -> Iterator[MockWorkspace]:
    with MockWorkspace() as workspace:
        workspace.create_schema("main.obs")
        workspace.serve()
        yield workspace


@dataclass
class Receiver:
    """A table of the workspace, as an endpoint that the environment gives access to."""

    workspace: MockWorkspace

    @property
    def url(self) -> str:
        return self.workspace.url + PATH

    @property
    def target(self) -> str:
        return f"otlp+{self.url}"

    @property
    def environ(self) -> dict[str, str]:
        access = quote(f"Bearer {self.workspace.environment()['DATABRICKS_TOKEN']}")
        return {"OTEL_EXPORTER_OTLP_HEADERS": f"authorization={access},X-Databricks-UC-Table-Name={TABLE}"}

    def open(self) -> Sink:
        return parse_target(self.target).open()

    def stored(self) -> list[SpanRecord]:
        return self.workspace.table(TABLE).spans()

    def numbers(self) -> list[int]:
        """Return the numbers of the spans that are there, one that is there twice twice."""
        return sorted(int(record.span_id, 16) for record in self.stored())

    def sizes(self) -> list[int]:
        """Return the bytes of each request, decompressed."""
        return [len(zlib.decompress(each.request.body, 31)) for each in self.workspace.requests(PATH)[self.seen :]]

    def __post_init__(self) -> None:
        self.seen = len(self.workspace.requests(PATH))


@pytest.fixture
def place(workspace: MockWorkspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A table of its own, and no faults left of it."""
    workspace.create_table(TABLE)
    receiver = Receiver(workspace)
    for name, value in receiver.environ.items():
        monkeypatch.setenv(name, value)
    yield receiver
    workspace.faults.clear()
    workspace.drop(TABLE)


class TestContract(SinkContract):
    exactly_once = False


def tried_again(given: Batch) -> Batch:
    """Return the batch as the shipper gives it once more: read anew, with the progress of the last try."""
    return Batch(given.app_id, given.number, given.size, given.chunks, retried=True, progress=given.progress)


def test_span_arrives_whole(place: Receiver) -> None:
    """With its resource, its scope, and values of every kind."""
    record = msgspec.structs.replace(
        spans(7)[0],
        attributes={"nested": {"list": [1, 2.5, "text", None, True]}, "int": -1},
        resource=pack(Resource({"service.name": "shop"})),
        scope=pack(Scope("library", "1.2")),
        status_code=2,
        status_message="boom",
    )
    assert place.open().write(batch(1, [record])) == []
    (found,) = place.stored()
    assert found.attributes == record.attributes
    assert (found.status_code, found.status_message) == (2, "boom")
    assert b"shop" in bytes(found.resource)
    assert b"library" in bytes(found.scope)


def test_requests_are_bounded_by_spans_and_by_bytes(place: Receiver) -> None:
    """Whatever the pieces of the batch; a span that is larger than that goes alone."""
    assert place.open().write(batch(1, spans(*range(1, 2601)), piece=700)) == []
    assert len(place.sizes()) == 3
    large = [msgspec.structs.replace(record, attributes={"text": "x" * 2**20}) for record in spans(*range(3000, 3010))]
    huge = msgspec.structs.replace(spans(4000)[0], attributes={"text": "x" * 5 * 2**20})
    assert place.open().write(batch(2, [*large, huge])) == []
    assert len(place.numbers()) == 2611
    first, *others = place.sizes()[3:]
    assert 3 * 2**20 < first < 4 * 2**20
    assert max(others) > 5 * 2**20
    assert len(others) == 4


def test_span_that_is_too_large_is_set_aside(place: Receiver) -> None:
    """The others of its request are stored."""
    huge = msgspec.structs.replace(spans(2)[0], attributes={"text": "x" * MAX_BODY_BYTES})
    (rejection,) = place.open().write(batch(1, [*spans(1), huge, *spans(3)]))
    assert rejection.index == 1
    assert f"{place.url} does not take the span (413): The body has more than" in rejection.reason
    assert place.numbers() == [1, 3]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"trace_id": "0" * 32}, "trace_id '00000000000000000000000000000000' is not 16 bytes"),
        ({"trace_id": "ab"}, "trace_id 'ab' is not 16 bytes"),
        ({"span_id": "0" * 16}, "span_id '0000000000000000' is not 8 bytes"),
        ({"span_id": "5" * 32}, "is not 8 bytes"),
        ({"parent_span_id": "5"}, "parent_span_id '5' is not 8 bytes"),
        ({"start_time_unix_nano": 2**63}, "which no 64 bits of nanoseconds hold"),
        ({"end_time_unix_nano": -1}, "which no 64 bits of nanoseconds hold"),
        ({"trace_id": "x" * 32}, "non-hexadecimal number"),
    ],
    ids=str,
)
def test_span_that_none_takes_is_not_sent(place: Receiver, fields: dict[str, object], reason: str) -> None:
    """The endpoint would leave it out, and might not say which it was."""
    bad = msgspec.structs.replace(spans(2)[0], **fields)
    (rejection,) = place.open().write(batch(1, [*spans(1), bad, *spans(3)]))
    assert rejection.index == 1
    assert reason in rejection.reason
    assert place.numbers() == [1, 3]
    assert len(place.sizes()) == 1


def test_busy_endpoint_is_given_the_time_it_asks_for(place: Receiver) -> None:
    """By the error's own attribute, which the shipper goes by."""
    place.workspace.faults.rate_limit(2, retry_after_s=7)
    sink = place.open()
    for _ in range(2):
        with pytest.raises(TransientDeliveryError, match="answered 429") as raised:
            sink.write(batch(1, spans(1)))
        assert raised.value.retry_after_s == 7
    sink.write(batch(1, spans(1)))
    assert place.numbers() == [1]


@pytest.mark.parametrize("fault", ["fail", "reset_connection", "rate_limit"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_request_that_was_taken_does_not_come_again(place: Receiver, fault: str, after: int) -> None:
    """When a later one of its batch fails, and the batch is tried again, by another sink: all spans are there once."""
    given = batch(1, spans(*range(1, 2601)))
    getattr(place.workspace.faults, fault)(after=after)
    with pytest.raises(TransientDeliveryError):
        place.open().write(given)
    assert given.progress.spans == 1024 * after
    assert place.open().write(tried_again(given)) == []
    assert place.numbers() == list(range(1, 2601))


def test_rejections_of_an_earlier_try_are_not_forgotten(place: Receiver) -> None:
    """Each is named once, whichever try it was of."""
    bad = msgspec.structs.replace(spans(5)[0], trace_id="0" * 32)
    records = [*spans(1), bad, *spans(*range(10, 1200)), bad]
    given = batch(1, records)
    place.workspace.faults.fail(after=1)
    with pytest.raises(TransientDeliveryError):
        place.open().write(given)
    rejections = place.open().write(tried_again(given))
    assert [rejection.index for rejection in rejections] == [1, len(records) - 1]
    assert place.numbers() == [1, *range(10, 1200)]


def test_lost_answer_means_twice(place: Receiver) -> None:
    """Nobody can tell that the spans arrived: at least once."""
    given = batch(1, spans(1, 2))
    place.workspace.faults.lose_answer()
    with pytest.raises(TransientDeliveryError, match="is not reached"):
        place.open().write(given)
    assert place.open().write(tried_again(given)) == []
    assert place.numbers() == [1, 1, 2, 2]


def test_access_that_is_refused(place: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has to act, and no header is shown."""
    secret = "dapi-0123456789abcdef"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer%20{secret}")
    refused = r"refuses access with the headers authorization \(40[13]\)"
    with pytest.raises(PermanentDeliveryError, match=refused) as raised:
        place.open().write(batch(1, spans(1)))
    assert secret not in str(raised.value)
    (finding,) = parse_target(place.target).check()
    assert (finding.severity, "Set OTEL_EXPORTER_OTLP_HEADERS" in finding.seen) == ("error", True)


def test_check_stores_nothing(place: Receiver) -> None:
    """It is an export request without spans."""
    (finding,) = parse_target(place.target).check()
    assert (finding.severity, finding.seen) == ("ok", f"{place.url} takes spans.")
    assert place.numbers() == []


@pytest.mark.parametrize("status", [503, 403])
def test_shipper_sends_what_is_left_of_a_batch(place: Receiver, lake: Lake, status: int) -> None:
    """It opens the destination anew after a failure, and still sends no request again that was taken."""
    lane = make_lane(lake, place.target)
    add_segment(lane, lines(range(1, 2601)))
    clock = Clock()
    shipper = LaneShipper(lane, Settings(), clock=clock)
    place.workspace.faults.fail(status=status, after=1)
    assert not shipper.ship(flush=True)
    assert len(place.numbers()) == 1024
    clock.now_s += 60
    shipper.ship(flush=True)
    assert place.numbers() == list(range(1, 2601))
    assert (pending_bytes(lane), read_delivery(lane).state) == (0, "delivering")
    add_segment(lane, lines(range(3001, 3011)))
    shipper.ship(flush=True)
    shipper.close()
    assert len(place.numbers()) == 2610


def test_progress_is_not_that_of_other_spans(place: Receiver, lake: Lake) -> None:
    """Somebody removed a part of the batch that was tried: what is left of it is sent from the start."""
    lane = make_lane(lake, place.target)
    first = add_segment(lane, lines(range(1, 1025)))
    add_segment(lane, lines(range(2001, 3500)))
    clock = Clock()
    shipper = LaneShipper(lane, Settings(), clock=clock)
    place.workspace.faults.fail(after=1)
    shipper.ship(flush=True)
    os.remove(first)
    clock.now_s += 60
    shipper.ship(flush=True)
    shipper.close()
    assert set(place.numbers()) >= set(range(2001, 3500))


def test_app_reaches_an_endpoint(place: Receiver, lake: Lake) -> None:
    """The shipper that it starts has the headers from the app's environment."""
    lake.environ |= {**place.environ, "TRACELAKE_DESTINATION": place.target}
    lake.run(APP)
    lake.settle()
    assert [record.name for record in place.stored()] == ["outer", "inner"]


APP = """
import tracelake
with tracelake.start_span("outer"), tracelake.start_span("inner"):
    pass
assert tracelake.flush(60).delivered == 2
"""
