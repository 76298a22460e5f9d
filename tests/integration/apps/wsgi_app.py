"""A WSGI application whose requests are two spans each; `/fork` makes a third in a child of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import tracelake

if os.environ.get("SPAN_AT_IMPORT"):
    with tracelake.start_span("import"):
        pass


def _answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    with tracelake.start_span("request", attributes={"pid": os.getpid()}):
        with tracelake.start_span("work"):
            pass
        if environ["PATH_INFO"] == "/fork":
            _fork()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]


def _fork() -> None:
    child = os.fork()
    if child == 0:
        with tracelake.start_span("forked"):
            pass
        os._exit(0)
    os.waitpid(child, 0)


application = tracelake.WsgiTracingMiddleware(_answer)
print("the application is loaded", flush=True)
