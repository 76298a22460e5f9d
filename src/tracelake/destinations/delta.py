"""A Delta table at a path: a local directory, or a URL of an object store with credentials from the environment.

delta-rs does the writing. Each batch is one commit that carries the batch's name as a Delta transaction identifier, so
the table itself says whether it holds the batch:
https://github.com/delta-io/delta/blob/master/PROTOCOL.md#transaction-identifiers
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tracelake.destinations.ahead import ahead
from tracelake.destinations.base import Batch, Finding, Rejection, shown_target
from tracelake.destinations.delta_errors import Translated, need_delta
from tracelake.destinations.delta_log import TABLE_PROPERTIES, passes_checkpoint, shorten, sync_commits
from tracelake.destinations.maintenance import compact_small_files
from tracelake.destinations.parquet import writer_properties
from tracelake.errors import (
    BatchExistsError,
    ConfigurationError,
    DeliveryError,
    PermanentDeliveryError,
    SettingError,
    TargetError,
)
from tracelake.redaction import one_line
from tracelake.settings import read_settings
from tracelake.spans import tables

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable, Transaction, WriterProperties

# Settings that tell whose access to a store is used. None is a secret, and none changes when a secret is rotated.
_IDENTITY_VARIABLES = {
    "s3": (
        "AWS_PROFILE",
        "AWS_ROLE_ARN",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
    ),
    "abfss": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_CLIENT_ID", "AZURE_TENANT_ID"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT"),
}

# Guessing these would make a table that nobody asked for; any other bad setting holds up no delivery.
_SETTINGS = ("TRACELAKE_SCHEMA_VERSION", "TRACELAKE_CREATE_TABLE")

# What stands before the path. A colon would be that of a password, or of a port, which none of these has.
_BUCKET = {
    **dict.fromkeys(("s3", "s3a", "gs"), re.compile(r"[A-Za-z0-9._-]+")),
    "abfss": re.compile(r"(?:[A-Za-z0-9$-]+@)?[A-Za-z0-9._-]+"),
}
_STORE_EXAMPLES = {
    "s3": "'s3://bucket/path/of/table'",
    "s3a": "'s3://bucket/path/of/table'",
    "gs": "'gs://bucket/path/of/table'",
    "abfss": "'abfss://container@account.dfs.core.windows.net/path/of/table'",
}

# Sixteen writers at once need more than the 15 that delta-rs has: a batch that loses them all is uploaded once more.
_COMMIT_RETRIES = 100

# A span's bytes in the spool, for a guess at the spans of a batch: rather too many of them than too few.
_SPAN_BYTES = 400

# What delta-rs, which makes a URL of a path, reads as something else or panics at.
_UNUSABLE = re.compile(r"%[0-9A-Fa-f]{2}|[#?\[\]\\^|]")


@dataclass(frozen=True)
class DeltaDestination:
    """A Delta table at `location`: an absolute path, or a URL such as `s3://bucket/path`."""

    location: str
    identity: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def parse(cls, target: str) -> DeltaDestination:
        """Return the destination of a path or URL.

        Raises:
            TargetError: it cannot be the location of a table; the message says what to write instead.
        """
        scheme, separator, rest = target.partition("://")
        scheme = scheme.lower() if separator else "file"
        if scheme == "file":
            return cls(_local_path(_file_url_path(target) if separator else target))
        bucket, _, path = rest.partition("/")
        path = path.strip("/")
        if "?" in rest or "#" in rest or not _BUCKET[scheme].fullmatch(bucket or "bucket"):
            raise TargetError(
                f"The target {shown_target(target)} carries more than a bucket and a path. Write "
                f"{_STORE_EXAMPLES[scheme]}, and give credentials by the environment variables of the store."
            )
        if not bucket or not path:
            raise TargetError(f"The target {shown_target(target)} names no table. Write {_STORE_EXAMPLES[scheme]}.")
        scheme = "s3" if scheme == "s3a" else scheme
        set_here = {name: one_line(os.environ[name]) for name in _IDENTITY_VARIABLES[scheme] if os.environ.get(name)}
        return cls(f"{scheme}://{bucket}/{path}", {"store": scheme, **set_here})

    @property
    def target(self) -> str:
        """The location."""
        return self.location

    def __str__(self) -> str:
        return self.location

    def check(self) -> list[Finding]:
        """Look whether there is a span table, or one can be made. Loads delta-rs; reads the table's log."""
        try:
            sink = self.open()
            table = sink.table()
            if table is None:
                return [sink.missing()]
            version = sink.version(table)
            sink.schema(table)
            return [Finding("ok", f"{self.location} is a span table, version {version} of the schema.", code="files")]
        except (DeliveryError, ConfigurationError) as error:
            return [Finding("error", str(error), code="files")]

    def maintained(self) -> DeltaSink:
        """Return what opens the table: one at a path is ours to maintain."""
        return self.open()

    def open(self) -> DeltaSink:
        """Return a sink; the table itself is opened, or made, with each batch.

        Raises:
            MissingDependencyError: delta-rs or pyarrow is not installed.
            SettingError: the table's schema version, or whether to make it, has a value it cannot have.
        """
        need_delta(self.location)
        settings, problems = read_settings()
        ours = [problem for problem in problems if problem.startswith(_SETTINGS)]
        if ours:
            raise SettingError(" ".join(ours))
        return DeltaSink(self.location, version=2 if settings.schema_version == 2 else 1, create=settings.create_table)


