"""DuckDB over Delta tables, in this process: connections that reach nothing else, VARIANT columns in and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tracelake.spans import tables

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from deltalake import DeltaTable

# SQL that makes something else of a value, given the value's SQL and its DuckDB type; None for what stays as it is.
_Leaf = Callable[[str, Any], str | None]


def connect() -> duckdb.DuckDBPyConnection:
    """Return a connection to an empty database in memory, which reads no file and no network, whatever it is asked."""
    import duckdb

    # No extension is fetched, no file is opened, and no variable of Python is a table. It cannot be switched on again.
    config: dict[str, Any] = {"enable_external_access": "false", "python_enable_replacements": "false"}
    connection: duckdb.DuckDBPyConnection = duckdb.connect(":memory:", config=config)
    return connection


def create_view(connection: duckdb.DuckDBPyConnection, name: str, table: DeltaTable) -> None:
    """Make a view of a Delta table, its VARIANTs as DuckDB's; filters and columns reach the table's files."""
    source = f"delta:{name}"
    connection.register(source, table.to_pyarrow_dataset())
    columns = _projection(connection.sql(f"FROM {quoted(source)}"), _incoming)
    connection.execute(f"CREATE VIEW {quoted(name)} AS SELECT {columns} FROM {quoted(source)}")  # noqa: S608


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
