"""Queries in Databricks SQL, as DuckDB runs them.

sqlglot parses and writes them. What stands in a query is either known here to mean the same in DuckDB, or is made
something that does, or is refused by its name: `_IMITATED`, `functions` and `rewriting` are all that runs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from tracelake.testing.sql.rewriting import Rewriting, excerpt, is_word
from tracelake.testing.sql.sqlerrors import SqlError, unimitated

# Names of sqlglot's classes.
_CLASSES = """
    Add Alias Aliases All And Anonymous Between Boolean Bracket CTE Case Cast Column Concat DataType DataTypeParam
    Distinct Div Dot DPipe EQ Escape Except Exists Filter From GT GTE Group Having Identifier If ILike In
    Intersect Interval IntDiv Is JSONExtract JSONPath JSONPathKey JSONPathRoot JSONPathSubscript Join LT LTE Lambda
    Lateral Like Limit Literal Mod Mul NEQ Neg Not Null NullSafeEQ Offset Or Order Ordered Paren Placeholder Qualify
    RegexpLike Select Star Sub Subquery Table TableAlias TryCast Tuple Union Values Var Where Window WindowSpec With
    NamedWindow
"""
_IMITATED = frozenset(_CLASSES.split())


@functools.cache
def dialect() -> Any:
    """Return sqlglot's dialect of Databricks SQL, in which every function stays what it is called."""
    from sqlglot.dialects.databricks import Databricks

    parser = Databricks.Parser
    verbatim = {
        "FUNCTIONS": {},
        "FUNCTION_PARSERS": {name: parser.FUNCTION_PARSERS[name] for name in ("CAST", "TRY_CAST")},
        "NO_PAREN_FUNCTIONS": {},
        "NO_PAREN_FUNCTION_PARSERS": {name: parser.NO_PAREN_FUNCTION_PARSERS[name] for name in ("CASE", "IF")},
    }
    return type("Verbatim", (Databricks,), {"Parser": type("Parser", (parser,), verbatim)})


def parse(statement: str) -> Any:
    """Return sqlglot's tree of one statement.

    Raises:
        SqlError: PARSE_SYNTAX_ERROR, it is none, or there are several.
    """
    import sqlglot
    from sqlglot.errors import SqlglotError

    try:
        trees = [tree for tree in sqlglot.parse(statement, read=dialect()) if tree is not None]
    except SqlglotError as error:
        said = re.sub(r"\x1b\[\d+m", "", str(error)).partition("\n")[0]
        raise SqlError("PARSE_SYNTAX_ERROR", f"Syntax error: {said}") from error
    if len(trees) != 1:
        raise SqlError(
            "PARSE_SYNTAX_ERROR", f"Syntax error: one statement is run at a time, and these are {len(trees)}."
        )
    return trees[0]


def bind(tree: Any, parameters: Mapping[str, Any]) -> None:
    """Put the values of parameters, as expressions by name, in the place of their markers.

    Raises:
        SqlError: UNBOUND_SQL_PARAMETER, a marker has none.
    """
    from sqlglot import exp

    for marker in list(tree.find_all(exp.Placeholder)):
        name = str(marker.this or "?")
        if name not in parameters:
            raise SqlError(
                "UNBOUND_SQL_PARAMETER", f"Found the unbound parameter: {name}. Give `parameters` a value for it."
            )
        marker.replace(parameters[name].copy())


def to_duckdb(tree: Any, view_of: Callable[[str], str], variables: Mapping[str, str]) -> tuple[str, set[str]]:
    """Return the SQL of DuckDB for a query, and the macros of `functions` that it needs.

    Args:
        tree: of `parse`; it is changed.
        view_of: gives the view for a table, by its name with its one to three parts.
        variables: texts by the names of the functions that give them, such as `current_user`.

    Raises:
        SqlError: what it has is not imitated, or what `view_of` raises.
    """
    from sqlglot import exp

    for node in tree.walk():
        if type(node).__name__ not in _IMITATED:
            raise unimitated(f"{type(node).__name__} in a query ({excerpt(node)})")
        if isinstance(node, exp.With) and node.args.get("recursive"):
            raise unimitated("WITH RECURSIVE")
    _name_columns(tree)
    _name_tables(tree, view_of)
    rewriting = Rewriting(variables)
    # Children first, in a parent for the root.
    root = exp.Subquery(this=tree)
    for node in reversed(list(tree.walk(bfs=True))):
        new = rewriting.of(node)
        if new is not node:
            node.replace(new)
    return root.this.sql(dialect="duckdb", identify=True), rewriting.macros