class DeltaSink:
    """Appends batches to a Delta table, each exactly once."""

    def __init__(
        self, location: str, *, version: tables.Version, create: bool, options: Mapping[str, str] | None = None
    ) -> None:
        """`version` is the schema of a table made here; with `create` off, none is made.

        `options` are those of delta-rs for the store, which come before what the environment says.
        """
        self._location = location
        self._options = dict(options) if options else None
        self._version = version
        self._create = create

    @property
    def location(self) -> str:
        """The absolute path or URL that delta-rs opens."""
        return self._location

    def write(self, batch: Batch) -> list[Rejection]:
        """Commit a batch in one transaction, unless the table holds it already.

        The table is opened anew each time: its log may have grown, and it may have been removed or replaced.
        """
        rows = _Rows(batch)
        with Translated(self._location, rows):
            table = self.table() or self._made()
            self.version(table)
            rows.schema = self.schema(table)
            if (table.transaction_version(batch.app_id) or 0) >= batch.number:
                if not batch.retried:
                    raise BatchExistsError(
                        f"The table {self._location} already has batch {batch.number} of {batch.app_id}. "
                        "See whether a copy of the spool is delivered from elsewhere."
                    )
                for _ in rows:
                    continue  # only to know again what was rejected
            else:
                self._append(table, batch, rows)
        return rows.rejections

    def close(self) -> None:
        """Hold nothing between batches, so nothing is let go of."""

    def begin(self) -> None:
        """Make the table if there is none.

        Raises:
            DeliveryError: it cannot be made, or what is there cannot be opened.
        """
        with Translated(self._location):
            if self.table() is None:
                self._made()

    def table(self) -> DeltaTable | None:
        """Open the table; None if there is none.

        Raises:
            DeliveryError: it cannot be opened.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        with Translated(self._location):
            try:
                return DeltaTable(self._location, storage_options=self._options)
            except TableNotFoundError:
                return None

    def version(self, table: DeltaTable) -> tables.Version:
        """Return the table's schema version.

        Raises:
            PermanentDeliveryError: it is not a span table.
        """
        delta = json.loads(table.schema().to_json())
        try:
            version = tables.schema_version(delta, table.metadata().configuration)
        except PermanentDeliveryError as error:
            raise PermanentDeliveryError(f"The table {self._location} cannot take spans. {error}") from error
        missing = [name for name in tables.REQUIRED if name not in {item["name"] for item in delta["fields"]}]
        if missing:
            raise PermanentDeliveryError(
                f"The table {self._location} has no column {', '.join(missing)}, without which spans cannot be told "
                "apart. Add the columns, or name another table."
            )
        return version

    def schema(self, table: DeltaTable) -> pa.Schema:
        """Return the table's Arrow schema.

        Raises:
            PermanentDeliveryError: a column cannot hold what it is meant for, or has to hold what a span has not.
        """
        from tracelake.spans.columns import compiled

        with Translated(self._location):
            schema = tables.arrow_schema(json.loads(table.schema().to_json()))
            compiled(schema)
        return schema

    def missing(self) -> Finding:
        """Return what it means that there is no table."""
        if self._create:
            seen = f"There is no table at {self._location} yet; the first delivery makes it."
            return Finding("ok", seen, code="files")
        return Finding(
            "error",
            f"There is no table at {self._location}, and TRACELAKE_CREATE_TABLE is off.",
            "Create the table, name an existing one, or set TRACELAKE_CREATE_TABLE=true.",
            code="files",
        )

    def _made(self) -> DeltaTable:
        if not self._create:
            finding = self.missing()
            raise PermanentDeliveryError(f"{finding.seen} {finding.remedy}")
        return self.make(
            tables.delta_schema_json(self._version),
            name="spans",
            description="OpenTelemetry spans, one row each, written by tracelake",
            properties={
                "delta.dataSkippingStatsColumns": ",".join(tables.SKIPPING_COLUMNS[self._version]),
                **tables.version_property(self._version),
            },
        )

    def make(self, schema: str, *, name: str, description: str, properties: Mapping[str, str]) -> DeltaTable:
        """Make a table of the Delta schema in this JSON, unless there is one already; raises what delta-rs does."""
        from deltalake import DeltaTable, Schema

        return DeltaTable.create(
            self._location,
            Schema.from_json(schema),
            mode="ignore",  # another may have been faster
            name=name,
            description=description,
            configuration={**TABLE_PROPERTIES, **properties},
            storage_options=self._options,
            raise_if_key_not_exists=False,
        )

    def _append(self, table: DeltaTable, batch: Batch, rows: _Rows) -> None:
        import pyarrow as pa
        from deltalake import Transaction

        batches = iter(rows)
        first = next(batches, None)
        if first is None:
            return  # every line of the batch was bad: there is nothing whose repetition a commit would prevent
        commit_rows(
            table,
            self._location,
            pa.RecordBatchReader.from_batches(rows.schema, ahead(_chain(first, batches))),
            writer_properties(batch.size // _SPAN_BYTES),
            [Transaction(batch.app_id, batch.number, int(time.time() * 1000))],
        )


def commit_rows(
    table: DeltaTable,
    location: str,
    rows: pa.RecordBatchReader,
    properties: WriterProperties,
    transactions: Sequence[Transaction] = (),
) -> None:
    """Append rows to a table in one commit that survives a power loss, and keep the table's files and log few.

    Raises what delta-rs does.
    """
    from deltalake import CommitProperties, PostCommitHookProperties, write_deltalake

    before = table.version()
    write_deltalake(
        table,
        rows,
        mode="append",
        writer_properties=properties,
        commit_properties=CommitProperties(
            app_transactions=list(transactions) or None, max_commit_retries=_COMMIT_RETRIES
        ),
        # delta-rs would read the table's files again after each commit to see whether these are due.
        post_commithook_properties=PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False),
    )
    sync_commits(location, before, table.version())
    if passes_checkpoint(table, before):
        compact_small_files(table, location)
        shorten(table, location)


class _Rows:
    """The Arrow batches of a batch of spans; collects what could not be converted, and the error that ended it."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.schema: pa.Schema = None
        self.rejections: list[Rejection] = []
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        from tracelake.spans.rows import convert

        self.rejections = []
        first = 0
        try:
            for records in self._batch.chunks():
                rows, rejected = convert(records, self.schema)
                self.rejections += [Rejection(first + index, reason) for index, reason in rejected]
                first += len(records)
                if rows.num_rows:
                    yield rows
        except Exception as error:
            self.error = error  # delta-rs, which reads this, keeps only its text
            raise


