"""The filters and orders of `mlflow.search_traces`, as SQL with bound parameters over `trace_views.traces_sql`.

Grammar: https://mlflow.org/docs/latest/genai/tracing/search-traces/
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

from tracelake.testing.tracking.trace_tables import Source
from tracelake.testing.tracking.trace_views import SPAN_TYPE, as_text_of_json, attribute_sql
from tracelake.testing.web.http import invalid

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>'(?:[^']|'')*')
    | (?P<number>-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.]))
    | (?P<name>(?:[A-Za-z_]\w*|`[^`]*`|"[^"]*")(?:\.(?:\w+|`[^`]*`|"[^"]*"))*)
    | (?P<operator><=|>=|!=|<>|=|<|>)
    | (?P<mark>[(),])
    )""",
    re.VERBOSE,
)
_PART = re.compile(r"`([^`]*)`|\"([^\"]*)\"|([^.`\"]+)")

_EQUAL = frozenset({"=", "!="})
_LIKE = frozenset({"LIKE", "ILIKE", "RLIKE"})
_IN = frozenset({"IN", "NOT IN"})
_NULL = frozenset({"IS NULL", "IS NOT NULL"})
_ORDER = frozenset({"<", "<=", ">", ">="})
_NUMERIC = _EQUAL | _ORDER
_TEXT = _EQUAL | _LIKE | _IN
_ENTITY = _EQUAL | _LIKE | _NULL
_WORDS = ("IS NOT NULL", "IS NULL", "NOT IN", "IN", *sorted(_LIKE))

_TIMESTAMP_MS = "timestamp_us // 1000"
_EXECUTION_MS = "coalesce(duration_ns, 0) // 1000000"
_END_MS = f"({_TIMESTAMP_MS} + {_EXECUTION_MS})"
_NUMBERS = {
    **dict.fromkeys(("timestamp", "timestamp_ms"), _TIMESTAMP_MS),
    **dict.fromkeys(("execution_time", "execution_time_ms"), "duration_ns // 1000000"),
    **dict.fromkeys(("end_time", "end_time_ms"), _END_MS),
}
_TIMES = ("timestamp", "timestamp_ms", "end_time", "end_time_ms")
_IDS = ("request_id", "trace_id", "id")
_TEXTS = {
    **dict.fromkeys(_IDS, "trace_id"),
    **dict.fromkeys(("status", "state"), "state"),
    "client_request_id": "client_request_id",
    "name": "name",
    "request": "request",
    "response": "response",
    "user": "trace_metadata['mlflow.trace.user']",
    "session": "trace_metadata['mlflow.trace.session']",
}
_RUN = "trace_metadata['mlflow.sourceRun']"
_ATTRIBUTES = ("attribute", "attributes", "trace")
_ENTITIES = (*_ATTRIBUTES, "tag", "tags", "metadata", "request_metadata", "span", "feedback", "expectation")
_MORE_ENTITIES = ("assessment", "issue")
_SPAN_TEXTS = {"name": "span.name", "status": "replace(span.status.code, 'STATUS_CODE_', '')"}
_ORDERS = {
    **_NUMBERS,
    **dict.fromkeys(_IDS, "trace_id"),
    **dict.fromkeys(("status", "state"), "state"),
    "name": "name",
    "run_id": _RUN,
    # All traces of a source have the same.
    "experiment_id": "source",
}


class Clause(NamedTuple):
    """One comparison of a filter; `entity` is "attribute" for what is of the trace itself."""

    entity: str
    key: str
    operator: str
    value: Any


