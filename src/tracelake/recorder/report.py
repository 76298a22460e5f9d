"""What became of the spans of this process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FlushReport:
    """Counts of spans; a span that goes to two destinations counts once for each.

    Attributes:
        recorded: spans that ended in this process; the sum of the other four.
        delivered: spans that are in their destination.
        pending: spans that are in the spool and will be delivered, by whoever ships it, also after this process ends.
        dropped: spans that could not be put into the spool; `errors` says why.
        quarantined: spans that the destination can never take, set aside beside the spool.
        spool: the spool's directory.
        errors: why spans are pending or dropped, one text a destination.
    """

    recorded: int
    delivered: int
    pending: int
    dropped: int
    quarantined: int
    spool: str
    errors: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every span is in its destination."""
        return self.delivered == self.recorded

    def __str__(self) -> str:
        counts = (
            f"{self.recorded} spans recorded: {self.delivered} delivered, {self.pending} pending, "
            f"{self.dropped} dropped, {self.quarantined} quarantined (spool: {self.spool})"
        )
        return " ".join((counts, *self.errors))