def _file_url_path(target: str) -> str:
    host, _, path = target.partition("://")[2].partition("/")
    if host not in {"", "localhost"}:
        raise TargetError(
            f"The target {shown_target(target)} names a host, and a table is in a directory of this one. "
            "Write 'file:///data/traces', or './traces' for a directory beside the program."
        )
    return f"/{unquote(path)}"


def _local_path(path: str) -> str:
    try:
        absolute = os.path.abspath(os.path.expanduser(path))
    except OSError as error:
        raise TargetError(
            f"The target {one_line(path, 200)!r} is relative to the working directory, which is gone: "
            f"{error.strerror}. Write an absolute path, such as '/data/traces'."
        ) from error
    shown = one_line(absolute, 200)
    if not absolute.isprintable() or absolute != absolute.strip():
        raise TargetError(
            f"The target {shown!r} holds control characters, or ends in a space. Name a directory without them."
        )
    if os.path.exists(absolute) and not os.path.isdir(absolute):
        raise TargetError(f"The target {shown!r} is a file, and a table is a directory. Name a directory.")
    unusable = _UNUSABLE.search(absolute)
    if unusable:
        raise TargetError(
            f"The target {shown!r} holds {unusable[0]!r}, which delta-rs takes for a part of a URL. "
            "Name a directory without it."
        )
    return absolute


def _chain(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest
