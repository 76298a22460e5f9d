"""DuckDB over Delta tables, in this process: connections that reach nothing else, VARIANT columns in and out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracelake.errors import QueryError
from tracelake.query import files
from tracelake.spans import tables

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from deltalake import DeltaTable

_EXAMPLE = 'tracelake sql "SELECT name, count(*) AS calls FROM spans GROUP BY name"'

# SQL that makes something else of a value, given the value's SQL and its DuckDB type; None for what stays as it is.
_Leaf = Callable[[str, Any], str | None]


def connect(views: Mapping[str, DeltaTable], *, by_name: bool = False) -> duckdb.DuckDBPyConnection:
    """Return a connection in which each table is a view of the given name, as `show` makes it, and nothing else."""
    paths = {name: files.local_files(table) for name, table in views.items()}
    connection = guarded([path for own in paths.values() for path in own])
    for name, table in views.items():
        show(connection, name, table, paths[name], by_name=by_name)
    return connection


def guarded(paths: Collection[str], *, are_directories: bool = False) -> duckdb.DuckDBPyConnection:
    """Return a connection that reads these files, or all in these directories, and no other, whatever it is asked.

    Nor does it reach a network. It keeps what it has read of the ends of files.
    """
    import duckdb

    # No variable of Python is a table.
    connection: duckdb.DuckDBPyConnection = duckdb.connect(":memory:", config={"python_enable_replacements": "false"})
    allowed = "allowed_directories" if are_directories else "allowed_paths"
    connection.execute(f"SET {allowed} = $paths", {"paths": sorted(paths)})
    connection.execute("SET temp_directory = ''")  # or what is there could be read, too
    # From here on no extension is fetched and no other file opened. It cannot be switched on again.
    connection.execute("SET enable_external_access = false")
    connection.execute("SET parquet_metadata_cache = true")
    return connection


def show(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    table: DeltaTable | pa.Table,
    paths: Sequence[str],
    *,
    by_name: bool = False,
) -> None:
    """Make a table, of Delta or of Arrow, the view of a name, as it is now; its VARIANTs are DuckDB's.

    Filters and columns reach the files of a table.

    Args:
        paths: those of a Delta table's `files.local_files` that the view is to have; where there are none, the table
            is read by pyarrow.
        by_name: that of `files.scan_sql`.
    """
    import pyarrow as pa

    source = quoted(f"delta:{name}")
    if paths:
        source = files.scan_sql(connection, name, table, paths, by_name=by_name)
    else:
        connection.register(f"delta:{name}", table if isinstance(table, pa.Table) else table.to_pyarrow_dataset())
    columns = _projection(connection.sql(f"FROM {source}"), _incoming)
    connection.execute(f"CREATE OR REPLACE VIEW {quoted(name)} AS SELECT {columns} FROM {source}")  # noqa: S608


def select(connection: duckdb.DuckDBPyConnection, query: str) -> Any:
    """Return the one statement of a query, which has to be one that reads.

    Raises:
        QueryError: it is none, or more than one, or of another kind.
        duckdb.Error: it cannot be parsed.
    """
    import duckdb

    statements = connection.extract_statements(query)
    if len(statements) != 1:
        raise QueryError(f"The query has {len(statements)} statements, and one is run at a time. Try: {_EXAMPLE}")
    kind = statements[0].type
    if kind not in {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}:
        raise QueryError(
            f"The query is a statement of the kind {kind.name}, and only what reads is run: SELECT, WITH, FROM, "
            f"DESCRIBE, SUMMARIZE, EXPLAIN. Try: {_EXAMPLE}"
        )
    return statements[0]


def to_arrow(relation: duckdb.DuckDBPyRelation) -> pa.Table:
    """Return a result; its VARIANTs are Arrow's struct of two binaries."""
    # DuckDB 1 cannot hand a VARIANT over to Arrow, and 2 can; as the struct of two binaries both can.
    if any("VARIANT" in str(kind) for kind in relation.types):
        relation = relation.project(_projection(relation, _outgoing))
    return relation.to_arrow_table()


def quoted(name: str) -> str:
    """Return a name as an identifier of DuckDB's SQL."""
    return '"' + name.replace('"', '""') + '"'


def _projection(relation: duckdb.DuckDBPyRelation, leaf: _Leaf) -> str:
    columns = zip(map(quoted, relation.columns), relation.types, strict=True)
    return ", ".join(f"{_converted(name, kind, leaf)} AS {name}" for name, kind in columns)


def _incoming(source: str, kind: Any) -> str | None:
    """delta-rs hands a VARIANT over as a struct of two binaries."""
    if kind.id != "struct":
        return None
    children = {name: str(child) for name, child in kind.children}
    if children != {tables.VARIANT_METADATA: "BLOB", tables.VARIANT_VALUE: "BLOB"}:
        return None
    metadata, value = quoted(tables.VARIANT_METADATA), quoted(tables.VARIANT_VALUE)
    return f"variant_bytes_to_variant({source}.{metadata} || {source}.{value})"


def _outgoing(source: str, kind: Any) -> str | None:
    # Of a NULL it would make a VARIANT that holds null.
    return (
        f"CASE WHEN {source} IS NOT NULL THEN variant_to_parquet_variant({source}) END"
        if str(kind) == "VARIANT"
        else None
    )


def _converted(source: str, kind: Any, leaf: _Leaf, depth: int = 0) -> str:
    """Return the SQL of `source`, of the DuckDB type `kind`, with what `leaf` converts in it converted."""
    own = leaf(source, kind)
    if own is not None:
        return own
    if kind.id == "struct":
        names = {f"{source}.{quoted(name)}": (quoted(name), child) for name, child in kind.children}
        parts = {path: _converted(path, child, leaf, depth) for path, (_, child) in names.items()}
        if any(path != part for path, part in parts.items()):
            packed = ", ".join(f"{names[path][0]} := {part}" for path, part in parts.items())
            return f"CASE WHEN {source} IS NOT NULL THEN struct_pack({packed}) END"
    if kind.id == "list":
        element = f"element_{depth}"
        part = _converted(element, kind.children[0][1], leaf, depth + 1)
        if part != element:
            return f"list_transform({source}, lambda {element}: {part})"
    return source
