"""SQL over span tables and their annotations, as DuckDB writes it and as Databricks does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from tracelake.errors import QueryError
from tracelake.query.reader import Reader
from tracelake.redaction import one_line
from tracelake.spans import tables

IS_ROOT = f"coalesce({tables.PARENT_SPAN_ID}, '') = ''"
_SERVICE = "service.name"
_NUMBER = r"^-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?$"


class Dialect(ABC):
    """Writes one statement: what differs between engines and versions of a table, and the values that it binds.

    What a method returns is SQL, and so is what it takes, but for keys and values.

    Attributes:
        parameters: the values that were bound, by name.
    """

    def __init__(self, version: tables.Version) -> None:
        self.parameters: dict[str, Any] = {}
        self._version = version

    @staticmethod
    def of(reader: Reader) -> Dialect:
        """Return the dialect of a reader, for a new statement."""
        return DuckDb(reader.version) if reader.dialect == "duckdb" else Databricks(reader.version)

    def bound(self, value: Any) -> str:
        """Bind a value."""
        name = f"p{len(self.parameters)}"
        self.parameters[name] = value
        return f"{self._marker}{name}"

    def one_of(self, value: str, values: Iterable[Any]) -> str:
        """Return whether a value is one of some."""
        bound = ", ".join(map(self.bound, values))
        return f"{value} IN ({bound})" if bound else "false"

    def attribute(self, key: str) -> str:
        """Return a span's attribute as text: what is no text is JSON."""
        return self._entry(tables.ATTRIBUTES, key)

    def service(self) -> str:
        """Return the name of a span's service."""
        if self._version == 2:
            return tables.SERVICE_NAME
        return self._entry(f"{tables.RESOURCE}.{tables.ATTRIBUTES}", _SERVICE)

    def content(self) -> str:
        """Return the name, attributes and events of a span as one text."""
        of_event = f"each.{tables.NAME} || ' ' || coalesce({self._json(f'each.{tables.ATTRIBUTES}')}, '')"
        return (
            f"coalesce({tables.NAME}, '') || ' ' || coalesce({self._json(tables.ATTRIBUTES)}, '') || ' ' || "
            f"coalesce({self._of_each(tables.EVENTS, of_event)}, '')"
        )

    @abstractmethod
    def text(self, variant: str) -> str:
        """Return a VARIANT as text: what is no text is JSON."""

    @abstractmethod
    def json(self, variant: str) -> str:
        """Return a VARIANT as JSON."""

    @abstractmethod
    def item(self, variant: str, *keys: str) -> str:
        """Return, as text, what a VARIANT has under a key, and under a key of that."""

    @abstractmethod
    def matches(self, value: str, pattern: str) -> str:
        """Return whether a text has what a regular expression describes."""

    @abstractmethod
    def field(self, json: str, key: str) -> str:
        """Return, as text, what an object in a text of JSON has under a key; NULL if the text is none."""

    @abstractmethod
    def quantile(self, value: str, share: float) -> str:
        """Return the aggregate that so large a share of the values do not exceed."""

    @abstractmethod
    def percentile(self, value: str, share: float) -> str:
        """Return the aggregate below which so large a share of the values is, interpolated between two of them."""

    def number(self, text: str) -> str:
        """Return the number that a text is; NULL if it is none, or not finite."""
        return f"TRY_CAST(CASE WHEN {self.matches(text, self.bound(_NUMBER))} THEN {text} END AS DOUBLE)"

    @property
    @abstractmethod
    def _marker(self) -> str: ...

    @abstractmethod
    def _entry(self, column: str, key: str) -> str: ...

    @abstractmethod
    def _json(self, column: str) -> str: ...

    @abstractmethod
    def _of_each(self, items: str, text: str) -> str:
        """Return the texts that are made of each item, as one."""


class DuckDb(Dialect):
    """https://duckdb.org/docs/stable/sql/introduction."""

    _marker = "$"

    def text(self, variant: str) -> str:
        return f"CASE WHEN variant_typeof({variant}) = 'VARCHAR' THEN {variant}::VARCHAR ELSE {self.json(variant)} END"

    def json(self, variant: str) -> str:
        # Of a NULL it is a null of JSON.
        return f"nullif({variant}::JSON::VARCHAR, 'null')"

    def item(self, variant: str, *keys: str) -> str:
        return self.text(variant + "".join(f"[{_quoted(key)}]" for key in keys))

    def matches(self, value: str, pattern: str) -> str:
        return f"regexp_matches({value}, {pattern})"

    def field(self, json: str, key: str) -> str:
        return f"json_extract_string(CASE WHEN json_valid({json}) THEN {json} END, {_quoted(f'$.{key}')})"

    def quantile(self, value: str, share: float) -> str:
        return f"quantile_disc({value}, {share})"

    def percentile(self, value: str, share: float) -> str:
        return f"quantile_cont({value}, {share})"

    def _entry(self, column: str, key: str) -> str:
        return self.item(column, key) if self._version == 2 else f"{column}[{_quoted(key)}]"

    def _json(self, column: str) -> str:
        return self.json(column) if self._version == 2 else f"to_json({column})::VARCHAR"

    def _of_each(self, items: str, text: str) -> str:
        return f"array_to_string(list_transform({items}, lambda each: {text}), ' ')"


class Databricks(Dialect):
    """https://docs.databricks.com/aws/en/sql/language-manual/."""

    _marker = ":"

    def text(self, variant: str) -> str:
        return f"CAST({variant} AS STRING)"

    def json(self, variant: str) -> str:
        return f"to_json({variant})"

    def item(self, variant: str, *keys: str) -> str:
        return self.text(f"{variant}:" + "".join(f"[{_literal(key)}]" for key in keys))

    def matches(self, value: str, pattern: str) -> str:
        return f"regexp_like({value}, {pattern})"

    def field(self, json: str, key: str) -> str:
        return f"get_json_object({json}, {_literal(f'$.{key}')})"

    def quantile(self, value: str, share: float) -> str:
        return f"approx_percentile({value}, {share})"

    def percentile(self, value: str, share: float) -> str:
        return f"percentile({value}, {share})"

    def _entry(self, column: str, key: str) -> str:
        return self.item(column, key) if self._version == 2 else f"{column}[{_literal(key)}]"

    def _json(self, column: str) -> str:
        return f"to_json({column})"

    def _of_each(self, items: str, text: str) -> str:
        return f"array_join(transform({items}, each -> {text}), ' ')"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _literal(key: str) -> str:
    # A path is a literal, and has no way to write these.
    if "'" in key or "\\" in key:
        raise QueryError(
            f"A SQL warehouse cannot be asked for the key {one_line(repr(key), 100)}: it has a quote or a backslash. "
            "Search for another, and look at the traces that are found."
        )
    return f"'{key}'"
