"""What reads foreign bytes, one function each: it takes any bytes, and asserts what has to be true of the answer.

An error is one of ours, and its text fits on a line of a log: no control characters, and not longer than a page. What
can be written back is read back the same.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import fields

import duckdb
import msgspec
import requests
import sqlglot
from opentelemetry import trace

from tests.spans.samples import exact_record
from tracelake.databricks import names
from tracelake.destinations.otlp_server import OtlpDestination
from tracelake.destinations.targets import parse_target, split_targets
from tracelake.errors import (
    DeliveryError,
    LedgerError,
    LineError,
    PropagationError,
    SettingError,
    TargetError,
    TracelakeError,
)
from tracelake.query import duck
from tracelake.query import text as terminal
from tracelake.settings import Settings, load_settings, read_settings
from tracelake.shipper.batch import BatchReader, plan_batch
from tracelake.spans.line import decode_line, decode_lines, encode_line, repacked
from tracelake.spool.lane import Lane, LaneNote
from tracelake.spool.ledger import Delivery, InFlight, Ledger, Refusals, pending_bytes, read_account, read_refusals
from tracelake.spool.notes import read_note
from tracelake.testing.storage.ingestion import MAX_BODY_BYTES, _message, _sound
from tracelake.testing.web.http import ApiError, Request
from tracelake.tracing import w3c
from tracelake.tracing.propagation import set_tracing_context_from_http_request_headers

_MAX_ERROR_CHARS = 4000


@contextlib.contextmanager
def only(*kinds: type[TracelakeError]) -> Iterator[None]:
    """Let errors of these kinds be, if their text is fit for a log."""
    try:
        yield
    except kinds as error:
        shown_as_one_line(str(error))


def shown_as_one_line(text: str) -> None:
    """Assert that a text fakes no line of a log and gives a terminal no orders."""
    assert len(text) <= _MAX_ERROR_CHARS, f"{len(text)} characters: {text[:200]!r}"
    wrong = [char for char in text if unicodedata.category(char) in {"Cc", "Cf", "Zl", "Zp", "Cs"}]
    assert wrong == [], f"{wrong} in {text!r}"


def headers(data: bytes) -> None:
    """Trace headers: lines of `name: value`, or values of each in turn."""
    lines = data.decode("latin-1").split("\n")
    pairs = [(line.partition(":")[0], line.partition(":")[2]) for line in lines]
    with only(PropagationError):
        context = w3c.parse_traceparent(lines[:1])
        assert w3c.parse_traceparent([w3c.format_traceparent(context)]) == context
    with only(PropagationError):
        state = w3c.parse_tracestate(lines)
        assert w3c.parse_tracestate([state.to_header()]) == state
    for strict in (False, True):
        with only(PropagationError):
            entries = w3c.parse_baggage(lines, strict=strict)
            written = w3c.format_baggage(entries)
            assert len(written) <= w3c.MAX_BAGGAGE_BYTES
            assert w3c.parse_baggage([written]).items() <= entries.items()
    before = trace.get_current_span()
    for carrier in (pairs, dict(pairs), dict.fromkeys((w3c.TRACEPARENT, w3c.TRACESTATE, w3c.BAGGAGE), lines)):
        with set_tracing_context_from_http_request_headers(carrier):
            pass
        with only(PropagationError), set_tracing_context_from_http_request_headers(carrier, strict=True):
            pass
    assert trace.get_current_span() is before


def otlp_request(data: bytes) -> None:
    """A body for the workspace's ingestion: plain, and as gzip."""
    for encoding in ("identity", "gzip"):
        sent = {"content-type": "application/x-protobuf", "content-encoding": encoding}
        with only(ApiError):
            records, refused = _sound(_message(Request("POST", "/", headers=sent, body=data)))
            assert len(records) + len(refused) <= MAX_BODY_BYTES
            for fault in refused:
                shown_as_one_line(fault)
            for record in records:
                with only(LineError):
                    encode_line(record)


def otlp_answer(data: bytes) -> None:
    """An endpoint's answer: a byte that says the status, a line with the content type, and a body."""
    head, _, body = data.partition(b"\n")
    response = requests.Response()
    response.status_code = (200, 202, 400, 401, 404, 413, 415, 429, 500, 501, 503)[(head or b"\0")[0] % 11]
    response.reason = head[1:].decode("latin-1")
    response.headers["Content-Type"] = head[1:].decode("latin-1")
    response.headers["Retry-After"] = body[:40].decode("latin-1")
    response.encoding = requests.utils.get_encoding_from_headers(response.headers)
    response._content = body
    response.request = requests.Request("POST", "http://127.0.0.1:4318").prepare()
    sink = OtlpDestination.parse("otlp+http://127.0.0.1:4318").open()
    with only(DeliveryError):
        answer = sink._meaning(response)
        assert isinstance(answer, tuple)


