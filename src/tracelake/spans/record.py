"""One finished span, as tracelake carries it from the recorder to the sink.

Field names are those of the OTLP protobuf and of the Delta columns made from them:
https://github.com/open-telemetry/opentelemetry-proto/blob/v1.5.0/opentelemetry/proto/trace/v1/trace.proto
The same classes, as JSON, are the body of a spool line; docs/spool-format.md has the format.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

# The three records of a span take no part in garbage collection: a batch has a hundred thousand, none in a cycle.

# What an attribute may hold: str, bool, int (64 bits), float, bytes, None, and lists and str-keyed dicts of these.
Attributes = dict[str, Any]

Count = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
UnixNano = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

# OTLP span flags: the low 8 bits are the W3C trace flags; these two say whether the parent's remoteness is known, and
# whether the parent is remote.
FLAG_HAS_IS_REMOTE = 0x100
FLAG_IS_REMOTE = 0x200


class Resource(msgspec.Struct, omit_defaults=True, frozen=True):
    """The process that made a span."""

    attributes: Attributes = {}
    dropped_attributes_count: Count = 0
    schema_url: str = ""


class Scope(msgspec.Struct, omit_defaults=True, frozen=True):
    """The instrumentation library that made a span."""

    name: str = ""
    version: str = ""
    attributes: Attributes = {}
    dropped_attributes_count: Count = 0
    schema_url: str = ""


class SpanEvent(msgspec.Struct, omit_defaults=True, gc=False):
    """Something that happened during a span; an exception is an event named `exception`."""

    name: str
    time_unix_nano: UnixNano
    attributes: Attributes = {}
    dropped_attributes_count: Count = 0


class SpanLink(msgspec.Struct, omit_defaults=True, gc=False):
    """A pointer to a span of this or another trace. Ids are lowercase hex, `flags` as in OTLP."""

    trace_id: str
    span_id: str
    trace_state: str = ""
    attributes: Attributes = {}
    dropped_attributes_count: Count = 0
    flags: int = 0


class SpanRecord(msgspec.Struct, omit_defaults=True, gc=False):
    """One finished span.

    `trace_id` is 32 and `span_id` 16 lowercase hex digits; `parent_span_id` is None on a root span. Times are
    nanoseconds since the Unix epoch, UTC. `kind` and `status_code` are the OTLP enum numbers (kind 1 is INTERNAL,
    status 0 is UNSET, 1 OK, 2 ERROR). `resource` and `scope` stay JSON text, because thousands of spans share one of
    each; `tracelake.spans.line` packs and parses them.
    """

    trace_id: Annotated[str, msgspec.Meta(min_length=32, max_length=32)]
    span_id: Annotated[str, msgspec.Meta(min_length=16, max_length=16)]
    name: str
    start_time_unix_nano: UnixNano
    end_time_unix_nano: UnixNano
    kind: Annotated[int, msgspec.Meta(ge=0, le=5)] = 1
    flags: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0
    parent_span_id: Annotated[str, msgspec.Meta(min_length=16, max_length=16)] | None = None
    trace_state: str = ""
    attributes: Attributes = {}
    dropped_attributes_count: Count = 0
    events: list[SpanEvent] = []
    dropped_events_count: Count = 0
    links: list[SpanLink] = []
    dropped_links_count: Count = 0
    status_code: Annotated[int, msgspec.Meta(ge=0, le=2)] = 0
    status_message: str = ""
    resource: msgspec.Raw = msgspec.Raw(b"{}")
    scope: msgspec.Raw = msgspec.Raw(b"{}")
