"""Span tables in Spark: `spans` and `traces` as DataFrames, for tables and questions that one machine is too small for.

Both take the session of Databricks, of a Spark of one's own with Delta Lake 4, or of Spark Connect; whoever has one has
pyspark, so it is no dependency here. Nothing is run before the DataFrame is asked for something.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from tracelake.destinations.annotation_table import annotations_name, annotations_table
from tracelake.destinations.base import Destination
from tracelake.destinations.delta import DeltaDestination
from tracelake.destinations.mlflow_trace import (
    CLIENT_REQUEST_ID,
    EXPERIMENT,
    MAX_PREVIEW,
    METADATA_PREFIX,
    PREVIEWS,
    STATE,
    TAG_PREFIX,
)
from tracelake.destinations.targets import Target
from tracelake.destinations.unity.destination import UnityCatalogDestination
from tracelake.errors import QueryError
from tracelake.query.conditions import OF_SPANS, REQUEST, RESPONSE
from tracelake.query.infos import SESSION, TRACE_NAME, USER
from tracelake.query.relations import LONG_NS, SKEW_NS
from tracelake.query.tokens import COST, INPUT, OUTPUT, USAGE
from tracelake.reading import destination_of, unix_nano
from tracelake.spans import tables
from tracelake.spans.annotations import OWN_METADATA

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

# Spans above one are looked through for tokens up to so many levels.
_LEVELS = 100

_START, _END = tables.START_TIME, tables.END_TIME
_TEXTS = "map<string,string>"


def spans(
    spark: SparkSession, target: Target | None = None, *, start: datetime | None = None, end: datetime | None = None
) -> DataFrame:
    """Return the spans of a table, each once, in the columns of the table.

    Args:
        target: a path, the URL of an object store, or a name in Unity Catalog, as docs/destinations.md has them; None
            is the first destination that spans are recorded to here.
        start, end: spans that started at or after the one, and before the other; UTC unless they have a zone. Files
            outside of these are not read.

    Raises:
        QueryError: there is no such table, or it is no span table.
        TargetError: the target is not understood.
    """
    return _spans(spark, destination_of(target), _nano(start), _nano(end))


def traces(
    spark: SparkSession, target: Target | None = None, *, start: datetime | None = None, end: datetime | None = None
) -> DataFrame:
    """Return the traces of a table, one row each, without those that were deleted.

    Columns are the fields of `tracelake.TraceInfo`, with `session` and `user`; values of assessments are JSON.

    Args:
        target: as `spans` takes it.
        start, end: traces that started at or after the one, and before the other; UTC unless they have a zone. A trace
            has the spans that start from a second before `start` to an hour after `end`.

    Raises:
        QueryError: there is no such table, or it is no span table.
        TargetError: the target is not understood.
    """
    from pyspark.sql import functions as F  # noqa: N812 - its usual name

    destination = destination_of(target)
    first, last = _nano(start), _nano(end)
    frame = _spans(
        spark,
        destination,
        None if first is None else first - SKEW_NS,
        None if last is None else last + LONG_NS,
    )
    known = _annotated(spark, destination)
    joined = _grouped(frame).join(known, "trace_id", "full_outer").where("NOT coalesce(deleted, false)")
    found = joined.select(*(F.expr(sql).alias(name) for name, sql in _columns().items()))
    found = found.where("start_time_unix_nano IS NOT NULL")
    if first is not None:
        found = found.where(F.col(_START) >= first)
    return found if last is None else found.where(F.col(_START) < last)


def attribute(frame: DataFrame, key: str) -> Column:
    """Return an attribute of the spans in a DataFrame as text, of tables of either version; what is no text is JSON."""
    from pyspark.sql import functions as F  # noqa: N812

    return F.expr(_attribute(_version(frame), key))


def _spans(spark: SparkSession, destination: Destination, first: int | None, last: int | None) -> DataFrame:
    from pyspark.sql import Window
    from pyspark.sql import functions as F  # noqa: N812

    frame = _table(spark, destination)
    _version(frame)
    if first is not None:
        frame = frame.where(F.col(_START) >= first)
    if last is not None:
        frame = frame.where(F.col(_START) < last)
    # Of a span that was delivered twice, the last to end.
    order = Window.partitionBy(tables.TRACE_ID, tables.SPAN_ID).orderBy(F.col(_END).desc())
    return frame.withColumn("_row", F.row_number().over(order)).where("_row = 1").drop("_row")


def _table(spark: SparkSession, destination: Destination) -> DataFrame:
    from pyspark.errors import AnalysisException

    try:
        if isinstance(destination, DeltaDestination):
            frame = spark.read.format("delta").load(destination.location)
        elif isinstance(destination, UnityCatalogDestination):
            frame = spark.table(destination.name.sql)
        else:
            raise QueryError(f"The destination {destination.target} is not a table that Spark can read. Name a table.")
        frame.schema  # noqa: B018 - Spark Connect looks for the table only now
    except AnalysisException as error:
        raise QueryError(f"Spark finds no table {destination.target}: {_first_line(error)}") from error
    return frame


def _version(frame: DataFrame) -> tables.Version:
    types = dict(frame.dtypes)
    missing = [name for name in tables.REQUIRED if name not in types]
    kind = types.get(tables.ATTRIBUTES)
    if missing or kind not in (_TEXTS, "variant"):
        raise QueryError(
            f"The table has the columns {', '.join(types)}, and is no span table: "
            + (f"{', '.join(missing)} is missing." if missing else f"its attributes are {kind}.")
        )
    return 2 if kind == "variant" else 1


def _attribute(version: tables.Version, key: str, column: str = tables.ATTRIBUTES) -> str:
    if version == 1:
        return f"{column}[{_literal(key)}]"
    # A path has no way to write a quote that it is quoted by.
    mark = '"' if "'" in key else "'"
    if mark in key or "\\" in key:
        raise QueryError(
            f"Spark cannot be asked for the attribute {key!r}: it has both kinds of quotes, or a backslash."
        )
    return f"try_variant_get({column}, {_literal(f'$[{mark}{key}{mark}]')}, 'string')"


def _grouped(frame: DataFrame) -> DataFrame:
    """Return what spans come to, a row for each trace."""
    from pyspark.sql import functions as F  # noqa: N812

    version = _version(frame)
    resource = f"{tables.RESOURCE}.{tables.ATTRIBUTES}"
    usage, cost = _attribute(version, USAGE), _attribute(version, COST)
    by_key = [_attribute(version, key) for key in (INPUT, OUTPUT)]
    tokens = [
        f"CASE WHEN {usage} IS NOT NULL THEN {_count(f'get_json_object({usage}, {_literal(path)})')} "
        f"ELSE {_count(other)} END"
        for path, other in zip(("$.input_tokens", "$.output_tokens"), by_key, strict=True)
    ]
    uses = " OR ".join(f"{sql} IS NOT NULL" for sql in (usage, *by_key))
    spent = f"try_cast(get_json_object({cost}, '$.total_cost') AS DOUBLE)"
    attributes = f"CAST({tables.ATTRIBUTES} AS {_TEXTS})"
    order = f"struct({_START}, -{_END}, {tables.SPAN_ID})"
    shown = (
        f"struct({tables.NAME} AS name, {_START} AS start, {_END} AS end, {attributes} AS attributes, "
        f"{tables.STATUS}.{tables.STATUS_CODE} AS code, {_attribute(version, 'service.name', resource)} AS service)"
    )
    return frame.groupBy(tables.TRACE_ID).agg(
        F.expr(f"min_by({shown}, {order}) FILTER (WHERE coalesce({tables.PARENT_SPAN_ID}, '') = '')").alias("root"),
        F.expr(f"min_by({shown}, {order})").alias("first"),
        F.expr(f"max(greatest({_START}, {_END}))").alias("last_end"),
        F.expr("count(*)").alias("span_count"),
        F.expr(f"count_if({tables.STATUS}.{tables.STATUS_CODE} = 'STATUS_CODE_ERROR')").alias("error_count"),
        F.expr(f"max({_attribute(version, EXPERIMENT)})").alias("experiment_id"),
        F.expr(f"map_from_entries(collect_list(struct({tables.SPAN_ID}, {tables.PARENT_SPAN_ID})))").alias("parents"),
        F.expr(
            f"collect_list(CASE WHEN {uses} THEN "
            f"struct({tables.SPAN_ID} AS id, {tokens[0]} AS input, {tokens[1]} AS output) END)"
        ).alias("used"),
        F.expr(
            f"collect_list(CASE WHEN {cost} IS NOT NULL THEN struct({tables.SPAN_ID} AS id, {spent} AS usd) END)"
        ).alias("spent"),
    )


def _annotated(spark: SparkSession, destination: Destination) -> DataFrame:
    """Return what is annotated, a row for each trace; see `spans.annotations`."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F  # noqa: N812

    frame = _annotations(spark, destination)
    latest = Window.partitionBy("annotation_id").orderBy(
        F.col("updated_at").desc(), F.col("deleted_at").desc_nulls_last(), F.expr("CAST(value AS STRING)").desc()
    )
    rows = (
        frame.withColumn("_row", F.row_number().over(latest))
        .where("_row = 1")
        .withColumn("trace_id", F.expr("split_part(target_id, ':', 1)"))
        .withColumn("gone", F.expr("deleted_at IS NOT NULL"))
        .withColumn("text", F.expr("CAST(value AS STRING)"))
        .withColumn("held", F.expr(f"CAST(metadata AS {_TEXTS})"))
    )
    assessment = (
        "struct(unix_micros(created_at) AS create_time_us, annotation_id AS assessment_id, "
        "lower(annotation_type) AS kind, name, "
        f"to_json(value) AS value, coalesce(held['{OWN_METADATA}source_type'], 'CODE') AS source_type, "
        f"coalesce(held['{OWN_METADATA}source_id'], '') AS source_id, comment AS rationale, "
        f"map_filter(coalesce(held, map()), (key, _) -> NOT startswith(key, '{OWN_METADATA}')) AS metadata, "
        f"coalesce(held['{OWN_METADATA}span_id'], nullif(split_part(target_id, ':', 2), '')) AS span_id, "
        f"held['{OWN_METADATA}error'] AS error, held['{OWN_METADATA}overrides'] AS overrides, "
        f"coalesce(held['{OWN_METADATA}valid'], 'true') <> 'false' AS valid, "
        f"held['{OWN_METADATA}format'] AS serialization_format, "
        "unix_micros(updated_at) AS update_time_us)"
    )
    info = "max(CASE WHEN annotation_type = 'METADATA' THEN {} END)"
    fields = {
        "timestamp_us": "long",
        "duration_ns": "long",
        **dict.fromkeys(
            ("state", "client_request_id", "request_preview", "response_preview", "experiment_id"), "string"
        ),
        "trace_metadata": _TEXTS,
    }
    infos = ", ".join(f"try_variant_get(value, '$.{name}', '{kind}') AS {name}" for name, kind in fields.items())
    return rows.groupBy("trace_id").agg(
        F.expr(info.format("gone")).alias("deleted"),
        F.expr(f"any_value(CASE WHEN annotation_type = 'METADATA' THEN struct({infos}) END, true)").alias("info"),
        F.expr(
            "map_from_entries(collect_list(CASE WHEN annotation_type = 'TAG' THEN "
            "struct(name, CASE WHEN NOT gone THEN coalesce(text, '') END) END))"
        ).alias("tagged"),
        F.expr(
            "array_sort(collect_list(CASE WHEN annotation_type = 'RUN_LINK' AND NOT gone THEN "
            "struct(created_at AS at, annotation_id, text AS run_id) END))"
        ).alias("links"),
        F.expr(
            f"collect_list(CASE WHEN annotation_type IN ('FEEDBACK', 'EXPECTATION') AND NOT gone THEN {assessment} END)"
        ).alias("assessed"),
    )


