"""The W3C headers ``traceparent``, ``tracestate`` and ``baggage``: read from any carrier, parsed by the letter.

Sources: W3C Trace Context, levels 1 and 2 (https://www.w3.org/TR/trace-context/,
https://www.w3.org/TR/trace-context-2/), and W3C Baggage (https://www.w3.org/TR/baggage/). Rules are cited by the
title of their section, as the numbers differ between editions.

OpenTelemetry's own propagators are not used to read headers, because in 1.45 (and earlier) they

- take the first of several ``traceparent`` headers, where the trace has to be restarted;
- accept a line break after ``traceparent``, and keep flag bits the specification reserves;
- discard a whole ``tracestate`` for a repeated key, for a key of level 2 (``foo@@bar``, ``1abc``), or for length;
- read the first of several ``baggage`` headers only, and hand a member's properties (``;key=value``) to the
  application as part of its value;
- code a space in ``baggage`` as ``+``, where the specification has percent-encoding only;
- match header names in one case.

Every parser raises ``PropagationError`` for what it cannot use; the caller decides whether that ends a request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import quote, unquote

from opentelemetry.trace import INVALID_SPAN_ID, INVALID_TRACE_ID, SpanContext, TraceFlags, TraceState

from tracelake.errors import PropagationError

Headers: TypeAlias = Mapping[Any, Any] | Iterable[tuple[Any, Any]]
"""A mapping of header names to a value or a list of values, or (name, value) pairs; text or bytes, names in any case.

``Headers`` objects of Starlette, Werkzeug, requests, httpx and aiohttp, an ASGI scope's list and a WSGI environ fit.
"""

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
BAGGAGE = "baggage"

MAX_TRACEPARENT_CHARS = 512
"""Version 00 has 55. A later version may be longer, but only a prohibitively large one is refused ("Versioning")."""
MAX_TRACESTATE_MEMBERS = 32
"""From "tracestate Header Field Values"."""
MAX_TRACESTATE_CHARS = 8192
"""At least 512 have to be carried ("tracestate Limits"); this is what common servers take as one header line."""
MAX_BAGGAGE_MEMBERS = 180
"""From the grammar of "baggage-string"."""
MAX_BAGGAGE_BYTES = 8192
"""From "Limits" of W3C Baggage; holds for all ``baggage`` headers of a request together."""

_OWS = " \t"
_KNOWN_FLAGS = TraceFlags.SAMPLED | 0x02  # the second is random-trace-id, which OpenTelemetry 1.30 does not name yet
_LARGE_MEMBER_CHARS = 128  # "tracestate Limits": larger entries are removed first

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_VERSION = re.compile(r"[0-9a-f]{2}-")

_STATE_MEMBER = re.compile(r"[^,]+")
_STATE_KEY = re.compile(r"[a-z0-9][a-z0-9_\-*/@]{0,255}")
_STATE_VALUE = re.compile(r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
_STATE_KEY_LEVEL_1 = re.compile(r"[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13}")

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105 - RFC 9110, section 5.6.2
_OCTETS = r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*"
_BAGGAGE_MEMBER = re.compile(
    rf"({_TOKEN})[ \t]*=[ \t]*({_OCTETS})[ \t]*(?:;[ \t]*{_TOKEN}[ \t]*(?:=[ \t]*{_OCTETS}[ \t]*)?)*"
)
# "+" is legal in both, but is left out: OpenTelemetry for Python would read it as a space.
_SAFE_IN_KEY = "!#$&'*^`|"
_SAFE_IN_VALUE = "!#$&'()*/:<=>?@[]^`{|}"


def read_headers(headers: Headers) -> dict[str, list[str]]:
    """Return the values of the three headers, in order of arrival; an empty list for one that is not there.

    In a WSGI environ (PEP 3333) only the ``HTTP_`` names count: servers may merge the process environment into it,
    where ``TRACEPARENT`` has another meaning.

    Raises:
        PropagationError: if ``headers`` cannot be read as headers at all.
    """
    found: dict[str, list[str]] = {TRACEPARENT: [], TRACESTATE: [], BAGGAGE: []}
    try:
        is_environ = isinstance(headers, Mapping) and "REQUEST_METHOD" in headers
        getlist = getattr(headers, "getlist", None)
        for name, value in _pairs(headers):
            text = _text(name)
            key = text[5:].lower() if text.startswith("HTTP_") else "" if is_environ else text.lower()
            if key not in found:
                continue
            if not callable(getlist):
                found[key].extend(_texts(value))
            elif not found[key]:
                found[key].extend(_texts(getlist(name)))
    except Exception as error:
        raise PropagationError(
            f"The headers of the request, a {type(headers).__name__}, cannot be read: {type(error).__name__}. "
            "Pass a mapping of names to values, or a list of (name, value) pairs."
        ) from error
    return found


def parse_traceparent(values: Sequence[str]) -> SpanContext:
    """Parse the values of all ``traceparent`` headers of a request into a remote span context without tracestate.

    A version above 00 is read as far as this one goes ("Versioning of traceparent"). Of the flags, sampled and
    random-trace-id are kept, the others set to zero ("Other Flags").

    Raises:
        PropagationError: if there is not exactly one value or it is malformed: the trace has to be restarted.
    """
    if len(values) != 1:
        raise malformed(TRACEPARENT, ", ".join(values), f"is sent once, not {len(values)} times")
    value = values[0].strip(_OWS)
    if len(value) > MAX_TRACEPARENT_CHARS:
        raise malformed(TRACEPARENT, value, f"has at most {MAX_TRACEPARENT_CHARS} characters, not {len(value)}")
    if not _VERSION.match(value):
        raise malformed(TRACEPARENT, value, "starts with a version of 2 lowercase hex digits and a dash")
    match = _TRACEPARENT.fullmatch(value)
    if match is None:
        rule = "is version-traceid-parentid-flags of 2, 32, 16 and 2 lowercase hex digits, then the end or a dash"
        raise malformed(TRACEPARENT, value, rule)
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff":
        raise malformed(TRACEPARENT, value, "cannot have version ff")
    if version == "00" and rest is not None:
        raise malformed(TRACEPARENT, value, "of version 00 ends after the flags")
    context = SpanContext(
        trace_id=int(trace_id, 16),
        span_id=int(span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(flags, 16) & _KNOWN_FLAGS),
    )
    if context.trace_id == INVALID_TRACE_ID:
        raise malformed(TRACEPARENT, value, "cannot have a trace id of zeros only")
    if context.span_id == INVALID_SPAN_ID:
        raise malformed(TRACEPARENT, value, "cannot have a parent id of zeros only")
    return context


def format_traceparent(context: SpanContext) -> str:
    """Format a valid span context as a ``traceparent`` of version 00."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & _KNOWN_FLAGS:02x}"


