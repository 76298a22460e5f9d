"""What every sink promises. A test class per kind of destination inherits the suite, and says where spans go."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

from tests.numbered import record
from tracelake import Batch, Sink, SpanRecord, TransientDeliveryError

APP = "tracelake-test"


class Place(Protocol):
    """Where a sink under test writes to."""

    def open(self) -> Sink:
        """Open another sink to the same place."""

    def numbers(self) -> list[int]:
        """Return the numbers of the spans that are there, sorted."""


def batch(number: int, records: Sequence[SpanRecord], *, app_id: str = APP, piece: int = 1000) -> Batch:
    """Return a batch whose `chunks` has `piece` spans each."""

    def chunks() -> Iterator[list[SpanRecord]]:
        for first in range(0, len(records), piece):
            yield list(records[first : first + piece])

    return Batch(app_id, number, 400 * len(records), chunks)


def spans(*numbers: int) -> list[SpanRecord]:
    """Return spans with these numbers, of which 0 makes an id that is none."""
    return [record(number) for number in numbers]


def hopeless(number: int) -> SpanRecord:
    """Return a span that no sink can take: its resource is not one."""
    return msgspec.structs.replace(record(number), resource=msgspec.Raw(b'{"attributes":5}'))


class SinkContract:
    """Subclasses have a fixture `place`; one whose sinks are at least once sets `exactly_once` to False."""

    exactly_once = True

    def test_spans_of_a_batch_are_stored(self, place: Place) -> None:
        """All of them, however many pieces they come in."""
        assert place.open().write(batch(1, spans(*range(1, 26)), piece=10)) == []
        assert place.numbers() == list(range(1, 26))

    def test_batches_add_up(self, place: Place) -> None:
        """One sink for many batches, and another sink after it, as after a restart."""
        sink = place.open()
        sink.write(batch(1, spans(1)))
        sink.write(batch(2, spans(2)))
        sink.close()
        place.open().write(batch(3, spans(3)))
        assert place.numbers() == [1, 2, 3]

    def test_repeated_batch_is_stored_once(self, place: Place) -> None:
        """By the same sink, by another one, and after later batches."""
        sink = place.open()
        sink.write(batch(1, spans(1, 2)))
        sink.write(batch(1, spans(1, 2)))
        place.open().write(batch(1, spans(1, 2)))
        sink.write(batch(2, spans(3)))
        sink.write(batch(1, spans(1, 2)))
        stored = place.numbers()
        assert (stored if self.exactly_once else sorted(set(stored))) == [1, 2, 3]

    def test_numbers_of_another_app_are_its_own(self, place: Place) -> None:
        """Batch 1 of one spool says nothing of batch 1 of another."""
        sink = place.open()
        sink.write(batch(7, spans(1)))
        sink.write(batch(1, spans(2), app_id="tracelake-other"))
        assert place.numbers() == [1, 2]

    def test_numbers_may_have_gaps(self, place: Place) -> None:
        """A batch of bad lines only leaves no trace, and the next one is written all the same."""
        sink = place.open()
        sink.write(batch(1, spans(1)))
        sink.write(batch(5, spans(2)))
        assert place.numbers() == [1, 2]

    def test_empty_batch_is_fine(self, place: Place) -> None:
        """All lines of a batch may have been bad, and this may be the first batch of all."""
        sink = place.open()
        assert sink.write(batch(1, [])) == []
        sink.write(batch(2, spans(1)))
        assert sink.write(batch(3, [])) == []
        assert place.numbers() == [1]

    def test_spans_that_cannot_be_stored_are_named(self, place: Place) -> None:
        """By their index in the batch, with a reason, each time the batch is written; the others are stored."""
        records = [record(1), hopeless(2), *spans(3, 4), hopeless(5)]
        for _ in range(2):
            rejections = place.open().write(batch(1, records, piece=2))
            assert [rejection.index for rejection in rejections] == [1, 4]
            assert all("resource" in rejection.reason for rejection in rejections)
        assert sorted(set(place.numbers())) == [1, 3, 4]
        assert place.open().write(batch(2, [hopeless(6)]))[0].index == 0

    def test_several_writers_lose_nothing(self, place: Place) -> None:
        """Each with an app of its own, at the same time; what loses a race is written again, as the shipper does."""
        failures: list[BaseException] = []
        threads = [threading.Thread(target=_write_all, args=(place, writer, failures)) for writer in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        stored = place.numbers()
        assert (stored if self.exactly_once else sorted(set(stored))) == list(range(1, 13))

    def test_close_may_be_repeated(self, place: Place) -> None:
        """Also before anything was written."""
        sink = place.open()
        sink.close()
        sink.close()


def _write_all(place: Place, writer: int, failures: list[BaseException]) -> None:
    try:
        sink = place.open()
        for number in range(1, 5):
            for attempt in range(20):
                try:
                    sink.write(batch(number, spans(4 * writer + number), app_id=f"tracelake-{writer}"))
                    break
                except TransientDeliveryError:
                    if attempt == 19:
                        raise
    except BaseException as error:  # noqa: BLE001 - for the test to see
        failures.append(error)
