"""MLflow's trace locations in Unity Catalog: made with their tables and views, and linked to experiments.

Calls: https://github.com/mlflow/mlflow/blob/master/mlflow/protos/databricks_tracing.proto
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

from tracelake.databricks.columns import columns_of
from tracelake.spans import tables
from tracelake.spans.annotations import annotations_schema
from tracelake.testing.state import Table
from tracelake.testing.tracking import trace_tables
from tracelake.testing.tracking.experiments import Experiments
from tracelake.testing.tracking.trace_tables import Location, Source
from tracelake.testing.unity.catalog import Catalog
from tracelake.testing.web.http import ApiError, Request, Route, required

_V4, _V5 = "/api/4.0/mlflow/traces", "/api/5.0/mlflow"
_PREFIX, _SCHEMA = "uc_table_prefix", "uc_schema"

# The tags of an experiment from which MLflow's client knows that it is linked, and where its spans go.
_PATH_TAG = "mlflow.experiment.databricksTraceDestinationPath"
_TABLE_TAGS = {
    "mlflow.experiment.databricksTraceSpanStorageTable": "spans",
    "mlflow.experiment.databricksTraceLogStorageTable": "logs",
    "mlflow.experiment.databricksTraceAnnotationsTable": "annotations",
}


class Locations:
    """The trace locations of a workspace. They are nothing but their tables, and tags of experiments."""

    def __init__(self, catalog: Catalog, experiments: Experiments) -> None:
        self._catalog = catalog
        self._experiments = experiments
        self._lock = threading.Lock()

    def create(self, principal: str, name: str) -> bool:
        """Make what is missing of a location's tables and views; returns whether something was.

        Tables that are there already are taken over if they have the columns that they need.

        Raises:
            ApiError: 404, the catalog or schema is missing; 403, the principal may not make tables in it, or read those
                that are there; 400, one that is there is another kind of table.
        """
        location = Location.parse(name)
        self._catalog.find(location.schema)
        with self._lock:
            missing = []
            for full_name, schema, version in _tables(location):
                existing = self._existing(full_name)
                if existing is None:
                    missing.append((full_name, schema, version))
                else:
                    self._catalog.access.require(principal, "SELECT", existing)
                    self._require_fit(existing, schema)
            for full_name, schema, version in missing:
                self._catalog.create_table(principal, full_name, schema, properties=tables.version_property(version))
            views = [kind for kind in trace_tables.VIEWS if self._existing(location.view(kind)) is None]
            for kind in views:
                self._create_view(principal, location, kind)
        return bool(missing or views)

    def source(self, principal: str, name: str, *, write: bool = False) -> Source:
        """Return where the traces of a location are, which the principal may read; with `write`, annotate as well.

        Raises:
            ApiError: 404, a table of it is missing; 403, the principal may not.
        """
        location = Location.parse(name)
        source = Source(
            trace_location=_trace_location(location),
            spans=self._catalog.table(location.spans),
            annotations=self._catalog.table(location.annotations),
            version=location.version,
        )
        for table in (source.spans, source.annotations):
            self._catalog.access.require(principal, "SELECT", table)
        if write:
            # As of spans: ALL_PRIVILEGES is not enough to write to tables of traces.
            for privilege in ("SELECT", "MODIFY"):
                self._catalog.access.require(principal, privilege, source.annotations, explicitly=True)
        return source

    def linked(self, experiment_id: str) -> str | None:
        """Return the name of the location that an experiment is linked to, None for none.

        Raises:
            ApiError: 404 RESOURCE_DOES_NOT_EXIST, there is no such experiment.
        """
        return self._experiments.get(experiment_id).tags.get(_PATH_TAG)

    def link(self, principal: str, experiment_id: str, name: str) -> None:
        """Link an experiment to a location, where its traces go from now on.

        Raises:
            ApiError: 404, there is no such experiment or location; 403, the principal may not read the location; 400,
                the experiment is linked to another one.
        """
        self._experiments.active(experiment_id)
        location = Location.parse(name)
        self.source(principal, name)
        tags: dict[str, str | None] = {_PATH_TAG: name}
        tags |= {tag: getattr(location, table) for tag, table in _TABLE_TAGS.items()}
        with self._lock:
            linked = self.linked(experiment_id) or name
            if linked != name:
                raise ApiError(
                    400,
                    "INVALID_PARAMETER_VALUE",
                    f"Experiment {experiment_id} is already linked to a different trace location: {linked}.",
                )
            self._experiments.set_tags(experiment_id, tags)

    def unlink(self, experiment_id: str, name: str) -> None:
        """Undo `link`.

        Raises:
            ApiError: 404, there is no such experiment, or it is not linked to this location.
        """
        with self._lock:
            if self._experiments.active(experiment_id).tags.get(_PATH_TAG) != name:
                raise ApiError(
                    404,
                    "RESOURCE_DOES_NOT_EXIST",
                    f"Experiment {experiment_id} is not linked to the trace location {name}.",
                )
            self._experiments.set_tags(experiment_id, dict.fromkeys((_PATH_TAG, *_TABLE_TAGS)))

    def described(self, name: str) -> dict[str, Any]:
        """Return a location in the words of the API, with its id, which is that of its span table.

        Raises:
            ApiError: 404, its span table is missing.
        """
        location = Location.parse(name)
        return {**_names(location), "location_id": self._catalog.table(location.spans).table_id}

    def named(self, location_id: str) -> str:
        """Return the name of the location of an id.

        Raises:
            ApiError: 404 RESOURCE_DOES_NOT_EXIST.
        """
        for table in list(self._catalog.store.state.tables.values()):
            schema = table.full_name.rpartition(".")[0]
            for name in (schema, table.full_name.removesuffix("_otel_spans")):
                if table.table_id == location_id and Location(name).spans == table.full_name:
                    return name
        raise ApiError(404, "RESOURCE_DOES_NOT_EXIST", f"There is no trace location with the id {location_id}.")

    def _create_view(self, principal: str, location: Location, kind: str) -> None:
        self._catalog.create_table(
            principal,
            location.view(kind),
            trace_tables.view_schema(kind, location.version),
            table_type="VIEW",
            properties={
                trace_tables.VIEW_PROPERTY: kind,
                **tables.version_property(location.version),
                trace_tables.VIEW_SPANS_PROPERTY: location.spans,
                trace_tables.VIEW_ANNOTATIONS_PROPERTY: location.annotations,
            },
        )

    def _existing(self, full_name: str) -> Table | None:
        try:
            return self._catalog.table(full_name)
        except ApiError:
            return None

    def _require_fit(self, table: Table, schema: Mapping[str, Any]) -> None:
        """Raise unless a table has these columns, whichever others it has, and takes rows."""
        found = {column["name"]: column["type_text"] for column in table.columns}
        wrong = [
            f"{column['name']} {column['type_text']}"
            for column in columns_of(schema)
            if found.get(column["name"]) != column["type_text"]
        ]
        if table.table_type in {"MANAGED", "EXTERNAL"} and table.data_source_format == "DELTA" and not wrong:
            return
        lacks = f"it lacks the column {wrong[0]}" if wrong else f"it is of the kind {table.table_type}"
        raise ApiError(
            400,
            "INVALID_PARAMETER_VALUE",
            f"Failed to validate table compatibility: '{table.full_name}' is there already, and {lacks}. "
            "Choose another table prefix, or drop the table.",
        )


class LocationsApi:
    """MLflow's calls about trace locations."""

    def __init__(self, locations: Locations, catalog: Catalog) -> None:
        self._locations = locations
        self._catalog = catalog

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("POST", f"{_V5}/tracing/locations", self._create),
            Route("GET", f"{_V5}/tracing/locations/{{location_id}}", self._get),
            Route("POST", f"{_V5}/experiments/{{experiment_id}}/trace-location:link", self._link),
            Route("POST", f"{_V4}/location", self._create_schema),
            Route("POST", f"{_V4}/{{experiment_id}}/link-location", self._link),
            Route("POST", f"{_V4}/{{experiment_id}}/unlink-location", self._unlink),
        ]

    def _create(self, request: Request) -> dict[str, Any]:
        kind, name = self._named(request)
        self._locations.create(request.principal, name)
        return {kind: self._locations.described(name)}

    def _create_schema(self, request: Request) -> dict[str, Any]:
        kind, name = self._named(request)
        if not self._locations.create(request.principal, name):
            raise ApiError(409, "ALREADY_EXISTS", f"The trace location {name} already exists.")
        return {kind: _names(Location(name))}

    def _get(self, request: Request, location_id: str) -> dict[str, Any]:
        name = self._locations.named(location_id)
        self._locations.source(request.principal, name)
        return {_kind(Location(name)): self._locations.described(name)}

    def _link(self, request: Request, experiment_id: str) -> dict[str, Any]:
        self._locations.link(request.principal, experiment_id, self._named(request)[1])
        return {}

    def _unlink(self, request: Request, experiment_id: str) -> dict[str, Any]:
        self._locations.unlink(experiment_id, self._named(request)[1])
        return {}

    def _named(self, request: Request) -> tuple[str, str]:
        """Return the kind and name of the location that a body has."""
        body = request.json()
        require_warehouse(self._catalog, body.get("sql_warehouse_id"))
        if _PREFIX in body:
            return _PREFIX, location_name({"type": _PREFIX.upper(), _PREFIX: body[_PREFIX]})
        return _SCHEMA, location_name({"type": _SCHEMA.upper(), _SCHEMA: body.get(_SCHEMA)})


