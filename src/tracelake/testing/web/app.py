"""Takes a request from wherever it comes through authentication, faults and routes to its answer, and notes it."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tracelake.redaction import redact
from tracelake.testing.web.faults import Faults
from tracelake.testing.web.http import ApiError, Request, Response, Route, Routes
from tracelake.testing.web.unimitated import name_of

_log = logging.getLogger(__name__)

_MAX_EXCHANGES = 10_000
_MAX_BODY_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Exchange:
    """A request and what was answered; `status` 0 is a connection that was reset."""

    request: Request
    status: int


class Journal:
    """The last exchanges: a bounded number, with a bounded number of bytes in their requests' bodies."""

    def __init__(self) -> None:
        self._exchanges: deque[Exchange] = deque()
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, exchange: Exchange) -> None:
        """Remember an exchange, and forget the oldest ones beyond the bounds."""
        with self._lock:
            self._exchanges.append(exchange)
            self._bytes += len(exchange.request.body)
            while len(self._exchanges) > _MAX_EXCHANGES or self._bytes > _MAX_BODY_BYTES:
                self._bytes -= len(self._exchanges.popleft().request.body)

    def exchanges(self) -> list[Exchange]:
        """Return what is remembered, in the order of the answers."""
        with self._lock:
            return list(self._exchanges)


class App:
    """Answers requests.

    Attributes:
        journal: what was asked and answered.
    """

    def __init__(self, routes: Iterable[Route], principal_of: Callable[[Request], str], faults: Faults) -> None:
        self.journal = Journal()
        self._routes = Routes(routes)
        self._principal_of = principal_of
        self._faults = faults

    def __call__(self, request: Request) -> Response | None:
        """Return the answer to a request; None if the connection is to be reset."""
        fault = self._faults.strike(request)
        if fault is not None and (fault.status or fault.reset) and not fault.handled:
            response = None if fault.reset else fault.error().response()
        else:
            request, response = self._handled(request)
            if fault is not None and fault.reset:
                response = None
        self.journal.add(Exchange(request, response.status if response else 0))
        return response

    def _handled(self, request: Request) -> tuple[Request, Response]:
        """Return the answer, and the request with who sent it."""
        try:
            found = self._routes.find(request.method, request.path)
            if found is None or not found[0].is_open:
                request = dataclasses.replace(request, principal=self._principal_of(request))
            if found is None:
                raise self._unknown(request)
            route, parts = found
            value = route.handler(request, **parts)
            return request, value if isinstance(value, Response) else Response.of(value)
        except ApiError as error:
            return request, error.response()
        except Exception as error:  # noqa: BLE001 - the workspace's own fault: seen in the log, and retried by clients
            _log.exception("The mocked workspace failed at %s %s", request.method, redact(request.path))
            return request, ApiError(500, "INTERNAL_ERROR", f"{type(error).__name__}: {redact(str(error))}").response()

    def _unknown(self, request: Request) -> ApiError:
        methods, name = self._routes.methods(request.path), name_of(request.path)
        if methods and not name:
            return ApiError(
                405, "METHOD_NOT_ALLOWED", f"{request.path} answers {', '.join(methods)}, not {request.method}."
            )
        return ApiError(
            501,
            "NOT_IMPLEMENTED",
            f"The mocked workspace does not imitate {name or 'this path'}: {request.method} {request.path}.",
        )
