"""Tests of the OTLP messages: every record comes back, and groups are those of OTLP."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status, TracesData

from tracelake.errors import LineError
from tracelake.spans import line, otlp, values
from tracelake.spans.record import Resource, Scope, SpanRecord

from .otlp_messages import message_of
from .samples import SPANS, exact_record, nested, records, span


def sent(written: list[SpanRecord]) -> ExportTraceServiceRequest:
    """Return the request of some records as its receiver sees it."""
    return ExportTraceServiceRequest.FromString(otlp.to_otlp(written))


@given(st.lists(records, max_size=3))
@pytest.mark.slow
def test_bytes_are_those_of_the_messages(written: list[SpanRecord]) -> None:
    """Our own encoder writes what protobuf's would, bit by bit and field by field, set or not."""
    expected = message_of(written).SerializeToString(deterministic=True)
    assert sent(written).SerializeToString(deterministic=True) == expected


@pytest.mark.parametrize("name", list(SPANS))
def test_bytes_of_sample_are_those_of_its_message(name: str) -> None:
    """Each sample, 10 MB values and the deepest nesting among them."""
    expected = message_of([SPANS[name]]).SerializeToString(deterministic=True)
    assert sent([SPANS[name]]).SerializeToString(deterministic=True) == expected


def test_whole_numbers_come_back() -> None:
    """Around every power of two, where they get another byte."""
    numbers = [sign * (2**bits + more) for bits in range(63) for sign in (1, -1) for more in (-1, 0, 1)]
    numbers += [2**63 - 1, -(2**63)]
    (found,) = otlp.from_otlp(sent([span(attributes={"numbers": numbers})]))
    assert found.attributes == {"numbers": numbers}


@pytest.mark.parametrize("size", [0, 1, 100, 120, 127, 128, 129, 480, 500, 511, 512, 513, 16383, 16384, 2**21])
def test_text_of_every_length_comes_back(size: int) -> None:
    """As a value, a key and a name, around the lengths at which a length takes another byte."""
    text = "x" * size
    record = span(name=text, trace_state=text, attributes={text: text, "list": [text, text.encode()]})
    (found,) = otlp.from_otlp(sent([record]))
    assert exact_record(found) == exact_record(record)


@given(records)
def test_record_comes_back_from_its_message(record: SpanRecord) -> None:
    """A plain record is the same after protobuf bytes."""
    (found,) = otlp.from_otlp(sent([record]))
    assert exact_record(found) == exact_record(record)


@given(st.lists(records, max_size=5))
@pytest.mark.slow
def test_records_of_many_resources_all_come_back(written: list[SpanRecord]) -> None:
    """Grouping loses no record and changes none."""
    found = otlp.from_otlp(sent(written))
    assert sorted(map(repr, map(exact_record, found))) == sorted(map(repr, map(exact_record, written)))


@pytest.mark.parametrize("name", list(SPANS))
def test_sample_comes_back_from_its_message(name: str) -> None:
    """Each sample is the same after OTLP, 10 MB values and the deepest nesting among them."""
    (found,) = otlp.from_otlp(sent([SPANS[name]]))
    assert exact_record(found) == exact_record(SPANS[name])


def test_spans_are_grouped_by_resource_and_scope() -> None:
    """A resource comes once with all its scopes, in the order they first come."""
    shop, bank = line.pack(Resource({"service.name": "shop"}, 1, "r")), line.pack(Resource({"service.name": "bank"}))
    one, two = line.pack(Scope("one", "1", {"a": 1}, 2, "s")), line.pack(Scope("two"))
    request = sent(
        [
            span(1, resource=shop, scope=one),
            span(2, resource=bank, scope=one),
            span(3, resource=shop, scope=two),
            span(4, resource=shop, scope=one),
        ]
    )
    groups = [
        (resource_spans.resource.attributes[0].value.string_value, scope_spans.scope.name, span.name)
        for resource_spans in request.resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]
    assert groups == [
        ("shop", "one", "span 1"),
        ("shop", "one", "span 4"),
        ("shop", "two", "span 3"),
        ("bank", "one", "span 2"),
    ]
    first = request.resource_spans[0]
    assert (first.schema_url, first.resource.dropped_attributes_count) == ("r", 1)
    assert (first.scope_spans[0].schema_url, first.scope_spans[0].scope.version) == ("s", "1")


def test_message_has_the_fields_of_otlp() -> None:
    """Ids are bytes, a root has no parent, and status and kind are OTLP's numbers."""
    written = sent([SPANS["error"], SPANS["plain"]]).resource_spans[0].scope_spans[0].spans
    assert written[0].trace_id.hex() == SPANS["error"].trace_id
    assert written[0].parent_span_id == b""
    assert written[0].status.code == Status.STATUS_CODE_ERROR
    assert written[0].status.message == "boom"
    assert not written[1].HasField("status")


def test_empty_values_differ_from_no_value() -> None:
    """An empty list, an empty dict and None are three things."""
    (found,) = otlp.from_otlp(sent([span(attributes={"list": [], "dict": {}, "none": None})]))
    assert found.attributes == {"list": [], "dict": {}, "none": None}


def test_traces_data_is_read_as_well() -> None:
    """The message of OTLP files has the same spans."""
    data = TracesData.FromString(otlp.to_otlp([SPANS["links"]]))
    assert exact_record(otlp.from_otlp(data)[0]) == exact_record(SPANS["links"])


def test_no_records_are_an_empty_request() -> None:
    """Nothing in, nothing out."""
    assert otlp.from_otlp(sent([])) == []


@pytest.mark.parametrize("value", [2**64, 2**63, -(2**63) - 1, "\ud800", (1, 2), nested(200), {1: 2}, object])
def test_value_that_protobuf_cannot_hold_is_degraded(value: object) -> None:
    """A value that was not degraded before is degraded here, so that the request can be sent and parsed."""
    (found,) = otlp.from_otlp(sent([span(attributes={"value": value})]))
    notes: list[str] = []
    assert found.attributes["value"] == values.degrade(value, "attributes.value", notes)
    assert found.attributes.get(values.DEGRADED_KEY, []) == notes


def test_deepest_values_are_parsed_everywhere_in_a_span() -> None:
    """Values nested as deep as they may be stay within protobuf's limit of 100 levels, in events and resources too."""
    deep = values.degrade_attributes({"deep": _dicts(60)}, "attributes", [])
    record = span(attributes=deep, resource=line.pack(Resource(deep)), scope=line.pack(Scope(attributes=deep)))
    record.events = [msgspec.convert({"name": "e", "time_unix_nano": 1, "attributes": deep}, line.SpanEvent)]
    (found,) = otlp.from_otlp(sent([record]))
    assert exact_record(found) == exact_record(record)


def _dicts(levels: int) -> object:
    value: object = "bottom"
    for _ in range(levels):
        value = {"down": value}
    return value


def test_resource_that_cannot_be_read_is_refused() -> None:
    """A damaged resource is an error about that line."""
    with pytest.raises(LineError, match="Not a resource"):
        otlp.to_otlp([span(resource=msgspec.Raw(b"[]"))])
