"""Headers of a stranger steer nothing: spans go where this service says, or to what its own list allows.

A whole request, by the real guard; tests/tracing/test_w3c.py has what is read of a header, and test_propagation.py and
test_install.py in that directory have the rest of what a digest does.
"""

from __future__ import annotations

import json
import tracemalloc
from itertools import product

import pytest

from tests.lake import Lake
from tracelake.destinations.base import digest
from tracelake.destinations.targets import parse_target
from tracelake.errors import PropagationError
from tracelake.tracing.propagation import set_tracing_context_from_http_request_headers

VALID = f"00-{'1' * 32}-{'2' * 16}-01"

# Opens a span under each set of headers, named by its number, with "allowed" on the list of this service.
SERVICE = """
import json, sys
import tracelake
tracelake.set_destination("./home")
for number, headers in enumerate(json.loads(sys.argv[1])):
    with tracelake.set_tracing_context_from_http_request_headers(headers), tracelake.start_span(str(number)):
        pass
report = tracelake.flush(30)
assert report.complete, report
"""


def names(lake: Lake, table: str) -> set[str]:
    return {row["name"] for row in lake.rows(str(lake.root / table))} if (lake.root / table).exists() else set()


def test_forged_headers_lead_to_no_other_table(lake: Lake) -> None:
    """By whichever spelling, twice, beside what is allowed, or in a broken request; only what is allowed counts."""
    allowed, other = (digest(parse_target(str(lake.root / name))) for name in ("allowed", "other"))
    key = "tracelake.destination"
    entries = [
        f"{key}={other}",
        f"{key}={allowed}.{other}",
        f"{key}={allowed},{key}={other}",
        f"{key}={lake.root / 'other'}",
        f"{key}=otlp+http://127.0.0.1:9",
        f"{key}=../other",
        f"{key}={allowed}%0A",
        f"{key.upper()}={allowed}",
        f"{key}={allowed};x={other}x{'=' * 9}, {key}={'0' * 16}",
        f"{key}={'.'.join([allowed] * 33)}",
        f"a={'x' * 9000},{key}={allowed}",
    ]
    forged: list[object] = [{"traceparent": VALID, "baggage": entry} for entry in entries]
    forged += [{"traceparent": broken, "baggage": f"{key}={allowed}"} for broken in ("", VALID + "-x", "f" * 10**4)]
    forged += [[("traceparent", VALID), ("traceparent", VALID), ("baggage", f"{key}={allowed}")]]
    forged += [[("traceparent", VALID), ("baggage", f"{key}={allowed}"), ("Baggage", f"{key}={other}")]]
    kept = [{"traceparent": VALID, "baggage": f"{key}={other},{key}={allowed}"}]
    lake.run(SERVICE, json.dumps([*forged, *kept]), TRACELAKE_ACCEPT_DESTINATIONS="./allowed")
    assert names(lake, "home") == {str(number) for number in range(len(forged))}
    assert names(lake, "allowed") == {str(len(forged))}
    assert not (lake.root / "other").exists()


GIANT = 10 * 2**20


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("traceparent", VALID + "-" + "x" * GIANT),
        ("tracestate", "a=1," * (GIANT // 4)),
        ("baggage", "a=1," * (GIANT // 4)),
        ("baggage", "a=" + "%41" * (GIANT // 3)),
    ],
    ids=["traceparent", "tracestate", "many members", "one member"],
)
def test_giant_header_costs_little(name: str, value: str) -> None:
    """Its memory is a few times its own at most; servers that bound headers never get there."""
    headers = {"traceparent": VALID, name: value}
    tracemalloc.start()
    try:
        with set_tracing_context_from_http_request_headers(headers):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * GIANT
    with pytest.raises(PropagationError) as raised, set_tracing_context_from_http_request_headers(headers, strict=True):
        pass
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("count", [1000, 100_000])
def test_headers_that_come_often(count: int) -> None:
    """A trace that is named twice is none, however often; the others are bounded together."""
    repeated = [*product(["traceparent"], [VALID] * count), *product(["baggage"], ["a=1"] * count)]
    with set_tracing_context_from_http_request_headers(repeated):
        pass
    with pytest.raises(PropagationError), set_tracing_context_from_http_request_headers(repeated, strict=True):
        pass
