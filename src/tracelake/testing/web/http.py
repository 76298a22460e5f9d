"""What a request to the workspace is, what an answer is, and which function answers which path."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from tracelake.errors import TracelakeError


@dataclass(frozen=True)
class Request:
    """One request, as it came over the wire.

    Attributes:
        method: GET, POST, PATCH, PUT or DELETE.
        path: as sent, percent-encoded, without the query.
        query: decoded values by name, in their order.
        headers: values by lowercase name.
        body: as sent, still compressed if it was.
        base_url: scheme, host and port that the client used, as `http://127.0.0.1:8080`.
        principal: who asks, by name; empty where nobody has to say so.
    """

    method: str
    path: str
    query: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # Neither is in the repr, which ends in a test's report: they have credentials, and are long.
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    base_url: str = ""
    principal: str = ""

    def json(self) -> dict[str, Any]:
        """Return the body, a JSON object; an empty body is an empty one.

        Raises:
            ApiError: 400 MALFORMED_REQUEST, it is something else.
        """
        try:
            value = json.loads(self.body or b"{}")
        except ValueError as error:
            raise ApiError(400, "MALFORMED_REQUEST", f"The body is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise ApiError(400, "MALFORMED_REQUEST", f"The body is a JSON {type(value).__name__} and no object.")
        return value

    def text(self, name: str, default: str = "") -> str:
        """Return the first value of a query parameter."""
        return next(iter(self.query.get(name, ())), default)


@dataclass(frozen=True)
class Response:
    """One answer. The server adds the length."""

    status: int = 200
    body: bytes = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})

    @classmethod
    def of(cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        """Return the answer that carries a value as JSON."""
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


class ApiError(TracelakeError):
    """An answer that is an error, in the shape of Databricks' REST APIs; raised by what answers a request.

    Attributes:
        reason: what Unity Catalog says more closely than by `error_code`, in the details; empty for nothing.
    """

    def __init__(
        self,
        status: int,
        error_code: str | int,
        message: str,
        *,
        reason: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error_code = error_code
        self.reason = reason
        self.headers = headers or {}

    def response(self) -> Response:
        """Return the answer."""
        body: dict[str, Any] = {"error_code": self.error_code, "message": str(self)}
        if self.reason:
            # https://github.com/googleapis/googleapis/blob/master/google/rpc/error_details.proto
            body["details"] = [
                {
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": self.reason,
                    "domain": "unity-catalog.databricks.com",
                    "metadata": {},
                }
            ]
        return Response.of(body, self.status, self.headers)


def invalid(message: str) -> ApiError:
    """Return the error of a request that is wrong in itself: 400 INVALID_PARAMETER_VALUE."""
    return ApiError(400, "INVALID_PARAMETER_VALUE", message)


# Takes the request and the path's parts by name; returns a Response, or what is sent as JSON with status 200.
Handler = Callable[..., Any]


@dataclass(frozen=True)
class Route:
    """A method and a path, and what answers it.

    Attributes:
        path: as `/api/2.1/unity-catalog/tables/{full_name}`; a part in braces is a path segment, and is given to the
            handler decoded, by its name.
        is_open: whether it is answered without authentication.
    """

    method: str
    path: str
    handler: Handler
    is_open: bool = False


class Routes:
    """All routes of a workspace."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = [(route, _pattern(route.path)) for route in routes]

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """Return the route of a request and the decoded parts of its path, None if there is none."""
        for route, pattern in self._routes:
            if route.method == method and (match := pattern.fullmatch(path)):
                return route, {name: unquote(part) for name, part in match.groupdict().items()}
        return None

    def methods(self, path: str) -> list[str]:
        """Return the methods that a path is answered for."""
        return sorted({route.method for route, pattern in self._routes if pattern.fullmatch(path)})


def _pattern(path: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", path)
    return re.compile(
        "".join(f"(?P<{part}>[^/]+)" if index % 2 else re.escape(part) for index, part in enumerate(parts))
    )


def required(body: Mapping[str, Any], name: str, kind: type[Any] = str) -> Any:
    """Return a field of a body.

    Raises:
        ApiError: 400 INVALID_PARAMETER_VALUE, it is missing, empty or of another type.
    """
    value = body.get(name)
    if not isinstance(value, kind) or not value:
        seen = "missing" if value is None or value == "" else f"of type {type(value).__name__}"
        raise ApiError(400, "INVALID_PARAMETER_VALUE", f"The field {name} of the body is {seen}.")
    return value