def line(data: bytes) -> None:
    """A line of a segment, and several of them."""
    records = []
    for each in io.BytesIO(data):
        with only(LineError):
            record = decode_line(each)
            records.append(record)
            again = decode_line(encode_line(repacked(record)))
            assert exact_record(again) == exact_record(record)
    together = decode_lines(data)
    if together is not None:
        assert [exact_record(record) for record in together] == [exact_record(record) for record in records]


def segment(data: bytes) -> None:
    """A segment whose writer is gone."""
    with lane() as found:
        path = os.path.join(found.segments_dir, f"{0:016x}-1-{0:08x}-000001.v1.jsonl")
        with open(path, "wb") as file:
            file.write(data)
        (only_one,) = found.segments()
        for pieces in (only_one.blocks(0, len(data)), only_one.lines(0, len(data))):
            end = 0
            whole = b""
            for offset, piece in pieces:
                assert offset == end
                end += len(piece)
                whole += piece
            assert whole == data
        ledger = Ledger("name")
        lines = 0
        while ranges := plan_batch(found, ledger, 1 << 20).ranges:
            reader = BatchReader(found, ranges)
            lines += sum(len(chunk) for chunk in reader.chunks()) + len(reader.bad)
            for bad in reader.bad:
                shown_as_one_line(bad.reason)
                assert data[bad.offset : bad.offset + len(bad.line)] == bad.line
            assert ranges[-1].end > ledger.offsets.get(only_one.name, 0)
            ledger.offsets[only_one.name] = ranges[-1].end
        assert lines == len(list(io.BytesIO(data)))


def note(data: bytes) -> None:
    """Each of the small files of a lane."""
    with lane() as found:
        refusals = os.path.join(found.refusals_dir, "writer.json")
        kinds: dict[str, type[msgspec.Struct]] = {
            found.note_path: LaneNote,
            found.ledger_path: Ledger,
            found.in_flight_path: InFlight,
            found.delivery_path: Delivery,
            refusals: Refusals,
        }
        for path, kind in kinds.items():
            with open(path, "wb") as file:
                file.write(data)
            with only(LedgerError):
                read = read_note(path, kind)
                assert read is not None
                assert msgspec.json.decode(msgspec.json.encode(read), type=kind) == read
        for each in read_refusals(found):
            shown_as_one_line(each.reason)
        with only(LedgerError):
            read_account(found, "writer", 10)
        assert pending_bytes(found) == 0


def target(data: bytes) -> None:
    """A destination as people name it."""
    text = data.decode("utf-8", "surrogateescape")
    for each in (text, *split_targets(text)):
        with only(TracelakeError):
            destination = parse_target(each)
            assert parse_target(destination.target) == destination
            hash(destination)


def name(data: bytes) -> None:
    """A name of Unity Catalog, and any text as a name or a string of SQL."""
    text = data.decode("utf-8", "replace")
    with only(TargetError):
        parts = names.parse_parts(text)
        assert names.parse_parts(names.quoted(*parts)) == parts
        assert names.parse_parts(names.readable(*parts)) == parts
    with contextlib.suppress(sqlglot.errors.TokenError):
        parsed = sqlglot.parse_one(
            f"SELECT {names.literal(text)} AS a FROM {names.quoted(text or 'a')}", read="databricks"
        )
        literals = list(parsed.find_all(sqlglot.exp.Literal))
        assert [each.this for each in literals] == [text]
        (table,) = parsed.find_all(sqlglot.exp.Table)
        assert table.name == (text or "a")
    if text and "\0" not in text:  # which ends the text of a query
        found = duckdb.sql(f"SELECT 1 AS {duck.quoted(text)}")
        assert found is not None
        assert found.columns == [text]


def setting(data: bytes) -> None:
    """The value of each setting."""
    value = data.decode("utf-8", "surrogateescape")
    variables = [field.metadata["variable"] for field in fields(Settings)]
    _, problems = read_settings(dict.fromkeys(variables, value))
    for problem in problems:
        shown_as_one_line(problem)
    for variable in variables:
        with only(SettingError):
            load_settings({variable: value})


def shown(data: bytes) -> None:
    """A text of a span as a terminal shows it."""
    text = data.decode("utf-8", "surrogateescape")
    for result in (terminal.clean(text), terminal.preview(text)):
        assert result.isprintable(), ascii(result)
        for width in (0, 1, 3, 10, 80):
            assert terminal.display_width(terminal.fit(result, width)) <= width


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (headers, otlp_request, otlp_answer, line, segment, note, target, name, setting, shown)
}


@contextlib.contextmanager
def lane() -> Iterator[Lane]:
    """Give a lane without anything."""
    with tempfile.TemporaryDirectory() as root:
        made = Lane(os.path.join(root, "lane"))
        made.create("./table", {})
        yield made
