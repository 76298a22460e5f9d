"""How many tokens of language models a trace used, as its spans say."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tracelake.query.outline import outline
from tracelake.query.traces import Trace
from tracelake.spans.record import SpanRecord

# MLflow's, and the keys of OpenTelemetry's conventions: https://opentelemetry.io/docs/specs/semconv/gen-ai/
_USAGE = "mlflow.chat.tokenUsage"
_INPUT = "gen_ai.usage.input_tokens"
_OUTPUT = "gen_ai.usage.output_tokens"
# As many digits as a 64-bit number may have; more is no count.
_MAX_DIGITS = 18


class Tokens(NamedTuple):
    """What went into the models, and what came out."""

    input: int
    output: int


def tokens_of(trace: Trace) -> Tokens | None:
    """Return the sum over a trace, None if no span says.

    As MLflow sums up, a span counts for all below it, because agents repeat the sum of their calls.
    """
    total: Tokens | None = None
    counted: list[bool] = []  # of each line above the next: whether the spans below it are counted there
    for node in outline(trace):
        del counted[node.depth :]
        above = bool(counted) and counted[-1]
        usage = None if node.span is None else _usage(node.span)
        if usage is not None and not above:
            total = usage if total is None else Tokens(total.input + usage.input, total.output + usage.output)
        counted.append(above or usage is not None)
    return total


def _usage(span: SpanRecord) -> Tokens | None:
    attributes = span.attributes
    if _USAGE in attributes:
        usage = _parsed(attributes[_USAGE])
        return Tokens(_number(usage.get("input_tokens")), _number(usage.get("output_tokens")))
    if _INPUT in attributes or _OUTPUT in attributes:
        return Tokens(_number(attributes.get(_INPUT)), _number(attributes.get(_OUTPUT)))
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