class Filter:
    """A filter, ready to be asked of sources.

    Attributes:
        parameters: the values that its SQL binds, by name.
    """

    def __init__(self, text: str) -> None:
        """Parse a filter; an empty one finds all.

        Raises:
            ApiError: 400 INVALID_PARAMETER_VALUE, with what is wrong in it and what would be right.
        """
        self.parameters: dict[str, Any] = {}
        self._clauses = [_checked(clause) for clause in parse(text)]

    def sql(self, source: Source, suffix: str) -> str:
        """Return the predicate over `traces` of one source, whose relations have this suffix."""
        spans = [clause for clause in self._clauses if _is_of_span(clause)]
        predicates = [self._predicate(clause, source, suffix) for clause in self._clauses if not _is_of_span(clause)]
        if spans:
            # Comparisons of spans are all of one span.
            met = " AND ".join(self._span_predicate(clause, source) for clause in spans)
            predicates.append(f"trace_id IN (SELECT span.trace_id FROM spans{suffix} AS span WHERE {met})")  # noqa: S608
        return " AND ".join(f"({predicate})" for predicate in predicates) or "true"

    def _predicate(self, clause: Clause, source: Source, suffix: str) -> str:
        entity, key = clause.entity, clause.key
        if entity in ("feedback", "expectation", "assessment"):
            return self._assessment_predicate(clause, suffix)
        if entity == "issue":
            return "false"  # Databricks keeps none
        if entity == "tag":
            return self._compared("name" if key == "mlflow.traceName" else f"tags[{self._bound(key)}]", clause)
        if entity == "metadata":
            return self._compared(f"trace_metadata[{self._bound(key)}]", clause)
        if key == "run_id":
            met = self._compared("run_id", clause)
            runs = f"list_distinct(list_filter(list_append(run_ids, {_RUN}), lambda each: each IS NOT NULL))"
            if clause.operator in _NULL:
                return f"len({runs}) {'=' if clause.operator == 'IS NULL' else '>'} 0"
            return f"EXISTS (SELECT 1 FROM (SELECT unnest({runs}) AS run_id) WHERE {met})"  # noqa: S608
        if key == "prompt":
            name, _, version = str(clause.value).partition("/")
            tag = "TRY_CAST(tags['mlflow.linkedPrompts'] AS JSON)"
            linked = f"TRY_CAST({tag} AS STRUCT(name VARCHAR, version VARCHAR)[])"
            return (
                f"list_contains({linked}, struct_pack(name := {self._bound(name)}, version := {self._bound(version)}))"
            )
        if key in _NUMBERS:
            return self._compared(_NUMBERS[key], clause)
        if key in _IDS:
            clause = clause._replace(value=_each(clause.value, source.bare))
        return self._compared(_TEXTS[key], clause)

    def _span_predicate(self, clause: Clause, source: Source) -> str:
        key = clause.key
        if key in ("content", "text"):
            attributes = "span.attributes::JSON" if source.version == 2 else "to_json(span.attributes)"
            events = (
                "to_json(list_transform(span.events, lambda each: struct_pack(name := each.name, attributes := {})))"
            )
            held = "each.attributes::JSON" if source.version == 2 else "each.attributes"
            content = f"concat_ws(' ', span.name, {attributes}::VARCHAR, {events.format(held)}::VARCHAR)"
            return self._compared(content, clause)
        if key.startswith("attributes."):
            name = self._bound(key.removeprefix("attributes."))
            return self._compared(attribute_sql("span.", name, source.version), clause)
        if key == "type":
            return self._compared(attribute_sql("span.", f"'{SPAN_TYPE}'", source.version), clause)
        return self._compared(_SPAN_TEXTS[key], clause)

    def _assessment_predicate(self, clause: Clause, suffix: str) -> str:
        met = f"assessment_name = {self._bound(clause.key)} AND valid"
        if clause.entity != "assessment":
            met += f" AND kind = '{clause.entity}'"
        if clause.operator in _ORDER:
            met += f" AND {self._compared('TRY_CAST(json AS DOUBLE)', clause)}"
        elif clause.operator not in _NULL:
            met += f" AND {self._compared(as_text_of_json('json'), clause)}"
        negated = "NOT " if clause.operator == "IS NULL" else ""
        return f"trace_id {negated}IN (SELECT trace_id FROM assessments{suffix} WHERE {met})"  # noqa: S608

    def _compared(self, value: str, clause: Clause) -> str:
        operator = clause.operator
        if operator in _NULL:
            return f"{value} {operator}"
        if operator in _IN:
            return f"{value} {operator} ({', '.join(map(self._bound, clause.value))})"
        bound = self._bound(clause.value)
        return f"regexp_matches({value}, {bound})" if operator == "RLIKE" else f"{value} {operator} {bound}"

    def _bound(self, value: Any) -> str:
        name = f"p{len(self.parameters)}"
        self.parameters[name] = value
        return f"${name}"


