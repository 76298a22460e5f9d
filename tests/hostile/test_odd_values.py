"""Values that unfold without end, repeat themselves or are full of oddities: bounded, said, and the span is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import pytest
from opentelemetry.sdk.trace import SpanLimits, TracerProvider

from tests.lake import Lake
from tests.spans.samples import span
from tracelake.errors import PropagationError
from tracelake.query.traces import Trace
from tracelake.query.tree import render
from tracelake.spans import line, otlp, values, variant
from tracelake.spans.record import Resource
from tracelake.tracing import w3c
from tracelake.tracing.otel_span import Origins, to_record


class Same:
    """One of many keys with the same text."""

    def __str__(self) -> str:
        return "same"


class EndlessMapping(Mapping[int, int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, key: int) -> int:
        return key

    def __iter__(self) -> Iterator[int]:
        number = 0
        while True:
            yield (number := number + 1)


class EndlessSet(Set[int]):
    def __len__(self) -> int:
        return 1

    def __contains__(self, _: object) -> bool:
        return True

    def __iter__(self) -> Iterator[int]:
        return iter(EndlessMapping())


def unfolding(leaf: Any, width: int, depth: int) -> Any:
    """Return a few lists that unfold to width ** depth leaves."""
    for _ in range(depth):
        leaf = [leaf] * width
    return leaf


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("lists", lambda: unfolding("ha", 10, 9)),
        ("dicts", lambda: {"down": unfolding({"k" * 1_000: 1}, 10, 9)}),
        ("wide", lambda: unfolding("ha", 10_000, 3)),
        ("texts", lambda: unfolding("x" * 10**6, 1_000, 2)),
        ("mapping", EndlessMapping),
        ("set", EndlessSet),
    ],
)
def test_value_without_end_is_cut(name: str, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept counts 256 MiB at most (here less, for the time it takes), and one note says that more was there."""
    monkeypatch.setattr(values, "_MAX_SIZE", 2**21)
    notes: list[str] = []
    kept = line._encode(values.degrade(make(), name, notes))
    assert len(kept) < 2**22
    assert [note.partition(": ")[2] for note in notes] == [
        "the value unfolds to more than 2,097,152 bytes, what follows is left out"
    ]


def test_notes_do_not_repeat_a_huge_key() -> None:
    """A fault under a key of a megabyte is noted with its beginning, and a hundred thousand faults with their count."""
    record = span(attributes={"k" * 10**6: [object] * 100_000})
    notes = line.degraded(record).attributes[values.DEGRADED_KEY]
    assert notes[-1] == "and 99900 more"
    assert sum(map(len, notes)) < 50_000


def test_keys_that_are_all_the_same_as_text() -> None:
    """Each has a name of its own that is as short as theirs."""
    notes: list[str] = []
    kept = values.degrade({Same(): number for number in range(20_000)}, "v", notes)
    assert list(kept.values()) == list(range(20_000))
    assert list(kept)[:4] == ["same", "same'", "same'2", "same'3"]
    assert max(map(len, kept)) < 12


def test_events_at_impossible_times() -> None:
    """Eight thousand notes take a moment, whatever their numbers are."""
    provider = TracerProvider(span_limits=SpanLimits(max_events=8_000), shutdown_on_exit=False)
    made = provider.get_tracer("odd").start_span("odd")
    for _ in range(8_000):
        made.add_event("odd", timestamp=-(10**5_000))
    started_s = time.monotonic()
    record = to_record(made, made.get_span_context(), Origins())  # type: ignore[arg-type]
    assert time.monotonic() - started_s < 5
    assert len(record.attributes[values.DEGRADED_KEY]) >= len(record.events) == 8_000


def test_caches_keep_no_huge_keys_and_resources() -> None:
    """Spans with keys of their own, or resources of their own, however large, leave no more than a few megabytes."""
    for number in range(1_000):
        variant.encode({f"{'k' * 10_000}{number}": 1})
        variant.encode({f"key {number}": 1})
        variant.encode({f"key {number}": {f"down {number}": 1}})
    for number in range(20):
        record = span(resource=line.pack(Resource({"huge": "x" * 10**6, "number": number})))
        otlp.encode(record)
        line.resource_of(record)
    for cache in (variant._SHAPES, variant._DICTIONARIES):
        assert 0 < len(cache) <= 256
        assert sum(len(each.metadata) for each in cache.values()) < 2**20
    before = line._cached_resource.cache_info().currsize, otlp._cached_shared.cache_info().currsize
    otlp.encode(record)
    assert (line._cached_resource.cache_info().currsize, otlp._cached_shared.cache_info().currsize) == before


ODD = """
import math, tracelake

class Raises:
    def __repr__(self): raise ValueError("no")

class NoText:
    def __repr__(self): return 5

deep_list, deep_dict, circle = [], {}, {}
for _ in range(10_000):
    deep_list, deep_dict = [deep_list], {"down": deep_dict}
circle["itself"] = circle
controls = "".join(map(chr, range(32))) + "\\x7f\\x9b\\u202e"
odd = [
    deep_list, deep_dict, circle, Raises(), NoText(), {Raises(): NoText()}, (number for number in range(3)),
    controls, {controls: controls}, "\\ud800", {"\\udfff": 1}, 10**1_000_000, -(2**63) - 1, 2**64,
    math.nan, math.inf, -0.0, {"": ""}, {"$bytes": 1}, b"\\0\\xff", bytearray(3), ...,
]
for number, value in enumerate(odd):
    with tracelake.start_span(f"odd {number} {controls}\\ud800") as span:
        span.set_inputs(value)
        span.set_attribute(controls or "x", value)
        span.set_status("ERROR", controls + "\\ud800")
        span.add_event(controls, {controls: controls})
report = tracelake.flush(60)
assert report.delivered == len(odd), report
print(report.delivered)
"""


@pytest.mark.parametrize("version", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_every_odd_value_is_delivered(lake: Lake, version: str) -> None:
    """None takes its span along, nor its neighbours."""
    delivered = int(lake.run(ODD, TRACELAKE_SCHEMA_VERSION=version).splitlines()[-1])
    assert len(lake.rows()) == delivered


@pytest.mark.parametrize(
    ("parse", "value"),
    [
        (w3c.parse_traceparent, "00-" + "a" * 10**7),
        (w3c.parse_tracestate, "a=" + "b" * 10**7),
        (w3c.parse_tracestate, ",".join(f"key{number}=1" for number in range(100_000))),
        (w3c.parse_baggage, "a=" + "b" * 10**7),
        (w3c.parse_baggage, ",".join(f"key{number}=1" for number in range(100_000))),
    ],
    ids=["traceparent", "tracestate", "tracestate members", "baggage", "baggage members"],
)
def test_huge_header_is_refused_at_once(parse: Callable[[list[str]], object], value: str) -> None:
    """The error is short, and says what the bound is."""
    started_s = time.monotonic()
    with pytest.raises(PropagationError) as raised:
        parse([value])
    assert time.monotonic() - started_s < 2
    assert len(str(raised.value)) < 500


def test_huge_names_are_not_shown_whole() -> None:
    """A tree of huge names is drawn in lines of the terminal's width."""
    huge = span(name="\0" * 10**7, status_code=2, status_message="\x1b" * 10**7)
    lines = list(render(Trace(huge.trace_id, (huge,))))
    assert max(map(len, lines)) <= 100
