"""Put the trace context into the requests of ``requests`` and ``httpx`` clients.

What holds for every client:

- A header that is on the request already, from OpenTelemetry's instrumentation or from the application, wins. If
  there is a ``traceparent``, no ``tracestate`` is added either, as the two belong together.
- When a redirect leads to another host, ``traceparent`` and ``tracestate`` go along, since they are what links the
  trace and hold no data. Our ``baggage`` does not: it has data of the application, which has not chosen that host.
- A request that is sent twice gets the context of each time.
- Nothing that goes wrong here fails a request.

Importing this module imports neither library.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import weakref
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from tracelake.errors import ConfigurationError
from tracelake.tracing.propagation import current_headers, warn_once
from tracelake.tracing.w3c import BAGGAGE, TRACEPARENT, TRACESTATE

if TYPE_CHECKING:
    import httpx
    import requests

Client = TypeVar("Client", bound="requests.Session | httpx.Client | httpx.AsyncClient")


def propagate(client: Client) -> Client:
    """Send the current trace context with every request of this client, and return the client.

    Repeating it changes nothing. An httpx client gets an event hook, which assigning ``client.event_hooks`` later
    takes away again.

    Raises:
        ConfigurationError: if ``client`` is no ``requests.Session``, ``httpx.Client`` or ``httpx.AsyncClient``.
    """
    if isinstance(client, _loaded("requests", "Session")):
        # In the instance, as requests itself calls `self.send` for the first request and for each redirect.
        if not hasattr(client.__dict__.get("send"), _MARK):
            client.__dict__["send"] = _with_context(client.send)
    elif isinstance(client, _loaded("httpx", "Client", "AsyncClient")):
        _add_hook(client)
        _hooked_by_all.discard(client)
    else:
        raise ConfigurationError(
            f"propagate() was given a {type(client).__module__}.{type(client).__qualname__}. "
            "Pass a requests.Session, httpx.Client or httpx.AsyncClient; with any other client, add "
            "get_tracing_context_headers_for_http_request() to the headers of each request."
        )
    return client


def propagate_all() -> None:
    """Send the current trace context with every request of ``requests`` and ``httpx`` in this process.

    Covers clients that exist already. Imports the two libraries, if they are installed; repeating it changes nothing.
    To be called when the process starts, by one thread.
    """
    _everywhere.enabled = True
    for module, owner, wrap in _TARGETS:
        with contextlib.suppress(ImportError):
            _everywhere.wrap(getattr(importlib.import_module(module), owner), wrap)


def stop_propagating_all() -> None:
    """Undo ``propagate_all``; clients given to ``propagate`` go on.

    ``send`` of the classes is again the object it was. Where another library has wrapped it since, it is left alone,
    and what is ours below does nothing.
    """
    _everywhere.enabled = False
    _everywhere.unwrap()
    for client in list(_hooked_by_all):
        hooks = client.event_hooks["request"]
        hooks[:] = [hook for hook in hooks if hook not in (_into_httpx, _into_httpx_async)]
    _hooked_by_all.clear()


class _SentValue(str):
    """A header that we have put on a request of ``requests``, and the host that request was meant for.

    The value carries this itself, since of our marks it alone survives the copies made for redirects.
    """

    __slots__ = ("host",)
    host: str | None


@dataclass(frozen=True)
class _Sent:
    """The headers we have put on a request, and the host that request was meant for."""

    host: str | None
    headers: dict[str, str]


@dataclass
class _Everywhere:
    """The ``send`` methods that ``propagate_all`` has wrapped: per class, what was there and what is there now."""

    enabled: bool = False
    wrapped: dict[type, tuple[Any, Any]] = field(default_factory=dict)

    def wrap(self, owner: type, wrap: Callable[[Any], Any]) -> None:
        if owner not in self.wrapped:
            original = owner.__dict__["send"]
            wrapper = wrap(original)
            self.wrapped[owner] = (original, wrapper)
            owner.send = wrapper  # type: ignore[attr-defined]

    def unwrap(self) -> None:
        for owner, (original, wrapper) in list(self.wrapped.items()):
            if owner.__dict__["send"] is wrapper:
                owner.send = original  # type: ignore[attr-defined]
                del self.wrapped[owner]


_MARK = "_tracelake_propagates"
_EXTENSION = "tracelake.propagation"  # of an httpx request, inherited by its redirects; the value is a _Sent

_everywhere = _Everywhere()
_hooked_by_all: weakref.WeakSet[Any] = weakref.WeakSet()


def _add_context(headers: MutableMapping[str, str], host: str | None, earlier: _Sent | None) -> _Sent:
    """Replace what was added ``earlier`` to the headers by the current context, and return what was added."""
    for name, value in earlier.headers.items() if earlier else ():
        if headers.get(name) == value:
            del headers[name]
    first_host = earlier.host if earlier else host
    current = current_headers()
    if TRACEPARENT in headers:
        current.pop(TRACESTATE, None)
    if host != first_host:
        current.pop(BAGGAGE, None)
    added = {name: value for name, value in current.items() if name not in headers}
    headers.update(added)
    return _Sent(first_host, added)


def _into_requests(request: requests.PreparedRequest) -> None:
    try:
        headers = request.headers
        ours = {name: value for name, value in headers.items() if isinstance(value, _SentValue)}
        earlier = _Sent(next(iter(ours.values())).host, dict(ours)) if ours else None
        sent = _add_context(headers, urlsplit(str(request.url)).hostname, earlier)
        for name, value in sent.headers.items():
            marked = _SentValue(value)
            marked.host = sent.host
            headers[name] = marked
    except Exception as error:  # noqa: BLE001 - the request is the application's, and has to go out
        _warn(error)


def _into_httpx(request: httpx.Request) -> None:
    try:
        earlier = request.extensions.get(_EXTENSION)
        request.extensions[_EXTENSION] = _add_context(request.headers, request.url.host, earlier)
    except Exception as error:  # noqa: BLE001 - the request is the application's, and has to go out
        _warn(error)


async def _into_httpx_async(request: httpx.Request) -> None:
    _into_httpx(request)


def _with_context(send: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the bound ``send`` of one ``requests.Session``."""

    @functools.wraps(send, updated=())
    def send_with_context(request: requests.PreparedRequest, **kwargs: Any) -> Any:
        _into_requests(request)
        return send(request, **kwargs)

    setattr(send_with_context, _MARK, True)
    return send_with_context


