"""Catalogs, schemas and tables over REST, as databricks-sdk, delta-rs and clients of open-source Unity Catalog ask.

Shapes: https://docs.databricks.com/api/workspace/tables
"""

from __future__ import annotations

import base64
import binascii
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from tracelake.testing.state import Securable, Table
from tracelake.testing.unity.access import EXTERNAL_USE_SCHEMA
from tracelake.testing.unity.catalog import Catalog, canonical
from tracelake.testing.unity.catalog_json import catalog_info, schema_info, table_info, table_summary
from tracelake.testing.unity.columns import schema_of
from tracelake.testing.web.http import ApiError, Request, Route, required

_BASE = "/api/2.1/unity-catalog"
_INVALID = "INVALID_PARAMETER_VALUE"
# What a client gets that leaves the size of a page to the service, and the most that it gets at all.
_PAGE = 100
_S = TypeVar("_S", bound=Securable)


class CatalogApi:
    """Answers what is in the catalog, to those who may see it."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._state = catalog.store.state

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("GET", f"{_BASE}/catalogs", self._list_catalogs),
            Route("POST", f"{_BASE}/catalogs", self._create_catalog),
            Route("GET", f"{_BASE}/catalogs/{{name}}", self._get_catalog),
            Route("PATCH", f"{_BASE}/catalogs/{{name}}", self._update_catalog),
            Route("DELETE", f"{_BASE}/catalogs/{{name}}", self._delete_catalog),
            Route("GET", f"{_BASE}/schemas", self._list_schemas),
            Route("POST", f"{_BASE}/schemas", self._create_schema),
            Route("GET", f"{_BASE}/schemas/{{name}}", self._get_schema),
            Route("PATCH", f"{_BASE}/schemas/{{name}}", self._update_schema),
            Route("DELETE", f"{_BASE}/schemas/{{name}}", self._delete_schema),
            Route("GET", f"{_BASE}/tables", self._list_tables),
            Route("POST", f"{_BASE}/tables", self._create_table),
            Route("GET", f"{_BASE}/tables/{{name}}", self._get_table),
            Route("PATCH", f"{_BASE}/tables/{{name}}", self._update_table),
            Route("DELETE", f"{_BASE}/tables/{{name}}", self._delete_table),
            Route("GET", f"{_BASE}/tables/{{name}}/exists", self._exists),
            Route("GET", f"{_BASE}/table-summaries", self._summaries),
            Route("GET", f"{_BASE}/current-metastore-assignment", self._assignment),
            Route("GET", f"{_BASE}/metastore_summary", self._metastore),
        ]

    # --- catalogs ----------------------------------------------------------------------------------------------------

    def _list_catalogs(self, request: Request) -> dict[str, Any]:
        return self._page(request, "catalogs", list(self._state.catalogs.values()), self._catalog_info)

    def _create_catalog(self, request: Request) -> dict[str, Any]:
        body = _body(request, "name", "comment", "properties")
        name, comment, properties = required(body, "name"), _text(body, "comment"), _properties(body)
        made = self._catalog.create_catalog(request.principal, name, comment=comment or "", properties=properties)
        return self._catalog_info(made)

    def _get_catalog(self, request: Request, name: str) -> dict[str, Any]:
        return self._catalog_info(*self._see(request, name, 1))

    def _update_catalog(self, request: Request, name: str) -> dict[str, Any]:
        return self._catalog_info(self._update(request, name, 1))

    def _delete_catalog(self, request: Request, name: str) -> dict[str, Any]:
        return self._delete(request, name, 1)

    def _catalog_info(self, catalog: Securable, browse_only: bool = False) -> dict[str, Any]:
        return catalog_info(catalog, self._state, browse_only=browse_only)

    # --- schemas -----------------------------------------------------------------------------------------------------

    def _list_schemas(self, request: Request) -> dict[str, Any]:
        catalog = self._parent(request, "catalog_name")
        return self._page(request, "schemas", _within(catalog, self._state.schemas), self._schema_info)

    def _create_schema(self, request: Request) -> dict[str, Any]:
        body = _body(request, "name", "catalog_name", "comment", "properties")
        name = f"{_part(body, 'catalog_name')}.{_part(body, 'name')}"
        comment, properties = _text(body, "comment"), _properties(body)
        made = self._catalog.create_schema(request.principal, name, comment=comment or "", properties=properties)
        return self._schema_info(made)

    def _get_schema(self, request: Request, name: str) -> dict[str, Any]:
        return self._schema_info(*self._see(request, name, 2))

    def _update_schema(self, request: Request, name: str) -> dict[str, Any]:
        return self._schema_info(self._update(request, name, 2))

    def _delete_schema(self, request: Request, name: str) -> dict[str, Any]:
        return self._delete(request, name, 2)

    def _schema_info(self, schema: Securable, browse_only: bool = False) -> dict[str, Any]:
        return schema_info(schema, self._state, browse_only=browse_only)

    # --- tables ------------------------------------------------------------------------------------------------------

    def _list_tables(self, request: Request) -> dict[str, Any]:
        schema = self._parent(request, "catalog_name", "schema_name")
        leave_out = [key for key in ("columns", "properties") if _flag(request, f"omit_{key}")]
        if _flag(request, "omit_username"):
            leave_out += ["owner", "created_by", "updated_by"]

        def info(table: Table, browse_only: bool) -> dict[str, Any]:
            presented = self._table_info(request, table, browse_only)
            return {key: value for key, value in presented.items() if key not in leave_out}

        return self._page(request, "tables", _within(schema, self._state.tables), info)

    def _create_table(self, request: Request) -> dict[str, Any]:
        body = _body(
            request,
            *("name", "catalog_name", "schema_name", "table_type", "data_source_format", "storage_location"),
            *("columns", "properties", "comment"),
        )
        parent = f"{_part(body, 'catalog_name')}.{_part(body, 'schema_name')}"
        name = canonical(f"{parent}.{_part(body, 'name')}")
        kind, form = required(body, "table_type"), required(body, "data_source_format")
        if (kind, form) != ("EXTERNAL", "DELTA"):
            # As managed tables have to be set up by a cluster or warehouse, and others are of no use without one.
            raise ApiError(
                400,
                _INVALID,
                f"Request to create table '{name}' from outside of Databricks Unity Catalog enabled compute "
                f"environment is denied for security: it is {kind} and of the format {form}, and only EXTERNAL tables "
                "of the format DELTA can be created so. Create it by SQL.",
            )
        # Privileges on external locations are not imitated: all storage is open to whoever creates tables.
        self._catalog.access.require(request.principal, EXTERNAL_USE_SCHEMA, self._catalog.find(parent))
        columns = body.get("columns") or []
        if not isinstance(columns, list):
            raise ApiError(400, _INVALID, f"The field columns of the body is of type {type(columns).__name__}.")
        made = self._catalog.create_table(
            request.principal,
            name,
            schema_of(columns),
            table_type="EXTERNAL",
            location=required(body, "storage_location"),
            properties=_properties(body),
            comment=_text(body, "comment") or "",
            register_only=True,
        )
        return self._table_info(request, made)

    def _get_table(self, request: Request, name: str) -> dict[str, Any]:
        table, browse_only = self._see(request, name, 3)
        assert isinstance(table, Table)
        return self._table_info(request, table, browse_only)

    def _update_table(self, request: Request, name: str) -> dict[str, Any]:
        self._update(request, name, 3)
        return {}

    def _delete_table(self, request: Request, name: str) -> dict[str, Any]:
        return self._delete(request, name, 3)

    def _exists(self, request: Request, name: str) -> dict[str, Any]:
        _checked(name, 3)
        try:
            self._catalog.see(request.principal, name, browse=True)
        except ApiError as error:
            if error.error_code != "TABLE_DOES_NOT_EXIST":
                raise
            return {"table_exists": False}
        return {"table_exists": True}

    def _summaries(self, request: Request) -> dict[str, Any]:
        catalog = self._parent(request, "catalog_name")
        in_schemas, in_tables = _like(request, "schema_name_pattern"), _like(request, "table_name_pattern")
        tables = [
            table
            for table in _within(catalog, self._state.tables)
            if in_schemas.fullmatch(table.parts[1]) and in_tables.fullmatch(table.parts[2])
        ]
        return self._page(request, "tables", tables, lambda table, _: table_summary(table))

    def _table_info(self, request: Request, table: Table, browse_only: bool = False) -> dict[str, Any]:
        return table_info(
            table,
            self._state,
            browse_only=browse_only,
            with_capabilities=_flag(request, "include_manifest_capabilities"),
        )

    # --- the metastore -----------------------------------------------------------------------------------------------

    def _assignment(self, _: Request) -> dict[str, Any]:
        assignment = {"metastore_id": self._state.metastore_id, "workspace_id": self._state.workspace_id}
        default = next(iter(self._state.catalogs), "")
        return {**assignment, "default_catalog_name": default} if default else assignment

    def _metastore(self, _: Request) -> dict[str, Any]:
        region = self._state.s3.region if self._state.s3 else "us-east-1"
        return {
            "metastore_id": self._state.metastore_id,
            "global_metastore_id": f"aws:{region}:{self._state.metastore_id}",
            "name": "metastore",
            "cloud": "aws",
            "region": region,
            "owner": self._state.admin,
            "privilege_model_version": "1.0",
            "external_access_enabled": self._state.external_access_enabled,
        }

    # --- what they share ---------------------------------------------------------------------------------------------

    def _see(self, request: Request, name: str, parts: int) -> tuple[Securable, bool]:
        return self._catalog.see(request.principal, _checked(name, parts), browse=_flag(request, "include_browse"))

    def _update(self, request: Request, name: str, parts: int) -> Securable:
        body = _body(request, "owner", "comment", "properties")
        return self._catalog.update(
            request.principal,
            _checked(name, parts),
            owner=_text(body, "owner"),
            comment=_text(body, "comment"),
            properties=_properties(body),
        )

    def _delete(self, request: Request, name: str, parts: int) -> dict[str, Any]:
        self._catalog.drop(request.principal, _checked(name, parts), force=parts == 3 or _flag(request, "force"))
        return {}

    def _parent(self, request: Request, *names: str) -> str:
        """Return what a query says to list, which the principal has to be able to use."""
        for name in names:
            if not request.text(name):
                raise ApiError(400, _INVALID, f"The query parameter {name} is missing.")
        found = self._catalog.find(".".join(request.text(name) for name in names))
        # Of no name, in what is to be listed.
        below = Securable(full_name=f"{found.full_name}.", owner="")
        if not (_flag(request, "include_browse") or self._catalog.access.manages(request.principal, found)):
            self._catalog.access.require_use(request.principal, below)
        return found.full_name

    def _page(
        self, request: Request, key: str, found: Iterable[_S], present: Callable[[_S, bool], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return the page that a query asks for, of those that the principal sees, by name."""
        last, size = _after(request), _page_size(request)
        browse = _flag(request, "include_browse")
        following = sorted((each for each in found if each.full_name > last), key=lambda each: each.full_name)
        levels = ((each, self._level(request.principal, each, browse)) for each in following)
        visible = ((each, browse_only) for each, browse_only in levels if browse_only is not None)
        # One more than the page has says whether there is another page.
        seen = list(visible if size is None else itertools.islice(visible, size + 1))
        page = seen[:size]
        answer: dict[str, Any] = {key: [present(each, browse_only) for each, browse_only in page]}
        if len(page) < len(seen):
            answer["next_page_token"] = base64.urlsafe_b64encode(page[-1][0].full_name.encode()).decode()
        return answer

    def _level(self, principal: str, securable: Securable, browse: bool) -> bool | None:
        """Return whether a principal only browses a securable; None if it does not see it."""
        try:
            return self._catalog.see(principal, securable.full_name, browse=browse)[1]
        except ApiError:
            return None