def parse(text: str) -> list[Clause]:
    """Return the comparisons of a filter, which are joined by AND.

    Raises:
        ApiError: 400 INVALID_PARAMETER_VALUE, it is no such list.
    """
    tokens = _tokens(text)
    clauses: list[Clause] = []
    at = 0
    while at < len(tokens):
        if clauses:
            if tokens[at] != ("name", "AND"):
                raise invalid(f"Invalid clause(s) in filter string: '{tokens[at][1]}'. Comparisons are joined by AND.")
            at += 1
        clause, at = _clause(tokens, at)
        clauses.append(clause)
    return clauses


def order_sql(order_by: Sequence[str]) -> str:
    """Return the ORDER BY of an order, which ties are broken in.

    Raises:
        ApiError: 400 INVALID_PARAMETER_VALUE, a key or direction is not known.
    """
    terms = []
    for text in order_by:
        name, _, direction = text.strip().partition(" ")
        entity, key = _named(name)
        direction = direction.strip().upper() or "ASC"
        if entity != "attribute" or key not in _ORDERS:
            raise invalid(f"Invalid order_by key '{name}'. Valid keys are {', '.join(sorted(_ORDERS))}.")
        if direction not in ("ASC", "DESC"):
            raise invalid(f"Invalid ordering key in order_by clause '{text}': it is ASC or DESC.")
        terms.append(f"{_ORDERS[key]} {direction} NULLS LAST")
    return ", ".join([*terms, "timestamp_us DESC NULLS LAST", "trace_id", "source"])


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens = []
    at, end = 0, len(text.rstrip())
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None:
            raise invalid(f"Invalid filter string: cannot be read from '{text[at : at + 40].strip()}'.")
        at = found.end()
        kind = found.lastgroup or ""
        token = found[kind]
        is_word = kind == "name" and token.upper() in ("AND", "OR", "NOT", "IS", "NULL", "IN", *_LIKE)
        tokens.append((kind, token.upper() if is_word else token))
    return tokens


def _clause(tokens: list[tuple[str, str]], at: int) -> tuple[Clause, int]:
    kind, name = tokens[at] if at < len(tokens) else ("", "the end")
    if kind != "name":
        raise invalid(f"Invalid clause(s) in filter string: expected the name of a field, and found '{name}'.")
    entity, key = _named(name)
    operator, at = _operator(tokens, at + 1, name)
    value: Any = None
    if operator in _IN:
        value, at = _list(tokens, at, name)
    elif operator not in _NULL:
        value, at = _value(tokens, at, name)
    return Clause(entity, key, operator, value), at


def _operator(tokens: list[tuple[str, str]], at: int, name: str) -> tuple[str, int]:
    if at < len(tokens) and tokens[at][0] == "operator":
        return tokens[at][1], at + 1
    following = " ".join(token for kind, token in tokens[at : at + 3] if kind == "name")
    for words in _WORDS:
        if f"{following} ".startswith(f"{words} "):
            return words, at + words.count(" ") + 1
    raise invalid(f"Invalid comparison of '{name}': expected an operator, and found '{following or 'none'}'.")


def _list(tokens: list[tuple[str, str]], at: int, name: str) -> tuple[list[Any], int]:
    values: list[Any] = []
    opening = "("
    while tokens[at : at + 1] == [("mark", opening)]:
        value, at = _value(tokens, at + 1, name)
        values.append(value)
        if tokens[at : at + 1] == [("mark", ")")]:
            return values, at + 1
        opening = ","
    raise invalid(f"Invalid list of '{name}': expected quoted values in parentheses, as ('a', 'b').")


