"""A destination as somebody else would write it: a folder with one file of JSON lines for each batch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from tracelake import Batch, Finding, Rejection, TracelakeError, TransientDeliveryError
from tracelake.spans.line import resource_of


@dataclass(frozen=True)
class LinesDestination:
    """`lines:///folder`; `lines-picky` takes no span named `bad`, `lines-unstable` fails twice."""

    target: str
    identity: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def parse(cls, target: str) -> LinesDestination:
        return cls(target, {"lines": "1"})

    def check(self) -> list[Finding]:
        return [Finding("ok", f"{self.target} is a folder.")]

    def open(self) -> LinesSink:
        scheme, _, folder = self.target.partition("://")
        os.makedirs(folder, exist_ok=True)
        return LinesSink(scheme, folder)


class LinesSink:
    """Exactly once: the file's name is the batch's."""

    def __init__(self, scheme: str, folder: str) -> None:
        self._scheme = scheme
        self._folder = folder

    def write(self, batch: Batch) -> list[Rejection]:
        rejections, lines = [], []
        if self._scheme == "lines-unstable":
            self._fail()
        index = 0
        for records in batch.chunks():
            for record in records:
                try:
                    resource_of(record)
                    if record.name == "bad" and self._scheme == "lines-picky":
                        raise ValueError("it is bad")
                    lines.append(json.dumps({"name": record.name, "span_id": record.span_id}) + "\n")
                except (TracelakeError, ValueError) as error:
                    rejections.append(Rejection(index, str(error)))
                index += 1
        path = os.path.join(self._folder, f"{batch.app_id}-{batch.number}.jsonl")
        with open(f"{path}.new", "w") as file:
            file.writelines(lines)
        os.rename(f"{path}.new", path)
        return rejections

    def close(self) -> None:
        """Nothing is held."""

    def _fail(self) -> None:
        for attempt in ("first", "second"):
            mark = os.path.join(self._folder, attempt)
            if not os.path.exists(mark):
                open(mark, "w").close()
                raise TransientDeliveryError(f"The {attempt} attempt fails.") if attempt == "first" else KeyError("x")


def parse_raises(_: str) -> LinesDestination:
    raise ZeroDivisionError("of the plugin")


def parse_none(_: str) -> None:
    """Forget to return it."""
