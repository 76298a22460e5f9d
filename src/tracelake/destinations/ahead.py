"""Working ahead: the rows of a batch are made, in Python, while the ones before them are written, in Rust."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

_Item = TypeVar("_Item")

# Items that wait to be taken. Making and writing take turns at being the slower.
_AHEAD = 2


class _End(NamedTuple):
    error: BaseException | None


def ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """Yield what `items` yields, made in a thread of its own, a few items ahead of whoever takes them.

    What `items` raises is raised here. The thread ends with the iterator, also if that is closed early.
    """
    made: queue.SimpleQueue[_Item | _End] = queue.SimpleQueue()
    room = threading.Semaphore(_AHEAD)
    is_closed = threading.Event()

    def make() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                made.put(item)
                room.acquire()
                if is_closed.is_set():
                    return
        except BaseException as raised:  # noqa: BLE001 - it is raised where the items are taken
            error = raised
        made.put(_End(error))

    thread = threading.Thread(target=make, name="tracelake-rows", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no thread can be started any more, as in an interpreter that is ending
        yield from items
        return
    try:
        while not isinstance(item := made.get(), _End):
            yield item
            room.release()
        if item.error is not None:
            raise item.error
    finally:
        is_closed.set()
        room.release()
        thread.join()
