"""A table in Unity Catalog: targets such as main.obs.spans.

The catalog is asked about the table with each batch, which costs one call for thousands of spans: a table that was
dropped, made anew, moved or changed takes no span that its owner would not find.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tracelake.databricks.names import TableName, parse_parts, readable
from tracelake.databricks.workspace import connect, identity
from tracelake.destinations.base import Batch, Finding, Rejection, Sink, shown_target
from tracelake.destinations.unity.transport import ChosenTransport, choose
from tracelake.errors import DeliveryError, RefusedError, SettingError, TargetError
from tracelake.settings import Transport, read_settings
from tracelake.spans import tables

if TYPE_CHECKING:
    from deltalake import DeltaTable

    from tracelake.databricks.catalog import Catalog, TableInfo
    from tracelake.destinations.delta import DeltaSink
    from tracelake.destinations.maintenance import Elsewhere
    from tracelake.destinations.unity.statements import WarehouseTable

_log = logging.getLogger("tracelake.shipper")

# The table that MLflow means by a schema alone.
_SCHEMA_TABLE = "mlflow_experiment_trace_otel_spans"
_SETTINGS = ("TRACELAKE_TRANSPORT", "TRACELAKE_ZEROBUS_URL")

# How often it is seen whether files that were closed to us are open by now.
_LOOK_AGAIN_S = 3600.0


@dataclass(frozen=True)
class UnityCatalogDestination:
    """The table `name` of the catalog that the environment gives access to."""

    name: TableName
    identity: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def parse(cls, target: str) -> UnityCatalogDestination:
        """Return the destination of `catalog.schema.table`, or of `catalog.schema` for the table MLflow has there.

        Raises:
            TargetError: it is no such name; the message says what to write instead.
        """
        scheme, separator, rest = target.partition("://")
        parts = parse_parts(rest if separator and scheme.lower() == "uc" else target)
        if len(parts) == 2:
            parts.append(_SCHEMA_TABLE)
        if len(parts) != 3:
            raise TargetError(
                f"The target {shown_target(target)} has {len(parts)} parts. Write 'catalog.schema.table', or "
                f"'catalog.schema' for the table {_SCHEMA_TABLE} in it."
            )
        return cls(TableName(*parts), identity())

    @property
    def target(self) -> str:
        """The name, after `uc://`."""
        return f"uc://{readable(self.name.catalog, self.name.schema, self.name.table)}"

    def __str__(self) -> str:
        return self.target

    def check(self) -> list[Finding]:
        """Look at all that stands between a span and the table: access, the table itself, privileges, and the way in.

        Writes nothing; an export request without any span is sent where that is the way in.
        """
        from tracelake.destinations.unity.check import findings

        try:
            wanted = _transport()
        except SettingError as error:
            return [Finding("error", str(error), why="No span is delivered with it.", code="setting")]
        return list(findings(self.name, wanted))

    def open(self) -> UnityCatalogSink:
        """Return a sink; the table is looked up with each batch.

        Raises:
            MissingDependencyError: databricks-sdk is not installed.
            SettingError: a setting of the way in has a value it cannot have.
            DeliveryError: there is no access to the catalog.
        """
        from tracelake.databricks.catalog import Catalog

        return UnityCatalogSink(self.name, Catalog(connect()), _transport())

    def open_table(self) -> DeltaTable | WarehouseTable:
        """Open the table for reading: its files by temporary credentials, or by a SQL warehouse if they are closed.

        Raises:
            QueryError: nothing has been written to it yet, or neither its files nor a warehouse may be used.
            DeliveryError: there is no access to the catalog, or to the files of the table.
        """
        from tracelake.databricks.catalog import Catalog
        from tracelake.destinations.unity.delta import open_for_reading
        from tracelake.destinations.unity.statements import closed_files, open_warehouse

        catalog = Catalog(connect())
        table = catalog.table(self.name)
        closed = closed_files(catalog, table)
        if closed:
            return open_warehouse(catalog, table, closed)
        try:
            return open_for_reading(catalog, table)
        except RefusedError as error:
            if error.status != 403 or catalog.workspace.open_source:
                raise
            return open_warehouse(catalog, table, str(error).rstrip("."), error)

    def open_by_warehouse(self, reason: str) -> WarehouseTable:
        """Open the table as a SQL warehouse reads it; `reason` says why that has to be.

        Raises:
            QueryError: there is no warehouse that this access may use.
            DeliveryError: there is no access to the catalog.
        """
        from tracelake.databricks.catalog import Catalog
        from tracelake.destinations.unity.statements import open_warehouse

        catalog = Catalog(connect())
        return open_warehouse(catalog, catalog.table(self.name), reason)

    def maintained(self) -> DeltaSink | Elsewhere:
        """Return what opens the table's files by temporary credentials, or who else maintains it.

        Raises:
            DeliveryError: there is no access to the catalog, or to the files of the table.
        """
        from tracelake.databricks.catalog import Catalog
        from tracelake.destinations.unity.delta import open_for_maintenance

        catalog = Catalog(connect())
        return open_for_maintenance(catalog, catalog.table(self.name))

    def count_span(self, trace_id: str, span_id: str) -> int:
        """Return how often a span is in the table, as a SQL warehouse of the workspace reads it.

        Raises:
            ConfigurationError: there is no warehouse that this access may use.
            QueryError: the statement fails.
            DeliveryError: there is no access to the workspace.
        """
        from tracelake.databricks.sql import Warehouse

        statement = f"SELECT count(*) FROM {self.name.sql} WHERE trace_id = :trace_id AND span_id = :span_id"  # noqa: S608 - the name is quoted
        rows = Warehouse.find(connect()).run(statement, {"trace_id": trace_id, "span_id": span_id})
        return int(rows[0][0] or 0)


class UnityCatalogSink:
    """Writes batches to a table, by the transport that suits it or that was named."""

    def __init__(
        self, name: TableName, catalog: Catalog, wanted: Transport, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._catalog = catalog
        self._wanted = wanted
        self._clock = clock
        self._opened: tuple[TableInfo, ChosenTransport] | None = None
        self._look_again_s = math.inf
        self._sink: Sink | None = None

    def write(self, batch: Batch) -> list[Rejection]:
        """Write a batch as the table is now; how often a span may be there is that of the transport."""
        try:
            return self._current(batch).write(batch)
        except DeliveryError as error:
            self._name_table(error)
            raise

    def close(self) -> None:
        """Let go of what writes; may be repeated."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.close()

    def _current(self, batch: Batch) -> Sink:
        """Return what writes to the table, opened anew if that is another by now."""
        table = self._catalog.table(self._name)
        wanted = table, choose(table, self._wanted, open_source=self._catalog.workspace.open_source)
        if self._sink is None or wanted != self._opened or self._clock() >= self._look_again_s:
            self.close()
            self._look_again_s = math.inf
            self._sink, self._opened = self._open(*wanted, batch), wanted
        return self._sink

    def _open(self, table: TableInfo, chosen: ChosenTransport, batch: Batch) -> Sink:
        from tracelake.destinations.unity.delta import UnityDeltaSink

        if chosen == "delta":
            sink = UnityDeltaSink(self._catalog, table, clock=self._clock)
            try:
                sink.renew()
                # The first spans of a batch may have gone by OTLP; so the others do, or these would be there twice.
                if not batch.progress.spans:
                    return sink
            except RefusedError as error:
                if self._wanted != "auto" or self._catalog.workspace.open_source or error.status != 403:
                    raise
                # Databricks takes spans for such a table, too, where it gives nobody access to the files.
                _log.warning("%s is written by OTLP, at least once: its files are closed to us. %s", table.name, error)
            chosen = "otlp"
            self._look_again_s = self._clock() + _LOOK_AGAIN_S
        return self._open_service(table, chosen)

    def _name_table(self, error: DeliveryError) -> None:
        """Have an error say which table it is of, and a refusal where to look."""
        text = str(error)
        if str(self._name) not in text:
            text = f"{self._name}: {text}"
        if isinstance(error, RefusedError) and "tracelake doctor" not in text:
            text += f" `tracelake doctor {self._name}` says what is missing."
        error.args = (text, *error.args[1:])

    def _open_service(self, table: TableInfo, chosen: ChosenTransport) -> Sink:
        if chosen == "zerobus":
            from tracelake.destinations.unity.zerobus import open_zerobus

            return open_zerobus(self._catalog, table)
        from tracelake.destinations.unity.ingestion import open_ingestion
        from tracelake.spans.columns import compiled

        compiled(tables.arrow_schema(table.schema))  # or the endpoint would refuse each span for what the table is
        return open_ingestion(self._catalog.workspace, table.name)


def _transport() -> Transport:
    settings, problems = read_settings()
    ours = [problem for problem in problems if problem.startswith(_SETTINGS)]
    if ours:
        raise SettingError(" ".join(ours))
    return settings.transport
