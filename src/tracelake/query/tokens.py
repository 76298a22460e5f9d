"""How many tokens of language models a trace used and what that cost, as its spans say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from math import isfinite
from typing import Any, TypeVar

from tracelake.query.infos import Tokens
from tracelake.query.outline import outline
from tracelake.query.traces import Trace
from tracelake.spans.record import SpanRecord

# MLflow's, and the keys of OpenTelemetry's conventions: https://opentelemetry.io/docs/specs/semconv/gen-ai/
USAGE = "mlflow.chat.tokenUsage"
INPUT = "gen_ai.usage.input_tokens"
OUTPUT = "gen_ai.usage.output_tokens"
COST = "mlflow.llm.cost"  # in US dollars
# As many digits as a 64-bit number may have; more is no count.
_MAX_DIGITS = 18

_T = TypeVar("_T")


def tokens_of(trace: Trace) -> Tokens | None:
    """Return the sum over a trace, None if no span says.

    As MLflow sums up, a span counts for all below it, because agents repeat the sum of their calls; so of tokens, and
    so of costs.
    """
    usages = list(_topmost(trace, _usage))
    costs = list(_topmost(trace, _cost))
    if not usages and not costs:
        return None
    return Tokens(
        sum(usage.input for usage in usages), sum(usage.output for usage in usages), sum(costs) if costs else None
    )


def _topmost(trace: Trace, value_of: Callable[[SpanRecord], _T | None]) -> Iterator[_T]:
    """Yield the values of spans above which no span has one."""
    held: list[bool] = []  # of each line above the next: whether it has a value, or one above it
    for node in outline(trace):
        del held[node.depth :]
        above = bool(held) and held[-1]
        value = None if node.span is None else value_of(node.span)
        if value is not None and not above:
            yield value
        held.append(above or value is not None)


def _cost(span: SpanRecord) -> float | None:
    if COST not in span.attributes:
        return None
    cost = _parsed(span.attributes[COST]).get("total_cost")
    if not isinstance(cost, (int, float)) or isinstance(cost, bool) or not isfinite(cost):
        return None
    return float(cost)


def _usage(span: SpanRecord) -> Tokens | None:
    attributes = span.attributes
    if USAGE in attributes:
        usage = _parsed(attributes[USAGE])
        return Tokens(_number(usage.get("input_tokens")), _number(usage.get("output_tokens")))
    if INPUT in attributes or OUTPUT in attributes:
        return Tokens(_number(attributes.get(INPUT)), _number(attributes.get(OUTPUT)))
    return None


def _parsed(value: Any) -> dict[str, Any]:
    """Return a dict that may be JSON, as a version 1 table has it; empty if it is none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> int:
    """Return a count that may be text, as in a version 1 table; 0 if it is none."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