def _within(parent: str, securables: Mapping[str, _S]) -> list[_S]:
    return [each for name, each in list(securables.items()) if name.startswith(f"{parent}.")]


def _checked(name: str, parts: int) -> str:
    if len(name.split(".")) != parts:
        raise ApiError(400, _INVALID, f"'{name}' is not a valid name: it needs {parts} parts.")
    return name


def _body(request: Request, *known: str) -> dict[str, Any]:
    """Return the body, all of which has to be something that this workspace heeds."""
    body = request.json()
    for name, value in body.items():
        if name not in known and value not in (None, "", [], {}):
            raise ApiError(
                501, "NOT_IMPLEMENTED", f"The mocked workspace does not imitate the field {name} of {request.path}."
            )
    return body


def _part(body: Mapping[str, Any], name: str) -> str:
    value: str = required(body, name)
    if "." in value:
        raise ApiError(400, _INVALID, f"{value!r} is not a valid name.")
    return value


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise ApiError(400, _INVALID, f"The field {name} of the body is of type {type(value).__name__}.")
    return value


def _properties(body: Mapping[str, Any]) -> dict[str, str] | None:
    value = body.get("properties")
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise ApiError(400, _INVALID, "The field properties of the body is no object of texts.")
    return value


def _flag(request: Request, name: str) -> bool:
    return request.text(name).lower() == "true"


def _page_size(request: Request) -> int | None:
    text = request.text("max_results")
    if not text:
        return None
    if not text.isdecimal():
        raise ApiError(400, _INVALID, f"max_results is {text}, and has to be 0 or more.")
    return min(int(text) or _PAGE, _PAGE)


def _after(request: Request) -> str:
    try:
        return base64.b64decode(request.text("page_token"), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ApiError(400, _INVALID, "The page_token is none that this workspace gave.") from error


def _like(request: Request, name: str) -> re.Pattern[str]:
    """Return a pattern of SQL's LIKE: `%` is any text, `_` any character."""
    parts = re.split("([%_])", request.text(name, "%"))
    return re.compile("".join({"%": ".*", "_": "."}.get(part) or re.escape(part) for part in parts), re.IGNORECASE)
