"""The names of tables in Unity Catalog: what they may hold, and how they reach SQL and URLs.

Rules: https://docs.databricks.com/aws/en/sql/language-manual/sql-ref-names
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from urllib.parse import quote

from tracelake.errors import TargetError
from tracelake.redaction import one_line

_MAX_LENGTH = 255
_PLAIN = re.compile(r"[A-Za-z0-9_]+")
_PART = re.compile(r"`((?:[^`]|``)+)`|([^`.]+)")
# What no name of Unity Catalog may have. A name without these is told apart from its neighbours by dots alone.
_FORBIDDEN = re.compile(r"[./\s\x00-\x1f\x7f]")


@dataclass(frozen=True)
class TableName:
    """The three parts of a table's name, as they are stored: without quotes."""

    catalog: str
    schema: str
    table: str

    def __str__(self) -> str:
        """The full name, as the catalog itself writes it."""
        return f"{self.catalog}.{self.schema}.{self.table}"

    @property
    def schema_name(self) -> str:
        """The full name of the schema."""
        return f"{self.catalog}.{self.schema}"

    @property
    def sql(self) -> str:
        """The full name, quoted for SQL."""
        return quoted(self.catalog, self.schema, self.table)

    @property
    def argument(self) -> str:
        """The full name, as an argument of a command in a shell."""
        return shlex.quote(readable(self.catalog, self.schema, self.table))


def parse_parts(text: str) -> list[str]:
    """Return the parts of a dotted name, of which each may stand in backticks; a backtick in these is doubled.

    Raises:
        TargetError: it is no such name, or Unity Catalog cannot have one.
    """
    parts: list[str] = []
    position = 0
    while True:
        found = _PART.match(text, position)
        if found is None:
            raise TargetError(
                f"{one_line(text, 200)!r} is not a name of Unity Catalog: a part of it is empty or not quoted as a "
                "whole. Write catalog.schema.table, with backticks around a part that has other than letters, digits "
                "and underscores."
            )
        parts.append(_checked(found[1].replace("``", "`") if found[1] else found[2]))
        position = found.end()
        if position == len(text):
            return parts
        if text[position] != ".":
            raise TargetError(
                f"{one_line(text, 200)!r} is not a name of Unity Catalog: {text[position]!r} follows a quoted part. "
                "Separate the parts by dots."
            )
        position += 1


def quoted(*parts: str) -> str:
    """Return the parts of a name as SQL takes them, whatever they hold."""
    return ".".join("`" + part.replace("`", "``") + "`" for part in parts)


def readable(*parts: str) -> str:
    """Return the parts of a name as people write them: quoted only where that is needed."""
    return ".".join(part if _PLAIN.fullmatch(part) else quoted(part) for part in parts)


def in_url(*parts: str) -> str:
    """Return the full name of these parts as one segment of a URL's path."""
    return quote(".".join(parts), safe="")


def literal(text: str) -> str:
    """Return a text as a string of SQL, whatever it holds."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _checked(part: str) -> str:
    if _FORBIDDEN.search(part) or not part.isprintable():
        raise TargetError(
            f"{one_line(part, 200)!r} is no name in Unity Catalog, which has none with dots, spaces, slashes or "
            "control characters. Name the catalog, schema and table as the catalog shows them."
        )
    if len(part) > _MAX_LENGTH:
        raise TargetError(
            f"{one_line(part, 50)!r}... has {len(part)} characters, and a name in Unity Catalog has at most "
            f"{_MAX_LENGTH}. Name the catalog, schema and table as the catalog shows them."
        )
    return part