def _value(tokens: list[tuple[str, str]], at: int, name: str) -> tuple[Any, int]:
    kind, token = tokens[at] if at < len(tokens) else ("", "the end")
    if kind == "string":
        return token[1:-1].replace("''", "'"), at + 1
    if kind == "name" and token.startswith('"') and token.endswith('"') and token.count('"') == 2:
        return token[1:-1], at + 1
    if kind == "number":
        is_int64 = token.lstrip("-").isdigit() and len(token) < 19
        return (int(token) if is_int64 else float(token)), at + 1
    raise invalid(f"Expected a quoted value or a number for '{name}'. Got value {token}")


def _named(name: str) -> tuple[str, str]:
    """Return the entity and key of a name: `tags.x`, `trace.status`, `status`."""
    parts = ["".join(found) for found in _PART.findall(name)]
    entity = parts[0].lower() if len(parts) > 1 else "attribute"
    key = ".".join(parts[1:] if len(parts) > 1 else parts)
    if entity not in (*_ENTITIES, *_MORE_ENTITIES):
        raise invalid(f"Invalid entity type '{entity}'. Valid values are {', '.join(sorted(_ENTITIES))}.")
    if entity in _ATTRIBUTES:
        return "attribute", key.lower()
    return {"tags": "tag", "request_metadata": "metadata"}.get(entity, entity), key


def _checked(clause: Clause) -> Clause:
    """Return a clause whose field is known, and may be compared so and with such a value; a time is a number in it."""
    entity, key, operator, value = clause
    allowed = _allowed(entity, key)
    if operator not in allowed:
        raise invalid(
            f"Invalid comparator '{operator}' of {entity}.{key}. It is compared with {', '.join(sorted(allowed))}."
        )
    if key == "prompt" and str(value).count("/") != 1:
        raise invalid(f"Invalid prompts filter value '{value}'. Expected format: prompt = \"name/version\"")
    wants_number = (entity == "attribute" and key in _NUMBERS) or operator in _ORDER
    if entity == "attribute" and key in _TIMES and isinstance(value, str):
        clause = clause._replace(value=_milliseconds(value, key))
    elif operator not in _NULL and {isinstance(each, str) for each in _values(value)} != {not wants_number}:
        wanted = "a number" if wants_number else "a quoted string value (e.g. 'my-value')"
        raise invalid(f"Expected {wanted} for {entity}.{key}. Got value {value}")
    return clause


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _milliseconds(text: str, key: str) -> int:
    """Return a date or time of ISO 8601, in UTC unless it says otherwise, in milliseconds since the Unix epoch."""
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise invalid(
            f"Expected milliseconds since 1970 or a date as '2026-11-22' for {key}. Got value '{text}'"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp() * 1000)


def _allowed(entity: str, key: str) -> frozenset[str]:
    if entity in ("tag", "metadata"):
        return _ENTITY
    if entity in ("feedback", "expectation", "assessment"):
        return _ENTITY | _ORDER
    by_key: Mapping[str, frozenset[str]]
    if entity == "span":
        by_key = {"name": _TEXT, "type": _TEXT, "status": _TEXT, "content": _LIKE}
        if key.startswith("attributes.") and key != "attributes.":
            return _TEXT
    elif entity == "issue":
        by_key = {"id": frozenset({"="})}
    else:
        by_key = {
            **dict.fromkeys(_NUMBERS, _NUMERIC),
            **dict.fromkeys(_TEXTS, _TEXT),
            **dict.fromkeys(("name", "user", "session", "run_id", "client_request_id"), _TEXT | _NULL),
            "prompt": frozenset({"="}),
            "text": _LIKE,
        }
    if key not in by_key:
        more = ", attributes.<attribute_name>" if entity == "span" else ""
        raise invalid(f"Invalid {entity} key '{key}' specified. Valid keys are {', '.join(sorted(by_key))}{more}.")
    return by_key[key]


def _is_of_span(clause: Clause) -> bool:
    return clause.entity == "span" or (clause.entity, clause.key) == ("attribute", "text")


def _each(value: Any, change: Callable[[str], str]) -> Any:
    return [change(each) for each in value] if isinstance(value, list) else change(value)
