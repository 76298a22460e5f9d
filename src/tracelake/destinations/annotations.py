"""The annotations table beside the span table of a destination, read and written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tracelake.databricks.names import TableName
from tracelake.destinations.annotation_table import annotations_name, annotations_table, append_annotations
from tracelake.destinations.base import Destination
from tracelake.destinations.delta import DeltaDestination, DeltaSink
from tracelake.destinations.delta_errors import need_delta
from tracelake.destinations.unity.destination import UnityCatalogDestination
from tracelake.errors import QueryError
from tracelake.spans.annotations import Annotation, Clock, to_rows

if TYPE_CHECKING:
    from deltalake import DeltaTable


def open_annotations(destination: Destination) -> DeltaTable | None:
    """Open the annotations table beside the span table of a destination for reading; None if there is none.

    Raises:
        DeliveryError: it cannot be opened.
    """
    if isinstance(destination, UnityCatalogDestination):
        return _open_named(annotations_table(destination.name))
    if isinstance(destination, DeltaDestination):
        return DeltaSink(annotations_name(destination.location), version=1, create=False).table()
    return None


def add(destination: Destination, annotations: Sequence[Annotation]) -> None:
    """Add versions of annotations beside the span table of a destination; makes their table if there is none. Blocks.

    They are committed, and survive a power loss, when this returns. Those of several threads that wait for one another
    are one commit. Each version is later than those that this process added before.

    Raises:
        QueryError: the destination is no table, or a value cannot be stored.
        DeliveryError: the table cannot be made or written.
        ConfigurationError: there is no access to it.
        MissingDependencyError: delta-rs or pyarrow is not installed.
    """
    if not isinstance(destination, (DeltaDestination, UnityCatalogDestination)):
        raise QueryError(
            f"The destination {destination.target} is not a table, so nothing can be annotated there. Use its own "
            "tools, or name a table."
        )
    if not annotations:
        return
    with _lock:
        group = _groups.setdefault(destination.target, _Group())
    group.add(annotations, lambda batch: _write(destination, batch))


@dataclass
class _Waiting:
    annotations: Sequence[Annotation]
    done: bool = False
    error: Exception | None = None

    def settle(self, write: Callable[[Sequence[Annotation]], None]) -> None:
        self.done, self.error = True, None
        try:
            write(self.annotations)
        except Exception as error:  # noqa: BLE001 - it is raised in the thread that waits
            self.error = error


@dataclass
class _Group:
    """Writes what several threads add meanwhile in one commit."""

    _waiting: list[_Waiting] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def add(self, annotations: Sequence[Annotation], write: Callable[[Sequence[Annotation]], None]) -> None:
        mine = _Waiting(annotations)
        with self._lock:
            self._waiting.append(mine)
        with self._writing:
            if not mine.done:
                self._write(write)
        if mine.error:
            raise mine.error

    def _write(self, write: Callable[[Sequence[Annotation]], None]) -> None:
        with self._lock:
            batch, self._waiting = self._waiting, []
        together = _Waiting([annotation for each in batch for annotation in each.annotations])
        together.settle(write)
        for each in batch:
            each.done, each.error = True, together.error
            if together.error and len(batch) > 1:
                each.settle(write)  # what is wrong may be wrong with one of them alone


_groups: dict[str, _Group] = {}
_lock = threading.Lock()
_clock = Clock()


def _write(destination: DeltaDestination | UnityCatalogDestination, annotations: Sequence[Annotation]) -> None:
    need_delta(destination.target)
    if isinstance(destination, DeltaDestination):
        sink = DeltaSink(annotations_name(destination.location), version=1, create=False)
        append_annotations(sink, to_rows(annotations, "", _clock))
        return
    from tracelake.databricks.catalog import Catalog
    from tracelake.databricks.workspace import connect
    from tracelake.destinations.unity.annotations import write

    catalog = Catalog(connect())
    rows = to_rows(annotations, next(iter(catalog.principals()), ""), _clock)
    write(catalog, destination.name, annotations_table(destination.name), rows)


def _open_named(name: TableName) -> DeltaTable | None:
    from tracelake.databricks.catalog import Catalog
    from tracelake.databricks.workspace import connect
    from tracelake.destinations.unity.delta import opened_files

    catalog = Catalog(connect())
    return opened_files(catalog, catalog.table(name)) if catalog.has_table(name) else None
