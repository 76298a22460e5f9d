"""The checks can fail: what is broken on purpose is found."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable

import pytest

from tests.protocol.edge import Fault
from tests.protocol.test_every_call import Delivery, deliver, new_world
from tests.protocol.world import World
from tracelake.destinations.base import Batch, Rejection


def fails_somewhere(spoil: Callable[[World], None], match: str, *, power: int | None = None) -> None:
    """See that a delivery with a fault at one of its calls goes wrong, in a world that is spoilt."""
    with pytest.raises(AssertionError, match=match):  # noqa: PT012 - which of them fails is not the point
        for number in range(1, len(deliver()) + 1):
            with new_world() as world:
                spoil(world)
                Delivery(world, Fault(number), power).run()


@pytest.mark.slow
def test_note_that_goes_before_the_ledger_is_written_is_found() -> None:
    """A shipper that dies after the commit leaves no note, and the next one sends what the destination has already."""

    def forget_the_note(world: World) -> None:
        write = world.store.write

        def spoilt(batch: Batch) -> list[Rejection]:
            rejections = write(batch)
            os.unlink(world.lane.in_flight_path)
            return rejections

        world.store.write = spoilt  # type: ignore[method-assign]

    fails_somewhere(forget_the_note, "not delivered")


@pytest.mark.slow
def test_sync_that_does_nothing_is_found() -> None:
    """A disk that lies about what is safe loses what was delivered, or the note of it."""

    def forget_to_sync(world: World) -> None:
        world.edge.disk.sync = lambda path: None  # type: ignore[method-assign] # noqa: ARG005

    fails_somewhere(forget_to_sync, "lost|twice|left|delivered", power=0)


def test_lock_that_holds_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment whose writer lives is taken for one whose writer is gone, and is removed before its next line."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    with pytest.raises(AssertionError, match="lost"):
        deliver()


def test_sink_that_takes_a_batch_twice_is_found() -> None:
    """A destination that does not know its batches again holds spans twice."""

    def forget_batches(world: World) -> None:
        write = world.store.write
        taken: list[Batch] = []

        def spoilt(batch: Batch) -> list[Rejection]:
            taken.append(batch)
            return write(Batch(f"{batch.app_id}-{len(taken)}", 1, batch.size, batch.chunks))

        world.store.write = spoilt  # type: ignore[method-assign]

    fails_somewhere(forget_batches, "twice")
