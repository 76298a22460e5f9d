"""The annotations table beside a span table: its name, and rows written to its files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tracelake.databricks.names import TableName
from tracelake.destinations.delta import DeltaSink, commit_rows
from tracelake.destinations.delta_errors import Translated
from tracelake.errors import QueryError
from tracelake.spans import tables
from tracelake.spans.annotations import annotations_schema, to_arrow

COMMENT = "Tags, feedback, links and deletions of traces, one row for each change"

_SPANS, _ANNOTATIONS = "spans", "annotations"


def annotations_name(spans: str) -> str:
    """Return the name of the annotations table for the name or location of a span table.

    `agents_otel_spans` has `agents_otel_annotations`, `/data/spans` has `/data/annotations`, and `/data/traces` has
    `/data/traces_annotations`.
    """
    base = spans.rstrip("/")
    return base.removesuffix(_SPANS) + _ANNOTATIONS if base.endswith(_SPANS) else f"{base}_{_ANNOTATIONS}"


def annotations_table(spans: TableName) -> TableName:
    """Return the full name of the annotations table of a span table in Unity Catalog."""
    return TableName(spans.catalog, spans.schema, annotations_name(spans.table))


def append_annotations(sink: DeltaSink, rows: Sequence[Mapping[str, Any]]) -> None:
    """Commit rows of `spans.annotations.to_rows` to the table of a sink.

    Raises:
        QueryError: a value cannot be stored.
        DeliveryError: the table cannot be made or written.
    """
    import pyarrow as pa
    from deltalake import WriterProperties

    with Translated(sink.location):
        table = sink.table() or sink.make(
            json.dumps(annotations_schema()), name="annotations", description=COMMENT, properties={}
        )
        schema = tables.arrow_schema(json.loads(table.schema().to_json()))
        try:
            batch = to_arrow(rows, schema)
        except (OverflowError, UnicodeEncodeError) as error:
            raise QueryError(f"A value cannot be stored: {error}. Give one that JSON can hold.") from error
        properties = WriterProperties(compression="ZSTD")
        commit_rows(table, sink.location, pa.RecordBatchReader.from_batches(schema, [batch]), properties)
