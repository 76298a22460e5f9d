"""What a round does: drawn from its seed and its number, and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

# The servers that stand between a shipper and the rows of a destination, each behind a proxy.
SERVERS: dict[str, tuple[str, ...]] = {
    "delta": (),
    "s3": ("s3",),
    "uc-otlp": ("workspace",),
    "uc-delta": ("workspace",),
    "uc-s3": ("workspace", "s3"),
    "otlp": ("otlp",),
    "mlflow": ("mlflow",),
}

_PROCESS = ("kill-app", "kill-shipper", "pause-app", "pause-shipper", "term-app", "term-shipper")
_OTHER = ("clock-jump", "newer-segment", "newer-ledger", "newer-in-flight")
_NETWORK = ("net-delay", "net-cut-request", "net-cut-answer", "net-refuse", "net-black-hole")
_SERVER = ("server-kill", "server-pause")
_WORKSPACE = ("workspace-429", "workspace-5xx", "workspace-lost-answer", "workspace-reset", "workspace-token")
FAULTS = (*_PROCESS, *_OTHER, *_NETWORK, *_SERVER, *_WORKSPACE, "disk-full")

# Seconds of a round in which things go wrong.
_LENGTH_S = (5.0, 10.0)
_LAST_EVENT = 0.9


@dataclass(frozen=True)
class AppPlan:
    """One recording app.

    Attributes:
        mode: its `TRACELAKE_SHIPPER`.
        workers: processes that it forks before it records, and forks anew when they die; with 0 it records itself.
        threads: those that record, in each process.
        forks: whether children are forked from it while its threads record, that record on.
        pause_s: what each thread waits after a span.
        text_bytes: the size of an attribute.
        clock: which of the round's two clocks it has, and the shippers that it starts.
    """

    mode: str
    workers: int
    threads: int
    forks: bool
    pause_s: float
    text_bytes: int
    clock: int


@dataclass(frozen=True)
class Event:
    """Something that goes wrong.

    Attributes:
        at_s: when, since the round began.
        pick: which of those that it can happen to, from 0 to 1.
        for_s: how long, if it is something that ends.
        amount: how much of it, from 0 to 1.
    """

    at_s: float
    fault: str
    pick: float
    for_s: float
    amount: float


@dataclass(frozen=True)
class Schedule:
    """One round.

    Attributes:
        disk: what is on a small disk that can be filled: `spool`, `table`, or nothing.
        settings: environment variables of apps and shippers.
        logs_in_once: whether the workspace is entered with a token for good, or with ones that expire.
    """

    seed: int
    number: int
    destinations: tuple[str, ...]
    apps: tuple[AppPlan, ...]
    settings: tuple[tuple[str, str], ...]
    disk: str
    logs_in_once: bool
    length_s: float
    events: tuple[Event, ...]

    @property
    def servers(self) -> tuple[str, ...]:
        """The servers that its destinations need."""
        return tuple(sorted({server for kind in self.destinations for server in SERVERS[kind]}))


def draw(seed: int, number: int, kinds: Sequence[str] = tuple(SERVERS)) -> Schedule:
    """Return a round; each kind of destination is the first of one in as many rounds as there are kinds."""
    random = Random(f"{seed}/{number}")
    destinations = _destinations(random, number, kinds)
    disk = random.choice(["", "", "spool", "table" if "delta" in destinations else "spool"])
    length_s = random.uniform(*_LENGTH_S)
    faults = _faults(random, destinations, disk)
    events = [
        Event(
            at_s=random.uniform(0.3, _LAST_EVENT * length_s),
            fault=random.choice(faults),
            pick=random.random(),
            for_s=random.choice([random.uniform(0.2, 1.0), random.uniform(1.0, 4.0)]),
            amount=random.random(),
        )
        for _ in range(random.randint(5, 16))
    ]
    return Schedule(
        seed,
        number,
        destinations,
        apps=tuple(_app(random, slow="mlflow" in destinations, disk=disk) for _ in range(random.randint(1, 3))),
        settings=_settings(random, disk),
        disk=disk,
        logs_in_once=random.random() < 0.5,
        length_s=length_s,
        events=tuple(sorted(events, key=lambda event: event.at_s)),
    )


def _destinations(random: Random, number: int, kinds: Sequence[str]) -> tuple[str, ...]:
    first = kinds[number % len(kinds)]
    others = [kind for kind in kinds if kind != first]
    return (first, *random.sample(others, min(len(others), random.choice([0, 0, 1, 1, 2]))))


def _faults(random: Random, destinations: tuple[str, ...], disk: str) -> list[str]:
    """Return the faults of a round: some of those that can be, so that each round is another mixture."""
    servers = {server for kind in destinations for server in SERVERS[kind]}
    possible = [*_PROCESS, *_OTHER]
    if servers:
        possible += [*_NETWORK, *_SERVER]
    if "workspace" in servers:
        possible += _WORKSPACE
    chosen = random.sample(possible, random.randint(3, min(9, len(possible))))
    return [*chosen, "disk-full"] if disk else chosen


def _app(random: Random, *, slow: bool, disk: str) -> AppPlan:
    workers = random.choice([0, 0, 2, 3])
    # Where the disk of a table is full, delta-rs itself writes to the standard error of its process.
    modes = ["process"] * 5 + (["external"] if disk == "table" else ["external", "thread"])
    return AppPlan(
        mode=random.choice(modes),
        workers=workers,
        threads=random.randint(1, 2) if slow else random.randint(1, 6),
        forks=not workers and random.random() < 0.4,
        pause_s=random.uniform(0.03, 0.06) if slow else random.choice([0.003, 0.01, 0.03, 0.15]),
        text_bytes=random.choice([20, 200, 2000]),
        clock=random.randint(0, 1),
    )


def _settings(random: Random, disk: str) -> tuple[tuple[str, str], ...]:
    bounds = ["8MB", "1GB"] if disk == "spool" else ["300KB", "3MB", "1GB", "1GB", "1GB", "1GB"]
    return (
        ("TRACELAKE_SEGMENT_MAX_BYTES", random.choice(["20KB", "100KB", "1MB"])),
        ("TRACELAKE_BATCH_MAX_BYTES", random.choice(["100KB", "300KB", "3MB"])),
        ("TRACELAKE_BATCH_MAX_AGE", random.choice(["0.1", "0.5", "2"])),
        ("TRACELAKE_SPOOL_MAX_BYTES", random.choice(bounds)),
        ("TRACELAKE_SHIPPER_IDLE", random.choice(["0.3", "2"])),
        ("TRACELAKE_SCHEMA_VERSION", random.choice(["1", "2"])),
    )
