"""SQL over a span table, by DuckDB in this process.

The view `spans` is the table as it is: a span that an at-least-once writer delivered twice is there twice (`SELECT
DISTINCT ON (trace_id, span_id) *` leaves one). A MAP column is read as `attributes['key']`, a VARIANT column likewise,
and cast to what the value is: `attributes['key']::VARCHAR`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tracelake.destinations.base import Destination
from tracelake.errors import MissingDependencyError, QueryError
from tracelake.query import duck
from tracelake.query.table import open_table, reading
from tracelake.query.text import clean
from tracelake.redaction import redact
from tracelake.spans import tables, variant

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

_VIEW = "spans"
_EXAMPLE = 'tracelake sql "SELECT name, count(*) AS calls FROM spans GROUP BY name"'


def sql(query: str, destination: Destination) -> pa.Table:
    """Return what one SELECT statement finds in the view `spans` over the table of a destination.

    Filters and columns reach the table's files: `WHERE trace_id = '...'` reads few of them. SQL reads this one table
    only: no other file, no network, and it changes nothing. A VARIANT column of the result is Arrow's struct of two
    binaries; `rows_of` decodes it.

    Raises:
        QueryError: the statement is wrong or is no SELECT, or the table is missing or cannot be read.
        MissingDependencyError: DuckDB, delta-rs or pyarrow is not installed.
    """
    try:
        import duckdb
    except ImportError as error:
        raise MissingDependencyError(
            "SQL needs the package 'duckdb', which is not installed here. Run: pip install 'tracelake[sql]'"
        ) from error
    table = open_table(destination)
    with reading(destination.target), duck.connect() as connection:
        try:
            statement = _statement(connection, query)
            duck.create_view(connection, _VIEW, table)
            return duck.to_arrow(connection.sql(statement))
        except duckdb.Error as error:
            # It points at a place in the query, so its lines stay.
            reason = "\n".join(clean(line) for line in redact(str(error)).strip().splitlines())
            raise QueryError(
                f'DuckDB refuses the query: {reason}\nSee the columns with: tracelake sql "DESCRIBE {_VIEW}"'
            ) from error


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the rows of a result as plain values: a MAP is a dict, a VARIANT is what it holds, also when nested.

    Of columns with one name the last stays.

    Raises:
        DamageError: a VARIANT cannot be read.
    """
    plain = [(field.name, _plain(field.type)) for field in table.schema]
    for batch in table.to_batches():
        columns = [column.to_pylist() for column in batch.columns]
        for cells in zip(*columns, strict=True):
            yield {name: convert(cell) for (name, convert), cell in zip(plain, cells, strict=True)}


def _statement(connection: duckdb.DuckDBPyConnection, query: str) -> Any:
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


def _plain(kind: pa.DataType) -> Callable[[Any], Any]:
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if tables.is_variant(kind):
        return _decode_variant
    if pa.types.is_map(kind):
        convert_item = _plain(kind.item_type)
        return lambda cell: None if cell is None else {key: convert_item(item) for key, item in cell}
    if pa.types.is_struct(kind):
        parts = {child.name: _plain(child.type) for child in kind}
        return lambda cell: None if cell is None else {name: convert(cell[name]) for name, convert in parts.items()}
    if _is_list(kind):
        convert_element = _plain(kind.value_type)
        return lambda cell: None if cell is None else [convert_element(item) for item in cell]
    return lambda cell: cell


def _decode_variant(cell: Any) -> Any:
    if cell is None or cell[tables.VARIANT_VALUE] is None:
        return None
    return variant.decode(cell[tables.VARIANT_METADATA], cell[tables.VARIANT_VALUE])


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
