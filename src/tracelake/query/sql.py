"""SQL over a span table, by DuckDB in this process.

The view `spans` is the table as it is: a span that an at-least-once writer delivered twice is there twice (`SELECT
DISTINCT ON (trace_id, span_id) *` leaves one). A MAP column is read as `attributes['key']`, a VARIANT column likewise,
and cast to what the value is: `attributes['key']::VARCHAR`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracelake.destinations.base import Destination
from tracelake.query.convert import data_frame
from tracelake.query.reader import open_reader
from tracelake.spans import tables, variant

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@dataclass(frozen=True, repr=False)
class Rows:
    """The result of a query: iterate over it for rows as dicts, or take it as a whole.

    A MAP is a dict, and a VARIANT what it holds.
    """

    _table: pa.Table

    @property
    def columns(self) -> list[str]:
        """Their names, in the order of the query."""
        return list(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return rows_of(self._table)

    def __repr__(self) -> str:
        return f"<{len(self):,} rows of {', '.join(self.columns)}>"

    def to_arrow(self) -> pa.Table:
        """Return the result as Arrow; a VARIANT there is a struct of two binaries."""
        return self._table

    def to_pandas(self) -> pd.DataFrame:
        """Return the result as a DataFrame, its cells as the dicts have them.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return data_frame(self, self.columns)


def sql(query: str, destination: Destination) -> pa.Table:
    """Return what one SELECT statement finds in the views `spans` and `annotations` over the tables of a destination.

    Filters and columns reach a table's files: `WHERE trace_id = '...'` reads few of them. SQL reads these tables only:
    no other file, no network, and it changes nothing. A VARIANT column of the result is Arrow's struct of two binaries;
    `rows_of` decodes it. A table whose files are closed to us is read by a SQL warehouse, in its dialect.

    Raises:
        QueryError: the statement is wrong or is no SELECT, or the table is missing or cannot be read.
        MissingDependencyError: DuckDB, delta-rs or pyarrow is not installed.
    """
    with open_reader(destination, for_users=True) as reader:
        return reader.run(query)


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
