"""The contract between tracelake and a place where spans can go.

A plugin is a callable `(target: str) -> Destination` under the entry-point group `tracelake.destinations`, named by the
URL scheme it answers to; docs/destinations.md has a complete one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from tracelake.redaction import one_line
from tracelake.spans.record import SpanRecord


@dataclass(frozen=True)
class Finding:
    """One thing that `Destination.check` saw.

    Attributes:
        severity: `error` keeps spans from being delivered, `warning` does not, `ok` is as it should be.
        seen: what was seen, and where.
        remedy: what to do next; empty when there is nothing to do.
        why: why it matters; empty where what was seen says it.
        code: what `docs/troubleshooting.md` has it under; empty for a finding of a plugin.
    """

    severity: Literal["ok", "warning", "error"]
    seen: str
    remedy: str = ""
    why: str = ""
    code: str = ""


@dataclass(frozen=True)
class Rejection:
    """One span of a batch that a sink can never take. `index` counts the spans of the batch from 0."""

    index: int
    reason: str


@dataclass
class Progress:
    """How far a sink that is not exactly once got with a batch, for the next try of it by the same process.

    Attributes:
        spans: how many of its spans, from the first on, need not be sent again.
        rejected: why those of them that were rejected were, by index.
    """

    spans: int = 0
    rejected: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Spans that are delivered together, and the name under which they are.

    `app_id` and `number` identify the batch for ever: numbers of one `app_id` only grow, and a batch that is tried
    again has the same ones. `size` is its bytes in the spool. `chunks()` reads its spans in pieces of a few thousand,
    from the start each time, always the same. `retried` is False only if it is certain that the batch was never tried.
    `progress` is what a sink notes for the next try, if it sends a batch piece by piece.
    """

    app_id: str
    number: int
    size: int
    chunks: Callable[[], Iterator[list[SpanRecord]]]
    retried: bool = True
    progress: Progress = field(default_factory=Progress, compare=False)


class Sink(Protocol):
    """An open destination, used by one thread at a time."""

    def write(self, batch: Batch) -> list[Rejection]:
        """Write all spans of a batch, or none, and return those that can never be written.

        When it returns, the spans are durable. When it raises, they may or may not be there, and the batch is written
        again. A sink that can tell that it holds a batch already does not write it twice: that is exactly once. One
        that cannot is at least once.

        Raises:
            TransientDeliveryError: the same write may succeed soon.
            PermanentDeliveryError: somebody has to act first.
            BatchExistsError: the destination holds this batch, which was not `retried`, so it holds other spans under
                the same name: those of a copy of the spool.
        """

    def close(self) -> None:
        """Let go of connections; may be repeated."""


@runtime_checkable
class Destination(Protocol):
    """A place where spans can go. Frozen and hashable; holds no secret and does no I/O until checked or opened."""

    @property
    def target(self) -> str:
        """The text that names it: canonical, absolute, without secrets; parsing it gives an equal destination."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Whose access is used, by non-secret settings only (a profile, never a key). Empty when there is only one.

        `access: runtime` says that the platform gives it to this very process, as in a Databricks notebook, so that no
        other can deliver.
        """

    def check(self) -> list[Finding]:
        """Look whether spans can be delivered there, without writing any. Blocks; may be repeated."""

    def open(self) -> Sink:
        """Open it. Blocks.

        Raises:
            DeliveryError: it cannot be opened now.
        """


def is_confined(identity: Mapping[str, str]) -> bool:
    """Say whether an access holds in the process that has it, and in no other."""
    return identity.get("access") == "runtime"


def digest(destination: Destination) -> str:
    """Return 16 hex digits that two services share if they record to the same destination.

    They travel in trace headers in place of its name, which third parties should not learn.
    """
    return hashlib.sha256(destination.target.encode()).hexdigest()[:16]


def shown_target(target: str) -> str:
    """Return a target as an error message may show it, quoted.

    It may be malformed, so that nothing tells where a password in it ends: all before the last `@`, and all after a
    `?` or `#`, is left out.
    """
    scheme, separator, rest = target.partition("://")
    before, at, rest = (rest if separator else scheme).rpartition("@")
    text = f"{scheme}{separator}" if separator else ""
    text += ("***@" if before and at else at) + re.sub(r"([?#]).+", r"\1***", rest, flags=re.DOTALL)
    return repr(one_line(text, limit=200))
