"""What stands in a query in Databricks SQL and means something else in DuckDB, or is written in another way."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from tracelake.testing.sql import functions
from tracelake.testing.sql.sqlerrors import SqlError, unimitated
from tracelake.testing.sql.timepatterns import directives

_UNITS = {
    unit + s: unit
    for unit in ("microsecond", "millisecond", "second", "minute", "hour", "day", "week", "month", "quarter", "year")
    for s in ("", "s")
}
_INTEGERS = {"TINYINT", "SMALLINT", "INT", "BIGINT"}
_TEXTS = {"TEXT", "VARCHAR", "CHAR"}
# Casts to these are DuckDB's.
_PLAIN_CASTS = {
    "DOUBLE",
    "FLOAT",
    "DECIMAL",
    "BOOLEAN",
    "DATE",
    "TIMESTAMPTZ",
    "TIMESTAMPNTZ",
    "VARIANT",
    "ARRAY",
    "MAP",
}
_CAST_FUNCTIONS = {
    *("bigint", "boolean", "date", "decimal", "double", "float", "int", "smallint", "string", "timestamp", "tinyint"),
}


# Functions that need no parentheses.
_WORDS = {"current_date", "current_timestamp", "current_user", "session_user", "user"}


class Rewriting:
    """Rewrites nodes whose children are rewritten already.

    Attributes:
        macros: those that the rewritten query calls.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.macros: set[str] = set()
        self._variables = variables

    def of(self, node: Any) -> Any:
        """Return what DuckDB has for a node, the node itself if that is the same."""
        rewrite = getattr(self, f"_{type(node).__name__.lower()}", None)
        return rewrite(node) if rewrite else node

    def _macro(self, name: str, *arguments: Any) -> Any:
        from sqlglot import exp

        self.macros.add(name)
        return exp.Anonymous(this=functions.macro(name), expressions=[each.copy() for each in arguments])

    def _column(self, node: Any) -> Any:
        # Without parentheses it is parsed as a column.
        name = node.name.lower()
        if not is_word(node) or node.this.args.get("quoted"):
            return node
        if name in self._variables:
            return _text(self._variables[name])
        return self._macro(name) if name in functions.MACROS else _call(functions.SAME[name])

    def _anonymous(self, node: Any) -> Any:
        from sqlglot import exp

        name = str(node.this).lower()
        name = functions.ALIASES.get(name, name)
        own = getattr(self, f"_function_{name}", None)
        if own is not None:
            return own(node, node.expressions)
        if isinstance(node.parent, exp.Lateral):
            return node
        if name in self._variables and not node.expressions:
            return _text(self._variables[name])
        if name in _CAST_FUNCTIONS and len(node.expressions) == 1:
            return self._cast(
                exp.Cast(this=node.expressions[0].copy(), to=exp.DataType.build(name, dialect="databricks"))
            )
        if name in functions.MACROS:
            return self._macro(name, *node.expressions)
        if name in functions.SAME:
            return _call(functions.SAME[name], *node.expressions)
        raise unimitated(f"the function {name}")

    # --- values ------------------------------------------------------------------------------------------------------

    def _jsonextract(self, node: Any) -> Any:
        from sqlglot import exp

        parent = node.parent
        while isinstance(parent, exp.Paren):
            parent = parent.parent
        if isinstance(parent, (exp.Predicate, exp.Ordered, exp.Group)) and not isinstance(parent, exp.Is):
            raise unimitated("a path that is compared or sorted by without a cast. Cast it, as in x:a::string")
        return self._path(node.this, node.expression, in_cast=isinstance(parent, exp.Cast))

    def _path(self, value: Any, path: Any, *, in_cast: bool) -> Any:
        from sqlglot import exp

        found = self._macro("variant_or_json" if in_cast else "variant", value)
        for part in path.expressions[1:]:
            if isinstance(part, exp.JSONPathKey):
                found = _call("variant_extract", found, _text(str(part.this)))
            elif isinstance(part, exp.JSONPathSubscript) and isinstance(part.this, int) and part.this >= 0:
                # DuckDB 1 takes no index of another type.
                number = exp.Cast(this=exp.Literal.number(part.this + 1), to=exp.DataType.build("uint"))
                found = _call("variant_extract", found, number)
            else:
                raise unimitated("a path with another part than keys and indexes")
        return found

    def _bracket(self, node: Any) -> Any:
        if len(node.expressions) != 1:
            raise unimitated("several values in brackets")
        key = node.expressions[0]
        # A text is a key of a MAP or VARIANT, all else the index of an ARRAY.
        return node if key.is_string else self._macro("index", node.this, key)

    def _cast(self, node: Any, *, is_try: bool = False) -> Any:
        from sqlglot import exp

        kind = node.to.this.value if hasattr(node.to.this, "value") else str(node.to.this)
        if kind in _TEXTS:
            return self._macro("to_string", node.this)
        if kind in _INTEGERS:
            whole = self._macro("try_to_bigint" if is_try else "to_bigint", node.this)
            return (exp.TryCast if is_try else exp.Cast)(this=whole, to=node.to.copy())
        if kind not in _PLAIN_CASTS:
            raise unimitated(f"a cast to {node.to.sql(dialect='databricks')}")
        return node

    def _trycast(self, node: Any) -> Any:
        return self._cast(node, is_try=True)

    def _comparison(self, node: Any) -> Any:
        from sqlglot import exp

        for key in ("this", "expression"):
            if isinstance(side := node.args.get(key), exp.Bracket):
                node.set(key, self._macro("comparable", side))
        return node

    _eq = _neq = _gt = _gte = _lt = _lte = _nullsafeeq = _in = _between = _comparison

    def _sub(self, node: Any) -> Any:
        return self._macro("minus", node.this, node.expression)

    def _div(self, node: Any) -> Any:
        return self._macro("divide", node.this, node.expression)

    def _mod(self, node: Any) -> Any:
        return self._macro("mod", node.this, node.expression)

    def _intdiv(self, node: Any) -> Any:
        return self._macro("intdiv", node.this, node.expression)

    def _dpipe(self, node: Any) -> Any:
        from sqlglot import exp

        return exp.DPipe(this=self._string(node.this), expression=self._string(node.expression))

    def _concat(self, node: Any) -> Any:
        # Texts one after the other are one.
        return self._function_concat(node, node.expressions)

    def _string(self, node: Any) -> Any:
        from sqlglot import exp

        return node.copy() if node.is_string or isinstance(node, exp.DPipe) else self._macro("to_string", node)

    def _like(self, node: Any) -> Any:
        from sqlglot import exp

        if isinstance(node.parent, exp.Escape):
            return node
        return exp.Escape(this=node.copy(), expression=_text("\\"))

    _ilike = _like

    # --- functions ---------------------------------------------------------------------------------------------------

    def _function_concat(self, _: Any, arguments: list[Any]) -> Any:
        from sqlglot import exp

        texts = [self._string(each) for each in arguments]
        return functools.reduce(lambda left, right: exp.DPipe(this=left, expression=right), texts, _text(""))

    def _function_concat_ws(self, _: Any, arguments: list[Any]) -> Any:
        return _call("concat_ws", *map(self._string, arguments))

    def _function_count(self, node: Any, arguments: list[Any]) -> Any:
        if len(arguments) != 1:
            raise unimitated("count of several values without DISTINCT")
        return node

    def _function_collect_list(self, _: Any, arguments: list[Any]) -> Any:
        return self._list(arguments)

    _function_array_agg = _function_collect_list

    def _function_collect_set(self, _: Any, arguments: list[Any]) -> Any:
        from sqlglot import exp

        return self._list([exp.Distinct(expressions=[arguments[0].copy()])])

    def _list(self, arguments: list[Any]) -> Any:
        from sqlglot import exp

        value = arguments[0].expressions[0] if isinstance(arguments[0], exp.Distinct) else arguments[0]
        there = exp.Where(this=exp.Not(this=exp.Is(this=value.copy(), expression=exp.Null())))
        # Of no value it is an empty array, and not NULL.
        return _call("coalesce", exp.Filter(this=_call("list", *arguments), expression=there), exp.Array())

    def _function_approx_count_distinct(self, _: Any, arguments: list[Any]) -> Any:
        from sqlglot import exp

        return _call("count", exp.Distinct(expressions=[arguments[0].copy()]))

    def _function_exists(self, _: Any, arguments: list[Any]) -> Any:
        from sqlglot import exp

        return exp.Paren(
            this=exp.GT(this=_call("len", _call("list_filter", *arguments)), expression=exp.Literal.number(0))
        )

    def _function_array(self, _: Any, arguments: list[Any]) -> Any:
        return _call("list_value", *arguments)

    def _function_map(self, _: Any, arguments: list[Any]) -> Any:
        return _call("map", _call("list_value", *arguments[::2]), _call("list_value", *arguments[1::2]))

    def _function_named_struct(self, _: Any, arguments: list[Any]) -> Any:
        return self._struct([(key.name, value) for key, value in zip(arguments[::2], arguments[1::2], strict=True)])

    def _function_struct(self, _: Any, arguments: list[Any]) -> Any:
        from sqlglot import exp

        named = (exp.Alias, exp.Column)
        return self._struct(
            [
                (each.alias_or_name if isinstance(each, named) else f"col{number}", each.unalias())
                for number, each in enumerate(arguments, 1)
            ]
        )

    def _struct(self, fields: list[tuple[str, Any]]) -> Any:
        from sqlglot import exp

        return _call(
            "struct_pack",
            *(
                exp.PropertyEQ(this=exp.to_identifier(name, quoted=True), expression=value.copy())
                for name, value in fields
            ),
        )

    def _function_iff(self, _: Any, arguments: list[Any]) -> Any:
        from sqlglot import exp

        condition, yes, no = arguments
        return exp.If(this=condition.copy(), true=yes.copy(), false=no.copy())

    def _function_element_at(self, _: Any, arguments: list[Any]) -> Any:
        from sqlglot import exp

        value, key = arguments
        if not key.is_string:
            raise unimitated("element_at with another key than a string literal")
        return exp.Bracket(this=value.copy(), expressions=[key.copy()])

    def _function_variant_get(self, _: Any, arguments: list[Any], *, is_try: bool = False) -> Any:
        from sqlglot import exp

        value, path, *kind = arguments
        if not path.is_string or not all(each.is_string for each in kind):
            raise unimitated("variant_get with a path or a type that is not a literal")
        found = self._path(value, _json_path(path.name), in_cast=False)
        to = exp.DataType.build(kind[0].name if kind else "variant", dialect="databricks")
        return self._cast((exp.TryCast if is_try else exp.Cast)(this=found, to=to), is_try=is_try)

    def _function_try_variant_get(self, node: Any, arguments: list[Any]) -> Any:
        return self._function_variant_get(node, arguments, is_try=True)

    def _function_from_json(self, _: Any, arguments: list[Any]) -> Any:
        from sqlglot import exp

        json, kind = arguments
        if "".join(kind.name.split()).lower() != "map<string,string>":
            raise unimitated("from_json with another schema than 'MAP<STRING, STRING>'")
        parsed = exp.TryCast(this=json.copy(), to=exp.DataType.build("json"))
        return exp.Cast(this=parsed, to=exp.DataType.build("map<string, string>", dialect="databricks"))

    # --- times -------------------------------------------------------------------------------------------------------

    def _function_date_add(self, _: Any, arguments: list[Any]) -> Any:
        from sqlglot import exp

        if len(arguments) == 2:
            return self._macro("date_add", *arguments)
        unit, count, time = arguments
        step = exp.Cast(this=exp.Literal.string(f"1 {_unit(unit)}"), to=exp.DataType.build("interval"))
        return exp.Paren(
            this=exp.Add(
                this=_as_timestamp(time), expression=exp.Mul(this=exp.Paren(this=count.copy()), expression=step)
            )
        )

    _function_dateadd = _function_date_add
    _function_timestampadd = _function_date_add

    def _function_datediff(self, _: Any, arguments: list[Any]) -> Any:
        if len(arguments) == 2:
            return self._macro("datediff", *arguments)
        unit, start, end = arguments
        return _call("datesub", _text(_unit(unit)), _as_timestamp(start), _as_timestamp(end))

    _function_timestampdiff = _function_datediff

    def _function_date_format(self, _: Any, arguments: list[Any]) -> Any:
        time, pattern = arguments
        return _call("strftime", _as_timestamp(time), _text(directives(pattern)))

    def _function_from_unixtime(self, _: Any, arguments: list[Any]) -> Any:
        if len(arguments) == 1:
            return self._macro("from_unixtime", *arguments)
        whole = _call("trunc", arguments[0])
        return _call("strftime", _call("to_timestamp", whole), _text(directives(arguments[1])))

    def _function_to_timestamp(self, _: Any, arguments: list[Any]) -> Any:
        if len(arguments) == 1:
            return self._macro("to_timestamp", *arguments)
        return _as_timestamp(_call("strptime", arguments[0], _text(directives(arguments[1]))))

    def _function_to_date(self, _: Any, arguments: list[Any]) -> Any:
        from sqlglot import exp

        if len(arguments) == 1:
            return self._macro("to_date", *arguments)
        parsed = _call("strptime", arguments[0], _text(directives(arguments[1])))
        return exp.Cast(this=parsed, to=exp.DataType.build("date"))

    # --- rows --------------------------------------------------------------------------------------------------------

    def _function_explode(self, node: Any, arguments: list[Any]) -> Any:
        from sqlglot import exp

        if isinstance(node.parent, exp.Lateral):
            return node
        if not isinstance(node.parent, exp.Alias) or not isinstance(node.parent.parent, exp.Select):
            raise unimitated("explode elsewhere than as a column of its own")
        return _call("unnest", self._macro("array_of", arguments[0]))

    def _function_posexplode(self, node: Any, _: list[Any]) -> Any:
        from sqlglot import exp

        if isinstance(node.parent, exp.Lateral):
            return node
        raise unimitated("posexplode elsewhere than in LATERAL")

    def _function_range(self, node: Any, _: list[Any]) -> Any:
        from sqlglot import exp

        if isinstance(node.parent, exp.Table):
            return node
        raise unimitated("the function range")

    def _table(self, node: Any) -> Any:
        from sqlglot import exp

        if isinstance(node.this, exp.Identifier):
            return node
        if not isinstance(node.this, exp.Anonymous) or node.this.name.lower() != "range":
            raise unimitated(f"the table function {excerpt(node.this)}")
        alias = node.args.get("alias") or exp.TableAlias(this=exp.to_identifier("range"))
        if not alias.columns:
            alias.set("columns", [exp.to_identifier("id", quoted=True)])
        node.set("alias", alias)
        return node

    def _values(self, node: Any) -> Any:
        from sqlglot import exp

        alias = node.args.get("alias") or exp.TableAlias(this=exp.to_identifier("values", quoted=True))
        if not alias.columns:
            first = node.expressions[0]
            width = len(first.expressions) if isinstance(first, exp.Tuple) else 1
            alias.set("columns", [exp.to_identifier(f"col{number}", quoted=True) for number in range(1, width + 1)])
        node.set("alias", alias)
        return node

    def _select(self, node: Any) -> Any:
        """LATERAL VIEWs are joins; the one of SQL's standard is a Lateral in a join already."""
        from sqlglot import exp

        for lateral in node.args.get("laterals") or ():
            side = {"side": "LEFT", "on": exp.true()} if lateral.args.get("outer") else {"kind": "CROSS"}
            joined = lateral.copy()
            joined.set("outer", None)
            node.append("joins", exp.Join(this=joined, **side))
        node.set("laterals", None)
        return node

    def _lateral(self, node: Any) -> Any:
        from sqlglot import exp

        call = node.this
        name = call.name.lower() if isinstance(call, exp.Anonymous) else ""
        if name.endswith("_outer"):
            raise unimitated(f"{name}; say LATERAL VIEW OUTER")
        if name not in {"explode", "posexplode"}:
            raise unimitated(f"LATERAL {name or excerpt(call)}")
        alias = node.args.get("alias")
        names = [column.name for column in alias.columns] if alias else []
        value = call.expressions[0]
        array = self._macro("array_of", value)
        if name == "explode" and len(names) == 2:
            columns = [_call("map_keys", value), _call("map_values", value)]
        elif name == "explode":
            columns, names = [array], names or ["col"]
        else:
            columns, names = [_call("range", _call("len", value)), array], names or ["pos", "col"]
        if len(names) != len(columns):
            raise unimitated(f"{name} with {len(names)} columns")
        rows = exp.select(
            *(
                exp.alias_(_call("unnest", column), column_name, quoted=True)
                for column, column_name in zip(columns, names, strict=True)
            )
        )
        table = alias.this if alias and alias.this else exp.to_identifier(f"lateral_{id(node)}")
        return exp.Lateral(
            this=exp.Subquery(this=rows), alias=exp.TableAlias(this=table.copy()), outer=node.args.get("outer")
        )


