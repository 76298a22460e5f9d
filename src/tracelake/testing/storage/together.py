"""One call for what many threads ask at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Together(Generic[Item, Result]):
    """Calls a function with the items of all threads that wait; each gets its own result, or the error of the call.

    While one call is under way the items of the next one gather, so calls get fewer and larger the more there is to do.

    Attributes:
        lock: held during a call.
    """

    def __init__(self, call: Callable[[list[Item]], list[Result]]) -> None:
        """`call` returns a result for each item, in their order."""
        self.lock = threading.Lock()
        self._call = call
        self._waiting: deque[tuple[Item, Future[Result]]] = deque()

    def __call__(self, item: Item) -> Result:
        """Return the result of an item, once a call had it."""
        done: Future[Result] = Future()
        self._waiting.append((item, done))
        with self.lock:
            if not done.done():
                self._call_for_all()
        return done.result()

    def _call_for_all(self) -> None:
        taken = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        try:
            results = self._call([item for item, _ in taken])
        except BaseException as error:
            for _, done in taken:
                done.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            for (_, done), result in zip(taken, results, strict=True):
                done.set_result(result)
