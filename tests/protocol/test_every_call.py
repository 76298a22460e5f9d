"""One delivery, and a fault at each call of it that changes something, one run for each: nothing is lost or doubled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.protocol.edge import Fault
from tests.protocol.world import World

# What a delivery is made of: if one of these is not called any more, the edge does not see our code.
CALLS = {"open", "flock", "rename", "write", "fsync", "close", "mkdir", "utime", "commit", "unlink"}


class Delivery:
    """Record, deliver three batches, with lines that cannot be delivered, end the app, and tidy up after it.

    Whoever dies comes back for the next step, and the others go on. With `power`, all die of the fault, and the disk
    forgets what was not synced.
    """

    def __init__(self, world: World, fault: Fault | None = None, power: int | None = None) -> None:
        self.world = world
        self._fault = fault
        self._power = power

    def run(self) -> list[str]:
        """Return the calls, of which the fault's is one."""
        for kind in ("good", "good", "bad", "good", "poison"):
            self._append(kind)
        self._ship()
        self._append("good")
        self._ask()
        self._ship()
        self._ship()
        self._append("good")
        for app in list(self.world.apps):
            self.world.end(app)
        self._ship()
        self._ship()
        calls = list(self.world.edge.calls)
        self.world.settle()
        return calls

    def _append(self, kind: str) -> None:
        app = self.world.apps[0] if self.world.apps else self.world.new_app()
        with self._step() as fault:
            self.world.append(app, kind, fault)

    def _ask(self) -> None:
        app = self.world.apps[0] if self.world.apps else self.world.new_app()
        with self._step() as fault:
            self.world.ask(app, fault)

    def _ship(self) -> None:
        with self._step() as fault:
            self.world.ship(fault)

    @contextmanager
    def _step(self) -> Iterator[Fault | None]:
        before = len(self.world.edge.calls)
        ahead = self._fault is not None and before < self._fault.at
        yield Fault(self._fault.at - before, self._fault.kind) if self._fault and ahead else None
        if self._fault and ahead and self._power is not None and len(self.world.edge.calls) >= self._fault.at:
            self.world.lose_power(self._power)
        self.world.check()


@contextmanager
def new_world(*, table: bool = False) -> Iterator[World]:
    """Give a world, and let go of it."""
    world = World(table=table)
    try:
        yield world
    finally:
        world.close()


def deliver(fault: Fault | None = None, *, power: int | None = None, table: bool = False) -> list[str]:
    """Make one delivery in a world of its own; return its calls."""
    with new_world(table=table) as world:
        return Delivery(world, fault, power).run()


def test_calls_of_a_delivery_are_seen() -> None:
    """The edge stands where our code calls the operating system, also at names that were bound at import."""
    calls = deliver()
    assert set(calls) >= CALLS
    assert calls.count("commit") >= 3
    assert calls.count("write") >= 6 + 8, "a line or a note went past the edge"


@pytest.mark.parametrize(
    ("kind", "step"),
    [("crash", 1), ("torn", 1), ("short", 1), ("error", 4), pytest.param("error", 1, marks=pytest.mark.slow)],
)
def test_fault_at_any_call_loses_and_doubles_nothing(kind: str, step: int) -> None:
    """A process dies right after a call, or in the middle of a write; a write is short; a call fails."""
    for number, name in list(enumerate(deliver(), 1))[::step]:
        if kind in {"crash", "error"} or name == "write":
            check(Fault(number, kind), name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seed", "step"), [(0, 4), *(pytest.param(seed, 1, marks=pytest.mark.slow) for seed in range(20))]
)
def test_power_lost_at_any_call_doubles_nothing_and_keeps_what_arrived(seed: int, step: int) -> None:
    """What was not synced is gone, or zeros: what arrived stays, once, and the rest is delivered or set aside."""
    for number, name in list(enumerate(deliver(), 1))[::step]:
        check(Fault(number), name, power=seed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["crash", "error"])
def test_fault_at_any_call_of_a_delivery_to_a_table(kind: str) -> None:
    """The same with delta-rs, and a Delta table that says which batches it has."""
    for number, name in enumerate(deliver(table=True), 1):
        check(Fault(number, kind), name, table=True)  # type: ignore[arg-type]


def check(fault: Fault, name: str, *, power: int | None = None, table: bool = False) -> None:
    """Make one delivery with a fault; say which one, if it goes wrong."""
    try:
        deliver(fault, power=power, table=table)
    except Exception as error:
        raise AssertionError(f"{fault} ({name}), power {power}: {error!r}") from error
