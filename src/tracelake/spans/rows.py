"""Span records to the rows of a span table, and rows back to records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from tracelake.errors import QueryError
from tracelake.spans import line, tables, variant
from tracelake.spans.record import Attributes, Resource, Scope, SpanEvent, SpanLink, SpanRecord

if TYPE_CHECKING:
    import pyarrow as pa

    from tracelake.spans.columns import Build

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_KINDS = {name: number for number, name in enumerate(tables.SPAN_KINDS)}
_STATUS_CODES = {name: number for number, name in enumerate(tables.STATUS_CODES)}
_COLUMNS_READ = frozenset(field["name"] for field in tables.delta_schema(2)["fields"])
_TEXTS = frozenset(field["name"] for field in tables.delta_schema(2)["fields"] if field["type"] in ("string", "date"))


def to_arrow(records: Sequence[SpanRecord], schema: pa.Schema) -> pa.RecordBatch:
    """Return one row for each record, in the columns, order and types of `schema`, the table's own.

    Columns are matched by name, nested ones too. What the table has no column for is left out; a column that is not a
    span's is null. Root spans have a null `parent_span_id`, or an empty one if the column is NOT NULL.

    Raises:
        PermanentDeliveryError: a column has a type that cannot hold what it is meant for, or is NOT NULL and not a
            span's.
        LineError, ValueError, TypeError, OverflowError, IndexError, RecursionError: a record has a value that no column
            holds; `convert` finds it.
    """
    from tracelake.spans.columns import compiled

    return _built(records, schema, compiled(schema))


def convert(records: Sequence[SpanRecord], schema: pa.Schema) -> tuple[pa.RecordBatch, list[tuple[int, str]]]:
    """Return the rows of the records that can be rows, and (index in `records`, reason) of the others.

    A record with a value that no column holds is degraded first (`line.degraded`), and refused only if that is not
    enough. Rows keep the order of their records.

    Raises:
        PermanentDeliveryError: as for `to_arrow`; it is about the table, and refuses no record.
    """
    from tracelake.spans.columns import compiled

    builds = compiled(schema)
    refused: list[tuple[int, str]] = []
    try:
        return _built(records, schema, builds), refused
    except Exception:  # noqa: BLE001 - the table has been checked, so it is a record; _sound finds which, and why
        return to_arrow(_sound(records, 0, schema, refused), schema), refused


def from_arrow(rows: pa.RecordBatch | pa.Table) -> list[SpanRecord]:
    """Return the records of the rows of a span table of either version.

    Values of a MAP<STRING,STRING> stay text, those of a VARIANT have their types. Columns are matched by name; one that
    is missing or null gives the default of its field, an empty `parent_span_id` is that of a root span, and unknown
    columns are passed over.

    Raises:
        QueryError: there is no `trace_id` or `span_id` column, or a VARIANT is shredded.
        DamageError: a VARIANT cannot be read.
    """
    names = rows.schema.names
    if tables.TRACE_ID not in names or tables.SPAN_ID not in names:
        raise QueryError(
            f"The rows have the columns {', '.join(names) or '(none)'}, and a span is named by {tables.TRACE_ID} and "
            f"{tables.SPAN_ID}. Select these two columns as well."
        )
    wanted = [name for name in names if name in _COLUMNS_READ]
    cells = zip(*(rows.column(name).to_pylist() for name in wanted), strict=True)
    return [_record(dict(zip(wanted, row, strict=True))) for row in cells]


def from_json(columns: Sequence[str], cells: Sequence[Sequence[str | None]]) -> list[SpanRecord]:
    """Return the records of rows whose cells are text, as a SQL warehouse answers: a nested column is its JSON.

    Columns are taken as `from_arrow` does; a MAP and a VARIANT are the same JSON.
    """
    return [_record({name: _cell(name, text) for name, text in zip(columns, row, strict=True)}) for row in cells]


def _built(records: Sequence[SpanRecord], schema: pa.Schema, builds: Sequence[Build]) -> pa.RecordBatch:
    import pyarrow as pa

    from tracelake.spans.columns import Records

    rows = Records(records)
    return pa.RecordBatch.from_arrays([build(rows) for build in builds], schema=schema)


def _sound(
    records: Sequence[SpanRecord], first: int, schema: pa.Schema, refused: list[tuple[int, str]]
) -> list[SpanRecord]:
    # Halving finds one bad record among two thousand in some twenty tries.
    try:
        to_arrow(records, schema)
        return list(records)
    except Exception as error:  # noqa: BLE001 - whatever a record's values may raise, the others have to get through
        if len(records) > 1:
            half = len(records) // 2
            return [
                *_sound(records[:half], first, schema, refused),
                *_sound(records[half:], first + half, schema, refused),
            ]
        return _degraded(records[0], first, schema, refused, error)


def _degraded(
    record: SpanRecord, index: int, schema: pa.Schema, refused: list[tuple[int, str]], reason: Exception
) -> list[SpanRecord]:
    try:
        degraded = line.degraded(line.repacked(record))
        to_arrow([degraded], schema)
    except Exception:  # noqa: BLE001 - as in _sound; the first reason is about what was received
        refused.append((index, f"{type(reason).__name__}: {reason}"))
        return []
    return [degraded]


def _record(row: Mapping[str, Any]) -> SpanRecord:
    start = _start(row)
    end = row.get(tables.END_TIME)
    status = row.get(tables.STATUS) or {}
    return SpanRecord(
        trace_id=row[tables.TRACE_ID] or "",
        span_id=row[tables.SPAN_ID] or "",
        name=row.get(tables.NAME) or "",
        start_time_unix_nano=start,
        end_time_unix_nano=start if end is None else end,
        kind=_KINDS.get(row.get(tables.KIND) or tables.SPAN_KINDS[1], 0),
        flags=_flags(row),
        parent_span_id=row.get(tables.PARENT_SPAN_ID) or None,
        trace_state=row.get(tables.TRACE_STATE) or "",
        attributes=_attributes(row),
        dropped_attributes_count=row.get(tables.DROPPED_ATTRIBUTES) or 0,
        events=[_event(event) for event in row.get(tables.EVENTS) or () if event is not None],
        dropped_events_count=row.get(tables.DROPPED_EVENTS) or 0,
        links=[_link(link) for link in row.get(tables.LINKS) or () if link is not None],
        dropped_links_count=row.get(tables.DROPPED_LINKS) or 0,
        status_code=_STATUS_CODES.get(status.get(tables.STATUS_CODE) or "", 0),
        status_message=status.get(tables.STATUS_MESSAGE) or "",
        resource=line.pack(_resource(row)),
        scope=line.pack(_scope(row)),
    )


def _cell(name: str, text: str | None) -> Any:
    if text is None or name in _TEXTS:
        return text
    if name == tables.TIME:
        return datetime.fromisoformat(text.replace("Z", "+00:00"))
    found = json.loads(text)
    if name == tables.ATTRIBUTES:
        return _pairs(found)
    return [_with_pairs(each) for each in found] if isinstance(found, list) else _with_pairs(found)


def _with_pairs(part: Any) -> Any:
    if isinstance(part, dict) and tables.ATTRIBUTES in part:
        return {**part, tables.ATTRIBUTES: _pairs(part[tables.ATTRIBUTES])}
    return part


def _pairs(attributes: Any) -> list[tuple[str, Any]]:
    # A dict would be taken for the two binaries of a VARIANT.
    return list(attributes.items()) if isinstance(attributes, dict) else []


def _start(row: Mapping[str, Any]) -> int:
    start = row.get(tables.START_TIME)
    if start is not None:
        return int(start)
    moment = row.get(tables.TIME)
    if moment is None:
        return 0
    aware = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return int((aware - _EPOCH) // _MICROSECOND * 1_000)


def _event(cell: Mapping[str, Any]) -> SpanEvent:
    return SpanEvent(
        name=cell.get(tables.NAME) or "",
        time_unix_nano=cell.get(tables.EVENT_TIME) or 0,
        attributes=_attributes(cell),
        dropped_attributes_count=cell.get(tables.DROPPED_ATTRIBUTES) or 0,
    )


def _link(cell: Mapping[str, Any]) -> SpanLink:
    return SpanLink(
        trace_id=cell.get(tables.TRACE_ID) or "",
        span_id=cell.get(tables.SPAN_ID) or "",
        trace_state=cell.get(tables.TRACE_STATE) or "",
        attributes=_attributes(cell),
        dropped_attributes_count=cell.get(tables.DROPPED_ATTRIBUTES) or 0,
        flags=_flags(cell),
    )


def _resource(row: Mapping[str, Any]) -> Resource:
    cell = row.get(tables.RESOURCE) or {}
    attributes = _attributes(cell)
    service_name = row.get(tables.SERVICE_NAME)
    if service_name is not None:
        attributes.setdefault(tables.SERVICE_NAME_ATTRIBUTE, service_name)
    return Resource(
        attributes=attributes,
        dropped_attributes_count=cell.get(tables.DROPPED_ATTRIBUTES) or 0,
        schema_url=row.get(tables.RESOURCE_SCHEMA_URL) or "",
    )


def _scope(row: Mapping[str, Any]) -> Scope:
    cell = row.get(tables.SCOPE) or {}
    return Scope(
        name=cell.get(tables.NAME) or "",
        version=cell.get(tables.SCOPE_VERSION) or "",
        attributes=_attributes(cell),
        dropped_attributes_count=cell.get(tables.DROPPED_ATTRIBUTES) or 0,
        schema_url=row.get(tables.SPAN_SCHEMA_URL) or "",
    )


def _flags(cell: Mapping[str, Any]) -> int:
    # An INT column holds the upper of the 32 bits as the sign.
    return (cell.get(tables.FLAGS) or 0) & 0xFFFFFFFF


def _attributes(cell: Mapping[str, Any]) -> Attributes:
    found = cell.get(tables.ATTRIBUTES)
    if isinstance(found, Mapping):
        metadata, data = found.get(tables.VARIANT_METADATA), found.get(tables.VARIANT_VALUE)
        if metadata is None:
            return {}
        if data is None:
            raise QueryError(
                f"A VARIANT in the column {tables.ATTRIBUTES} is shredded: parts of it are in other Parquet columns. "
                "Read this table with Spark or a SQL warehouse."
            )
        decoded = variant.decode(metadata, data)
        return decoded if isinstance(decoded, dict) else {}
    return dict(found or ())
