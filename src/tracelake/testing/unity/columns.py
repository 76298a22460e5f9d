"""The columns of a table in Unity Catalog's words, from its Delta schema and back.

Delta's types: https://github.com/delta-io/delta/blob/master/PROTOCOL.md#schema-serialization-format
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tracelake.testing.web.http import ApiError

# Delta's primitive types, and what Unity Catalog and SQL call them where they differ.
_TYPE_NAMES = {"integer": "INT", "timestamp": "TIMESTAMP", "timestamp_ntz": "TIMESTAMP_NTZ", "void": "NULL"}
_SQL_NAMES = {"long": "bigint", "integer": "int", "short": "smallint", "byte": "tinyint"}
_PRIMITIVE = re.compile(
    r"string|long|integer|short|byte|float|double|boolean|binary|date|timestamp|timestamp_ntz|variant|void"
    r"|decimal\(\d+,\s*\d+\)|(char|varchar)\(\d+\)|interval .*"
)


def columns_of(schema: Mapping[str, Any]) -> list[dict[str, object]]:
    """Return the `columns` of a TableInfo, from a Delta schema as the dict of its JSON."""
    return [
        {
            "name": field["name"],
            "type_text": type_text(field["type"]),
            "type_name": _type_name(field["type"]),
            "type_json": json.dumps({"metadata": {}, "nullable": True, **field}),
            "position": position,
            "nullable": field.get("nullable", True),
            **({"comment": field["metadata"]["comment"]} if field.get("metadata", {}).get("comment") else {}),
        }
        for position, field in enumerate(schema["fields"])
    ]


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


def type_text(kind: Any) -> str:
    """Return a Delta type as SQL writes it: `map<string,string>`.

    Raises:
        ApiError: 400 INVALID_PARAMETER_VALUE, it is none.
    """
    if isinstance(kind, str):
        if not _PRIMITIVE.fullmatch(kind):
            raise _no_type(kind)
        return _SQL_NAMES.get(kind, kind)
    if kind["type"] == "array":
        return f"array<{type_text(kind['elementType'])}>"
    if kind["type"] == "map":
        return f"map<{type_text(kind['keyType'])},{type_text(kind['valueType'])}>"
    if kind["type"] != "struct":
        raise _no_type(kind["type"])
    fields = (f"{field['name']}:{type_text(field['type'])}" for field in kind["fields"])
    return f"struct<{','.join(fields)}>"


def _no_type(kind: object) -> ApiError:
    return ApiError(400, "INVALID_PARAMETER_VALUE", f"{kind!r} is no type of Delta.")


def _type_name(kind: Any) -> str:
    if isinstance(kind, str):
        return "DECIMAL" if kind.startswith("decimal") else _TYPE_NAMES.get(kind, kind.upper())
    return str(kind["type"]).upper()
