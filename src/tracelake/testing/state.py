"""What a workspace knows beside its tables' rows: principals, securables, experiments, warehouses; kept as one file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from typing import Literal

import msgspec

from tracelake.errors import ConfigurationError

_FILE = "workspace.json"
_TABLE_KINDS = {
    "MANAGED": "TABLE_DELTA",
    "EXTERNAL": "TABLE_DELTA_EXTERNAL",
    "VIEW": "TABLE_VIEW",
    "FOREIGN": "TABLE_FOREIGN",
    "MATERIALIZED_VIEW": "TABLE_MATERIALIZED_VIEW",
    "STREAMING_TABLE": "TABLE_STREAMING_LIVE_TABLE",
}
_LOCK = "workspace.lock"

SecurableType = Literal["metastore", "catalog", "schema", "table"]
TableType = Literal["MANAGED", "EXTERNAL", "VIEW", "FOREIGN", "MATERIALIZED_VIEW", "STREAMING_TABLE"]


class Principal(msgspec.Struct):
    """A user, a service principal or a group.

    Attributes:
        name: user name, or application id of a service principal; what grants and owners name.
        token: personal access token; empty for none.
        secret: OAuth client secret of a service principal.
        token_lifetime_s: seconds that an access token got with the secret is good for.
        active: whether it is let in.
    """

    name: str
    id: str
    kind: Literal["user", "service_principal", "group"] = "user"
    display_name: str = ""
    token: str = ""
    secret: str = ""
    token_lifetime_s: int = 3600
    groups: list[str] = []
    active: bool = True

    def __repr__(self) -> str:
        return f"Principal({self.name!r}, kind={self.kind!r})"


class Securable(msgspec.Struct, kw_only=True):
    """A catalog, schema or table. Times are milliseconds since the Unix epoch; grants are privileges by principal."""

    full_name: str
    owner: str
    comment: str = ""
    created_at: int = 0
    created_by: str = ""
    updated_at: int = 0
    updated_by: str = ""
    properties: dict[str, str] = {}
    grants: dict[str, list[str]] = {}

    @property
    def parts(self) -> list[str]:
        """The parts of its name."""
        return self.full_name.split(".")

    @property
    def kind(self) -> SecurableType:
        """What it is, by the number of its name's parts."""
        kinds: tuple[SecurableType, ...] = ("catalog", "schema", "table")
        return kinds[len(self.parts) - 1]


class Table(Securable, kw_only=True):
    """A table or view.

    Attributes:
        columns: as Unity Catalog's API gives them (name, type_text, type_name, type_json, position, nullable).
        storage_location: a `file://` URL or an object store's; empty for a view.
        view_definition: SQL in Databricks' dialect; empty for a table.
    """

    table_id: str
    table_type: TableType = "MANAGED"
    data_source_format: str = "DELTA"
    storage_location: str = ""
    columns: list[dict[str, object]] = []
    view_definition: str = ""

    @property
    def securable_kind(self) -> str:
        """What Unity Catalog calls a table like this one, more closely than by `table_type`."""
        return _TABLE_KINDS[self.table_type]


class Experiment(msgspec.Struct, kw_only=True):
    """An MLflow experiment. Times are milliseconds since the Unix epoch."""

    experiment_id: str
    name: str
    artifact_location: str
    lifecycle_stage: Literal["active", "deleted"] = "active"
    creation_time: int = 0
    last_update_time: int = 0
    tags: dict[str, str] = {}


WarehouseState = Literal["RUNNING", "STOPPED", "STARTING", "STOPPING", "DELETED"]


class Warehouse(msgspec.Struct, kw_only=True):
    """A SQL warehouse."""

    id: str
    name: str
    state: WarehouseState = "RUNNING"


class S3(msgspec.Struct, kw_only=True):
    """An S3 server on this machine that external tables may be on, and the keys that temporary ones are made with."""

    endpoint_url: str
    access_key_id: str
    secret_access_key: str
    region: str = "us-east-1"
    role_arn: str = "arn:aws:iam::123456789012:role/unity-catalog"

    def __repr__(self) -> str:
        return f"S3(endpoint_url={self.endpoint_url!r}, region={self.region!r})"


class State(msgspec.Struct, kw_only=True):
    """All of it, by name or id.

    Attributes:
        admin: the name of the principal that the workspace is made with; owner of the metastore.
        external_access_enabled: whether credentials for storage are given to clients outside of the workspace.
        credential_lifetime_s: seconds after which these credentials say that they expire.
    """

    workspace_id: int
    metastore_id: str
    admin: str = ""
    external_access_enabled: bool = True
    credential_lifetime_s: int = 3600
    principals: dict[str, Principal] = {}
    metastore_grants: dict[str, list[str]] = {}
    catalogs: dict[str, Securable] = {}
    schemas: dict[str, Securable] = {}
    tables: dict[str, Table] = {}
    experiments: dict[str, Experiment] = {}
    warehouses: dict[str, Warehouse] = {}
    s3: S3 | None = None

    def securable(self, full_name: str) -> Securable | None:
        """Return the catalog, schema or table of this name."""
        found: dict[str, Securable] = {**self.catalogs, **self.schemas, **self.tables}
        return found.get(full_name)


class Store:
    """The state, and the directory that it and the tables are in."""

    def __init__(self, directory: str, new: State) -> None:
        """Read what `directory` has, or begin with `new`.

        Raises:
            ConfigurationError: the directory has a workspace that cannot be read.
        """
        self.directory = os.path.abspath(directory)
        self.lock = threading.RLock()
        self._path = os.path.join(self.directory, _FILE)
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        self._held = self._hold()
        self.is_new = not os.path.exists(self._path)
        try:
            self.state = new if self.is_new else self._read()
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def changing(self) -> Iterator[State]:
        """Give the state to the with-body alone, and keep what it changed, unless it raises.

        What cannot be written is taken back, so that clients are told no more than a restart would find.
        """
        with self.lock:
            before = msgspec.json.encode(self.state)
            yield self.state
            try:
                self._write()
            except OSError:
                self.state = msgspec.json.decode(before, type=State)
                raise

    def close(self) -> None:
        """Let another process have the directory."""
        if self._held >= 0:
            os.close(self._held)
        self._held = -1

    def _hold(self) -> int:
        """Keep other processes out for as long as this one lives: two would overwrite each other's state."""
        held = os.open(os.path.join(self.directory, _LOCK), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            raise ConfigurationError(
                f"The workspace in {self.directory} is open in another process. "
                "End that one, or name another directory."
            ) from None
        return held

    def _read(self) -> State:
        try:
            with open(self._path, "rb") as file:
                return msgspec.json.decode(file.read(), type=State)
        except msgspec.MsgspecError as error:
            raise ConfigurationError(
                f"The file {self._path} is not one of a workspace: {error}. Name another directory, or remove it."
            ) from error

    def _write(self) -> None:
        temporary = f"{self._path}.new"
        # Only its owner reads it: it has tokens and secrets, if only of a workspace that guards nothing.
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(self.state)))
        os.replace(temporary, self._path)


def now_ms() -> int:
    """Return the time in milliseconds since the Unix epoch."""
    return int(time.time() * 1000)
