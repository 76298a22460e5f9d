"""What stands between a span and a table in Unity Catalog, looked at one by one.

Each finding has a code, under which docs/troubleshooting.md explains it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

from tracelake.databricks.catalog import Catalog, TableInfo
from tracelake.databricks.columns import type_text
from tracelake.databricks.names import TableName, literal, quoted, readable
from tracelake.databricks.workspace import Workspace, access_remedy, connect
from tracelake.destinations.base import Finding
from tracelake.destinations.unity.delta import delta_sink
from tracelake.destinations.unity.transport import ChosenTransport, choose
from tracelake.errors import (
    ConfigurationError,
    DeliveryError,
    PermanentDeliveryError,
    RefusedError,
    TransientDeliveryError,
)
from tracelake.settings import Transport
from tracelake.spans import tables

_ALL = "ALL_PRIVILEGES"
_WAITS = "Until then spans wait in the spool."


def findings(name: TableName, wanted: Transport) -> Iterator[Finding]:
    """Yield what is found, in the order in which one thing needs the other; an error may end it."""
    try:
        catalog = Catalog(connect())
    except DeliveryError as error:
        yield _connection_error(error)
        return
    except ConfigurationError as error:
        yield Finding("error", str(error), code="setting")
        return
    workspace = catalog.workspace
    kind = "The Unity Catalog server" if workspace.open_source else "The workspace"
    yield Finding("ok", f"{kind} is {workspace.url}, access is {workspace.access}.", code="host")
    try:
        metastore = catalog.metastore()
        me = catalog.principals()
    except DeliveryError as error:
        is_missing = isinstance(error, RefusedError) and error.status == 404
        yield _no_metastore(workspace) if is_missing else _connection_error(error)
        return
    if not metastore.get("metastore_id"):
        yield _no_metastore(workspace)
        return
    if me:
        yield Finding("ok", f"You are {me[0]}.", code="authentication")
    yield Finding("ok", f"The metastore is {metastore.get('name') or metastore.get('metastore_id')}.", code="metastore")
    owners: dict[str, str] = {}
    for found in _containers(catalog, name, me, owners):
        yield found
        if found.severity == "error":
            return
    try:
        table = catalog.table(name)
    except DeliveryError as error:
        yield _missing(error, "table", name, me, open_source=workspace.open_source)
        return
    yield Finding("ok", f"The table {name} is there: {table.table_type}, {table.data_source_format}.", code="table")
    yield from _columns(_as_written(catalog, table), open_source=workspace.open_source)
    try:
        transport = choose(table, wanted, open_source=workspace.open_source)
    except PermanentDeliveryError as error:
        yield Finding("error", str(error), why="No span can be written to it.", code="transport")
        return
    owners[str(name)] = table.owner
    direct = list(_files(catalog, table, metastore, me)) if transport == "delta" else []
    closed = any(finding.code in _CLOSED and finding.severity == "error" for finding in direct)
    if closed and wanted == "auto" and not workspace.open_source:
        # The sink does the same: Databricks takes spans for such a table through its own engine, too.
        direct = [_weaker(finding) for finding in direct]
        transport = "otlp"
    yield from direct
    yield Finding("ok", f"Spans go there by {_WAYS[transport]}.", code="transport")
    # An open-source server does not say what is inherited: only where it refuses, what is granted says why.
    if me and (closed or not workspace.open_source):
        held = list(_privileges(catalog, name, me, owners, transport))
        yield from held
        if any(finding.severity == "error" for finding in held):
            return  # whoever takes spans would refuse for the same reason
    if transport == "otlp":
        yield _ingestion(catalog, name)
    elif transport == "zerobus":
        yield _zerobus(catalog, table)


_WAYS: Mapping[ChosenTransport, str] = {
    "delta": "Delta commits to its files, each exactly once",
    "otlp": "the workspace's OTLP endpoint, each at least once",
    "zerobus": "Zerobus, each at least once",
}
# The files of a table are closed, and Databricks' own engine may be open.
_CLOSED = ("external-access", "credentials")


def _connection_error(error: DeliveryError) -> Finding:
    if isinstance(error, TransientDeliveryError):
        seen = str(error).partition(" It is tried again")[0]
        remedy = "See whether the URL is right, and reached from this machine; then run this again."
        return Finding("error", seen, remedy, _WAITS, "host-unreachable")
    for open_source in (False, True):
        remedy = access_remedy(open_source=open_source)
        if str(error).endswith(remedy):
            return Finding("error", str(error).removesuffix(remedy).strip(), remedy, _WAITS, "authentication")
    is_denied = isinstance(error, RefusedError) and error.status == 403
    remedy = "Ask an administrator of it to let you in." if is_denied else ""
    return Finding("error", str(error), remedy, _WAITS, "authentication")


def _no_metastore(workspace: Workspace) -> Finding:
    remedy = (
        "Set TRACELAKE_CATALOG_URL to the address of a Unity Catalog server."
        if workspace.open_source
        else "See whether DATABRICKS_HOST is right, and ask an account admin to attach the workspace to a metastore."
    )
    return Finding("error", f"{workspace.url} answers, and has no metastore.", remedy, _WAITS, "metastore")


def _containers(catalog: Catalog, name: TableName, me: list[str], owners: dict[str, str]) -> Iterator[Finding]:
    """Yield whether the catalog and the schema are there; notes their owners."""
    for kind, full_name, look in (
        ("catalog", name.catalog, catalog.catalog),
        ("schema", name.schema_name, catalog.schema),
    ):
        try:
            owners[full_name] = str(look(name).get("owner") or "")
        except DeliveryError as error:
            yield _missing(error, kind, name, me, open_source=catalog.workspace.open_source)
            return
        yield Finding("ok", f"The {kind} {full_name} is there.", code=kind)


def _missing(error: DeliveryError, kind: str, name: TableName, me: list[str], *, open_source: bool) -> Finding:
    if not isinstance(error, RefusedError):
        return _connection_error(error)
    full_name = {"catalog": name.catalog, "schema": name.schema_name, "table": str(name)}[kind]
    if error.status == 404:
        remedy = {
            "catalog": f"CREATE CATALOG {quoted(name.catalog)};",
            "schema": f"CREATE SCHEMA {quoted(name.catalog, name.schema)};",
            "table": _create_table(name, open_source=open_source),
        }[kind]
        if open_source and kind != "table":
            where = ["--catalog", name.catalog, "--name", name.schema] if kind == "schema" else ["--name", name.catalog]
            remedy = shlex.join(["uc", kind, "create", *where])
        return Finding(
            "error", f"There is no {kind} {full_name}.", remedy, f"tracelake makes none by itself. {_WAITS}", kind
        )
    if error.status == 403:
        privilege = {"catalog": "USE_CATALOG", "schema": "USE_SCHEMA", "table": "SELECT"}[kind]
        remedy = _grant(kind, name, privilege, me, open_source=open_source)
        why = f"Who may not see the {kind} cannot write there, and it may not be there at all."
        return Finding("error", f"The {kind} {full_name} is not shown to you: {error.reason}.", remedy, why, kind)
    return Finding("error", str(error), why=_WAITS, code=kind)


def _create_table(name: TableName, suffix: str = "", *, open_source: bool) -> str:
    """Return the command that makes a table, with a suffix for another name than that of the one that is there."""
    command = f"tracelake create-table {shlex.quote(readable(name.catalog, name.schema, name.table + suffix))}"
    return f"{command} --location URL" if open_source else command


def _grant(kind: str, name: TableName, privilege: str, me: list[str], *, open_source: bool) -> str:
    """Return what gives a privilege: SQL, or the command of an open-source server, which has no SQL."""
    words, who = privilege.replace("_", " "), me[0] if me else "you"
    if open_source:
        full_name = {"catalog": name.catalog, "schema": name.schema_name, "table": str(name)}[kind]
        command = ["uc", "permission", "create", "--securable_type", kind, "--name", full_name]
        return shlex.join([*command, "--privilege", words, "--principal", who])
    securable = {
        "catalog": f"CATALOG {quoted(name.catalog)}",
        "schema": f"SCHEMA {quoted(name.catalog, name.schema)}",
        "table": f"TABLE {name.sql}",
    }[kind]
    return f"GRANT {words} ON {securable} TO {quoted(who)};"


def _columns(table: TableInfo, *, open_source: bool) -> Iterator[Finding]:
    """Yield what the columns and the schema version are, against those of a span table."""
    stated = table.properties.get(tables.VERSION_PROPERTY)
    try:
        version = tables.schema_version(table.schema, table.properties)
    except PermanentDeliveryError as error:
        why = "Spans cannot be written into columns of another meaning."
        yield Finding("error", str(error), _create_table(table.name, "_v1", open_source=open_source), why, "columns")
        return
    if stated is None and open_source:
        yield Finding("ok", f"By its columns the table is of version {version}.", code="schema-version")
    elif stated is None:
        yield Finding(
            "warning",
            f"The table has no property {tables.VERSION_PROPERTY}; by its columns it is of version {version}.",
            f"ALTER TABLE {table.name.sql} SET TBLPROPERTIES ({literal(tables.VERSION_PROPERTY)} = "
            f"{literal(f'v{version}')});",
            "MLflow and Databricks read the version from it.",
            "schema-version",
        )
    else:
        yield Finding("ok", f"{tables.VERSION_PROPERTY} is {stated}.", code="schema-version")
    wanted = {field["name"]: field for field in tables.delta_schema(version)["fields"]}
    found = {field["name"]: field for field in table.schema["fields"]}
    bad = False
    for name, field in wanted.items():
        kind = type_text(field["type"])
        if name not in found:
            bad = True
            why = "What it holds of a span is not kept."
            if name in tables.REQUIRED:
                why = "Without it a row is no span."
            elif table.table_type == "MANAGED":
                why = "Databricks' own engine takes spans for a table with all columns only."
            yield Finding(
                "error" if name in tables.REQUIRED or table.table_type == "MANAGED" else "warning",
                f"The column {name} is missing.",
                f"ALTER TABLE {table.name.sql} ADD COLUMN {quoted(name)} {kind};",
                why,
                "columns",
            )
        elif not _same(found[name]["type"], field["type"]):
            bad = True
            yield Finding(
                "error",
                f"The column {name} is {_shown(found[name]['type'])}, and in version {version} it is {kind}.",
                f"{_create_table(table.name, f'_v{version}', open_source=open_source)} --schema-version {version}",
                "Its values cannot be written, or are not read back as they were.",
                "columns",
            )
    for name, field in found.items():
        if name not in wanted and not field["nullable"]:
            bad = True
            yield Finding(
                "error",
                f"The column {name} is none of a span's, and must not be null.",
                f"ALTER TABLE {table.name.sql} ALTER COLUMN {quoted(name)} DROP NOT NULL;",
                "A row without a value for it is refused.",
                "columns",
            )
    if not bad:
        yield Finding("ok", f"The {len(wanted)} columns are those of version {version}.", code="columns")


def _as_written(catalog: Catalog, table: TableInfo) -> TableInfo:
    """Return a table with the columns of its files, where the catalog has those it was registered with for ever.

    An engine that changes a table of an open-source server tells the server nothing.
    """
    if not catalog.workspace.open_source or table.table_type != "EXTERNAL":
        return table
    try:
        found = delta_sink(table, catalog.vend(table, write=True)).table()
    except DeliveryError:
        return table  # what is wrong with the files is said below
    if found is None:
        return table
    properties = {**table.properties, **found.metadata().configuration}
    return replace(table, schema=json.loads(found.schema().to_json()), properties=properties)


def _same(found: Any, wanted: Any) -> bool:
    """Say whether two Delta types are the same; fields of a struct are matched by their names."""
    try:
        return _matches(found, wanted)
    except (KeyError, TypeError):
        return False  # not even a type


def _matches(found: Any, wanted: Any) -> bool:
    if isinstance(found, Mapping) and isinstance(wanted, Mapping) and found.get("type") == wanted["type"] == "struct":
        fields = {field["name"]: field["type"] for field in found["fields"]}
        return all(
            field["name"] in fields and _same(fields[field["name"]], field["type"]) for field in wanted["fields"]
        )
    if isinstance(found, Mapping) and isinstance(wanted, Mapping) and found.get("type") == wanted["type"] == "array":
        return _same(found["elementType"], wanted["elementType"])
    return _shown(found) == _shown(wanted)


def _shown(kind: Any) -> str:
    try:
        return type_text(kind)
    except (ValueError, KeyError, TypeError):
        return str(kind)


def _files(catalog: Catalog, table: TableInfo, metastore: Mapping[str, Any], me: list[str]) -> Iterator[Finding]:
    """Yield whether the files of the table can be written."""
    if metastore.get("external_access_enabled") is False:
        yield Finding(
            "error",
            "External data access is off on the metastore.",
            "In the catalog explorer: Metastore > Details > External data access; a metastore admin turns it on.",
            "No credentials are given for writing the table's files directly.",
            "external-access",
        )
        return
    try:
        credentials = catalog.vend(table, write=True)
    except DeliveryError as error:
        if catalog.workspace.open_source:
            is_denied = isinstance(error, RefusedError) and error.status == 403
            remedy = "" if is_denied else "See in the server's settings and log which stores it has credentials for."
        elif _is_held(catalog, table.name, me, "EXTERNAL_USE_SCHEMA"):
            remedy = ""  # what is said of the other privileges has it
        else:
            remedy = _grant("schema", table.name, "EXTERNAL_USE_SCHEMA", me, open_source=False)
        yield Finding(
            "error",
            f"No credentials are given for the files: {getattr(error, 'reason', error)}.",
            remedy,
            "Writing the table's files directly needs them.",
            "credentials",
        )
        return
    yield Finding("ok", f"Credentials for {credentials.location} are given.", code="credentials")
    try:
        sink = delta_sink(table, credentials)
        found = sink.table()
        if found is None:
            yield Finding("ok", "Nothing is written there yet; the first delivery begins the table.", code="files")
            return
        sink.version(found)
        sink.schema(found)
    except DeliveryError as error:
        yield Finding(
            "error",
            str(error),
            "See that the store is reached from here, and that delta-rs can write the table.",
            _WAITS,
            "files",
        )
        return
    yield Finding("ok", f"Its files are a Delta table, at version {found.version()}.", code="files")


def _weaker(finding: Finding) -> Finding:
    if finding.severity != "error":
        return finding
    why = "Spans go through Databricks' own engine instead, each at least once."
    return Finding("warning", finding.seen, finding.remedy, why, finding.code)


def _privileges(
    catalog: Catalog, name: TableName, me: list[str], owners: Mapping[str, str], transport: ChosenTransport
) -> Iterator[Finding]:
    """Yield the privileges that delivery needs and that are not there, or that all are."""
    needed = [
        ("catalog", name.catalog, "USE_CATALOG"),
        ("schema", name.schema_name, "USE_SCHEMA"),
        ("table", str(name), "SELECT"),
        ("table", str(name), "MODIFY"),
    ]
    if transport == "delta" and not catalog.workspace.open_source:
        needed.insert(2, ("schema", name.schema_name, "EXTERNAL_USE_SCHEMA"))
    missing = False
    for kind, full_name, privilege in needed:
        try:
            held = _held(catalog, kind, full_name, me, privilege)
        except DeliveryError as error:
            yield Finding(
                "warning",
                f"Your privileges on the {kind} {full_name} cannot be read: {getattr(error, 'reason', error)}.",
                why="Whether they suffice shows with the first delivery.",
                code="privileges",
            )
            return
        # Neither ownership nor ALL PRIVILEGES gives this one.
        owned = owners.get(full_name) in me and privilege != "EXTERNAL_USE_SCHEMA"
        explicit = kind == "table" and transport != "delta"
        by_all = _ALL in held and privilege != "EXTERNAL_USE_SCHEMA" and not explicit
        if privilege in held or owned or by_all:
            continue
        missing = True
        words = privilege.replace("_", " ")
        only = ", only ALL PRIVILEGES, which does not count here" if _ALL in held else ""
        yield Finding(
            "error",
            f"You do not have {words} on the {kind} {full_name}{only}.",
            _grant(kind, name, privilege, me, open_source=catalog.workspace.open_source),
            _WHY_PRIVILEGE[privilege],
            "privileges",
        )
    if not missing:
        words = ", ".join(privilege.replace("_", " ") for _, _, privilege in needed)
        yield Finding("ok", f"You have {words}.", code="privileges")


_WHY_PRIVILEGE = {
    "USE_CATALOG": "Without it nothing in the catalog is reached.",
    "USE_SCHEMA": "Without it nothing in the schema is reached.",
    "EXTERNAL_USE_SCHEMA": "Without it no credentials for the table's files are given, to owners neither.",
    "SELECT": "Whoever writes spans has to have it, granted by its name.",
    "MODIFY": "Without it, granted by its name, no span is taken.",
}


def _held(catalog: Catalog, kind: str, full_name: str, me: list[str], privilege: str) -> set[str]:
    """Return the privileges of a principal and its groups; ends the search at the one that is looked for."""
    held: set[str] = set()
    for principal in me:
        try:
            held |= catalog.privileges(kind, full_name, principal)
        except RefusedError:
            if principal == me[0]:
                raise
        if privilege in held:
            break
    return held


def _is_held(catalog: Catalog, name: TableName, me: list[str], privilege: str) -> bool:
    """Say whether a privilege on the schema is known to be held."""
    try:
        return privilege in _held(catalog, "schema", name.schema_name, me, privilege)
    except DeliveryError:
        return False


def _ingestion(catalog: Catalog, name: TableName) -> Finding:
    from tracelake.destinations.unity.ingestion import open_ingestion

    try:
        with closing(open_ingestion(catalog.workspace, name)) as sink:
            sink.probe()
    except (DeliveryError, ConfigurationError) as error:
        seen = str(error).partition(" `tracelake doctor")[0]
        return Finding("error", seen, why=_WAITS, code="ingestion")
    return Finding("ok", "The workspace's OTLP endpoint takes spans for the table.", code="ingestion")


def _zerobus(catalog: Catalog, table: TableInfo) -> Finding:
    from tracelake.destinations.unity.zerobus import open_zerobus

    try:
        with closing(open_zerobus(catalog, table)) as sink:
            sink.begin()
    except (DeliveryError, ConfigurationError) as error:
        return Finding("error", str(error), why=_WAITS, code="zerobus")
    return Finding("ok", "A Zerobus stream to the table opens.", code="zerobus")