# The wrappers of classes do not copy `__dict__` (`updated`): marks that other libraries put on their wrapper would make
# them unwrap ours in its place.
def _wrap_requests(send: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(send, updated=())
    def send_with_context(self: requests.Session, request: requests.PreparedRequest, **kwargs: Any) -> Any:
        if _everywhere.enabled:
            _into_requests(request)
        return send(self, request, **kwargs)

    return send_with_context


def _wrap_httpx(send: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(send, updated=())
    def send_with_context(self: httpx.Client, *args: Any, **kwargs: Any) -> Any:
        _hook_for_all(self)
        return send(self, *args, **kwargs)

    return send_with_context


def _wrap_httpx_async(send: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(send, updated=())
    async def send_with_context(self: httpx.AsyncClient, *args: Any, **kwargs: Any) -> Any:
        _hook_for_all(self)
        return await send(self, *args, **kwargs)

    return send_with_context


_TARGETS = (
    ("requests", "Session", _wrap_requests),
    ("httpx", "Client", _wrap_httpx),
    ("httpx", "AsyncClient", _wrap_httpx_async),
)


def _hook_for_all(client: Any) -> None:
    try:
        if _everywhere.enabled and _add_hook(client):
            _hooked_by_all.add(client)
    except Exception as error:  # noqa: BLE001 - the request is the application's, and has to go out
        _warn(error)


def _add_hook(client: Any) -> bool:
    hook = _into_httpx_async if isinstance(client, _loaded("httpx", "AsyncClient")) else _into_httpx
    hooks = client.event_hooks["request"]
    if hook in hooks:
        return False
    hooks.append(hook)
    return True


def _loaded(module: str, *names: str) -> tuple[type, ...]:
    """Return these classes, or none if nobody has imported the module: then no object can be one of them."""
    loaded = sys.modules.get(module)
    return tuple(getattr(loaded, name) for name in names) if loaded is not None else ()


def _warn(error: Exception) -> None:
    warn_once(
        ("client", type(error)),
        "The trace context could not be added to a request, which goes out without. Look at the traceback.",
        traceback=True,
    )
