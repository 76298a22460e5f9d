"""SQL, in DuckDB's dialect, of what MLflow makes of a span table and a table of annotations: one row a trace.

A trace is there when its root span or its info is; a span that was delivered twice counts once. What was posted about a
trace comes before what its root span says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tracelake.query.conditions import REQUEST, RESPONSE
from tracelake.query.infos import TRACE_NAME
from tracelake.spans import tables
from tracelake.spans.annotations import OWN_METADATA
from tracelake.testing.state import Table
from tracelake.testing.tracking import trace_tables


class TraceView(NamedTuple):
    """A view of a trace location, which has no SQL in Databricks' dialect.

    Attributes:
        kind: `trace_tables.UNIFIED` or `trace_tables.METADATA`.
        spans, annotations: full names of the tables that it is over.
        version: schema version of the span table.
    """

    kind: str
    spans: str
    annotations: str
    version: tables.Version

    def sql(self, name_of: Callable[[str], str]) -> str:
        """Return its SELECT; `name_of` gives what SQL calls the table of a full name."""
        return view_sql(self.kind, name_of(self.spans), name_of(self.annotations), self.version)


def trace_view_of(view: Table) -> TraceView | None:
    """Return what view of a trace location this is; None if it is another view."""
    names = (trace_tables.VIEW_PROPERTY, trace_tables.VIEW_SPANS_PROPERTY, trace_tables.VIEW_ANNOTATIONS_PROPERTY)
    kind, spans, annotations = (view.properties.get(name, "") for name in names)
    if not (kind and spans and annotations):
        return None
    return TraceView(kind, spans, annotations, 1 if view.properties.get(tables.VERSION_PROPERTY) == "v1" else 2)


def view_sql(kind: str, spans: str, annotations: str, version: tables.Version) -> str:
    """Return the SELECT of a view of a trace location.

    Args:
        kind: `trace_tables.UNIFIED` or `trace_tables.METADATA`.
        spans: name of the span table as SQL writes it; its VARIANT columns are DuckDB's.
        annotations: name of the table of annotations, likewise.
        version: schema version of the span table.
    """
    assessments = f"""
        list_transform(assessments, lambda each: struct_pack(
            assessment_id := each.assessment_id,
            trace_id := trace_id,
            assessment_name := each.assessment_name,
            source := struct_pack(source_id := each.source_id, source_type := each.source_type),
            create_time := make_timestamptz(each.create_us),
            last_update_time := make_timestamptz(each.update_us),
            expectation := CASE WHEN each.kind = 'expectation' THEN struct_pack(
                value := CASE WHEN each.format IS NULL THEN {as_text_of_json("each.json")} END,
                serialized_value := CASE WHEN each.format IS NOT NULL THEN struct_pack(
                    serialization_format := each.format, value := {as_text_of_json("each.json")},
                    stack_trace := NULL::VARCHAR
                ) END
            ) END,
            feedback := CASE WHEN each.kind = 'feedback' THEN struct_pack(
                value := {as_text_of_json("each.json")},
                error := CASE WHEN each.error IS NOT NULL THEN struct_pack(
                    error_code := each.error ->> 'error_code', error_message := each.error ->> 'error_message',
                    stack_trace := each.error ->> 'stack_trace'
                ) END
            ) END,
            rationale := each.rationale,
            metadata := each.metadata,
            span_id := each.span_id,
            overrides := each.overrides,
            valid := each.valid::VARCHAR
        )) AS assessments"""
    if kind == trace_tables.METADATA:
        columns = f"trace_id, client_request_id, tags, trace_metadata, {assessments}"
    else:
        columns = f"""
        trace_id, client_request_id, make_timestamptz(timestamp_us) AS request_time, state,
        CAST(CAST(duration_ns AS DECIMAL(30,9)) * 0.000001 AS DECIMAL(30,9)) AS execution_duration_ms,
        request, response, trace_metadata, tags, spans, {assessments}"""
    return f"WITH {traces_sql(spans, annotations, version)} SELECT {columns} FROM traces"  # noqa: S608


def traces_sql(spans: str, annotations: str, version: tables.Version, suffix: str = "") -> str:
    """Return the common table expressions of `spans`, `assessments` and `traces`, each name with the suffix.

    `spans` has each span once; `assessments` one row each, with its `trace_id`; `traces` one row a trace: trace_id,
    client_request_id, timestamp_us (microseconds since the Unix epoch), duration_ns, state, name, request, response,
    request_preview, response_preview, trace_metadata, tags, run_ids, spans, assessments, whose values are JSON.
    """
    fields = ", ".join(f'"{field["name"]}" := "{field["name"]}"' for field in trace_tables.span_fields(version))
    request, response = (_first(keys, version) for keys in (REQUEST, RESPONSE))
    own = f"known['{OWN_METADATA}"
    # Of annotations with one id the latest counts; a trace is deleted by the annotation that has its info.
    return f"""
    spans{suffix} AS (
        SELECT * FROM {spans}
        QUALIFY row_number() OVER (PARTITION BY trace_id, span_id ORDER BY end_time_unix_nano DESC) = 1
    ),
    roots{suffix} AS (
        SELECT *, {request} AS request, {response} AS response FROM spans{suffix}
        WHERE coalesce(parent_span_id, '') = ''
        QUALIFY row_number() OVER (PARTITION BY trace_id ORDER BY start_time_unix_nano, span_id) = 1
    ),
    grouped{suffix} AS (
        SELECT trace_id, list(struct_pack({fields}) ORDER BY start_time_unix_nano, span_id) AS spans
        FROM spans{suffix} GROUP BY trace_id
    ),
    latest{suffix} AS (
        SELECT * EXCLUDE (trace_id), split_part(target_id, ':', 1) AS trace_id FROM {annotations}
        QUALIFY row_number() OVER (PARTITION BY annotation_id ORDER BY updated_at DESC) = 1
    ),
    infos{suffix} AS (
        SELECT * FROM latest{suffix} WHERE annotation_type = 'METADATA'
    ),
    tags{suffix} AS (
        SELECT trace_id, map_from_entries(list((name, {as_text("value")}) ORDER BY name)) AS tags
        FROM latest{suffix} WHERE annotation_type = 'TAG' AND deleted_at IS NULL GROUP BY trace_id
    ),
    links{suffix} AS (
        SELECT trace_id, list({as_text("value")} ORDER BY created_at) AS run_ids
        FROM latest{suffix} WHERE annotation_type = 'RUN_LINK' AND deleted_at IS NULL GROUP BY trace_id
    ),
    assessments{suffix} AS (
        SELECT
            trace_id,
            annotation_id AS assessment_id,
            name AS assessment_name,
            lower(annotation_type) AS kind,
            {own}source_type'] AS source_type,
            {own}source_id'] AS source_id,
            epoch_us(created_at) AS create_us,
            epoch_us(updated_at) AS update_us,
            value::JSON::VARCHAR AS json,
            {own}format'] AS format,
            TRY_CAST({own}error'] AS JSON) AS error,
            comment AS rationale,
            map_from_entries(
                list_filter(map_entries(known), lambda entry: NOT starts_with(entry.key, '{OWN_METADATA}'))
            ) AS metadata,
            {own}span_id'] AS span_id,
            {own}overrides'] AS overrides,
            coalesce({own}valid'] != 'false', true) AS valid
        FROM (
            SELECT *, CAST({_json("metadata")} AS MAP(VARCHAR, VARCHAR)) AS known FROM latest{suffix}
            WHERE annotation_type IN ('FEEDBACK', 'EXPECTATION') AND deleted_at IS NULL
        )
    ),
    assessed{suffix} AS (
        SELECT
            trace_id,
            list(struct_pack(*COLUMNS(* EXCLUDE (trace_id))) ORDER BY create_us, assessment_id) AS assessments
        FROM assessments{suffix} GROUP BY trace_id
    ),
    ids{suffix} AS (
        SELECT trace_id FROM roots{suffix} UNION SELECT trace_id FROM infos{suffix}
        EXCEPT SELECT trace_id FROM infos{suffix} WHERE deleted_at IS NOT NULL
    ),
    traces{suffix} AS (
        SELECT
            trace_id,
            info.value['client_request_id']::VARCHAR AS client_request_id,
            coalesce(info.value['timestamp_us']::BIGINT, root.start_time_unix_nano // 1000) AS timestamp_us,
            coalesce(info.value['state']::VARCHAR, CASE
                WHEN root.status.code = 'STATUS_CODE_ERROR' THEN 'ERROR' WHEN root.span_id IS NOT NULL THEN 'OK'
            END) AS state,
            coalesce(
                info.value['duration_ns']::BIGINT, root.end_time_unix_nano - root.start_time_unix_nano
            ) AS duration_ns,
            coalesce(tags['{TRACE_NAME}'], root.name) AS name,
            coalesce(root.request, info.value['request_preview']::VARCHAR) AS request,
            coalesce(root.response, info.value['response_preview']::VARCHAR) AS response,
            coalesce(info.value['request_preview']::VARCHAR, root.request) AS request_preview,
            coalesce(info.value['response_preview']::VARCHAR, root.response) AS response_preview,
            coalesce({_json("info.value['trace_metadata']")}::MAP(VARCHAR, VARCHAR), MAP {{}}) AS trace_metadata,
            coalesce(tags, MAP {{}}) AS tags,
            coalesce(run_ids, []) AS run_ids,
            coalesce(spans, []) AS spans,
            coalesce(assessments, []) AS assessments
        FROM ids{suffix}
        LEFT JOIN roots{suffix} AS root USING (trace_id)
        LEFT JOIN infos{suffix} AS info USING (trace_id)
        LEFT JOIN tags{suffix} USING (trace_id)
        LEFT JOIN links{suffix} USING (trace_id)
        LEFT JOIN grouped{suffix} USING (trace_id)
        LEFT JOIN assessed{suffix} USING (trace_id)
    )"""  # noqa: S608


def attribute_sql(span: str, key: str, version: tables.Version) -> str:
    """Return the SQL of an attribute's value as text. `key` is SQL: a literal or a parameter."""
    value = f"{span}{tables.ATTRIBUTES}[{key}]"
    return as_text(value) if version == 2 else value


def as_text(variant: str) -> str:
    """Return the SQL of a VARIANT as text: a string is itself, anything else JSON."""
    return f"CASE WHEN variant_typeof({variant}) = 'VARCHAR' THEN {variant}::VARCHAR ELSE {_json(variant)}::VARCHAR END"


def _json(variant: str) -> str:
    # DuckDB 1 makes JSON's null of a NULL.
    return f"nullif({variant}::JSON::VARCHAR, 'null')::JSON"


def _first(keys: tuple[str, ...], version: tables.Version) -> str:
    return f"coalesce({', '.join(attribute_sql('', repr(key), version) for key in keys)})"


def as_text_of_json(json: str) -> str:
    """Return the SQL of JSON as text: a string is itself, anything else as it is."""
    return f"({json}::JSON ->> '$')"