def _call(name: str, *arguments: Any) -> Any:
    from sqlglot import exp

    return exp.Anonymous(this=name, expressions=[each.copy() for each in arguments])


def _text(value: str) -> Any:
    from sqlglot import exp

    return exp.Literal.string(value)


def _as_timestamp(value: Any) -> Any:
    from sqlglot import exp

    return exp.Cast(this=value.copy(), to=exp.DataType.build("timestamptz"))


def _unit(node: Any) -> str:
    unit = _UNITS.get(node.name.lower())
    if unit is None:
        raise unimitated(f"the unit {node.name} of time")
    return unit


def _json_path(path: str) -> Any:
    """Return the path of variant_get, as `$.a[0]['b c']`."""
    from sqlglot import jsonpath
    from sqlglot.errors import SqlglotError

    try:
        return jsonpath.parse(path)
    except SqlglotError as error:
        raise SqlError(
            "INVALID_VARIANT_GET_PATH", f"The path `{path}` is not a valid variant extraction path."
        ) from error


def is_word(node: Any) -> bool:
    """Say whether a column is none, but one of the functions that are called without parentheses."""
    return node.name.lower() in _WORDS and not node.args.get("table") and type(node).__name__ == "Column"


def excerpt(node: Any) -> str:
    """Return the beginning of the SQL of a node, for a message."""
    text = str(node.sql(dialect="databricks"))
    return text if len(text) <= 60 else f"{text[:60]}..."