def parse_tracestate(values: Sequence[str]) -> TraceState:
    """Parse the values of all ``tracestate`` headers, combined in order of arrival (RFC 9110, section 5.3).

    Empty members are skipped. Of a repeated key the first, which is the latest, is kept. Past
    ``MAX_TRACESTATE_CHARS`` members of more than 128 characters are left out, the last first ("tracestate Limits").

    Raises:
        PropagationError: if a key or a value is malformed or there are more than 32 members: all of it is to be
            discarded, and ``traceparent`` kept.
    """
    members: dict[str, str] = {}
    # One by one: a giant header is not taken apart as a whole.
    stripped = (member[0].strip(_OWS) for value in values for member in _STATE_MEMBER.finditer(value))
    for count, member in enumerate(filter(None, stripped), start=1):
        key, _, value = member.partition("=")
        if not _STATE_KEY.fullmatch(key):
            rule = "has keys of 1 to 256 of a-z 0-9 _ - * / @, the first a letter or digit"
            raise malformed(TRACESTATE, member, rule)
        if not _STATE_VALUE.fullmatch(value):
            rule = "has values of 1 to 256 printable ASCII characters without , and ="
            raise malformed(TRACESTATE, member, rule)
        if count > MAX_TRACESTATE_MEMBERS:
            raise malformed(TRACESTATE, ",".join(values), f"has at most {MAX_TRACESTATE_MEMBERS} members")
        members.setdefault(key, value)
    return _trace_state(_shortened(members))