def tables_of(tree: Any) -> list[Any]:
    """Return the nodes of the tables that a query reads, without the names of its own WITH clauses."""
    from sqlglot import exp

    return [
        table
        for table in tree.find_all(exp.Table)
        if isinstance(table.this, exp.Identifier) and not (table.db == "" and _is_cte(table))
    ]


def name_of(table: Any) -> str:
    """Return the name of a table's node, of one to three parts."""
    return ".".join(part.name for part in table.parts)


def _is_cte(table: Any) -> bool:
    from sqlglot import exp

    node, name = table, table.name.lower()
    while node is not None:
        within = next((each for each in node.args.values() if isinstance(each, exp.With)), None)
        for cte in within.expressions if within else ():
            # One WITH query sees those before it.
            if _contains(cte, table):
                break
            if cte.alias.lower() == name:
                return True
        node = node.parent
    return False


def _contains(node: Any, part: Any) -> bool:
    while part is not None:
        if part is node:
            return True
        part = part.parent
    return False


def _name_columns(tree: Any) -> None:
    """Give result columns the names that Databricks gives them."""
    from sqlglot import exp

    for select in tree.find_all(exp.Select):
        for column in list(select.expressions):
            if not isinstance(column, (exp.Alias, exp.Aliases, exp.Star, exp.Column)) or is_word(column):
                column.replace(exp.alias_(column.copy(), _column_name(column), quoted=True))


def _column_name(node: Any) -> str:
    from sqlglot import exp

    if isinstance(node, (exp.Cast, exp.Paren)) and not isinstance(node.this, exp.Literal):
        return _column_name(node.this)
    if isinstance(node, (exp.Column, exp.Dot)):
        return str(node.name)
    if isinstance(node, exp.Literal):
        return str(node.this)
    if isinstance(node, exp.JSONExtract):
        last = node.expression.expressions[-1]
        return str(last.this) if isinstance(last, exp.JSONPathKey) else excerpt(node)
    if isinstance(node, exp.Anonymous) and node.name.lower() == "count" and isinstance(node.expressions[0], exp.Star):
        return "count(1)"
    if isinstance(node, exp.Anonymous) and node.name.lower() in {"explode", "explode_outer"}:
        return "col"
    if isinstance(node, exp.Anonymous):
        return f"{node.name.lower()}({', '.join(_column_name(each) for each in node.expressions)})"
    if isinstance(node, exp.Binary):
        return f"({excerpt(node)})"
    return excerpt(node)


def _name_tables(tree: Any, view_of: Callable[[str], str]) -> None:
    from sqlglot import exp

    for table in tables_of(tree):
        name = name_of(table)
        full_name = view_of(name)
        replaced = exp.Table(
            this=exp.to_identifier(full_name, quoted=True),
            alias=table.args.get("alias") or exp.TableAlias(this=exp.to_identifier(table.name, quoted=True)),
        )
        for other in ("joins", "laterals"):
            if table.args.get(other):
                replaced.set(other, table.args[other])
        left = [
            key
            for key, value in table.args.items()
            if value and key not in {"this", "db", "catalog", "alias", "joins", "laterals"}
        ]
        if left:
            raise unimitated(f"the clause {left[0].upper()} of a table ({excerpt(table)})")
        table.replace(replaced)
        # A column may be named with the whole name of its table.
        parts = full_name.split(".")
        for column in tree.find_all(exp.Column):
            prefix = [column.text(key).lower() for key in ("catalog", "db", "table") if column.text(key)]
            if len(prefix) > 1 and prefix == parts[-len(prefix) :]:
                column.set("catalog", None)
                column.set("db", None)
