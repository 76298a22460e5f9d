"""The functions of Databricks SQL that the engine has, each as DuckDB has it or as SQL of DuckDB's.

Reference: https://docs.databricks.com/aws/en/sql/language-manual/sql-ref-functions-builtin
A function that is in none of these tables is refused by its name, so that none answers what Databricks would not.
"""

from __future__ import annotations

from collections.abc import Iterable

# The same in DuckDB, by name.
_SAME = """
    abs avg bool_and bool_or coalesce contains cos count count_if cume_dist degrees dense_rank exp first first_value
    flatten greatest lag last last_value lead least left ln log10 log2 lower lpad ltrim make_date map_entries
    map_from_entries map_keys map_values max md5 median min now nth_value ntile nullif percent_rank pi pow radians
    rank repeat replace reverse right row_number rpad rtrim sign sin split_part sqrt stddev stddev_pop stddev_samp
    sum tan trim unhex upper var_pop var_samp variance
"""
# The same, by the name that it has in DuckDB. Where Databricks gives an approximation, this is exact.
SAME = {
    **{name: name for name in _SAME.split()},
    "any": "bool_or",
    "any_value": "first",
    "approx_percentile": "quantile_disc",
    "array_contains": "list_contains",
    "array_distinct": "list_distinct",
    "array_max": "list_max",
    "array_min": "list_min",
    "current_timestamp": "now",
    "endswith": "ends_with",
    "every": "bool_and",
    "filter": "list_filter",
    "ifnull": "coalesce",
    "lcase": "lower",
    "max_by": "arg_max_null",
    "mean": "avg",
    "min_by": "arg_min_null",
    "nvl": "coalesce",
    "percentile": "quantile_cont",
    "percentile_approx": "quantile_disc",
    "power": "pow",
    "regexp_like": "regexp_matches",
    "some": "bool_or",
    "startswith": "starts_with",
    "std": "stddev",
    "transform": "list_transform",
    "ucase": "upper",
}

_T = "TIMESTAMPTZ"
_BY_ZERO = (
    "error('[DIVIDE_BY_ZERO] Division by zero. Use `try_divide` to tolerate divisor being 0 and return NULL instead.')"
)
_MALFORMED = (
    "error('[CAST_INVALID_INPUT] The value ''' || CAST(x AS VARCHAR) || ''' of the type \"STRING\" cannot be cast to "
    '"BIGINT" because it is malformed. Correct the value as per the syntax, or change its target type. Use '
    "`try_cast` to tolerate malformed input and return NULL instead.')"
)


def _unimitated(what: str) -> str:
    return f"error('[UNSUPPORTED_FEATURE] The mocked workspace does not imitate {what}.')"


def _to_bigint(malformed: str) -> str:
    # DuckDB rounds where Databricks truncates, and takes '1.5' for an integer.
    return (
        "(x) AS CASE WHEN CAST(x AS VARCHAR) IS NULL THEN NULL "
        "WHEN typeof(x) = 'BOOLEAN' THEN CASE CAST(x AS VARCHAR) WHEN 'true' THEN 1 ELSE 0 END "
        "WHEN typeof(x) LIKE 'TIMESTAMP WITH%' THEN CAST(floor(epoch(CAST(CAST(x AS VARCHAR) AS TIMESTAMPTZ))) "
        "AS BIGINT) "
        "WHEN regexp_full_match(CAST(x AS VARCHAR), '\\s*[+-]?\\d+\\s*') THEN CAST(CAST(x AS VARCHAR) AS BIGINT) "
        "WHEN typeof(x) LIKE 'DECIMAL%' THEN CAST(split_part(CAST(x AS VARCHAR), '.', 1) AS BIGINT) "
        "WHEN typeof(x) IN ('DOUBLE', 'FLOAT') OR (typeof(x) = 'VARIANT' "
        "AND variant_typeof(CAST(x AS VARIANT)) <> 'VARCHAR') "
        f"THEN CAST(trunc(CAST(CAST(x AS VARCHAR) AS DOUBLE)) AS BIGINT) ELSE {malformed} END"
    )


