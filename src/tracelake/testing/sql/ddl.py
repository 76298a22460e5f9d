"""Statements that change the workspace: CREATE, DROP, ALTER TABLE SET TBLPROPERTIES, INSERT INTO, GRANT and REVOKE.

Reference: https://docs.databricks.com/aws/en/sql/language-manual/
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tracelake.spans import tables
from tracelake.testing.sql import translate
from tracelake.testing.sql.engine import Engine, find_table, full_name
from tracelake.testing.sql.results import Column, Result, texts
from tracelake.testing.sql.sqlerrors import SqlError, unimitated
from tracelake.testing.state import Securable
from tracelake.testing.unity.catalog import Catalog, GrantChange
from tracelake.testing.web.http import ApiError

if TYPE_CHECKING:
    import pyarrow as pa

# Delta's names of sqlglot's types.
_TYPES = {
    "BIGINT": "long",
    "BINARY": "binary",
    "BOOLEAN": "boolean",
    "DATE": "date",
    "DOUBLE": "double",
    "FLOAT": "float",
    "INT": "integer",
    "SMALLINT": "short",
    "TEXT": "string",
    "TIMESTAMPNTZ": "timestamp_ntz",
    "TIMESTAMPTZ": "timestamp",
    "TINYINT": "byte",
    "VARBINARY": "binary",
    "VARIANT": "variant",
}
_DEFAULT_DECIMAL = ("10", "0")
_QUOTED = r"`(?:[^`]|``)+`"
_NAME = rf"(?:{_QUOTED}|[\w-]+)(?:\.(?:{_QUOTED}|[\w-]+)){{0,2}}"
_GRANT = re.compile(
    rf"(?P<verb>GRANT|REVOKE)\s+(?P<privileges>[\w\s,]+?)\s+ON\s+"
    rf"(?:(?P<kind>METASTORE)|(?:(?P<what>CATALOG|SCHEMA|DATABASE|TABLE|VIEW)\s+)?(?P<name>{_NAME}))\s+"
    rf"(?:TO|FROM)\s+(?P<principal>{_QUOTED}|[\w.@-]+)",
    re.IGNORECASE,
)
_CATALOG = re.compile(
    rf"(?P<verb>CREATE|DROP)\s+CATALOG\s+(?P<if>IF\s+(?:NOT\s+)?EXISTS\s+)?(?P<name>{_NAME})"
    r"(?:\s+COMMENT\s+'(?P<comment>[^']*)')?(?P<cascade>\s+CASCADE|\s+RESTRICT)?",
    re.IGNORECASE,
)


class Ddl:
    """Changes a workspace in the name of a principal, with its rights."""

    def __init__(self, catalog: Catalog, engine: Engine) -> None:
        self._catalog = catalog
        self._engine = engine

    def grant(self, statement: str, principal: str, within: tuple[str, str]) -> Result:
        """Run GRANT or REVOKE.

        Raises:
            SqlError: it is not written as one.
            ApiError: it is refused.
        """
        match = _GRANT.fullmatch(statement)
        if match is None:
            raise SqlError(
                "PARSE_SYNTAX_ERROR", "Syntax error: expected privileges ON a securable TO or FROM a principal."
            )
        privileges = [" ".join(each.split()) for each in match["privileges"].split(",")]
        to = unquoted(match["principal"])
        is_grant = match["verb"].upper() == "GRANT"
        change = GrantChange(to, add=privileges) if is_grant else GrantChange(to, remove=privileges)
        securable = None if match["kind"] else self.securable(match["what"] or "TABLE", unquoted(match["name"]), within)
        self._catalog.change_grants(principal, securable, [change])
        return _nothing()

    def securable(self, kind: str, name: str, within: tuple[str, str]) -> Securable:
        """Return the catalog, schema, table or view of a name, of which parts may be left out.

        Raises:
            SqlError: TABLE_OR_VIEW_NOT_FOUND.
            ApiError: there is no such catalog or schema.
        """
        kind = kind.upper()
        if kind == "CATALOG":
            return self._catalog.find(name)
        if kind in {"SCHEMA", "DATABASE"}:
            return self._catalog.find(_schema_name(name, within))
        return find_table(self._catalog, name, within)

    def catalog(self, statement: str, principal: str) -> Result:
        """Run CREATE CATALOG or DROP CATALOG, which sqlglot does not parse.

        Raises:
            SqlError: it has clauses that are not imitated.
            ApiError: it is refused.
        """
        match = _CATALOG.fullmatch(statement)
        if match is None:
            raise unimitated(f"this form of {' '.join(statement.split()[:2]).upper()}")
        name = unquoted(match["name"])
        exists = name.lower() in self._catalog.store.state.catalogs
        if match["if"] and exists == (match["verb"].upper() == "CREATE"):
            return _nothing()
        if match["verb"].upper() == "CREATE":
            self._catalog.create_catalog(principal, name, comment=match["comment"] or "")
        else:
            self._catalog.drop(principal, name, force=(match["cascade"] or "").strip().upper() == "CASCADE")
        return _nothing()

    def create(self, tree: Any, principal: str, within: tuple[str, str]) -> Result:
        """Run CREATE SCHEMA, TABLE or VIEW.

        Raises:
            SqlError: it has what is not imitated.
            ApiError: it is refused.
        """
        kind = str(tree.args["kind"]).upper()
        clauses = _clauses(tree)
        if kind == "SCHEMA":
            self._create_schema(tree, principal, within, clauses)
        elif kind == "TABLE":
            self._create_table(tree, principal, within, clauses)
        elif kind == "VIEW":
            self._create_view(tree, principal, within, clauses)
        else:
            raise unimitated(f"CREATE {kind}")
        return _nothing()

    def _create_schema(self, tree: Any, principal: str, within: tuple[str, str], clauses: dict[str, Any]) -> None:
        name = _schema_name(_dotted(tree.this), within)
        if tree.args.get("exists") and name in self._catalog.store.state.schemas:
            return
        comment, properties = clauses.pop("comment", ""), clauses.pop("properties", {})
        _refuse(clauses, "CREATE SCHEMA")
        self._catalog.create_schema(principal, name, comment=comment, properties=properties)

    def _create_table(self, tree: Any, principal: str, within: tuple[str, str], clauses: dict[str, Any]) -> None:
        from sqlglot import exp

        if tree.args.get("replace") or tree.expression:
            raise unimitated("CREATE OR REPLACE TABLE" if tree.args.get("replace") else "CREATE TABLE AS SELECT")
        if not isinstance(tree.this, exp.Schema):
            raise unimitated("CREATE TABLE without columns")
        name = full_name(translate.name_of(tree.this.this), within)
        if tree.args.get("exists") and name in self._catalog.store.state.tables:
            return
        location, comment = clauses.pop("location", ""), clauses.pop("comment", "")
        properties = clauses.pop("properties", {})
        _refuse(clauses, "CREATE TABLE")
        schema = {"type": "struct", "fields": [_field(column) for column in tree.this.expressions]}
        self._catalog.create_table(
            principal,
            name,
            schema,
            table_type="EXTERNAL" if location else "MANAGED",
            location=location,
            properties=properties,
            comment=comment,
        )

    def _create_view(self, tree: Any, principal: str, within: tuple[str, str], clauses: dict[str, Any]) -> None:
        from sqlglot import exp

        if isinstance(tree.this, exp.Schema):
            raise unimitated("CREATE VIEW with a list of columns")
        name = full_name(translate.name_of(tree.this), within)
        existing = self._catalog.store.state.tables.get(name)
        if tree.args.get("exists") and existing:
            return
        if existing and existing.table_type != "VIEW":
            raise SqlError("EXPECT_VIEW_NOT_TABLE", f"CREATE VIEW expects a view, but `{name}` is a table.")
        comment, properties = clauses.pop("comment", ""), clauses.pop("properties", {})
        _refuse(clauses, "CREATE VIEW")
        query = tree.expression
        # Names mean the same in it wherever it is read from.
        for table in translate.tables_of(query):
            parts = full_name(translate.name_of(table), within).split(".")
            for key, part in zip(("catalog", "db", "this"), parts, strict=True):
                table.set(key, exp.to_identifier(part, quoted=True))
        definition = query.sql(dialect=translate.dialect())
        columns = self._engine.run(query, principal, within, row_limit=0).columns
        schema = {"type": "struct", "fields": [_result_field(column) for column in columns]}
        if tree.args.get("replace") and existing:
            self._catalog.drop(principal, name)
        self._catalog.create_table(
            principal,
            name,
            schema,
            table_type="VIEW",
            view_definition=definition,
            comment=comment,
            properties=properties,
        )

    def drop(self, tree: Any, principal: str, within: tuple[str, str]) -> Result:
        """Run DROP SCHEMA, TABLE or VIEW.

        Raises:
            SqlError: what it names is of another kind, or is not there.
            ApiError: it is refused.
        """
        kind = str(tree.args["kind"]).upper()
        if kind not in {"SCHEMA", "TABLE", "VIEW"}:
            raise unimitated(f"DROP {kind}")
        (target,) = tree.args.get("tables") or [tree.this]
        try:
            found = self.securable(kind, _dotted(target), within)
        except (SqlError, ApiError) as error:
            missing = isinstance(error, SqlError) or error.status == 404
            if tree.args.get("exists") and missing:
                return _nothing()
            raise
        is_view = getattr(found, "table_type", "") == "VIEW"
        if kind != "SCHEMA" and is_view != (kind == "VIEW"):
            raise SqlError(
                "WRONG_COMMAND_FOR_OBJECT_TYPE",
                f"DROP {kind} is not for {found.full_name}, a {'VIEW' if is_view else 'TABLE'}.",
            )
        self._catalog.drop(principal, found.full_name, force=bool(tree.args.get("cascade")))
        return _nothing()

    def alter(self, tree: Any, principal: str, within: tuple[str, str]) -> Result:
        """Run ALTER TABLE SET TBLPROPERTIES, where properties of the Delta table itself stay, or ADD COLUMN.

        Raises:
            SqlError: it is another ALTER.
            ApiError: it is refused.
        """
        from sqlglot import exp

        actions = tree.args.get("actions") or []
        added = [item for each in actions for item in (each.expressions if isinstance(each, exp.Schema) else [each])]
        if added and all(isinstance(each, exp.ColumnDef) for each in added):
            table = find_table(self._catalog, translate.name_of(tree.this), within)
            self._catalog.add_columns(principal, table, [_field(each) for each in added])
            return _nothing()
        sets = [each for each in actions if isinstance(each, exp.AlterSet)]
        found = [each for action in sets for each in action.find_all(exp.Property)]
        if not found or len(sets) != len(actions) or str(tree.args.get("kind")).upper() not in {"TABLE", "VIEW"}:
            raise unimitated("this form of ALTER")
        table = find_table(self._catalog, translate.name_of(tree.this), within)
        properties = {each.name: each.text("value") for each in found}
        self._catalog.update(principal, table.full_name, properties={**table.properties, **properties})
        return _nothing()

    def insert(self, tree: Any, principal: str, within: tuple[str, str]) -> Result:
        """Run INSERT INTO: rows of VALUES or of a query, by position or into the columns that are named.

        Raises:
            SqlError: it is another INSERT, or the rows do not fit.
            ApiError: it is refused.
        """
        import pyarrow as pa
        from sqlglot import exp

        if any(tree.args.get(key) for key in ("overwrite", "by_name", "partition", "where")):
            raise unimitated("INSERT other than INSERT INTO a table with VALUES or a query")
        target = tree.this.this if isinstance(tree.this, exp.Schema) else tree.this
        table = find_table(self._catalog, translate.name_of(target), within)
        self._catalog.access.require(principal, "MODIFY", table)
        if table.table_type not in {"MANAGED", "EXTERNAL"} or table.data_source_format != "DELTA":
            raise unimitated(f"INSERT into a table of the kind {table.table_type}")
        query = tree.expression
        if isinstance(query, exp.Values):
            query = exp.select("*").from_(query.copy())
        found = self._engine.run(query, principal, within).table
        schema = self._catalog.lakehouse.schema(table)
        named = [each.name for each in tree.this.expressions] if isinstance(tree.this, exp.Schema) else schema.names
        if len(named) != found.num_columns:
            raise SqlError(
                "INSERT_COLUMN_ARITY_MISMATCH",
                f"Cannot write to `{table.full_name}`: {found.num_columns} columns are given for {len(named)}.",
            )
        given = {name.lower(): found.column(index) for index, name in enumerate(named)}
        unknown = given.keys() - {name.lower() for name in schema.names}
        if unknown:
            raise SqlError(
                "UNRESOLVED_COLUMN.WITH_SUGGESTION", f"A column with name `{min(unknown)}` cannot be resolved."
            )
        columns = [_fitted(given.get(field.name.lower()), field, found.num_rows) for field in schema]
        rows = pa.Table.from_arrays(columns, schema=schema).combine_chunks().to_batches()
        for batch in rows:
            self._catalog.lakehouse.append(table, batch)
        counts = pa.table({"num_affected_rows": [found.num_rows], "num_inserted_rows": [found.num_rows]})
        return Result([Column(name, "BIGINT", "LONG") for name in counts.column_names], counts)


def unquoted(name: str) -> str:
    """Return a name without its backticks."""
    return re.sub(_QUOTED, lambda quoted: quoted[0][1:-1].replace("``", "`"), name)


def _nothing() -> Result:
    return texts([], [])


def _dotted(node: Any) -> str:
    return ".".join(
        part.name for part in (node.args.get("catalog"), node.args.get("db"), node.args.get("this")) if part
    )


def _schema_name(name: str, within: tuple[str, str]) -> str:
    return ".".join(full_name(f"{name}.x", within).split(".")[:2])


def _clauses(tree: Any) -> dict[str, Any]:
    """Return the clauses of a CREATE by what they say, those that are not known by their SQL."""
    from sqlglot import exp

    found: dict[str, Any] = {}
    for each in tree.args["properties"].expressions if tree.args.get("properties") else ():
        if isinstance(each, exp.SchemaCommentProperty):
            found["comment"] = each.name
        elif isinstance(each, exp.LocationProperty):
            found["location"] = each.name
        elif isinstance(each, exp.FileFormatProperty):
            if each.name.lower() != "delta":
                raise unimitated(f"USING {each.name.upper()}")
        elif type(each) is exp.Property:
            found.setdefault("properties", {})[each.name] = each.text("value")
        elif not isinstance(each, (exp.Cluster, exp.ClusteredByProperty, exp.PartitionedByProperty)) and (
            type(each).__name__ != "ClusterProperty"
        ):
            # Where rows are is not what a query sees: CLUSTER BY and PARTITIONED BY are taken, and change nothing.
            found[each.sql(dialect="databricks")] = each
    return found


def _refuse(clauses: Mapping[str, Any], statement: str) -> None:
    for clause in clauses:
        raise unimitated(f"{clause} of {statement}")


def _field(column: Any) -> dict[str, Any]:
    """Return the Delta field of a column of CREATE TABLE."""
    from sqlglot import exp

    if not isinstance(column, exp.ColumnDef) or column.args.get("kind") is None:
        raise unimitated(f"{column.sql(dialect='databricks')} of CREATE TABLE")
    nullable, metadata = True, {}
    for constraint in column.args.get("constraints") or ():
        kind = constraint.args["kind"]
        if isinstance(kind, exp.NotNullColumnConstraint) and not kind.args.get("allow_null"):
            nullable = False
        elif isinstance(kind, exp.CommentColumnConstraint):
            metadata = {"comment": kind.name}
        else:
            raise unimitated(f"{constraint.sql(dialect='databricks')} of a column")
    return {"name": column.name, "type": _delta_type(column.args["kind"]), "nullable": nullable, "metadata": metadata}


def _delta_type(kind: Any) -> Any:
    """Return Delta's type of one of sqlglot's."""
    name, parts = kind.this.value, kind.expressions
    if name == "DECIMAL":
        digits = [*(part.name for part in parts), *_DEFAULT_DECIMAL[len(parts) :]]
        return f"decimal({digits[0]},{digits[1]})"
    if name in {"ARRAY", "LIST"}:
        return {"type": "array", "elementType": _delta_type(parts[0]), "containsNull": True}
    if name == "MAP":
        key, value = parts
        return {
            "type": "map",
            "keyType": _delta_type(key),
            "valueType": _delta_type(value),
            "valueContainsNull": True,
        }
    if name == "STRUCT":
        return {"type": "struct", "fields": [_field(part) for part in parts]}
    if name not in _TYPES:
        raise unimitated(f"a column of the type {kind.sql(dialect='databricks')}")
    return _TYPES[name]


def _result_field(column: Column) -> dict[str, Any]:
    from sqlglot import exp

    void = column.type_name == "NULL"
    kind = "void" if void else _delta_type(exp.DataType.build(column.type_text, dialect="databricks"))
    return {"name": column.name, "type": kind, "nullable": True, "metadata": {}}


def _fitted(values: pa.ChunkedArray | None, field: pa.Field, count: int) -> pa.ChunkedArray:
    """Return the values of a result in the type of a table's column."""
    import pyarrow as pa

    if values is None:
        return _fitted(pa.chunked_array([pa.nulls(count)]), field, count)
    try:
        fitted = _variants(values, field) if tables.is_variant(field.type) else values.cast(field.type)
    except pa.ArrowException as error:
        raise SqlError("DATATYPE_MISMATCH", f"The column `{field.name}` cannot take the values: {error}.") from error
    if not field.nullable and fitted.null_count:
        raise SqlError("DELTA_NOT_NULL_CONSTRAINT_VIOLATED", f"NOT NULL constraint violated for column: {field.name}.")
    return fitted


def _variants(values: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    """Return VARIANTs in the type of a table's column, whose binaries are not null where the struct is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_null(values.type):
        values = values.cast(pa.struct([(child.name, child.type) for child in field.type]))
    chunks = [chunk.storage if isinstance(chunk.type, pa.BaseExtensionType) else chunk for chunk in values.chunks]
    if not all(tables.is_variant(chunk.type) for chunk in chunks):
        raise pa.ArrowTypeError(f"{values.type} is no VARIANT")
    return pa.chunked_array(
        [
            pa.StructArray.from_arrays(
                [pc.fill_null(chunk.field(child.name).cast(child.type), b"") for child in field.type],
                fields=list(field.type),
                mask=chunk.is_null(),
            )
            for chunk in chunks
        ],
        field.type,
    )