def _annotations(spark: SparkSession, destination: Destination) -> DataFrame:
    from pyspark.errors import AnalysisException

    try:
        if isinstance(destination, UnityCatalogDestination):
            frame = spark.table(annotations_table(destination.name).sql)
        else:
            frame = spark.read.format("delta").load(annotations_name(destination.target))
        frame.schema  # noqa: B018 - as above
    except AnalysisException as error:
        if not any(known in str(error) for known in ("NOT_FOUND", "DELTA_TABLE_NOT_FOUND", "PATH_NOT_FOUND")):
            raise QueryError(f"The annotations of {destination.target} cannot be read: {_first_line(error)}") from error
        # Nothing has been annotated yet.
        return spark.range(0).selectExpr(
            *(f"CAST(NULL AS STRING) AS {name}" for name in ("annotation_id", "annotation_type", "target_id", "name")),
            "CAST(NULL AS STRING) AS comment",
            *(f"parse_json(CAST(NULL AS STRING)) AS {name}" for name in ("value", "metadata")),
            *(f"CAST(NULL AS TIMESTAMP) AS {name}" for name in ("created_at", "updated_at", "deleted_at")),
        )
    return frame


def _columns() -> dict[str, str]:
    """Return the SQL of each column of `traces`, over the columns of `_grouped` and `_annotated`."""
    carried = "coalesce(root.attributes, map())"
    tags = _over("tagged", _carried(TAG_PREFIX))
    of_spans = ", ".join(f"{_literal(key)}, {carried}[{_literal(own)}]" for key, own in OF_SPANS.items())
    metadata = _over("info.trace_metadata", _over(_carried(METADATA_PREFIX), _there(f"map({of_spans})")))
    columns = {
        "trace_id": "trace_id",
        "name": f"coalesce(tagged[{_literal(TRACE_NAME)}], root.name, first.name, '')",
        "service_name": "coalesce(CASE WHEN root IS NOT NULL THEN root.service ELSE first.service END, '')",
        _START: "coalesce(root.start, info.timestamp_us * 1000, first.start)",
        "duration_ns": "coalesce(info.duration_ns, CASE WHEN root IS NULL THEN last_end - first.start "
        "ELSE greatest(root.end - root.start, 0) END, 0)",
        "state": "coalesce(CASE WHEN info.state IN ('OK', 'ERROR') THEN info.state END, "
        f"{carried}[{_literal(STATE)}], CASE WHEN root.code = 'STATUS_CODE_ERROR' THEN 'ERROR' "
        "WHEN root IS NOT NULL THEN 'OK' ELSE 'IN_PROGRESS' END)",
        **{field: _preview(field, own) for own, field in PREVIEWS.items()},
        "span_count": "coalesce(span_count, 0)",
        "error_count": "coalesce(error_count, 0)",
        "tokens": f"struct({_sum('used', 'input', '0L')} AS input, {_sum('used', 'output', '0L')} AS output, "
        f"CASE WHEN size(spent) > 0 THEN {_sum('spent', 'usd', '0D')} END AS cost_usd)",
        "client_request_id": f"coalesce(info.client_request_id, {carried}[{_literal(CLIENT_REQUEST_ID)}])",
        "tags": _there(tags),
        "metadata": metadata,
        "assessments": "array_sort(coalesce(assessed, array()), (a, b) -> CASE "
        "WHEN a.create_time_us < b.create_time_us THEN -1 WHEN a.create_time_us > b.create_time_us THEN 1 "
        "WHEN a.assessment_id < b.assessment_id THEN -1 ELSE 1 END)",
        "run_ids": "transform(coalesce(links, array()), each -> each.run_id)",
        "experiment_id": "coalesce(info.experiment_id, experiment_id, '0')",
    }
    return columns | {"session": f"({metadata})[{_literal(SESSION)}]", "user": f"({metadata})[{_literal(USER)}]"}