def location_name(trace_location: Mapping[str, Any]) -> str:
    """Return the name of a location in Unity Catalog from a TraceLocation.

    Raises:
        ApiError: 400, a part of it is missing or cannot be in a name.
    """
    kind = str(trace_location.get("type", "")).lower()
    if kind not in (_PREFIX, _SCHEMA):
        raise ApiError(
            400,
            "INVALID_PARAMETER_VALUE",
            f"The trace location type {kind.upper() or '(none)'} is not one of {_PREFIX.upper()}, {_SCHEMA.upper()}.",
        )
    body = required(trace_location, kind, dict)
    fields = ["catalog_name", "schema_name", *(["table_prefix"] if kind == _PREFIX else [])]
    parts = [required(body, field) for field in fields]
    for field, part in zip(fields, parts, strict=True):
        if "." in part:
            raise ApiError(400, "INVALID_PARAMETER_VALUE", f"The field {field} is {part!r}, and names have no dots.")
    return ".".join(parts)


def require_warehouse(catalog: Catalog, warehouse_id: str | None) -> None:
    """Raise if a request names a SQL warehouse that is not there. One that names none is served all the same.

    Raises:
        ApiError: 404 RESOURCE_DOES_NOT_EXIST.
    """
    if warehouse_id and warehouse_id not in catalog.store.state.warehouses:
        raise ApiError(404, "RESOURCE_DOES_NOT_EXIST", f"SQL warehouse {warehouse_id} does not exist.")


def _tables(location: Location) -> Iterator[tuple[str, dict[str, Any], tables.Version]]:
    version = location.version
    yield location.spans, tables.delta_schema(version), version
    yield location.logs, trace_tables.logs_schema(version), version
    if version == 2:
        yield location.metrics, trace_tables.metrics_schema(), version
    yield location.annotations, annotations_schema(), version


def _kind(location: Location) -> str:
    return _PREFIX if location.prefix else _SCHEMA


def _names(location: Location) -> dict[str, Any]:
    catalog, schema = location.schema.split(".")
    names = {"catalog_name": catalog, "schema_name": schema}
    if not location.prefix:
        # Of this kind the API gives names of tables without the schema.
        spans, logs = (name.rpartition(".")[2] for name in (location.spans, location.logs))
        return {**names, "otel_spans_table_name": spans, "otel_logs_table_name": logs}
    return {
        **names,
        "table_prefix": location.prefix,
        "spans_table_name": location.spans,
        "logs_table_name": location.logs,
        "metrics_table_name": location.metrics,
        "annotations_table_name": location.annotations,
    }


def _trace_location(location: Location) -> dict[str, Any]:
    return {"type": _kind(location).upper(), _kind(location): _names(location)}
