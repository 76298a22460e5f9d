"""The filters and orders of `mlflow.search_traces`, read; what SQL they become is up to the tables.

Grammar: https://mlflow.org/docs/latest/genai/tracing/search-traces/
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal, NamedTuple

from tracelake.errors import QueryError
from tracelake.query.text import clean, display_width

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

# Operators by what they do; a field allows some of these.
EQUAL = frozenset({"=", "!=", "<>"})
LIKE = frozenset({"LIKE", "ILIKE", "RLIKE"})
IN = frozenset({"IN", "NOT IN"})
NULL = frozenset({"IS NULL", "IS NOT NULL"})
ORDER = frozenset({"<", "<=", ">", ">="})
_TEXT = EQUAL | LIKE | IN
_ENTITY = EQUAL | LIKE | NULL
_WORDS = ("IS NOT NULL", "IS NULL", "NOT IN", "IN", *sorted(LIKE))
_KEYWORDS = ("AND", "OR", "NOT", "IS", "NULL", "IN", *LIKE)

# The fields of a trace itself, by each of the names that they have.
_SAME = {
    "timestamp_ms": ("timestamp", "timestamp_ms"),
    "execution_time_ms": ("execution_time", "execution_time_ms"),
    "end_time_ms": ("end_time", "end_time_ms"),
    "trace_id": ("request_id", "trace_id", "id"),
    "state": ("status", "state"),
}
FIELDS = {alias: name for name, aliases in _SAME.items() for alias in aliases} | {
    name: name
    for name in ("client_request_id", "name", "request", "response", "user", "session", "run_id", "prompt", "text")
}
NUMBERS = frozenset({"timestamp_ms", "execution_time_ms", "end_time_ms"})
TIMES = frozenset({"timestamp_ms", "end_time_ms"})
_MAY_BE_NULL = frozenset({"name", "user", "session", "run_id", "client_request_id"})
_ORDERED_BY = ("timestamp_ms", "execution_time_ms", "end_time_ms", "trace_id", "state", "name", "run_id")

_ATTRIBUTES = ("attribute", "attributes", "trace")
_ENTITIES = (*_ATTRIBUTES, "tag", "tags", "metadata", "request_metadata", "span", "feedback", "expectation")
_MORE_ENTITIES = ("assessment", "issue")
ATTRIBUTE = "attributes."  # what a span's attribute is named after

_SHOWN = 60  # characters of a filter before and after the one that is pointed at


class Clause(NamedTuple):
    """One comparison of a filter.

    Attributes:
        entity: "attribute" for what is of the trace itself, or span, tag, metadata, feedback, expectation, assessment,
            issue.
        key: of the entity; a field of the trace has its one name of `FIELDS`.
        operator: as SQL writes it.
        value: text or a number, a list of texts after IN, None where the operator takes none. Times are milliseconds
            since the Unix epoch.
    """

    entity: str
    key: str
    operator: str
    value: Any

    @property
    def is_of_span(self) -> bool:
        """Whether it is met by a span of the trace."""
        return self.entity == "span" or (self.entity, self.key) == ("attribute", "text")


class Order(NamedTuple):
    """One key that traces are sorted by, a field of a trace or "experiment_id"."""

    key: str
    direction: Literal["ASC", "DESC"]


def parse(text: str) -> list[Clause]:
    """Return the comparisons of a filter, which are joined by AND.

    Raises:
        QueryError: it is no such list; the error points at the character from which on it is none.
    """
    return _Parser(text).clauses()


def parse_order(order_by: Sequence[str]) -> list[Order]:
    """Return the keys of an order.

    Raises:
        QueryError: a key or a direction is not known.
    """
    orders: list[Order] = []
    for text in order_by:
        name, _, direction = text.strip().partition(" ")
        entity, key = _named(name)
        known = key if key == "experiment_id" else FIELDS.get(key, "")
        if entity != "attribute" or (known not in _ORDERED_BY and known != "experiment_id"):
            keys = sorted(alias for alias, field in FIELDS.items() if field in _ORDERED_BY)
            raise QueryError(
                f"Invalid order_by key '{clean(name)}'. Valid keys are {', '.join(keys)}, each with ASC or DESC."
            )
        match direction.strip().upper():
            case "" | "ASC":
                orders.append(Order(known, "ASC"))
            case "DESC":
                orders.append(Order(known, "DESC"))
            case _:
                raise QueryError(f"Invalid ordering key in order_by clause '{clean(text)}': it is ASC or DESC.")
    return orders


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._read()
        self._next = 0

    def clauses(self) -> list[Clause]:
        found: list[Clause] = []
        while self._token.kind:
            if found and not self._taken("AND"):
                raise self._error(
                    f"Invalid clause(s) in filter string: '{self._token.text}'. Comparisons are joined by AND."
                )
            found.append(self._clause())
        return found

    def _read(self) -> list[_Token]:
        tokens = []
        at, end = 0, len(self._text.rstrip())
        while at < end:
            found = _TOKEN.match(self._text, at)
            if found is None:
                left = self._text[at:].lstrip()
                raise self._error(
                    f"Invalid filter string: cannot be read from '{left[:40]}'.", len(self._text) - len(left)
                )
            at = found.end()
            kind = found.lastgroup or ""
            token = found[kind]
            is_word = kind == "name" and token.upper() in _KEYWORDS
            tokens.append(_Token("word" if is_word else kind, token.upper() if is_word else token, found.start(kind)))
        return tokens

    @property
    def _token(self) -> _Token:
        """The one that is next; at the end it is of no kind."""
        if self._next < len(self._tokens):
            return self._tokens[self._next]
        return _Token("", "the end", len(self._text))

    def _taken(self, *words: str) -> bool:
        """Pass over the tokens that are next, if they are these."""
        if [token.text for token in self._tokens[self._next : self._next + len(words)]] != list(words):
            return False
        self._next += len(words)
        return True

    def _clause(self) -> Clause:
        name = self._token
        if name.kind not in ("name", "word"):
            raise self._error(
                f"Invalid clause(s) in filter string: expected the name of a field, and found '{name.text}'."
            )
        self._next += 1
        try:
            entity, key = _named(name.text)
            allowed, key = _allowed(entity, key)
        except QueryError as error:
            raise self._error(str(error), name.at) from None
        compared = self._token
        operator = self._operator(name.text)
        if operator not in allowed:
            raise self._error(
                f"Invalid comparator '{operator}' of {entity}.{key}. It is compared with {', '.join(sorted(allowed))}.",
                compared.at,
            )
        value_at = self._token.at
        value: Any = None
        if operator in IN:
            value = self._list(name.text)
        elif operator not in NULL:
            value = self._value(name.text)
        try:
            return _checked(Clause(entity, key, "!=" if operator == "<>" else operator, value))
        except QueryError as error:
            raise self._error(str(error), value_at) from None

    def _operator(self, name: str) -> str:
        token = self._token
        if token.kind == "operator":
            self._next += 1
            return token.text
        for words in _WORDS:
            if self._taken(*words.split()):
                return words
        raise self._error(f"Invalid comparison of '{name}': expected an operator, and found '{token.text}'.")

    def _list(self, name: str) -> list[Any]:
        values: list[Any] = []
        opening = "("
        while self._taken(opening):
            values.append(self._value(name))
            if self._taken(")"):
                return values
            opening = ","
        raise self._error(f"Invalid list of '{name}': expected quoted values in parentheses, as ('a', 'b').")

    def _value(self, name: str) -> Any:
        kind, token, _ = self._token
        value: Any
        if kind == "string":
            value = token[1:-1].replace("''", "'")
        elif kind == "name" and token.startswith('"') and token.endswith('"') and token.count('"') == 2:
            value = token[1:-1]
        elif kind == "number":
            is_int64 = token.lstrip("-").isdigit() and len(token) < 19
            value = int(token) if is_int64 else float(token)
        else:
            raise self._error(f"Expected a quoted value or a number for '{name}'. Got value {token}")
        self._next += 1
        return value

    def _error(self, said: str, at: int | None = None) -> QueryError:
        at = self._token.at if at is None else at
        first = max(0, at - _SHOWN)
        before, after = (clean(part) for part in (self._text[first:at], self._text[at : at + _SHOWN]))
        return QueryError(
            f"{clean(said)}\nThe filter, at character {at + 1}:\n  {before}{after}\n  {' ' * display_width(before)}^"
        )


def _named(name: str) -> tuple[str, str]:
    """Return the entity and key of a name: `tags.x`, `trace.status`, `status`."""
    parts = ["".join(found) for found in _PART.findall(name)]
    entity = parts[0].lower() if len(parts) > 1 else "attribute"
    key = ".".join(parts[1:] if len(parts) > 1 else parts)
    if entity not in (*_ENTITIES, *_MORE_ENTITIES):
        raise QueryError(f"Invalid entity type '{entity}'. Valid values are {', '.join(sorted(_ENTITIES))}.")
    if entity in _ATTRIBUTES:
        return "attribute", key.lower()
    return {"tags": "tag", "request_metadata": "metadata"}.get(entity, entity), key


def _allowed(entity: str, key: str) -> tuple[frozenset[str], str]:
    """Return the operators of a field, and its one name."""
    if entity in ("tag", "metadata"):
        return _ENTITY, key
    if entity in ("feedback", "expectation", "assessment"):
        return _ENTITY | ORDER, key
    by_key: Mapping[str, frozenset[str]]
    if entity == "span":
        if key.startswith(ATTRIBUTE) and key != ATTRIBUTE:
            return _TEXT, key
        by_key = {"name": _TEXT, "type": _TEXT, "status": _TEXT, "content": LIKE}
    elif entity == "issue":
        by_key = {"id": frozenset({"="})}
    else:
        by_key = {alias: _of_field(field) for alias, field in FIELDS.items()}
    if key not in by_key:
        more = ", attributes.<attribute_name>" if entity == "span" else ""
        raise QueryError(f"Invalid {entity} key '{key}' specified. Valid keys are {', '.join(sorted(by_key))}{more}.")
    return by_key[key], FIELDS[key] if entity == "attribute" else key


def _of_field(field: str) -> frozenset[str]:
    if field in NUMBERS:
        return EQUAL | ORDER
    if field == "prompt":
        return frozenset({"="})
    if field == "text":
        return LIKE
    return _TEXT | NULL if field in _MAY_BE_NULL else _TEXT


def _checked(clause: Clause) -> Clause:
    """Return a clause whose value is one that its field has; a time is a number in it."""
    entity, key, operator, value = clause
    if key == "prompt" and str(value).count("/") != 1:
        raise QueryError(f"Invalid prompts filter value '{value}'. Expected format: prompt = \"name/version\"")
    wants_number = (entity == "attribute" and key in NUMBERS) or operator in ORDER
    if entity == "attribute" and key in TIMES and isinstance(value, str):
        clause = clause._replace(value=_milliseconds(value, key))
    elif operator not in NULL and {isinstance(each, str) for each in _values(value)} != {not wants_number}:
        wanted = "a number" if wants_number else "a quoted string value (e.g. 'my-value')"
        raise QueryError(f"Expected {wanted} for {entity}.{key}. Got value {value}")
    if operator == "RLIKE":
        _check_pattern(value)
    return clause


def _check_pattern(pattern: str) -> None:
    # Each engine has an own dialect of these; what Python cannot read is wrong in all of them.
    try:
        re.compile(pattern)
    except re.error as error:
        raise QueryError(f"The regular expression '{pattern}' cannot be run: {error}.") from None


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _milliseconds(text: str, key: str) -> int:
    """Return a date or time of ISO 8601, in UTC unless it says otherwise, in milliseconds since the Unix epoch."""
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise QueryError(
            f"Expected milliseconds since 1970 or a date as '2026-11-22' for {key}. Got value '{text}'"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp() * 1000)
