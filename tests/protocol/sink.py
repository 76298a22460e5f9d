"""A destination that is told how to fail, over a store of its own or a Delta table; both hold a batch exactly once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from tests.numbered import numbers
from tests.protocol.edge import Edge
from tracelake.destinations.base import Batch, Finding, Rejection, Sink
from tracelake.destinations.delta import DeltaDestination
from tracelake.errors import BatchExistsError, PermanentDeliveryError, TransientDeliveryError

# The text of a span that no store takes.
POISON = "poison"

Mood = Literal["busy", "breaks", "lost answer", "refuses"]


class FileStore:
    """A directory with a file for each batch: the numbers of its spans."""

    def __init__(self, path: str) -> None:
        self._path = path
        os.makedirs(path, exist_ok=True)

    def write(self, batch: Batch) -> list[Rejection]:
        """Keep a batch, all of it at once, unless it is there."""
        spans = [span for chunk in batch.chunks() for span in chunk]
        poisoned = [index for index, span in enumerate(spans) if span.attributes["text"] == POISON]
        path = os.path.join(self._path, f"{batch.app_id}-{batch.number}")
        if not os.path.exists(path):
            kept = [int(span.span_id, 16) for index, span in enumerate(spans) if index not in poisoned]
            with open(path, "w") as file:
                json.dump(kept, file)
        elif not batch.retried:
            raise BatchExistsError(f"{path} is there.")
        return [Rejection(index, "poison") for index in poisoned]

    def close(self) -> None:
        """Hold nothing."""

    def numbers(self) -> list[int]:
        """Return the numbers of all spans, each as often as it is there."""
        found: list[int] = []
        for name in os.listdir(self._path):
            with open(os.path.join(self._path, name)) as file:
                found += json.load(file)
        return sorted(found)


class TableStore:
    """A Delta table."""

    def __init__(self, path: str) -> None:
        self._path = path
        sink = DeltaDestination.parse(path).open()
        self.write = sink.write
        self.close = sink.close

    def numbers(self) -> list[int]:
        """Return the numbers of all rows."""
        return numbers(self._path)


@dataclass
class Moods:
    """How the next writes go; when none is left, well."""

    next: list[Mood] = field(default_factory=list)


@dataclass(frozen=True)
class MoodyDestination:
    """What the lane's target means."""

    target: str
    edge: Edge = field(compare=False)
    moods: Moods = field(compare=False)
    store: FileStore | TableStore = field(compare=False)
    identity: Mapping[str, str] = field(default_factory=dict, compare=False)

    def check(self) -> list[Finding]:
        """Find nothing."""
        return []

    def open(self) -> Sink:
        """Return the sink."""
        return MoodySink(self)


class MoodySink:
    """Writes as the destination's mood is. The commit is a call that a process may die of."""

    def __init__(self, destination: MoodyDestination) -> None:
        self._destination = destination
        self.close: Callable[[], None] = destination.store.close

    def write(self, batch: Batch) -> list[Rejection]:
        """Write a batch, or fail."""
        moods = self._destination.moods.next
        mood = moods.pop(0) if moods else None
        if mood == "busy":
            raise TransientDeliveryError("busy")
        if mood == "refuses":
            raise PermanentDeliveryError("refused")
        if mood == "breaks":
            next(batch.chunks(), None)
            raise RuntimeError("broken")
        rejections: list[Rejection] = self._destination.edge.call("commit", self._destination.store.write, batch)
        if mood == "lost answer":
            raise TransientDeliveryError("the connection broke")
        return rejections
