"""The span tables: every column name, type and spelling of the two schemas that Databricks reads and writes.

A schema is written as Delta's JSON, from which the Arrow schema is made:
https://github.com/delta-io/delta/blob/master/PROTOCOL.md#schema-serialization-format
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from tracelake.errors import PermanentDeliveryError

if TYPE_CHECKING:
    import pyarrow as pa

# The table property that holds the schema version, "v1" or "v2"; some write "1" or "2".
VERSION_PROPERTY = "otel.schemaVersion"

# The texts of the `kind` and `status.code` columns; the position is the OTLP number.
SPAN_KINDS = (
    "SPAN_KIND_UNSPECIFIED",
    "SPAN_KIND_INTERNAL",
    "SPAN_KIND_SERVER",
    "SPAN_KIND_CLIENT",
    "SPAN_KIND_PRODUCER",
    "SPAN_KIND_CONSUMER",
)
STATUS_CODES = ("STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR")

# The resource attribute that the `service_name` column repeats.
SERVICE_NAME_ATTRIBUTE = "service.name"

RECORD_ID = "record_id"
TIME = "time"
DATE = "date"
SERVICE_NAME = "service_name"
TRACE_ID = "trace_id"
SPAN_ID = "span_id"
TRACE_STATE = "trace_state"
PARENT_SPAN_ID = "parent_span_id"
FLAGS = "flags"
NAME = "name"
KIND = "kind"
START_TIME = "start_time_unix_nano"
END_TIME = "end_time_unix_nano"
ATTRIBUTES = "attributes"
DROPPED_ATTRIBUTES = "dropped_attributes_count"
EVENTS = "events"
DROPPED_EVENTS = "dropped_events_count"
LINKS = "links"
DROPPED_LINKS = "dropped_links_count"
STATUS = "status"
RESOURCE = "resource"
RESOURCE_SCHEMA_URL = "resource_schema_url"
SCOPE = "instrumentation_scope"
SPAN_SCHEMA_URL = "span_schema_url"
# Some version 1 tables have it beside `span_schema_url`; it holds the same.
SCOPE_SCHEMA_URL = "scope_schema_url"

# Names inside the structs of `events`, `links`, `status` and `instrumentation_scope`.
EVENT_TIME = "time_unix_nano"
STATUS_MESSAGE = "message"
STATUS_CODE = "code"
SCOPE_VERSION = "version"

# Without these a row is not a span.
REQUIRED = (TRACE_ID, SPAN_ID, PARENT_SPAN_ID, NAME, START_TIME, END_TIME)

VARIANT_METADATA = "metadata"
VARIANT_VALUE = "value"

Version = Literal[1, 2]

# The columns that queries skip files by. Statistics of the others would only make the table's log longer.
SKIPPING_COLUMNS: Mapping[Version, tuple[str, ...]] = {
    1: (TRACE_ID, NAME, START_TIME, END_TIME),
    2: (TIME, DATE, SERVICE_NAME, TRACE_ID, NAME, START_TIME, END_TIME),
}

# How Databricks lays out version 2.
CLUSTERING_COLUMNS = (TIME, SERVICE_NAME, TRACE_ID)

_STRING_MAP = {"type": "map", "keyType": "string", "valueType": "string", "valueContainsNull": True}


def delta_schema(version: Version) -> dict[str, Any]:
    """Return the Delta schema of a span table, as the dict of its JSON; all columns are nullable."""
    attributes = "variant" if version == 2 else _STRING_MAP
    first = [(RECORD_ID, "string"), (TIME, "timestamp"), (DATE, "date"), (SERVICE_NAME, "string")]
    event = [(EVENT_TIME, "long"), (NAME, "string"), (ATTRIBUTES, attributes), (DROPPED_ATTRIBUTES, "integer")]
    link = [
        (TRACE_ID, "string"),
        (SPAN_ID, "string"),
        (TRACE_STATE, "string"),
        (ATTRIBUTES, attributes),
        (DROPPED_ATTRIBUTES, "integer"),
        (FLAGS, "integer"),
    ]
    status = [(STATUS_MESSAGE, "string"), (STATUS_CODE, "string")]
    resource = [(ATTRIBUTES, attributes), (DROPPED_ATTRIBUTES, "integer")]
    scope = [(NAME, "string"), (SCOPE_VERSION, "string"), *resource]
    return _struct(
        [
            *(first if version == 2 else []),
            (TRACE_ID, "string"),
            (SPAN_ID, "string"),
            (TRACE_STATE, "string"),
            (PARENT_SPAN_ID, "string"),
            (FLAGS, "integer"),
            (NAME, "string"),
            (KIND, "string"),
            (START_TIME, "long"),
            (END_TIME, "long"),
            (ATTRIBUTES, attributes),
            (DROPPED_ATTRIBUTES, "integer"),
            (EVENTS, _array(_struct(event))),
            (DROPPED_EVENTS, "integer"),
            (LINKS, _array(_struct(link))),
            (DROPPED_LINKS, "integer"),
            (STATUS, _struct(status)),
            (RESOURCE, _struct(resource)),
            (RESOURCE_SCHEMA_URL, "string"),
            (SCOPE, _struct(scope)),
            (SPAN_SCHEMA_URL, "string"),
        ]
    )


def delta_schema_json(version: Version) -> str:
    """Return the text that `deltalake.Schema.from_json` takes to make a span table."""
    return json.dumps(delta_schema(version))


def arrow_schema(delta: Mapping[str, Any]) -> pa.Schema:
    """Return the Arrow schema of any Delta schema, given as the dict of its JSON.

    A VARIANT becomes `struct<metadata: binary not null, value: binary not null>`, as delta-rs reads and takes it.

    Raises:
        PermanentDeliveryError: a column has a type that Delta does not have, or had not when this was written.
    """
    import pyarrow as pa

    return pa.schema([_arrow_field(field, "") for field in delta["fields"]])


def span_schema(version: Version) -> pa.Schema:
    """Return the Arrow schema of a span table of this version."""
    return arrow_schema(delta_schema(version))


def version_property(version: Version) -> dict[str, str]:
    """Return the table property that states a version."""
    return {VERSION_PROPERTY: f"v{version}"}


def schema_version(delta: Mapping[str, Any], properties: Mapping[str, str] | None = None) -> Version:
    """Return the version of a span table: its property's, or that of the type of its `attributes` column.

    `delta` is the dict of the table's Delta schema JSON, `properties` its table properties.

    Raises:
        PermanentDeliveryError: the property names a version that is not known, or the columns are not those of a span
            table.
    """
    stated = (properties or {}).get(VERSION_PROPERTY)
    if stated is not None:
        # Both spellings are in use.
        if stated.removeprefix("v") not in ("1", "2"):
            raise PermanentDeliveryError(
                f"The table property {VERSION_PROPERTY} is {stated!r}, and tracelake knows versions 1 and 2. "
                "Upgrade tracelake, or name a table of version 1 or 2."
            )
        return 2 if stated.endswith("2") else 1
    found = {field["name"]: field["type"] for field in delta["fields"]}
    attributes = found.get(ATTRIBUTES)
    if TRACE_ID in found and attributes == "variant":
        return 2
    if TRACE_ID in found and isinstance(attributes, Mapping) and attributes.get("type") == "map":
        return 1
    raise PermanentDeliveryError(
        f"This is not a span table: it has the columns {', '.join(found) or '(none)'}. Name a table with a "
        f"{TRACE_ID} column and an {ATTRIBUTES} column of type VARIANT or MAP<STRING,STRING>."
    )


def is_variant(kind: pa.DataType) -> bool:
    """Say whether an Arrow type is a VARIANT: a struct of the binaries `metadata` and `value`, in any order."""
    import pyarrow as pa

    if not pa.types.is_struct(kind):
        return False
    children = {kind.field(index).name: kind.field(index).type for index in range(kind.num_fields)}
    return children.keys() == {VARIANT_METADATA, VARIANT_VALUE} and all(map(_is_binary, children.values()))


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _struct(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {
        "type": "struct",
        "fields": [{"name": name, "type": kind, "nullable": True, "metadata": {}} for name, kind in fields],
    }


def _array(element: Any) -> dict[str, Any]:
    return {"type": "array", "elementType": element, "containsNull": True}


def _arrow_field(field: Mapping[str, Any], parent: str) -> pa.Field:
    import pyarrow as pa

    path = f"{parent}{field['name']}"
    return pa.field(field["name"], _arrow_type(field["type"], path), nullable=field.get("nullable", True))


def _arrow_type(delta: Any, path: str) -> pa.DataType:
    import pyarrow as pa

    if isinstance(delta, str):
        return _arrow_primitive(delta, path)
    match delta.get("type"):
        case "struct":
            return pa.struct([_arrow_field(field, f"{path}.") for field in delta["fields"]])
        case "array":
            element = _arrow_type(delta["elementType"], f"{path}.element")
            return pa.list_(pa.field("element", element, nullable=delta.get("containsNull", True)))
        case "map":
            key = pa.field("key", _arrow_type(delta["keyType"], f"{path}.key"), nullable=False)
            value = _arrow_type(delta["valueType"], f"{path}.value")
            return pa.map_(key, pa.field("value", value, nullable=delta.get("valueContainsNull", True)))
    raise _unknown_type(delta, path)


def _arrow_primitive(name: str, path: str) -> pa.DataType:
    import pyarrow as pa

    if name.startswith("decimal(") and name.endswith(")"):
        precision, _, scale = name[len("decimal(") : -1].partition(",")
        return pa.decimal128(int(precision), int(scale or 0))
    known = {
        "string": pa.string(),
        "long": pa.int64(),
        "integer": pa.int32(),
        "short": pa.int16(),
        "byte": pa.int8(),
        "float": pa.float32(),
        "double": pa.float64(),
        "boolean": pa.bool_(),
        "binary": pa.binary(),
        "date": pa.date32(),
        "timestamp": pa.timestamp("us", tz="UTC"),
        "timestamp_ntz": pa.timestamp("us"),
        "void": pa.null(),
        "variant": pa.struct(
            [
                pa.field(VARIANT_METADATA, pa.binary(), nullable=False),
                pa.field(VARIANT_VALUE, pa.binary(), nullable=False),
            ]
        ),
    }
    if name not in known:
        raise _unknown_type(name, path)
    return known[name]


def _unknown_type(delta: Any, path: str) -> PermanentDeliveryError:
    return PermanentDeliveryError(
        f"Column {path} has the Delta type {json.dumps(delta)}, which tracelake does not know. "
        "Upgrade tracelake, or drop the column."
    )
