"""The columns of a table in Unity Catalog's words, from its Delta schema and back.

Delta's types: https://github.com/delta-io/delta/blob/master/PROTOCOL.md#schema-serialization-format
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Delta's primitive types, and what Unity Catalog and SQL call them where they differ.
_TYPE_NAMES = {"integer": "INT", "timestamp": "TIMESTAMP", "timestamp_ntz": "TIMESTAMP_NTZ", "void": "NULL"}
_SQL_NAMES = {"long": "bigint", "integer": "int", "short": "smallint", "byte": "tinyint"}
_DELTA_NAMES = {sql: delta for delta, sql in _SQL_NAMES.items()}
_PRIMITIVE = re.compile(
    r"string|long|integer|short|byte|float|double|boolean|binary|date|timestamp|timestamp_ntz|variant|void"
    r"|decimal\(\d+,\s*\d+\)|(char|varchar)\(\d+\)|interval .*"
)


def columns_of(schema: Mapping[str, Any]) -> list[dict[str, object]]:
    """Return the `columns` of a TableInfo, from a Delta schema as the dict of its JSON.

    Raises:
        ValueError: a type is none of Delta's.
    """
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


def schema_of(columns: Sequence[Any]) -> dict[str, Any]:
    """Return the Delta schema of the `columns` of a TableInfo, as the dict of its JSON.

    Lenient: a column whose `type_json` says nothing has the type of its `type_text`, whether Delta has that or not.
    """
    return {"type": "struct", "fields": [_field(column) for column in columns if isinstance(column, Mapping)]}


def type_text(kind: Any) -> str:
    """Return a Delta type as SQL writes it: `map<string,string>`.

    Raises:
        ValueError: it is none.
    """
    if isinstance(kind, str):
        if not _PRIMITIVE.fullmatch(kind):
            raise ValueError(f"{kind!r} is no type of Delta")
        return _SQL_NAMES.get(kind, kind)
    if kind["type"] == "array":
        return f"array<{type_text(kind['elementType'])}>"
    if kind["type"] == "map":
        return f"map<{type_text(kind['keyType'])},{type_text(kind['valueType'])}>"
    if kind["type"] != "struct":
        raise ValueError(f"{kind['type']!r} is no type of Delta")
    fields = (f"{field['name']}:{type_text(field['type'])}" for field in kind["fields"])
    return f"struct<{','.join(fields)}>"


def _field(column: Mapping[str, Any]) -> dict[str, Any]:
    try:
        parsed = json.loads(column["type_json"])
    except (KeyError, TypeError, ValueError):
        parsed = None
    if isinstance(parsed, Mapping) and "name" in parsed:
        parsed = parsed.get("type")
    if not parsed:
        text = str(column.get("type_text") or column.get("type_name") or "unknown").lower()
        parsed = _DELTA_NAMES.get(text, text)
    return {
        "name": str(column.get("name")),
        "type": parsed,
        "nullable": column.get("nullable") is not False,
        "metadata": {},
    }


def _type_name(kind: Any) -> str:
    if isinstance(kind, str):
        return "DECIMAL" if kind.startswith("decimal") else _TYPE_NAMES.get(kind, kind.upper())
    return str(kind["type"]).upper()
