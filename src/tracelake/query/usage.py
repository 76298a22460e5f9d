"""What tokens each trace used, as SQL of DuckDB's over its spans; `tokens` says the same of a trace at hand."""

from __future__ import annotations

from tracelake.query.dialect import Dialect
from tracelake.query.relations import spans_sql
from tracelake.query.tokens import INPUT, OUTPUT, USAGE
from tracelake.spans import tables

# What a span says of tokens: the key in MLflow's attribute, and OpenTelemetry's attributes, the first that is there.
KEYS = {
    "input_tokens": (INPUT,),
    "output_tokens": (OUTPUT,),
    "total_tokens": (),
    "cache_read_input_tokens": ("gen_ai.usage.cache_read.input_tokens",),
    "cache_creation_input_tokens": (
        "gen_ai.usage.cache_write.input_tokens",
        "gen_ai.usage.cache_creation.input_tokens",
    ),
}
_PARENT = f"coalesce({tables.PARENT_SPAN_ID}, '')"


def used(dialect: Dialect, key: str, spans: str, *, distinct: bool) -> dict[str, str]:
    """Return relations of a `WITH RECURSIVE`, by name; the last is `used`: trace_id, tokens.

    A span counts for all below it. Traces of which no span says anything are not in it. Walking up from span to parent
    is what takes long, so it is done where one span that says something may be above another: not where all of them
    have the same parent, as the calls of one agent have.

    Args:
        key: one of `KEYS`; of those of a cache, spans may say nothing while they do of others.
        spans: SQL of the spans that are looked at.
        distinct: whether rows that repeat a span are left out.
    """
    says = " OR ".join(f"{dialect.attribute(each)} IS NOT NULL" for each in (USAGE, INPUT, OUTPUT))
    columns = {"parent_id": _PARENT, "tokens": _count(dialect, key)}
    return {
        "held": spans_sql(columns, f"{spans} AND ({says})", distinct=distinct),
        "doubtful": "SELECT trace_id FROM held GROUP BY trace_id HAVING count(DISTINCT parent_id) > 1",
        # The walk ends at the first span that says something.
        "links": f"""
            SELECT DISTINCT {tables.TRACE_ID} AS trace_id, {tables.SPAN_ID} AS span_id, {_PARENT} AS parent_id
            FROM spans
            WHERE {spans} AND {_PARENT} <> '' AND {tables.TRACE_ID} IN (SELECT trace_id FROM doubtful)
                AND ({tables.TRACE_ID}, {tables.SPAN_ID}) NOT IN (SELECT (trace_id, span_id) FROM held)""",  # noqa: S608
        # Parents may form a circle; what is there already is not added again.
        "above": """
            SELECT trace_id, span_id, parent_id AS ancestor FROM held
            WHERE parent_id <> '' AND trace_id IN (SELECT trace_id FROM doubtful)
            UNION
            SELECT above.trace_id, above.span_id, links.parent_id AS ancestor
            FROM above JOIN links ON links.trace_id = above.trace_id AND links.span_id = above.ancestor""",
        "below": """
            SELECT DISTINCT above.trace_id, above.span_id
            FROM above JOIN held AS top ON top.trace_id = above.trace_id AND top.span_id = above.ancestor
            WHERE above.span_id <> above.ancestor""",
        "used": """
            SELECT held.trace_id, sum(tokens) AS tokens
            FROM held ANTI JOIN below ON held.trace_id = below.trace_id AND held.span_id = below.span_id
            GROUP BY held.trace_id""",
    }


def stated(dialect: Dialect, said: str, key: str) -> tuple[str, str]:
    """Return whether a text of JSON states any tokens of a trace, and how many it does under a key; NULL for none."""
    any_of = ", ".join(dialect.number(dialect.field(said, each)) for each in KEYS)
    return f"coalesce({any_of}) IS NOT NULL", dialect.number(dialect.field(said, key))


def _count(dialect: Dialect, key: str) -> str:
    """Return how many tokens a span says it used; 0 if it says so of others, NULL of a cache."""
    if key == "total_tokens":
        total = dialect.number(dialect.field(dialect.attribute(USAGE), key))
        return f"coalesce({total}, {_count(dialect, 'input_tokens')} + {_count(dialect, 'output_tokens')})"
    usage = dialect.attribute(USAGE)
    plain = ", ".join([*map(dialect.attribute, KEYS[key]), "NULL"])
    text = f"CASE WHEN {usage} IS NOT NULL THEN {dialect.field(usage, key)} ELSE coalesce({plain}) END"
    number = dialect.number(text)
    count = f"CASE WHEN {number} >= 0 THEN {number} END"
    return f"coalesce({count}, 0)" if key in ("input_tokens", "output_tokens") else count
