"""Any SQL statement: to the queries, to what changes the workspace, or to what tells of it: SHOW and DESCRIBE."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tracelake.testing.sql import translate
from tracelake.testing.sql.ddl import Ddl, unquoted
from tracelake.testing.sql.engine import Engine, find_table, value_of
from tracelake.testing.sql.results import Result, texts
from tracelake.testing.sql.sqlerrors import SqlError, of_api, unimitated
from tracelake.testing.state import Securable
from tracelake.testing.unity.catalog import Catalog
from tracelake.testing.web.http import ApiError

_NAME = r"[\w.`@-]+"
_COMMENTS = re.compile(r"\s*(?:--[^\n]*(?:\n|$)|/\*.*?\*/)", re.DOTALL)
_SHOW = re.compile(
    rf"SHOW\s+(?P<what>CATALOGS|SCHEMAS|DATABASES|TABLES)(?:\s+(?:IN|FROM)\s+(?P<name>{_NAME}))?", re.IGNORECASE
)
_SHOW_GRANTS = re.compile(
    r"SHOW\s+GRANTS?\s+(?:(?P<principal>`[^`]+`|(?!ON\b)[\w.@-]+)\s+)?ON\s+"
    rf"(?P<kind>CATALOG|SCHEMA|DATABASE|TABLE|VIEW)\s+(?P<name>{_NAME})",
    re.IGNORECASE,
)
_DESCRIBE = re.compile(rf"DESC(?:RIBE)?\s+(?:TABLE\s+)?(?!EXTENDED\b)(?P<name>{_NAME})", re.IGNORECASE)
# Statements that Databricks has and the workspace has not.
_UNIMITATED = {
    *("ANALYZE", "BEGIN", "CACHE", "CALL", "CLEAR", "COMMENT", "COPY", "DECLARE", "DELETE", "DENY", "EXECUTE"),
    *("EXPLAIN", "FSCK", "LIST", "LOAD", "MERGE", "MSCK", "OPTIMIZE", "PUT", "REFRESH", "REMOVE", "REORG", "REPAIR"),
    *("RESET", "RESTORE", "SET", "SYNC", "TRUNCATE", "UNCACHE", "UNDROP", "UPDATE", "USE", "VACUUM"),
}

_CHANGING = {"ALTER", "CREATE", "DROP", "INSERT"}


class Commands:
    """Runs statements in the name of a principal."""

    def __init__(self, catalog: Catalog, engine: Engine) -> None:
        self._catalog = catalog
        self._engine = engine
        self._ddl = Ddl(catalog, engine)

    def run(
        self,
        statement: str,
        principal: str,
        *,
        catalog: str = "",
        schema: str = "",
        parameters: Sequence[Mapping[str, Any]] = (),
        row_limit: int | None = None,
        started: Callable[[Any], None] = lambda _: None,
    ) -> Result:
        """Return the result of a statement; one that changes something has no columns.

        Args:
            catalog, schema: what names of fewer than three parts are in; `main` and `default` unless given.
            parameters: of the markers `:name`: `name`, `value` as text or None, and `type`, STRING unless given.
            row_limit: rows that are returned at most.
            started: is given DuckDB's connection before a query runs; its `interrupt()` ends it.

        Raises:
            SqlError: it is wrong, refused or not imitated.
        """
        text = _bare(statement)
        within = (catalog, schema)
        first, second = [*text.upper().split(None, 2), "", ""][:2]
        try:
            if first in {"GRANT", "REVOKE"}:
                return self._ddl.grant(text, principal, within)
            if first == "SHOW":
                return self._show(text, principal, within)
            if first in {"DESCRIBE", "DESC"}:
                return self._describe(text, principal, within)
            if first in {"CREATE", "DROP"} and second == "CATALOG":
                return self._ddl.catalog(text, principal)
            if first in _UNIMITATED:
                raise unimitated(first)
            tree = translate.parse(text)
            translate.bind(tree, {each["name"]: value_of(each) for each in parameters})
            own = getattr(self._ddl, type(tree).__name__.lower(), None) if first in _CHANGING else None
            if own is not None:
                changed: Result = own(tree, principal, within)
                return changed
            if first in _CHANGING:
                raise unimitated(f"{first} {second}")
            return self._engine.run(tree, principal, within, row_limit=row_limit, started=started)
        except ApiError as error:
            raise of_api(error) from error

    def _show(self, text: str, principal: str, within: tuple[str, str]) -> Result:
        if match := _SHOW_GRANTS.fullmatch(text):
            return self._show_grants(match, principal, within)
        match = _SHOW.fullmatch(text)
        if match is None:
            raise unimitated(" ".join(text.split()[:2]).upper())
        state, what = self._catalog.store.state, match["what"].upper()
        if what == "CATALOGS":
            return texts(
                ["catalog"], [[each.full_name] for each in _by_name(state.catalogs) if self._sees(principal, each)]
            )
        if what in {"SCHEMAS", "DATABASES"}:
            above = self._ddl.securable("CATALOG", unquoted(match["name"] or within[0] or "main"), within)
            found = [each for each in _by_name(state.schemas) if each.parts[0] == above.full_name]
            return texts(["databaseName"], [[each.parts[1]] for each in found if self._sees(principal, each)])
        above = self._ddl.securable("SCHEMA", unquoted(match["name"] or within[1] or "default"), within)
        tables = [each for each in _by_name(state.tables) if each.full_name.startswith(f"{above.full_name}.")]
        return texts(
            ["database", "tableName", "isTemporary"],
            [[above.parts[1], each.parts[2], "false"] for each in tables if self._sees(principal, each)],
        )

    def _sees(self, principal: str, securable: Securable) -> bool:
        try:
            self._catalog.access.require_seeing(principal, securable)
        except ApiError:
            return False
        return True

    def _show_grants(self, match: re.Match[str], principal: str, within: tuple[str, str]) -> Result:
        securable = self._ddl.securable(match["kind"], unquoted(match["name"]), within)
        self._catalog.access.require_seeing(principal, securable)
        of = unquoted(match["principal"] or "")
        rows = [
            [name, privilege.replace("_", " "), securable.kind.upper(), securable.full_name]
            for name, privileges in sorted(securable.grants.items())
            for privilege in privileges
            if of in {"", name}
        ]
        return texts(["Principal", "ActionType", "ObjectType", "ObjectKey"], rows)

    def _describe(self, text: str, principal: str, within: tuple[str, str]) -> Result:
        match = _DESCRIBE.fullmatch(text)
        if match is None:
            raise unimitated("this form of DESCRIBE")
        table = find_table(self._catalog, unquoted(match["name"]), within)
        self._catalog.access.require(principal, "SELECT", table)
        rows = [
            [str(column["name"]), str(column["type_text"]), str(column["comment"]) if column.get("comment") else None]
            for column in table.columns
        ]
        return texts(["col_name", "data_type", "comment"], rows)


def _by_name(securables: Mapping[str, Securable]) -> list[Securable]:
    # Sorted at once: others change them meanwhile.
    return [each for _, each in sorted(securables.items())]


def _bare(statement: str) -> str:
    """Return a statement without the comments before it and the semicolon after it."""
    text = statement
    while match := _COMMENTS.match(text):
        text = text[match.end() :]
    text = text.strip().rstrip(";").strip()
    if not text:
        raise SqlError("PARSE_EMPTY_STATEMENT", "Syntax error, unexpected empty statement.")
    return text
