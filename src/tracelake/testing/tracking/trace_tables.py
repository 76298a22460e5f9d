"""The tables and views of a trace location: their names and columns.

A location `catalog.schema.prefix` has tables named by its prefix, of schema version 2; a location `catalog.schema`, the
older kind, has tables of fixed names, of version 1.
https://docs.databricks.com/aws/en/mlflow3/genai/tracing/observe-with-traces/query-dbsql
https://docs.databricks.com/aws/en/ingestion/opentelemetry/table-reference
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tracelake.spans import tables
from tracelake.testing.state import Table
from tracelake.testing.web.http import ApiError

# The table property of a view, and what it says.
VIEW_PROPERTY = "mlflow.traceView"
UNIFIED, METADATA = VIEWS = "unified", "metadata"
# The table property of a view that names the tables it is over.
VIEW_SPANS_PROPERTY = "mlflow.traceView.spans"
VIEW_ANNOTATIONS_PROPERTY = "mlflow.traceView.annotations"


@dataclass(frozen=True)
class Location:
    """The names of what a location has, all of them full ones.

    Attributes:
        name: `catalog.schema.prefix` or `catalog.schema`.
    """

    name: str

    @classmethod
    def parse(cls, name: str) -> Location:
        """Return the location of a name.

        Raises:
            ApiError: 400, it has not two or three parts.
        """
        parts = name.split(".")
        if len(parts) not in (2, 3) or not all(parts):
            raise ApiError(
                400,
                "INVALID_PARAMETER_VALUE",
                f"'{name}' is not a trace location: it is catalog.schema.table_prefix or catalog.schema.",
            )
        return cls(name)

    @property
    def schema(self) -> str:
        """Full name of the schema that the tables are in."""
        return ".".join(self.name.split(".")[:2])

    @property
    def prefix(self) -> str:
        """What the names of its tables begin with; empty for the older kind."""
        return ".".join(self.name.split(".")[2:])

    @property
    def version(self) -> tables.Version:
        """Schema version of the span table."""
        return 2 if self.prefix else 1

    @property
    def spans(self) -> str:
        """The span table."""
        return self._table("spans")

    @property
    def logs(self) -> str:
        """The table of log records."""
        return self._table("logs")

    @property
    def metrics(self) -> str:
        """The table of metrics; the older kind has none."""
        return self._table("metrics")

    @property
    def annotations(self) -> str:
        """The table of what MLflow knows of traces beside their spans.

        Databricks keeps this of the older kind as events in the table of log records, and has no such table there.
        """
        return self._table("annotations")

    def view(self, kind: str) -> str:
        """The view with one row a trace: UNIFIED or METADATA."""
        return f"{self.schema}.{self.prefix or 'mlflow_experiment'}_trace_{kind}"

    def _table(self, signal: str) -> str:
        return f"{self.schema}.{self.prefix or 'mlflow_experiment_trace'}_otel_{signal}"


@dataclass(frozen=True)
class Source:
    """Where traces are kept, to read them from.

    Attributes:
        trace_location: what their `trace_location` says, as MLflow's REST API has it.
        version: schema version of the span table.
        id_prefix: what their ids begin with, beside 32 hexadecimal digits.
    """

    trace_location: dict[str, Any]
    spans: Table
    annotations: Table
    version: tables.Version
    id_prefix: str = ""

    def bare(self, trace_id: str) -> str:
        """Return the hexadecimal digits of a trace id."""
        return trace_id.rpartition("/")[2].removeprefix(self.id_prefix)


def logs_schema(version: tables.Version) -> dict[str, Any]:
    """Return the Delta schema of a table of OpenTelemetry log records, as the dict of its JSON."""
    attributes = _attributes(version)
    return _delta(
        {
            **(_FIRST if version == 2 else {}),
            "event_name": "string",
            "trace_id": "string",
            "span_id": "string",
            "time_unix_nano": "long",
            "observed_time_unix_nano": "long",
            "severity_number": "string",
            "severity_text": "string",
            "body": "variant" if version == 2 else "string",
            "attributes": attributes,
            "dropped_attributes_count": "integer",
            "flags": "integer",
            **_enclosing(attributes),
            "log_schema_url": "string",
        }
    )


def metrics_schema() -> dict[str, Any]:
    """Return the Delta schema of a table of OpenTelemetry metrics, version 2, as the dict of its JSON."""
    exemplars = [
        {
            "time_unix_nano": "long",
            "value": "double",
            "span_id": "string",
            "trace_id": "string",
            "filtered_attributes": "variant",
        }
    ]
    point = {"exemplars": exemplars, "attributes": "variant", "flags": "integer"}
    total = {"count": "long", "sum": "double"}
    extent = {"min": "double", "max": "double"}
    temporality = {"aggregation_temporality": "string"}
    buckets = {"offset": "integer", "bucket_counts": ["long"]}
    return _delta(
        {
            **_FIRST,
            "start_time_unix_nano": "long",
            "time_unix_nano": "long",
            "name": "string",
            "description": "string",
            "unit": "string",
            "metric_type": "string",
            "gauge": {"value": "double", **point},
            "sum": {"value": "double", **point, **temporality, "is_monotonic": "boolean"},
            "histogram": {
                **total,
                "bucket_counts": ["long"],
                "explicit_bounds": ["double"],
                **point,
                **extent,
                **temporality,
            },
            "exponential_histogram": {
                "attributes": "variant",
                **total,
                "scale": "integer",
                "zero_count": "long",
                "positive_bucket": buckets,
                "negative_bucket": buckets,
                "flags": "integer",
                "exemplars": exemplars,
                **extent,
                "zero_threshold": "double",
                **temporality,
            },
            "summary": {
                **total,
                "quantile_values": [{"quantile": "double", "value": "double"}],
                "attributes": "variant",
                "flags": "integer",
            },
            "metadata": "variant",
            **_enclosing("variant"),
            "metric_schema_url": "string",
        }
    )


def view_schema(kind: str, version: tables.Version) -> dict[str, Any]:
    """Return the Delta schema of a view, UNIFIED or METADATA, as the dict of its JSON."""
    strings = _attributes(1)
    serialized = {"serialization_format": "string", "value": "string", "stack_trace": "string"}
    failure = {"error_code": "string", "error_message": "string", "stack_trace": "string"}
    spans = {field["name"]: field["type"] for field in span_fields(version)}
    assessment = {
        "assessment_id": "string",
        "trace_id": "string",
        "assessment_name": "string",
        "source": {"source_id": "string", "source_type": "string"},
        "create_time": "timestamp",
        "last_update_time": "timestamp",
        "expectation": {"value": "string", "serialized_value": serialized},
        "feedback": {"value": "string", "error": failure},
        "rationale": "string",
        "metadata": strings,
        "span_id": "string",
        "overrides": "string",
        "valid": "string",
    }
    if kind == METADATA:
        columns = {
            "trace_id": "string",
            "client_request_id": "string",
            "tags": strings,
            "trace_metadata": strings,
            "assessments": [assessment],
        }
    else:
        columns = {
            "trace_id": "string",
            "client_request_id": "string",
            "request_time": "timestamp",
            "state": "string",
            "execution_duration_ms": "decimal(30,9)",
            "request": "string",
            "response": "string",
            "trace_metadata": strings,
            "tags": strings,
            "spans": [spans],
            "assessments": [assessment],
        }
    return _delta(columns)


def span_fields(version: tables.Version) -> Iterator[dict[str, Any]]:
    """Yield the Delta fields of a span in a view: those of a row but what only Databricks' ingestion adds."""
    return (field for field in tables.delta_schema(version)["fields"] if field["name"] not in _FIRST)


_FIRST = {"record_id": "string", "time": "timestamp", "date": "date", "service_name": "string"}


def _enclosing(attributes: Any) -> dict[str, Any]:
    owner = {"attributes": attributes, "dropped_attributes_count": "integer"}
    return {
        "resource": owner,
        "resource_schema_url": "string",
        "instrumentation_scope": {"name": "string", "version": "string", **owner},
    }


def _attributes(version: tables.Version) -> Any:
    fields = tables.delta_schema(version)["fields"]
    return next(field["type"] for field in fields if field["name"] == tables.ATTRIBUTES)


def _delta(columns: dict[str, Any]) -> dict[str, Any]:
    """Return a Delta struct. In `columns` a dict is a struct, a list of one an array, and Delta's own types are so."""
    return {
        "type": "struct",
        "fields": [
            {"name": name, "type": _type(kind), "nullable": True, "metadata": {}} for name, kind in columns.items()
        ],
    }


def _type(kind: Any) -> Any:
    if isinstance(kind, list):
        return {"type": "array", "elementType": _type(kind[0]), "containsNull": True}
    if isinstance(kind, dict) and "type" not in kind:
        return _delta(kind)
    return kind
