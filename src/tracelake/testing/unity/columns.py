"""The columns that a client makes a table with: each is what Unity Catalog says of one, or the table is refused."""

from __future__ import annotations

import json
from typing import Any

from tracelake.databricks.columns import type_text
from tracelake.testing.web.http import ApiError


def schema_of(columns: list[Any]) -> dict[str, Any]:
    """Return the Delta schema of the `columns` of a TableInfo, whose `type_json` is a field or a type.

    Raises:
        ApiError: 400 INVALID_PARAMETER_VALUE, one of them is no column, or two have the same name.
    """
    fields = sorted((_field(index, column) for index, column in enumerate(columns)), key=lambda field: field[0])
    names = [field["name"].lower() for _, field in fields]
    for name in names:
        if names.count(name) > 1:
            raise ApiError(400, "INVALID_PARAMETER_VALUE", f"The column {name} is there more than once.")
    return {"type": "struct", "fields": [field for _, field in fields]}


def _field(index: int, column: Any) -> tuple[int, dict[str, Any]]:
    """Return the position of a column, and its Delta field."""
    try:
        name, parsed = column["name"], json.loads(column["type_json"])
        is_field = isinstance(parsed, dict) and "name" in parsed
        kind = parsed["type"] if is_field else parsed
        type_text(kind)
        if not isinstance(name, str) or not name:
            raise ValueError("its name is empty")
        metadata = {**parsed.get("metadata", {})} if is_field else {}
        if column.get("comment"):
            metadata["comment"] = column["comment"]
        field = {"name": name, "type": kind, "nullable": bool(column.get("nullable", True)), "metadata": metadata}
        return int(column.get("position", index)), field
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ApiError(
            400,
            "INVALID_PARAMETER_VALUE",
            f"Column {index} cannot be read ({type(error).__name__}: {error}). It needs a name, and a type_json that "
            "is a type or field of Delta.",
        ) from error
