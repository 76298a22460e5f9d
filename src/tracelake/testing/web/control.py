"""What tests in other processes and languages tell the workspace and ask of it, at paths that Databricks lacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import msgspec

from tracelake.testing.web.app import Exchange
from tracelake.testing.web.faults import Fault, Faults
from tracelake.testing.web.http import ApiError, Request, Route


class ControlApi:
    """Faults and requests over HTTP, for whoever has a credential."""

    def __init__(self, faults: Faults, exchanges: Callable[[str], list[Exchange]]) -> None:
        """`exchanges` returns those whose path begins with a text."""
        self._faults = faults
        self._exchanges = exchanges

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("POST", "/mock/faults", self._add),
            Route("DELETE", "/mock/faults", self._clear),
            Route("GET", "/mock/requests", self._requests),
        ]

    def _add(self, request: Request) -> dict[str, Any]:
        body = request.json()
        known = [field.name for field in fields(Fault)]
        unknown = body.keys() - set(known)
        try:
            if unknown:
                raise ValueError(f"it has the fields {', '.join(sorted(unknown))}; known are {', '.join(known)}")
            self._faults.add(msgspec.convert({"path": "/api", "times": 1, **body}, Fault))
        except (ValueError, msgspec.ValidationError) as error:
            raise ApiError(400, "INVALID_PARAMETER_VALUE", f"This is no fault: {error}.") from error
        return {}

    def _clear(self, _: Request) -> dict[str, Any]:
        self._faults.clear()
        return {}

    def _requests(self, request: Request) -> dict[str, Any]:
        return {
            "requests": [
                {
                    "method": each.request.method,
                    "path": each.request.path,
                    "principal": each.request.principal,
                    "bytes": len(each.request.body),
                    "status": each.status,
                }
                for each in self._exchanges(request.text("path"))
            ]
        }
