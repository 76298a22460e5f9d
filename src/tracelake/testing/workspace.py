"""The mocked workspace as tests and the command line use it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from tracelake.errors import ConfigurationError, MissingDependencyError, QueryError
from tracelake.spans import tables
from tracelake.testing.sql.commands import Commands
from tracelake.testing.sql.engine import Engine
from tracelake.testing.sql.statements import StatementsApi
from tracelake.testing.sql.warehouses import FIRST_NAME, Warehouses
from tracelake.testing.state import S3, Principal, State, Store, TableType, WarehouseState
from tracelake.testing.storage.ingestion import IngestionApi
from tracelake.testing.storage.lakehouse import Lakehouse
from tracelake.testing.table import MockTable
from tracelake.testing.tracking.annotations import Annotations
from tracelake.testing.tracking.assessments import Assessments
from tracelake.testing.tracking.experiment_traces import ExperimentTraces
from tracelake.testing.tracking.experiments import Experiments
from tracelake.testing.tracking.experiments_api import ExperimentsApi
from tracelake.testing.tracking.locations import Locations, LocationsApi
from tracelake.testing.tracking.trace_search import Traces
from tracelake.testing.tracking.traces import TracesApi
from tracelake.testing.tracking.traces_v3 import TracesV3Api
from tracelake.testing.unity.access import Access
from tracelake.testing.unity.catalog import Catalog, canonical
from tracelake.testing.unity.catalog_api import CatalogApi
from tracelake.testing.unity.credentials import CredentialsApi
from tracelake.testing.unity.grants_api import GrantsApi
from tracelake.testing.unity.identity import Identity
from tracelake.testing.web.app import App, Exchange
from tracelake.testing.web.control import ControlApi
from tracelake.testing.web.faults import Faults
from tracelake.testing.web.http import ApiError
from tracelake.testing.web.inprocess import HOST, InProcess
from tracelake.testing.web.server import Server

DEFAULT_USER = "you@example.com"
# Loaded when they are needed first; that they are there is seen before a client is answered.
_NEEDED = ("deltalake", "pyarrow", "duckdb", "sqlglot", "opentelemetry.proto")


class MockWorkspace:
    """A Databricks workspace on this machine, as far as tracing needs one.

        with MockWorkspace() as workspace:
            workspace.create_schema("main.obs")
            workspace.create_table("main.obs.spans")

    What is made through it is made by its first user, who owns all of it. docs/testing.md has what it imitates.

    Attributes:
        user: name of the first user, with whose token `environment` is.
        is_new: whether it was begun here, and not found in its directory.
        faults: what goes wrong, on demand.
    """

    def __init__(self, directory: str | None = None, *, user: str = DEFAULT_USER) -> None:
        """Open the workspace that a directory has, or begin one there; without a directory, one that ends with it.

        Raises:
            ConfigurationError: the directory has a workspace that cannot be read, or that is open elsewhere.
            MissingDependencyError: a package that the workspace needs is not installed.
        """
        missing = [name for name in _NEEDED if find_spec(name) is None]
        if missing:
            raise MissingDependencyError(
                f"The mocked workspace needs the package {missing[0]!r}, which is not installed here. "
                "Run: pip install 'tracelake[testing]'"
            )
        self._temporary = tempfile.mkdtemp(prefix="tracelake-workspace-") if directory is None else None
        self._store = Store(directory or self._temporary or "", _new_state(user))
        self.user = self._store.state.admin
        self.is_new = self._store.is_new
        self.faults = Faults()
        self._lakehouse = Lakehouse(self._store)
        self._catalog = Catalog(self._store, Access(self._store), self._lakehouse)
        self._identity = Identity(self._store)
        self._warehouses = Warehouses(self._store)
        if self.is_new:
            self._warehouses.create(FIRST_NAME)
        self._experiments = Experiments(self._store)
        self._locations = Locations(self._catalog, self._experiments)
        engine, annotations = Engine(self._catalog), Annotations(self._lakehouse)
        traces = Traces(engine, self._lakehouse)
        assessments = Assessments(traces, annotations)
        self._kept = ExperimentTraces(self._store, self._lakehouse, traces, annotations)
        traces_v3 = TracesV3Api(self._experiments, self._kept, traces, assessments)
        surface = (
            self._identity,
            CatalogApi(self._catalog),
            GrantsApi(self._catalog),
            CredentialsApi(self._catalog),
            IngestionApi(self._catalog, self._lakehouse),
            self._warehouses,
            StatementsApi(Commands(self._catalog, engine), self._warehouses),
            ExperimentsApi(self._experiments, self._locations),
            LocationsApi(self._locations, self._catalog),
            traces_v3,
            TracesApi(self._catalog, self._locations, self._kept, traces_v3.delete, traces, annotations, assessments),
            ControlApi(self.faults, self.requests),
        )
        routes = (route for each in surface for route in each.routes())
        self._app = App(routes, self._identity.principal_of, self.faults)
        self._server: Server | None = None
        self._serving = threading.Lock()

    def __enter__(self) -> MockWorkspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving; a workspace without a directory of its own is gone."""
        with self._serving:
            if self._server is not None:
                self._server.close()
                self._server = None
        self._store.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    # --- where it is -------------------------------------------------------------------------------------------------

    def serve(self, *, host: str = "127.0.0.1", port: int = 0) -> str:
        """Serve over HTTP until `close`, and return the address. Called again, it returns the same address.

        Raises:
            ConfigurationError: the port is in use, or the host is none of this machine.
        """
        with self._serving:
            if self._server is None:
                self._server = Server(self._app, host=host, port=port)
            return self._server.url

    @property
    def url(self) -> str:
        """The address of the workspace as an HTTP server, which is started if it is not there yet."""
        return self.serve()

    def environment(self, principal: str = "", *, host: str = "") -> dict[str, str]:
        """Return the variables that make Databricks' clients use the workspace, for another process.

        Args:
            principal: name of a user or service principal; the workspace's user unless given.
            host: the address that they call; that of the HTTP server, which is started for it, unless given.

        Raises:
            ConfigurationError: there is no such principal, or it has no credential.
        """
        return {
            "DATABRICKS_HOST": host or self.url,
            **self._identity.credentials(principal or self.user),
            # A profile of the developer's own must not get in between.
            "DATABRICKS_CONFIG_FILE": os.path.join(self._store.directory, "no-databrickscfg"),
            "MLFLOW_TRACKING_URI": "databricks",
            "NO_PROXY": ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1"))),
        }

    @contextlib.contextmanager
    def in_process(self) -> Iterator[str]:
        """Answer the package `requests` within this process, as long as the with-body runs; gives the host to call.

        Raises:
            MissingDependencyError: the package `responses` is not installed.
        """
        patch = InProcess(self._app)
        patch.start()
        try:
            yield HOST
        finally:
            patch.stop()

    # --- what happened -----------------------------------------------------------------------------------------------

    def requests(self, path: str = "") -> list[Exchange]:
        """Return the requests whose path begins with `path`, in the order they were answered.

        The last 10,000 are remembered, and no more than 256 MiB of them.
        """
        return [exchange for exchange in self._app.journal.exchanges() if exchange.request.path.startswith(path)]

    def table(self, full_name: str) -> MockTable:
        """Return a table, to see what is in it.

        Raises:
            QueryError: there is no such table.
        """
        with _said():
            return MockTable(self._catalog.table(full_name), self._lakehouse, self.requests)

    def experiment(self, name: str) -> MockTable:
        """Return the spans of the traces that an experiment keeps itself, also of deleted ones; it is no table of SQL.

        Raises:
            QueryError: there is no such experiment.
        """
        with _said():
            experiment_id = self._experiments.get_by_name(name).experiment_id
            return MockTable(self._kept.source(experiment_id).spans, self._lakehouse, self.requests)

    # --- what is there -----------------------------------------------------------------------------------------------

    def create_catalog(self, name: str) -> None:
        """Make a catalog.

        Raises:
            ConfigurationError: it is there already, or cannot be named so.
        """
        with _said():
            self._catalog.create_catalog(self.user, name)

    def create_schema(self, full_name: str) -> None:
        """Make a schema, and its catalog if that is not there.

        Raises:
            ConfigurationError: it is there already, or cannot be named so.
        """
        catalog = full_name.partition(".")[0]
        if canonical(catalog) not in self._store.state.catalogs:
            self.create_catalog(catalog)
        with _said():
            self._catalog.create_schema(self.user, full_name)

    def create_table(
        self,
        full_name: str,
        *,
        schema_version: tables.Version = 2,
        columns: Mapping[str, Any] | None = None,
        location: str = "",
        table_type: TableType | None = None,
        data_source_format: str = "DELTA",
        view_definition: str = "",
    ) -> MockTable:
        """Make a span table of a schema version, or with `columns` another table.

        Args:
            columns: Delta types by name, as `{"id": "long"}`, of a table that is not for spans.
            location: makes it an EXTERNAL table there: an absolute directory, or a URL of the S3 server. Without it,
                the table is MANAGED.
            table_type: what else it is, as FOREIGN; a table that is neither MANAGED nor EXTERNAL is in the catalog and
                has no rows of its own.
            data_source_format: as SNOWFLAKE_FORMAT, of a FOREIGN table.
            view_definition: makes it a VIEW, whose SQL this is.

        Raises:
            ConfigurationError: it is there already, its schema is not, or it cannot be so.
        """
        if columns is None:
            schema = tables.delta_schema(schema_version)
            properties = tables.version_property(schema_version)
        else:
            fields = [{"name": name, "type": kind, "nullable": True, "metadata": {}} for name, kind in columns.items()]
            schema, properties = {"type": "struct", "fields": fields}, {}
        if table_type is None:
            table_type = "VIEW" if view_definition else "EXTERNAL" if location else "MANAGED"
        with _said():
            self._catalog.create_table(
                self.user,
                full_name,
                schema,
                table_type=table_type,
                location=location,
                properties=properties,
                view_definition=view_definition,
                data_source_format=data_source_format,
            )
        return self.table(full_name)

    def create_experiment(self, name: str) -> str:
        """Make an MLflow experiment, named by an absolute path as `/Shared/agent`, and return its id.

        Raises:
            ConfigurationError: it is there already, or cannot be named so.
        """
        with _said():
            return self._experiments.create(self.user, name).experiment_id

    def create_trace_location(self, name: str) -> None:
        """Make the tables and views of an MLflow trace location: `main.obs.agent`, or `main.obs` of the older kind.

        Tables that are there already are taken over.

        Raises:
            ConfigurationError: a table that is there already has other columns.
            QueryError: there is no such schema.
        """
        with _said():
            self._locations.create(self.user, name)

    def create_warehouse(self, name: str, *, id: str = "", state: WarehouseState = "RUNNING") -> str:  # noqa: A002
        """Make a SQL warehouse beside the one that a new workspace has, and return its id.

        Args:
            id: a made-up one unless given.

        Raises:
            ConfigurationError: there is one of that name or id.
        """
        with _said():
            return self._warehouses.create(name, warehouse_id=id, state=state).id

    def drop(self, full_name: str) -> None:
        """Drop a catalog, schema or table, with all that is in it.

        Raises:
            ConfigurationError: it is not there.
        """
        with _said():
            self._catalog.drop(self.user, full_name, force=True)

    def grant(self, *privileges: str, on: str, to: str) -> None:
        """Grant privileges on a catalog, schema or table: `grant("SELECT", "MODIFY", on="main.obs.spans", to=user)`.

        Raises:
            ConfigurationError: there is no such securable, principal, or privilege on it.
        """
        with _said():
            self._catalog.grant(self.user, on, to, privileges)

    def revoke(self, *privileges: str, on: str, from_: str) -> None:
        """Take privileges back.

        Raises:
            ConfigurationError: there is no such securable, principal, or privilege on it.
        """
        with _said():
            self._catalog.revoke(self.user, on, from_, privileges)

    # --- who is there ------------------------------------------------------------------------------------------------

    def add_user(self, name: str, *, groups: Sequence[str] = ()) -> Principal:
        """Make a user with a personal access token, in groups that are there.

        Raises:
            ConfigurationError: there is a principal of that name, or no such group.
        """
        return self._identity.add(Principal(name=name, id="", token=_token(), groups=list(groups)))

    def add_service_principal(
        self, display_name: str, *, token_lifetime_s: int = 3600, groups: Sequence[str] = ()
    ) -> Principal:
        """Make a service principal with an OAuth secret; its name is its client id.

        Raises:
            ConfigurationError: there is no such group.
        """
        return self._identity.add(
            Principal(
                name=str(uuid.uuid4()),
                id="",
                kind="service_principal",
                display_name=display_name,
                secret=f"dose{secrets.token_hex(16)}",
                token_lifetime_s=token_lifetime_s,
                groups=list(groups),
            )
        )

    def add_group(self, name: str) -> Principal:
        """Make a group, to grant to; what is granted to it holds for those that are made in it.

        Raises:
            ConfigurationError: there is a principal of that name.
        """
        return self._identity.add(Principal(name=name, id="", kind="group"))

    def deactivate(self, name: str) -> None:
        """Let a user or service principal in no more, whatever credential it has.

        Raises:
            ConfigurationError: there is no such principal.
        """
        self._identity.deactivate(name)

    def remove_principal(self, name: str) -> None:
        """Delete a user, service principal or group, and what was granted to it.

        Raises:
            ConfigurationError: there is no such principal.
        """
        self._identity.remove(name)

    def expire_tokens(self) -> None:
        """Let all OAuth access tokens expire that clients have now; they can have new ones."""
        self._identity.tokens.expire()

    # --- storage -----------------------------------------------------------------------------------------------------

    def use_s3(
        self, endpoint_url: str, access_key_id: str, secret_access_key: str, *, region: str = "us-east-1"
    ) -> None:
        """Let tables be on an S3 server that has STS too, as moto and MinIO do: `http://127.0.0.1:5000`.

        Its temporary keys, made with the keys given here, are what clients get for these tables. The keys given here
        are kept in the workspace's directory.
        """
        with self._store.changing() as state:
            state.s3 = S3(
                endpoint_url=endpoint_url,
                access_key_id=access_key_id,
                secret_access_key=secret_access_key,
                region=region,
            )

    def set_external_access(self, enabled: bool) -> None:
        """Say whether the metastore lets clients have credentials for storage, which a new workspace's does."""
        with self._store.changing() as state:
            state.external_access_enabled = enabled

    def set_credential_lifetime(self, seconds: int) -> None:
        """Say in how many seconds credentials for storage expire; an hour in a new workspace.

        An S3 server's keys are good for 15 minutes or more, and only say that they expire earlier.
        """
        with self._store.changing() as state:
            state.credential_lifetime_s = seconds


@contextlib.contextmanager
def _said() -> Iterator[None]:
    """Turn what a client would be answered into the error of a test."""
    try:
        yield
    except ApiError as error:
        kind = QueryError if error.status == 404 else ConfigurationError
        raise kind(f"The workspace answers {error.error_code}: {error}") from error


def _new_state(user: str) -> State:
    admin = Principal(name=user, id="1", token=_token())
    return State(
        workspace_id=secrets.randbelow(10**15) + 10**15,
        metastore_id=str(uuid.uuid4()),
        admin=user,
        principals={user: admin},
    )


def _token() -> str:
    return f"dapi{secrets.token_hex(16)}"