def _carried(prefix: str) -> str:
    """Return what the root span carries for its trace under a prefix, as a map."""
    held = f"map_filter(coalesce(root.attributes, map()), (key, _) -> startswith(key, {_literal(prefix)}))"
    return f"transform_keys({held}, (key, _) -> substring(key, {len(prefix) + 1}))"


def _over(upper: str, lower: str) -> str:
    """Return a map of what either has, where both have a key that of the first."""
    upper = f"coalesce({upper}, map())"
    return f"map_concat({upper}, map_filter({lower}, (key, _) -> NOT map_contains_key({upper}, key)))"


def _there(texts: str) -> str:
    return f"map_filter({texts}, (_, text) -> text IS NOT NULL)"


def _preview(field: str, own: str) -> str:
    keys = (own, *(REQUEST if field.startswith("request") else RESPONSE))
    held = ", ".join(f"root.attributes[{_literal(key)}]" for key in keys)
    return f"substring(coalesce(info.{field}, {held}), 1, {MAX_PREVIEW})"


def _sum(uses: str, field: str, zero: str) -> str:
    """Return the sum over spans above which none is among these: agents repeat the sum of their calls."""
    ids = f"transform({uses}, use -> use.id)"
    above = (
        f"aggregate(sequence(1, {_LEVELS}), struct(parents[each.id] AS at, false AS met), (state, _) -> "
        f"struct(parents[state.at] AS at, state.met OR coalesce(array_contains({ids}, state.at), false) AS met), "
        "state -> state.met)"
    )
    topmost = f"filter(coalesce({uses}, array()), each -> NOT {above})"
    return f"aggregate({topmost}, {zero}, (total, each) -> total + coalesce(each.{field}, {zero}))"


def _count(text: str) -> str:
    return f"greatest(coalesce(try_cast({text} AS BIGINT), 0), 0)"


def _literal(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:500]


def _nano(moment: datetime | None) -> int | None:
    return None if moment is None else unix_nano(moment)
