"""Write rows of annotations to their table in Unity Catalog: to its files, or by a SQL warehouse."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tracelake.databricks.columns import type_text
from tracelake.databricks.names import TableName, literal
from tracelake.destinations.annotation_table import COMMENT, annotations_name, append_annotations
from tracelake.destinations.delta import DeltaSink
from tracelake.destinations.unity.statements import closed_files
from tracelake.errors import ConfigurationError, QueryError, RefusedError
from tracelake.spans.annotations import annotations_schema, unix_micros

if TYPE_CHECKING:
    from tracelake.databricks.catalog import Catalog, TableInfo
    from tracelake.databricks.sql import Value, Warehouse

# What makes a value of what a statement can bind.
_MADE_OF = {"variant": "parse_json({})", "timestamp": "timestamp_micros({})"}
_ROWS = 10  # of one statement, which binds 256 values at most


def write(catalog: Catalog, spans: TableName, name: TableName, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows of `spans.annotations.to_rows` to the annotations table of a span table; makes it if there is none.

    Raises:
        QueryError: a value cannot be stored, or a statement fails.
        DeliveryError: there is no access to the tables.
        ConfigurationError: there is no SQL warehouse, and without one the table cannot be made or written.
    """
    if not catalog.has_table(name):
        _create(catalog, catalog.table(spans), name)
    table = catalog.table(name)
    # Nobody but its catalog writes to the files of a managed table.
    if table.table_type == "EXTERNAL" and not closed_files(catalog, table):
        try:
            credentials = catalog.vend(table, write=True)
        except RefusedError as error:
            if error.status != 403 or catalog.workspace.open_source:
                raise
        else:
            sink = DeltaSink(credentials.location, options=credentials.options, version=1, create=False)
            append_annotations(sink, rows)
            return
    warehouse = _warehouse(catalog, f"{name} can only be written by a SQL warehouse")
    for first in range(0, len(rows), _ROWS):
        warehouse.run(*_insert(name, rows[first : first + _ROWS]))


def _create_statement(name: TableName) -> str:
    """Return the SQL that makes an annotations table."""
    columns = ",\n".join(f"  {field['name']} {type_text(field['type'])}" for field in annotations_schema()["fields"])
    return f"CREATE TABLE IF NOT EXISTS {name.sql} (\n{columns}\n)\nUSING DELTA\nCOMMENT {literal(COMMENT)}"


def _create(catalog: Catalog, spans: TableInfo, name: TableName) -> None:
    if not catalog.workspace.open_source:
        warehouse = _warehouse(catalog, f"There is no table {name}, and only a SQL warehouse makes it")
        statement = _create_statement(name)
        try:
            warehouse.run(statement)
        except QueryError as error:
            raise QueryError(
                f"There is no table {name}, and it cannot be made. {error} Have this run: {statement}"
            ) from error
        return
    if spans.table_type != "EXTERNAL":
        raise ConfigurationError(
            f"There is no table {name}, and in an open-source Unity Catalog server only an external one can be made "
            f"from outside, beside the files of {spans.name}, which is {spans.table_type}. Make it there."
        )
    catalog.create_external_table(name, annotations_name(spans.location), annotations_schema(), {}, COMMENT)


def _warehouse(catalog: Catalog, reason: str) -> Warehouse:
    from tracelake.databricks.sql import Warehouse

    try:
        return Warehouse.find(catalog.workspace)
    except ConfigurationError as error:
        raise ConfigurationError(f"{reason}. {error}") from error


def _insert(name: TableName, rows: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Value]]:
    """Return the statement that adds rows, and what it binds."""
    fields = annotations_schema()["fields"]
    parameters: dict[str, Value] = {}
    selects = [f"SELECT {', '.join(_cells(row, fields, parameters))}" for row in rows]
    columns = ", ".join(field["name"] for field in fields)
    return f"INSERT INTO {name.sql} ({columns}) {' UNION ALL '.join(selects)}", parameters


def _cells(row: Mapping[str, Any], fields: Sequence[Mapping[str, Any]], parameters: dict[str, Value]) -> Iterator[str]:
    for field in fields:
        value, kind = row.get(field["name"]), field["type"]
        if value is None:
            yield f"CAST(NULL AS {type_text(kind)})"
            continue
        bound = f"p{len(parameters)}"
        if kind == "variant":
            value = json.dumps(value)
        elif isinstance(value, datetime):
            value = unix_micros(value)
        parameters[bound] = value
        yield _MADE_OF.get(kind, "{}").format(f":{bound}")
