"""The data files of a Delta table, for DuckDB to read with nothing in between."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tracelake.spans import tables

if TYPE_CHECKING:
    import duckdb
    from deltalake import DeltaTable

# Columns that a scan may add, which no table has.
_PATH, _ROW = "deleted:path", "file_row_number"

_MAPPING, _VECTORS = "delta.columnMapping.mode", "deletionVectors"


def local_files(table: DeltaTable) -> list[str]:
    """Return the paths of the table's files; none if DuckDB may not read them itself.

    It may if they are in this file system, each with all of the table's columns, by their names.
    """
    metadata = table.metadata()
    mapped = metadata.configuration.get(_MAPPING, "none") != "none"
    if mapped or metadata.partition_columns or not table.table_uri.startswith(("/", "file://")):
        return []
    paths = [_path(uri) for uri in table.file_uris()]
    return [] if any("*" in path for path in paths) else paths  # or DuckDB would read what else they match


def closed_to_sql(table: DeltaTable) -> str:
    """Return what of a table neither DuckDB nor pyarrow can read, which SQL goes by; empty if there is nothing."""
    if table.metadata().configuration.get(_MAPPING, "none") != "none":
        return "renames its columns (column mapping)"
    if _VECTORS in (table.protocol().reader_features or ()) and not local_files(table) and table.file_uris():
        kind = "partitions" if table.metadata().partition_columns else "files in an object store"
        return f"has {kind} with deletion vectors"
    return ""


def scan_sql(
    connection: duckdb.DuckDBPyConnection, name: str, table: DeltaTable, files: Sequence[str], *, by_name: bool = False
) -> str:
    """Return the SQL of a relation that reads these files of a table, one at least.

    Rows that a deletion vector marks are left out; the connection gets a table of those.

    Args:
        by_name: look at each file for the columns it has, which takes time. Without it, a file that has fewer columns
            than another fails the query that needs them, with a `duckdb.InvalidInputException`.
    """
    wanted = set(files)
    masks = {path: rows for path, rows in _deleted_rows(table).items() if path in wanted}
    whole = [path for path in files if path not in masks]
    parts = [f"SELECT * FROM {_read(connection, table, whole, by_name)}"] if whole else []  # noqa: S608 - the paths are quoted
    if masks:
        marked = f'"deleted:{name}"'
        connection.execute(f"CREATE OR REPLACE TABLE {marked} (path VARCHAR, row BIGINT)")
        for path, rows in masks.items():
            connection.execute(
                f"INSERT INTO {marked} SELECT $path, unnest($rows::BIGINT[])", {"path": path, "rows": rows}
            )
        scan = _read(connection, table, list(masks), by_name, f", filename = '{_PATH}', file_row_number = true")
        parts.append(
            f'SELECT * EXCLUDE ("{_PATH}", {_ROW}) FROM {scan} AS scanned '  # noqa: S608
            f'WHERE NOT EXISTS (FROM {marked} AS marked WHERE marked.path = "{_PATH}" AND marked.row = {_ROW})'
        )
    scan = f"({' UNION ALL BY NAME '.join(parts)})"
    columns = connection.sql(f"FROM {scan}").columns
    missing = [field for field in tables.arrow_schema(_schema(table)) if field.name not in columns]
    if not missing:
        return scan
    # No file has what was added to the table after the last of them.
    import pyarrow as pa

    connection.register(f"added:{name}", pa.schema(missing).empty_table())
    return f'(FROM {scan} UNION ALL BY NAME FROM "added:{name}")'


def _schema(table: DeltaTable) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(table.schema().to_json())
    return found


def _read(
    connection: duckdb.DuckDBPyConnection, table: DeltaTable, files: Sequence[str], by_name: bool, more: str = ""
) -> str:
    paths = ", ".join("'" + path.replace("'", "''") + "'" for path in files)
    scan = f"read_parquet([{paths}], hive_partitioning = false{more}"
    # DuckDB takes the columns of all files from the first, and passes over what only others have.
    if not by_name:
        first = connection.sql(f"FROM {scan})")
        held = dict(zip(first.columns, first.types, strict=True))
        by_name = not _has_all(held, _schema(table))
    return f"{scan}, union_by_name = true)" if by_name else f"{scan})"


def _has_all(held: dict[str, Any], wanted: Any) -> bool:
    """Say whether columns of DuckDB, or the children of one, have all of a Delta struct's fields, nested ones too."""
    return all(field["name"] in held and _covers(held[field["name"]], field["type"]) for field in wanted["fields"])


def _covers(held: Any, wanted: Any) -> bool:
    if not isinstance(wanted, dict):
        return True
    if wanted["type"] == "array":
        return held.id == "list" and _covers(held.children[0][1], wanted["elementType"])
    if wanted["type"] == "struct":
        return held.id == "struct" and _has_all(dict(held.children), wanted)
    return True


def _deleted_rows(table: DeltaTable) -> dict[str, list[int]]:
    """Return the positions of the rows that deletion vectors mark, by the path of their file."""
    if _VECTORS not in (table.protocol().reader_features or ()):
        return {}
    import pyarrow as pa

    masks = pa.table(table.deletion_vectors())
    return {
        _path(uri): [at for at, kept in enumerate(mask) if not kept]
        for uri, mask in zip(masks["filepath"].to_pylist(), masks["selection_vector"].to_pylist(), strict=True)
    }


def _path(uri: str) -> str:
    return unquote(uri.removeprefix("file://"))