# Made of the parameters by SQL of DuckDB; several where the number of parameters differs.
MACROS: dict[str, tuple[str, ...]] = {
    "add_months": ("(d, n) AS CAST(d + to_months(CAST(n AS INTEGER)) AS DATE)",),
    "array_join": ("(a, s) AS array_to_string(list_filter(a, lambda e : e IS NOT NULL), s)",),
    "array_size": ("(a) AS CAST(len(a) AS INTEGER)",),
    "ceil": ("(x) AS CAST(ceil(x) AS BIGINT)",),
    "char_length": ("(s) AS CAST(length(s) AS INTEGER)",),
    "charindex": ("(part, s) AS CAST(instr(s, part) AS INTEGER)",),
    "curdate": ("() AS CAST(now() AS DATE)",),
    "current_date": ("() AS CAST(now() AS DATE)",),
    "date_add": ("(d, n) AS CAST(d AS DATE) + CAST(n AS INTEGER)",),
    "date_from_unix_date": ("(n) AS DATE '1970-01-01' + CAST(n AS INTEGER)",),
    "date_sub": ("(d, n) AS CAST(d AS DATE) - CAST(n AS INTEGER)",),
    "date_trunc": (f"(unit, t) AS CAST(date_trunc(unit, CAST(t AS {_T})) AS {_T})",),
    "datediff": ("(b, a) AS CAST(date_diff('day', CAST(a AS DATE), CAST(b AS DATE)) AS INTEGER)",),
    "day": ("(d) AS CAST(day(CAST(d AS DATE)) AS INTEGER)",),
    "dayofweek": ("(d) AS CAST(dayofweek(CAST(d AS DATE)) + 1 AS INTEGER)",),
    "dayofyear": ("(d) AS CAST(dayofyear(CAST(d AS DATE)) AS INTEGER)",),
    "divide": (f"(a, b) AS CASE WHEN b = 0 THEN {_BY_ZERO} ELSE a / b END",),
    "floor": ("(x) AS CAST(floor(x) AS BIGINT)",),
    "from_unixtime": ("(n) AS strftime(make_timestamptz(CAST(trunc(n) AS BIGINT) * 1000000), '%Y-%m-%d %H:%M:%S')",),
    "get": ("(a, i) AS CASE WHEN i >= 0 THEN a[i + 1] END",),
    "get_json_object": (
        "(s, path) AS CASE WHEN json_valid(CAST(s AS VARCHAR)) THEN json_extract_string(CAST(s AS VARCHAR), path) END",
    ),
    "hour": (f"(t) AS CAST(hour(CAST(t AS {_T})) AS INTEGER)",),
    "initcap": (
        "(s) AS array_to_string(list_transform(string_split(s, ' '), "
        "lambda w : upper(left(w, 1)) || lower(substring(w, 2))), ' ')",
    ),
    "instr": ("(s, part) AS CAST(instr(s, part) AS INTEGER)",),
    "intdiv": (f"(a, b) AS CASE WHEN b = 0 THEN {_BY_ZERO} ELSE CAST(trunc(a // b) AS BIGINT) END",),
    "isnotnull": ("(x) AS x IS NOT NULL",),
    "isnull": ("(x) AS x IS NULL",),
    "last_day": ("(d) AS last_day(CAST(d AS DATE))",),
    "len": ("(s) AS CAST(length(s) AS INTEGER)",),
    "length": ("(s) AS CAST(length(s) AS INTEGER)",),
    "locate": ("(part, s) AS CAST(instr(s, part) AS INTEGER)",),
    "log": ("(base, x) AS ln(x) / ln(base)", "(x) AS ln(x)"),
    "map_contains_key": ("(m, k) AS list_contains(map_keys(m), k)",),
    "minute": (f"(t) AS CAST(minute(CAST(t AS {_T})) AS INTEGER)",),
    "mod": (f"(a, b) AS CASE WHEN b = 0 THEN {_BY_ZERO} ELSE a % b END",),
    "month": ("(d) AS CAST(month(CAST(d AS DATE)) AS INTEGER)",),
    "nvl2": ("(x, a, b) AS CASE WHEN x IS NOT NULL THEN a ELSE b END",),
    "parse_json": ("(s) AS CAST(CAST(s AS JSON) AS VARIANT)",),
    "quarter": ("(d) AS CAST(quarter(CAST(d AS DATE)) AS INTEGER)",),
    "regexp_count": ("(s, p) AS CAST(len(regexp_extract_all(s, p)) AS INTEGER)",),
    "regexp_extract": ("(s, p) AS regexp_extract(s, p, 1)", "(s, p, i) AS regexp_extract(s, p, i)"),
    "regexp_replace": ("(s, p, r) AS regexp_replace(s, p, r, 'g')",),
    "round": ("(x) AS round(x)", "(x, n) AS round(x, n)"),
    "second": (f"(t) AS CAST(floor(second(CAST(t AS {_T}))) AS INTEGER)",),
    "sha2": (
        "(s, bits) AS CASE WHEN bits IN (0, 256) THEN sha256(s) "
        f"ELSE {_unimitated('sha2 of another length than 256 bits')} END",
    ),
    "size": ("(a) AS CAST(len(a) AS INTEGER)",),
    "slice": ("(a, start, length) AS list_slice(a, start, start + length - 1)",),
    "sort_array": (
        "(a) AS list_sort(a, 'ASC', 'NULLS FIRST')",
        "(a, up) AS CASE WHEN up THEN list_sort(a, 'ASC', 'NULLS FIRST') ELSE list_sort(a, 'DESC', 'NULLS LAST') END",
    ),
    "substring": (
        "(s, start) AS substring(s, CASE WHEN start = 0 THEN 1 ELSE start END)",
        "(s, start, n) AS substring(s, CASE WHEN start = 0 THEN 1 ELSE start END, n)",
    ),
    "timestamp_micros": ("(n) AS make_timestamptz(CAST(n AS BIGINT))",),
    "timestamp_millis": ("(n) AS make_timestamptz(CAST(n AS BIGINT) * 1000)",),
    "timestamp_seconds": (f"(n) AS CAST(to_timestamp(n) AS {_T})",),
    "to_date": ("(x) AS CAST(x AS DATE)",),
    "to_timestamp": (f"(x) AS CAST(x AS {_T})",),
    "to_unix_timestamp": (f"(t) AS CAST(floor(epoch(CAST(t AS {_T}))) AS BIGINT)",),
    "unix_date": ("(d) AS CAST(date_diff('day', DATE '1970-01-01', CAST(d AS DATE)) AS INTEGER)",),
    "unix_micros": (f"(t) AS epoch_us(CAST(t AS {_T}))",),
    "unix_millis": (f"(t) AS epoch_ms(CAST(t AS {_T}))",),
    "unix_seconds": (f"(t) AS CAST(floor(epoch(CAST(t AS {_T}))) AS BIGINT)",),
    "unix_timestamp": (
        "() AS CAST(floor(epoch(now())) AS BIGINT)",
        f"(t) AS CAST(floor(epoch(CAST(t AS {_T}))) AS BIGINT)",
    ),
    "uuid": ("() AS CAST(uuid() AS VARCHAR)",),
    "weekday": ("(d) AS CAST(isodow(CAST(d AS DATE)) - 1 AS INTEGER)",),
    "weekofyear": ("(d) AS CAST(weekofyear(CAST(d AS DATE)) AS INTEGER)",),
    "year": ("(d) AS CAST(year(CAST(d AS DATE)) AS INTEGER)",),
    # What operators become. An index of an array counts from 0.
    "index": (
        "(x, i) AS CASE WHEN i < 0 OR i >= len(x) THEN error('[INVALID_ARRAY_INDEX] The index ' || i || ' is out of "
        "bounds. The array has ' || len(x) || ' elements. Use the SQL function `get()` to tolerate accessing element "
        "at invalid index and return NULL instead.') ELSE x[i + 1] END",
    ),
    "minus": (
        "(a, b) AS CASE WHEN typeof(a) = 'DATE' AND typeof(b) = 'DATE' "
        f"THEN {_unimitated('an interval between dates; say datediff')} ELSE a - b END",
    ),
    # Databricks compares no VARIANT.
    "comparable": (
        "(x) AS CASE WHEN typeof(x) = 'VARIANT' THEN error('[DATATYPE_MISMATCH] A VARIANT cannot be compared. Cast "
        "it, as in x[''a'']::string.') ELSE x END",
    ),
    # What a path goes into: a VARIANT; in a cast also JSON text, of which Databricks gives text.
    "variant": (
        "(x) AS CASE WHEN typeof(x) = 'VARIANT' THEN CAST(x AS VARIANT) ELSE error('[UNSUPPORTED_FEATURE] The mocked "
        "workspace does not imitate a path into a value of type ' || typeof(x) || ' that is not cast. Cast it, as in "
        "x:a::string.') END",
    ),
    "variant_or_json": (
        "(x) AS CASE WHEN typeof(x) = 'VARIANT' THEN CAST(x AS VARIANT) WHEN typeof(x) = 'VARCHAR' "
        "THEN CAST(CAST(CAST(x AS VARCHAR) AS JSON) AS VARIANT) ELSE error('[DATATYPE_MISMATCH] A path goes into a "
        "VARIANT or a STRING, not into a value of type ' || typeof(x) || '.') END",
    ),
    "array_of": (f"(x) AS CASE WHEN typeof(x) LIKE '%[]' THEN x ELSE {_unimitated('explode of a MAP here')} END",),
    "to_bigint": (_to_bigint(_MALFORMED),),
    "try_to_bigint": (_to_bigint("NULL"),),
    "to_string": (
        "(x) AS CASE WHEN typeof(x) = 'VARIANT' THEN CASE WHEN variant_typeof(CAST(x AS VARIANT)) LIKE 'OBJECT%' "
        "OR variant_typeof(CAST(x AS VARIANT)) LIKE 'ARRAY%' THEN CAST(CAST(CAST(x AS VARIANT) AS JSON) AS VARCHAR) "
        "ELSE CAST(x AS VARCHAR) END "
        "WHEN typeof(x) LIKE 'TIMESTAMP WITH%' THEN CAST(CAST(CAST(CAST(x AS VARCHAR) AS TIMESTAMPTZ) AS TIMESTAMP) "
        "AS VARCHAR) "
        "WHEN typeof(x) IN ('DOUBLE', 'FLOAT') AND abs(TRY_CAST(CAST(x AS VARCHAR) AS DOUBLE)) NOT BETWEEN 1e-3 AND "
        f"9999999 AND CAST(x AS VARCHAR) NOT IN ('0.0', '-0.0') THEN {_unimitated('the text of such a DOUBLE')} "
        "WHEN typeof(x) LIKE 'MAP(%' OR typeof(x) LIKE 'STRUCT(%' OR typeof(x) LIKE '%[]' OR typeof(x) IN ('BLOB', "
        f"'INTERVAL') THEN {_unimitated('a cast of a complex type, BINARY or INTERVAL to STRING')} "
        "ELSE CAST(x AS VARCHAR) END",
    ),
    # Databricks leaves null fields of a STRUCT out, and writes times another way.
    "to_json": (
        "(x) AS CASE WHEN typeof(x) = 'VARIANT' THEN CAST(CAST(CAST(x AS VARIANT) AS JSON) AS VARCHAR) "
        "WHEN (typeof(x) LIKE 'MAP(%' OR typeof(x) LIKE '%[]') "
        "AND NOT regexp_matches(typeof(x), 'STRUCT|TIME|VARIANT|BLOB') THEN CAST(to_json(x) AS VARCHAR) "
        f"ELSE {_unimitated('to_json of another type than VARIANT, MAP and ARRAY of simple ones')} END",
    ),
    "try_divide": ("(a, b) AS CASE WHEN b <> 0 THEN a / b END",),
    "try_parse_json": ("(s) AS CAST(TRY_CAST(s AS JSON) AS VARIANT)",),
}
# Other names of the same.
ALIASES = {
    "cardinality": "size",
    "character_length": "char_length",
    "date_diff": "datediff",
    "ceiling": "ceil",
    "dayofmonth": "day",
    "substr": "substring",
}
_PREFIX = "databricks_"


def macro(name: str) -> str:
    """Return the name that the macro of a function has in DuckDB."""
    return _PREFIX + name


def definitions(names: Iterable[str]) -> list[str]:
    """Return the statements that make the macros of functions."""
    return [f"CREATE TEMP MACRO {macro(name)}{', '.join(MACROS[name])}" for name in sorted(names)]