def parse_baggage(values: Sequence[str], *, strict: bool = False) -> dict[str, str]:
    """Parse the values of all ``baggage`` headers into keys and values, both percent-decoded.

    A malformed member, and each past the 180th, is skipped, or raises if ``strict``. Of a repeated key the last
    value counts. Properties of a member are dropped: OpenTelemetry's baggage has no place for them.

    Raises:
        PropagationError: if the headers together are longer than ``MAX_BAGGAGE_BYTES``; if ``strict``, also for
            the first malformed member.
    """
    header = ",".join(values)
    size = len(header.encode(errors="surrogatepass"))
    if size > MAX_BAGGAGE_BYTES:
        raise malformed(BAGGAGE, header, f"has at most {MAX_BAGGAGE_BYTES} bytes, not {size}")
    entries: dict[str, str] = {}
    stripped = (member.strip(_OWS) for member in header.split(","))
    for count, member in enumerate(filter(None, stripped), start=1):
        match = _BAGGAGE_MEMBER.fullmatch(member)
        if count > MAX_BAGGAGE_MEMBERS:
            if strict:
                raise malformed(BAGGAGE, header, f"has at most {MAX_BAGGAGE_MEMBERS} members")
            break
        if match is not None:
            entries[unquote(match[1])] = unquote(match[2])
        elif strict:
            raise malformed(BAGGAGE, member, "has members key=value;properties, percent-encoded")
    return entries


def format_baggage(entries: Mapping[str, object]) -> str:
    """Format ``baggage`` from keys and the ``str()`` of values, both percent-encoded; "" for none.

    Entries that would take the header past 180 members or ``MAX_BAGGAGE_BYTES`` are left out whole, and so is an
    entry without a key.
    """
    members: list[str] = []
    size = -1
    for key, value in entries.items():
        name = quote(str(key), safe=_SAFE_IN_KEY, errors="replace")
        member = f"{name}={quote(str(value), safe=_SAFE_IN_VALUE, errors='replace')}"
        if name and len(members) < MAX_BAGGAGE_MEMBERS and size + 1 + len(member) <= MAX_BAGGAGE_BYTES:
            members.append(member)
            size += 1 + len(member)
    return ",".join(members)


def malformed(header: str, value: str, rule: str) -> PropagationError:
    """Make the error for a header that breaks ``rule``, which continues the sentence "A tracestate ...".

    The value comes from a stranger and may end up in a log: it is cut to 80 characters and escaped to one line of
    ASCII.
    """
    shown = ascii(value[:80]) + ("..." if len(value) > 80 else "")
    standard = "Baggage" if header == BAGGAGE else "Trace Context"
    return PropagationError(
        f"The request's {header} header has {shown}, but a {header} {rule} (W3C {standard}). "
        f"Correct the caller, or read its headers without strict=True to go on without what is malformed."
    )


class _Level2TraceState(TraceState):
    """A trace state with keys of level 2, which the checks of ``TraceState`` (level 1) would refuse."""

    def __init__(self, entries: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._dict.update(entries)


def _trace_state(members: dict[str, str]) -> TraceState:
    entries = list(members.items())
    if all(_STATE_KEY_LEVEL_1.fullmatch(key) for key in members):
        return TraceState(entries)
    return _Level2TraceState(entries)


def _shortened(members: dict[str, str]) -> dict[str, str]:
    sizes = {key: len(key) + 1 + len(value) for key, value in members.items()}
    size = sum(sizes.values()) + len(sizes) - 1
    # 32 members of 128 characters fit, so that there is never a need to remove smaller ones.
    for key in [key for key in reversed(sizes) if sizes[key] > _LARGE_MEMBER_CHARS]:
        if size <= MAX_TRACESTATE_CHARS:
            break
        size -= sizes[key] + 1
        del members[key]
    return members


def _pairs(headers: Headers) -> Iterable[tuple[Any, Any]]:
    items = getattr(headers, "items", None)
    pairs: Iterable[tuple[Any, Any]] = items() if callable(items) else headers
    return pairs


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)
    elif value is not None:
        yield _text(value)


def _text(value: object) -> str:
    # Bytes of a header are ISO-8859-1 in ASGI and WSGI alike, and that never fails.
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
