"""Make a span table in Unity Catalog, and let others write to it: the SQL, and the calls where there is none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracelake.databricks.columns import type_text
from tracelake.databricks.names import TableName, literal, quoted
from tracelake.destinations.delta_log import AUTO_COMPACT
from tracelake.destinations.unity.delta import delta_sink
from tracelake.destinations.unity.transport import choose
from tracelake.errors import ConfigurationError, RefusedError
from tracelake.spans import tables

if TYPE_CHECKING:
    from tracelake.databricks.catalog import Catalog

COMMENT = "OpenTelemetry spans, one row each"

# As Databricks makes tables of spans: https://docs.databricks.com/aws/en/ingestion/opentelemetry/configure
_PROPERTIES = {"delta.checkpointPolicy": "classic", "delta.enableRowTracking": "false"}
# Databricks turns them on for new tables by itself, and engines that write the files directly need not know them; small
# files are put together by whoever writes them.
_EXTERNAL_PROPERTIES = {"delta.enableDeletionVectors": "false", AUTO_COMPACT: "true"}


@dataclass(frozen=True)
class TableRequest:
    """A table to be made.

    Attributes:
        name: its three parts.
        version: of the span schema.
        location: the URL of its files; empty for a managed table.
        writers: principals that are to write spans there.
    """

    name: TableName
    version: tables.Version = 1
    location: str = ""
    writers: Sequence[str] = ()

    def statements(self) -> Iterator[str]:
        """Yield the SQL statements, without semicolons, in the order in which they are run."""
        yield self._create()
        name = self.name
        schema = quoted(name.catalog, name.schema)
        for writer in self.writers:
            to = quoted(writer)
            yield f"GRANT USE CATALOG ON CATALOG {quoted(name.catalog)} TO {to}"
            yield f"GRANT USE SCHEMA ON SCHEMA {schema} TO {to}"
            if self.location:
                yield f"GRANT EXTERNAL USE SCHEMA ON SCHEMA {schema} TO {to}"
            # By their names: ALL PRIVILEGES does not count for tables of traces.
            yield f"GRANT SELECT, MODIFY ON TABLE {name.sql} TO {to}"

    def properties(self) -> dict[str, str]:
        """Return the table properties."""
        external = _EXTERNAL_PROPERTIES if self.location else {}
        return {**tables.version_property(self.version), **_PROPERTIES, **external}

    def _create(self) -> str:
        fields = tables.delta_schema(self.version)["fields"]
        columns = ",\n".join(f"  {field['name']} {type_text(field['type'])}" for field in fields)
        properties = ",\n".join(f"  {literal(key)} = {literal(value)}" for key, value in self.properties().items())
        lines = [f"CREATE TABLE IF NOT EXISTS {self.name.sql} (", columns, ")", "USING DELTA"]
        # Clustering is one more feature that engines which write the files directly do not know.
        if self.version == 2 and not self.location:
            lines.append(f"CLUSTER BY ({', '.join(tables.CLUSTERING_COLUMNS)})")
        if self.location:
            lines.append(f"LOCATION {literal(self.location)}")
        return "\n".join([*lines, f"COMMENT {literal(COMMENT)}", f"TBLPROPERTIES (\n{properties}\n)"])


def create(catalog: Catalog, request: TableRequest) -> list[str]:
    """Make a table and grant what its writers need; return what was done, in words.

    A table of this name that is there already stays as it is.

    Raises:
        ConfigurationError: there is no SQL warehouse, or an open-source server is asked for a managed table.
        DeliveryError: the catalog refuses, or is not reached.
    """
    if catalog.workspace.open_source:
        return list(_create_by_api(catalog, request))
    from tracelake.databricks.sql import Warehouse

    warehouse = Warehouse.find(catalog.workspace)
    done = []
    for statement in request.statements():
        warehouse.run(statement)
        done.append(statement)
    return done


def _create_by_api(catalog: Catalog, request: TableRequest) -> Iterator[str]:
    """Register an external table and begin it: an open-source server has no engine that would."""
    name = request.name
    if not request.location:
        raise ConfigurationError(
            f"{catalog.workspace.url} is an open-source Unity Catalog server, whose managed tables take no writes from "
            "outside. Name a place for the table's files: --location s3://bucket/path, or a directory that the server "
            "has, too."
        )
    schema = tables.delta_schema(request.version)
    try:
        catalog.create_external_table(name, request.location, schema, request.properties(), COMMENT)
        yield f"registered {name} at {request.location}"
    except RefusedError as error:
        if "ALREADY_EXISTS" not in error.code:
            raise
        yield f"{name} is there already"
    table = catalog.table(name)
    choose(table, "delta", open_source=True)  # one that was there may be the catalog's to begin
    try:
        credentials = catalog.vend(table, write=True)
    except RefusedError as error:
        raise ConfigurationError(
            f"{name} is registered at {table.location}, and has no files there: {error} Mend that and run this again, "
            "or drop the table and name another place."
        ) from error
    delta_sink(table, credentials).begin()
    yield f"its files are a Delta table at {credentials.location}"
    for writer in request.writers:
        for kind, full_name, privileges in (
            ("catalog", name.catalog, ["USE CATALOG"]),
            ("schema", name.schema_name, ["USE SCHEMA"]),
            ("table", str(name), ["SELECT", "MODIFY"]),
        ):
            catalog.change_grants(kind, full_name, writer, privileges)
            yield f"granted {', '.join(privileges)} on the {kind} {full_name} to {writer}"
