"""Apps and shippers in any order, with a fault at any call of any of them: a state machine looks for a lost span."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.protocol.edge import Fault
from tests.protocol.sink import Mood
from tests.protocol.world import World


def faults(calls: int) -> st.SearchStrategy[Fault | None]:
    """Return a fault at one of the first calls, or none."""
    somewhere = st.builds(Fault, st.integers(1, calls), st.sampled_from(["crash", "torn", "short", "error"]))
    return st.none() | somewhere


kinds = st.sampled_from(["good", "good", "good", "bad", "poison"])
moods = st.sampled_from(["busy", "breaks", "lost answer", "refuses"])


class Protocol(RuleBasedStateMachine):
    """What may happen to a lane, and what has to be true all the while."""

    table = False
    world: World

    @initialize(max_bytes=st.sampled_from([2**20, 3000]))
    def begin(self, max_bytes: int) -> None:
        """Begin with an app, and a bound that may be met."""
        self.world = World(table=self.table, max_bytes=max_bytes)
        self.world.new_app()

    @precondition(lambda self: 0 < len(self.world.apps) < 4)
    @rule(data=st.data())
    def fork_app(self, data: Any) -> None:
        """An app forks."""
        self.world.fork(data.draw(st.sampled_from(self.world.apps)))

    @precondition(lambda self: self.world.apps)
    @rule(data=st.data(), kind_list=st.lists(kinds, min_size=1, max_size=5), fault=faults(12))
    def record(self, data: Any, kind_list: list[str], fault: Fault | None) -> None:
        """An app records some lines; the fault is in one of them."""
        app = data.draw(st.sampled_from(self.world.apps))
        for kind in kind_list:
            if app in self.world.apps:
                self.world.append(app, kind, fault)

    @precondition(lambda self: self.world.apps)
    @rule(data=st.data(), fault=faults(8))
    def ask(self, data: Any, fault: Fault | None) -> None:
        """An app asks for delivery."""
        self.world.ask(data.draw(st.sampled_from(self.world.apps)), fault)

    @rule(fault=faults(40), mood=st.none() | moods, flush=st.booleans())
    def ship(self, fault: Fault | None, mood: Mood | None, flush: bool) -> None:
        """The shipper looks at the lane, and delivers what is due; the destination may be in a bad mood."""
        self.world.moods.next[:] = [mood] if mood else []
        self.world.ship(fault, flush=flush)

    @rule(what=st.sampled_from(["app starts", "app ends", "shipper is replaced", "upgrade", "pause", "rest"]))
    def happen(self, what: str) -> None:
        """Somebody comes or goes, or nothing happens for a while."""
        if what == "app starts" and len(self.world.apps) < 4:
            self.world.new_app()
        elif what == "app ends" and self.world.apps:
            self.world.end(self.world.apps[0])
        elif what == "shipper is replaced":
            self.world.replace_shipper()
        elif what == "upgrade":
            self.world.add_newer_segment()
        else:
            self.world.now_s += 60 if what == "rest" else 2

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        """Hold the world to what the apps were told."""
        self.world.check()

    def teardown(self) -> None:
        """Deliver the rest."""
        try:
            self.world.settle()
        finally:
            self.world.close()


class ProtocolWithTable(Protocol):
    """The same with a Delta table."""

    table = True


class ProtocolWithPowerLoss(Protocol):
    """The same on a machine that loses power, now and then."""

    calls_before = 0

    @precondition(lambda self: len(self.world.edge.calls) - self.calls_before > 30)
    @rule(seed=st.integers(0, 2**32))
    def lose_power(self, seed: int) -> None:
        """All die, and the disk forgets what was not synced."""
        self.calls_before = len(self.world.edge.calls)
        self.world.lose_power(seed)


def explore(machine: type[Protocol], examples: int, steps: int, *, at_length: bool = False) -> None:
    """Let a machine run: always the same examples, or others each time, the failing one made small."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=not at_length,
            phases=[Phase.generate, *([Phase.shrink] if at_length else [])],
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("machine", [Protocol, ProtocolWithPowerLoss])
def test_protocol(machine: type[Protocol]) -> None:
    """A few examples, always the same."""
    explore(machine, 20, 40)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("machine", "examples"), [(Protocol, 500), (ProtocolWithPowerLoss, 500), (ProtocolWithTable, 60)]
)
def test_protocol_at_length(machine: type[Protocol], examples: int) -> None:
    """Many examples, others each time; a failure prints how to have it again."""
    explore(machine, examples, 60, at_length=True)
