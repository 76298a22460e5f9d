"""Middleware that runs every request of a web application in its caller's trace context.

No server span is made. OpenTelemetry's instrumentations of the frameworks make one, with the attributes that the
semantic conventions want, and two spans for one request help nobody. With such an instrumentation, inside or outside of
this middleware, its span stays the current one; without it, the first span the application starts is the child of the
caller's.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import Any, TypeAlias

from tracelake.tracing.propagation import enter_remote_context

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
WsgiApp: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_WSGI_NAMES = ("HTTP_TRACEPARENT", "HTTP_TRACESTATE", "HTTP_BAGGAGE")


class TracingMiddleware:
    """ASGI middleware: ``app.add_middleware(TracingMiddleware)`` in FastAPI and Starlette.

    Holds for ``http`` and ``websocket``, to the end of the response or connection, background tasks included. Headers
    that are malformed never fail a request.
    """

    def __init__(self, app: AsgiApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        with contextlib.ExitStack() as stack:
            enter_remote_context(stack, scope.get("headers") or (), keep_server_span=True)
            try:
                await self.app(scope, receive, send)
            except GeneratorExit:
                # A coroutine whose loop is gone is closed by the garbage collector, in a context where our tokens
                # mean nothing. The context they belong to is gone as well, so there is nothing to restore.
                stack.pop_all()
                raise


class WsgiTracingMiddleware:
    """WSGI middleware: ``app.wsgi_app = WsgiTracingMiddleware(app.wsgi_app)`` in Flask.

    A request and the iteration of its response run in one ``contextvars`` context of their own, so that a span which
    a streaming response opens stays open between two chunks, whichever thread the server takes for each of them.
    Context variables set inside are therefore not seen by the server. Headers that are malformed never fail a request.
    """

    def __init__(self, app: WsgiApp) -> None:
        self.app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = contextvars.copy_context()
        stack = contextlib.ExitStack()
        headers = {name: environ[name] for name in _WSGI_NAMES if name in environ}
        request.run(enter_remote_context, stack, headers, keep_server_span=True)
        try:
            body = request.run(self.app, environ, start_response)
        except BaseException:
            request.run(stack.close)
            raise
        # Servers know these by their type (one Content-Length, sendfile), and none of them runs code of the
        # application, so they are handed over as they are.
        file_wrapper = environ.get("wsgi.file_wrapper")
        if type(body) in (list, tuple) or (isinstance(file_wrapper, type) and isinstance(body, file_wrapper)):
            request.run(stack.close)
            return body
        return _Body(body, request, stack)


class _Body:
    """The response of a WSGI application, iterated and closed in the context of its request."""

    def __init__(self, body: Iterable[bytes], request: contextvars.Context, stack: contextlib.ExitStack) -> None:
        self._body = body
        self._request = request
        self._stack = stack
        self._chunks: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._chunks is None:
            self._chunks = self._request.run(iter, self._body)
        return self._request.run(next, self._chunks)

    def close(self) -> None:
        """Close the response, then leave the caller's context; servers call this once (PEP 3333)."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                self._request.run(close)
        finally:
            self._request.run(self._stack.close)
