"""Results of statements: Databricks' names of their types, and their values as the Statement Execution API writes them.

Format: https://docs.databricks.com/api/workspace/statementexecution/executestatement
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tracelake.spans import tables, variant
from tracelake.testing.sql.sqlerrors import unimitated

if TYPE_CHECKING:
    import pyarrow as pa

# By DuckDB's names: the name in SQL, and the `type_name` of the API.
_SIMPLE = {
    "BIGINT": ("BIGINT", "LONG"),
    "BLOB": ("BINARY", "BINARY"),
    "BOOLEAN": ("BOOLEAN", "BOOLEAN"),
    "DATE": ("DATE", "DATE"),
    "DOUBLE": ("DOUBLE", "DOUBLE"),
    "FLOAT": ("FLOAT", "FLOAT"),
    "HUGEINT": ("BIGINT", "LONG"),
    "INTEGER": ("INT", "INT"),
    "JSON": ("STRING", "STRING"),
    "NULL": ("VOID", "NULL"),
    '"NULL"': ("VOID", "NULL"),
    "SMALLINT": ("SMALLINT", "SHORT"),
    "TIMESTAMP": ("TIMESTAMP_NTZ", "TIMESTAMP_NTZ"),
    "TIMESTAMP WITH TIME ZONE": ("TIMESTAMP", "TIMESTAMP"),
    "TINYINT": ("TINYINT", "BYTE"),
    "VARCHAR": ("STRING", "STRING"),
    "VARIANT": ("VARIANT", "VARIANT"),
}
# Between these, a DOUBLE is written without an exponent, as Java does.
_PLAIN_DOUBLES = (1e-3, 1e7)


@dataclass(frozen=True)
class Column:
    """A column of a result: its type as SQL writes it, `MAP<STRING, STRING>`, and by its kind, `MAP`."""

    name: str
    type_text: str = "STRING"
    type_name: str = "STRING"

    def json(self, position: int) -> dict[str, Any]:
        """Return it as a manifest has it."""
        said: dict[str, Any] = {"name": self.name, "type_text": self.type_text, "type_name": self.type_name}
        if self.type_name == "DECIMAL":
            precision, scale = self.type_text[len("DECIMAL(") : -1].split(",")
            said |= {"type_precision": int(precision), "type_scale": int(scale)}
        return {**said, "position": position}


@dataclass(frozen=True)
class Result:
    """What a statement gives: columns, and rows as an Arrow table with VARIANTs as structs of two binaries.

    Attributes:
        is_truncated: whether there were more rows than were asked for.
    """

    columns: Sequence[Column]
    table: pa.Table
    is_truncated: bool = False

    def rows(self) -> Iterator[list[str | None]]:
        """Yield the rows as the API writes them: every value is text, or None."""
        writers = [_writer(field.type) for field in self.table.schema]
        for batch in self.table.to_batches(max_chunksize=1000):
            for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield [None if cell is None else write(cell) for cell, write in zip(cells, writers, strict=True)]


def texts(names: Sequence[str], rows: Sequence[Sequence[str | None]]) -> Result:
    """Return a result whose columns are all STRING."""
    import pyarrow as pa

    arrays = [pa.array([row[index] for row in rows], pa.string()) for index in range(len(names))]
    return Result([Column(name) for name in names], pa.Table.from_arrays(arrays, names=list(names)))


def column_of(name: str, kind: Any) -> Column:
    """Return the column for a name and a type of DuckDB's.

    Raises:
        SqlError: UNSUPPORTED_FEATURE, Databricks has no such type in a result, or it is not imitated.
    """
    text = _text(kind)
    return Column(
        name, text, _SIMPLE[str(kind)][1] if str(kind) in _SIMPLE else text.partition("<")[0].partition("(")[0]
    )


def _text(kind: Any) -> str:
    if str(kind) in _SIMPLE:
        return _SIMPLE[str(kind)][0]
    match kind.id:
        case "decimal":
            parts = dict(kind.children)
            return f"DECIMAL({parts['precision']},{parts['scale']})"
        case "list":
            return f"ARRAY<{_text(kind.children[0][1])}>"
        case "map":
            return f"MAP<{', '.join(_text(child) for _, child in kind.children)}>"
        case "struct":
            return f"STRUCT<{', '.join(f'{name}: {_text(child)}' for name, child in kind.children)}>"
    raise unimitated(f"a result of the type {kind}")


def _writer(kind: pa.DataType) -> Callable[[Any], str]:
    """Return what makes text of a value that is not null."""
    import pyarrow as pa

    if tables.is_variant(_storage(kind)) or pa.types.is_nested(kind):
        convert = _jsonable(kind)
        return lambda cell: json.dumps(convert(cell), separators=(",", ":"), ensure_ascii=False)
    return _plain_text


def _jsonable(kind: pa.DataType) -> Callable[[Any], Any]:
    """Return what makes a value for JSON of one of an Arrow type."""
    import pyarrow as pa

    kind = _storage(kind)
    if tables.is_variant(kind):
        return _of_variant
    if pa.types.is_map(kind):
        item = _jsonable(kind.item_type)
        return lambda cell: None if cell is None else {str(key): item(value) for key, value in cell}
    if pa.types.is_struct(kind):
        parts = {child.name: _jsonable(child.type) for child in kind}
        return lambda cell: None if cell is None else {name: convert(cell[name]) for name, convert in parts.items()}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        element = _jsonable(kind.value_type)
        return lambda cell: None if cell is None else [element(value) for value in cell]
    return _in_json


def _storage(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _of_variant(cell: Any) -> Any:
    if cell is None or cell[tables.VARIANT_VALUE] is None:
        return None
    return _in_json(variant.decode(cell[tables.VARIANT_METADATA], cell[tables.VARIANT_VALUE]))


def _in_json(value: Any) -> Any:
    """Return a value as JSON has it: numbers, booleans and what is in lists and dicts stay, all else is text."""
    if isinstance(value, dict):
        return {key: _in_json(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_in_json(part) for part in value]
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return float(value) if isinstance(value, Decimal) else _plain_text(value)


def _plain_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _double(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, datetime):
        zone = "Z" if value.tzinfo else ""
        moment = value.astimezone(timezone.utc) if value.tzinfo else value
        precision = "microseconds" if moment.microsecond % 1000 else "milliseconds"
        return moment.replace(tzinfo=None).isoformat(timespec=precision) + zone
    return str(value)


def _double(value: float) -> str:
    """Return a DOUBLE as Java writes it."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    low, high = _PLAIN_DOUBLES
    if value == 0 or low <= abs(value) < high:
        return repr(value)
    _, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    text = "".join(map(str, digits))
    sign = "-" if value < 0 else ""
    return f"{sign}{text[0]}.{text[1:] or '0'}E{int(exponent) + len(text) - 1}"
