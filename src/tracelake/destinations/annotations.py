"""The annotations table beside a span table: its name, and how it is opened and written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracelake.databricks.names import TableName
from tracelake.destinations.base import Destination
from tracelake.destinations.delta import DeltaDestination, DeltaSink
from tracelake.destinations.unity.destination import UnityCatalogDestination

if TYPE_CHECKING:
    from deltalake import DeltaTable

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


def open_annotations(destination: Destination) -> DeltaTable | None:
    """Open the annotations table beside the span table of a destination for reading; None if there is none.

    Raises:
        DeliveryError: it cannot be opened.
    """
    if isinstance(destination, UnityCatalogDestination):
        return _open_named(annotations_table(destination.name))
    if isinstance(destination, DeltaDestination):
        return DeltaSink(annotations_name(destination.location), version=1, create=False).table()
    return None


def _open_named(name: TableName) -> DeltaTable | None:
    from tracelake.databricks.catalog import Catalog
    from tracelake.databricks.workspace import connect
    from tracelake.destinations.unity.delta import opened_files

    catalog = Catalog(connect())
    return opened_files(catalog, catalog.table(name)) if catalog.has_table(name) else None
