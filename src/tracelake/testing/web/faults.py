"""What goes wrong with requests, on demand."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from tracelake.testing.web.http import ApiError, Request

_CODES = {
    429: "REQUEST_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


@dataclass
class Fault:
    """One thing that goes wrong, with the requests whose path begins with `path`.

    Attributes:
        times: how many more requests it strikes; None is all, until it is cleared.
        after: how many requests it lets through first.
        delay_s: seconds that an answer takes longer.
        status: the status that is answered instead; 0 for what would be answered.
        reset: the connection is reset in place of an answer.
        handled: the request is carried out all the same, and only its answer is lost.
    """

    path: str
    times: int | None = None
    after: int = 0
    delay_s: float = 0.0
    status: int = 0
    message: str = ""
    retry_after_s: int | None = None
    reset: bool = False
    handled: bool = False

    def error(self) -> ApiError:
        """Return the answer with its status."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return ApiError(
            self.status,
            _CODES.get(self.status, "INTERNAL_ERROR"),
            self.message or "The workspace was told to answer so.",
            headers=headers,
        )


class Faults:
    """The faults of a workspace, each until it has struck as often as asked. Of several, the first asked for strikes.

    `path` is the beginning of the paths that are struck, `/api` unless given; `times` is how often, None for always;
    `after` is how many requests are let through first.
    """

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def delay(self, seconds: float, *, path: str = "/api", times: int | None = None, after: int = 0) -> None:
        """Answer later."""
        self.add(Fault(path, times, after, delay_s=seconds))

    def rate_limit(self, times: int | None = 1, *, retry_after_s: int = 1, path: str = "/api", after: int = 0) -> None:
        """Answer 429 with the header Retry-After."""
        self.add(Fault(path, times, after, status=429, retry_after_s=retry_after_s))

    def fail(self, times: int | None = 1, *, status: int = 503, path: str = "/api", after: int = 0) -> None:
        """Answer with an error of the service, without carrying the request out."""
        self.add(Fault(path, times, after, status=status))

    def reset_connection(self, times: int | None = 1, *, path: str = "/api", after: int = 0) -> None:
        """Reset the connection, without carrying the request out."""
        self.add(Fault(path, times, after, reset=True))

    def lose_answer(self, times: int | None = 1, *, path: str = "/api", after: int = 0) -> None:
        """Carry the request out, and reset the connection before its answer."""
        self.add(Fault(path, times, after, reset=True, handled=True))

    def add(self, fault: Fault) -> None:
        """Add a fault.

        Raises:
            ValueError: nothing goes wrong with it, or nothing can.
        """
        if not 0 <= fault.delay_s <= threading.TIMEOUT_MAX:
            raise ValueError(f"it takes {fault.delay_s} seconds longer")
        if not (fault.status or fault.reset or fault.delay_s):
            raise ValueError("it has neither a status, nor a delay, nor a reset")
        if fault.status and not 400 <= fault.status <= 599:
            raise ValueError(f"the status {fault.status} is none of an error")
        if fault.handled and not fault.reset:
            raise ValueError("a request whose answer is lost has to have a reset")
        if fault.after < 0 or (fault.times is not None and fault.times < 1):
            raise ValueError(f"it strikes {fault.times} times after {fault.after}")
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        """Take all faults back."""
        with self._lock:
            self._faults.clear()

    def strike(self, request: Request) -> Fault | None:
        """Count a request, and return the fault that strikes it; waits as long as the fault delays it."""
        fault = self._next(request)
        if fault is not None:
            time.sleep(fault.delay_s)
        return fault

    def _next(self, request: Request) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if not request.path.startswith(fault.path):
                    continue
                if fault.after:
                    fault.after -= 1
                    continue
                if fault.times is not None:
                    fault.times -= 1
                    if not fault.times:
                        self._faults.remove(fault)
                return fault
        return None
