"""Queries over the tables of a workspace, by DuckDB in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tracelake.errors import QueryError
from tracelake.query import duck
from tracelake.query.table import reading
from tracelake.testing.sql import functions, translate
from tracelake.testing.sql.results import Result, column_of
from tracelake.testing.sql.sqlerrors import SqlError, of_api, of_duckdb, unimitated
from tracelake.testing.state import Table
from tracelake.testing.tracking.trace_views import trace_view_of
from tracelake.testing.unity.catalog import Catalog
from tracelake.testing.web.http import ApiError

if TYPE_CHECKING:
    import duckdb

DEFAULT_CATALOG = "main"
DEFAULT_SCHEMA = "default"
_MAX_NESTED_VIEWS = 20


class Engine:
    """Runs queries. DuckDB and sqlglot are loaded with the first of them."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    @contextmanager
    def connection(self, views: Mapping[str, Table]) -> Iterator[duckdb.DuckDBPyConnection]:
        """Give a connection in which each table is a view of the given name, and nothing else can be read.

        The tables are as they are now. VARIANT columns are DuckDB's, the time zone is UTC. Privileges are not checked.

        Raises:
            QueryError: a table cannot be read.
        """
        opened: dict[str, Any] = {}
        for name, table in views.items():
            with reading(table.full_name):
                opened[name] = self._catalog.lakehouse.open(table)
        with duck.connect(opened, by_name=True) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            yield connection

    def run(
        self,
        tree: Any,
        principal: str,
        within: tuple[str, str],
        *,
        row_limit: int | None = None,
        started: Callable[[duckdb.DuckDBPyConnection], None] = lambda _: None,
    ) -> Result:
        """Return what a query in Databricks SQL gives a principal, who has to be allowed to read its tables.

        Args:
            tree: the query, of `translate.parse`, its parameters bound; it is changed.
            within: catalog and schema of names of fewer than three parts; `main` and `default` where empty.
            row_limit: rows that are returned at most.
            started: is given the connection before the query runs; its `interrupt()` ends it.

        Raises:
            SqlError: it is wrong, refused or not imitated.
            duckdb.InterruptException: it was interrupted.
        """
        import duckdb

        plan = _Plan(self._catalog, principal)
        sql = plan.translated(tree, principal, within)
        try:
            with self.connection(plan.tables) as connection:
                started(connection)
                for definition in (*functions.definitions(plan.macros), *plan.views):
                    connection.execute(definition)
                relation = connection.sql(sql)
                columns = [column_of(name, kind) for name, kind in zip(relation.columns, relation.types, strict=True)]
                unique = ", ".join(duck.quoted(f"c{index}") for index in range(len(columns)))
                types = ", ".join(
                    f"CAST(c{index} AS BIGINT) AS c{index}" if str(kind) == "HUGEINT" else f"c{index}"
                    for index, kind in enumerate(relation.types)
                )
                limit = "" if row_limit is None else f" LIMIT {row_limit + 1}"
                found = duck.to_arrow(connection.sql(f"SELECT {types} FROM ({sql}) AS result({unique}){limit}"))  # noqa: S608
        except duckdb.InterruptException:
            raise
        except duckdb.Error as error:
            raise of_duckdb(error) from error
        except QueryError as error:
            raise SqlError("FAILED_READ_FILE", str(error)) from error
        is_truncated = row_limit is not None and found.num_rows > row_limit
        return Result(columns, found.slice(0, row_limit) if is_truncated else found, is_truncated)


class _Plan:
    """What a query needs to run.

    Attributes:
        tables: by the name of their view, which is their full name.
        views: statements that make the views of the workspace, those that others read first.
        macros: of `functions`.
    """

    def __init__(self, catalog: Catalog, principal: str) -> None:
        self.tables: dict[str, Table] = {}
        self.views: list[str] = []
        self.macros: set[str] = set()
        self._catalog = catalog
        self._principal = principal
        self._made: set[str] = set()
        self._depth = 0

    def translated(self, tree: Any, reader: str, within: tuple[str, str]) -> str:
        """Return the SQL of DuckDB for a query, whose tables `reader` has to be allowed to read."""
        catalog, schema = within[0] or DEFAULT_CATALOG, within[1] or DEFAULT_SCHEMA
        who = dict.fromkeys(("current_user", "session_user", "user"), self._principal)
        where = {"current_catalog": catalog, "current_database": schema, "current_schema": schema}
        sql, macros = translate.to_duckdb(
            tree, lambda name: self._view(name, reader, (catalog, schema)), {**who, **where}
        )
        self.macros |= macros
        return sql

    def _view(self, name: str, reader: str, within: tuple[str, str]) -> str:
        table = find_table(self._catalog, name, within)
        try:
            self._catalog.access.require(reader, "SELECT", table)
        except ApiError as error:
            raise of_api(error) from error
        full_name = table.full_name
        if table.table_type == "VIEW":
            if full_name not in self._made:
                self._expand(table)
                self._made.add(full_name)
        elif table.table_type not in {"MANAGED", "EXTERNAL"} or table.data_source_format != "DELTA":
            raise unimitated(f"reading a table of the kind {table.table_type} ({full_name})")
        else:
            self.tables[full_name] = table
        return full_name

    def _expand(self, view: Table) -> None:
        self._depth += 1
        if self._depth > _MAX_NESTED_VIEWS:
            raise SqlError("RECURSIVE_VIEW", f"The view {view.full_name} reads itself.")
        catalog, schema, _ = view.parts
        traces = trace_view_of(view)
        if traces is None:
            sql = self.translated(translate.parse(view.view_definition), view.owner, (catalog, schema))
        else:
            sql = traces.sql(lambda name: duck.quoted(self._view(name, view.owner, (catalog, schema))))
        self.views.append(f"CREATE TEMP VIEW {duck.quoted(view.full_name)} AS {sql}")
        self._depth -= 1


def find_table(catalog: Catalog, name: str, within: tuple[str, str]) -> Table:
    """Return the table of a name of one to three parts.

    Raises:
        SqlError: TABLE_OR_VIEW_NOT_FOUND, there is none.
    """
    parts = full_name(name, within).split(".")
    if len(parts) != 3:
        raise unimitated(f"the table name {name}")
    if parts[1] == "information_schema" or parts[0] == "system":
        raise unimitated(f"the system table {name}")
    try:
        return catalog.table(".".join(parts))
    except ApiError as error:
        quoted = ".".join(f"`{part}`" for part in parts)
        raise SqlError(
            "TABLE_OR_VIEW_NOT_FOUND",
            f"The table or view {quoted} cannot be found. Verify the spelling and correctness of the schema and "
            "catalog. If you did not qualify the name with a schema, verify the current_schema() output, or qualify "
            "the name with the correct schema and catalog.",
        ) from error


def full_name(name: str, within: tuple[str, str]) -> str:
    """Return a table's name with its catalog and schema, in lower case as Unity Catalog has it."""
    parts = name.lower().split(".")
    before = [within[0] or DEFAULT_CATALOG, within[1] or DEFAULT_SCHEMA]
    return ".".join([*before[: max(0, 3 - len(parts))], *parts])


def value_of(parameter: Mapping[str, Any]) -> Any:
    """Return the expression for a parameter of a statement.

    Raises:
        SqlError: its type is none that a parameter can have.
    """
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    value, kind = parameter.get("value"), str(parameter.get("type") or "STRING")
    try:
        to = exp.DataType.build(kind, dialect="databricks")
    except (SqlglotError, ValueError) as error:
        raise SqlError("INVALID_PARAMETER_VALUE", f"The parameter {parameter['name']} has no type {kind}.") from error
    if value is None:
        return exp.Cast(this=exp.Null(), to=to)
    literal = exp.Literal.string(str(value))
    if kind.upper() in {"INT", "BIGINT", "SMALLINT", "TINYINT", "LONG"} and str(value).isdigit():
        # LIMIT takes a literal only.
        return exp.Literal.number(str(value))
    return literal if kind.upper() == "STRING" else exp.Cast(this=literal, to=to)
