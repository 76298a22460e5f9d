-- One row a trace: over the view `spans_flat`, of either version. Run it in the schema of the view.
CREATE OR REPLACE VIEW traces
COMMENT 'Traces, one row each'
AS
SELECT
  trace_id,
  root.name,
  root.service,
  timestamp_micros(start_time_unix_nano DIV 1000) AS start_time,
  (end_time_unix_nano - start_time_unix_nano) / 1000000 AS duration_ms,
  -- Without its root, a trace is under way, or its root is on its way.
  CASE
    WHEN root IS NULL THEN 'IN_PROGRESS'
    WHEN root.trace_info['state'] IS NOT NULL THEN root.trace_info['state']
    WHEN root.status_code = 'STATUS_CODE_ERROR' THEN 'ERROR'
    ELSE 'OK'
  END AS state,
  spans,
  errors,
  input_tokens,
  output_tokens,
  input_tokens + output_tokens AS total_tokens,
  root.session_id,
  root.user_id,
  left(coalesce(root.trace_info['request_preview'], root.inputs), 1000) AS request_preview,
  left(coalesce(root.trace_info['response_preview'], root.outputs), 1000) AS response_preview,
  map_from_entries(
    transform(
      filter(map_entries(root.trace_info), entry -> startswith(entry.key, 'tag.')),
      entry -> struct(substring(entry.key, 5), entry.value)
    )
  ) AS tags,
  map_from_entries(
    transform(
      filter(map_entries(root.trace_info), entry -> startswith(entry.key, 'metadata.')),
      entry -> struct(substring(entry.key, 10), entry.value)
    )
  ) AS metadata
FROM (
  SELECT
    span.trace_id,
    min_by(
      struct(
        span.name,
        span.service,
        span.status_code,
        span.inputs,
        span.outputs,
        span.session_id,
        span.user_id,
        span.trace_info
      ),
      span.start_time_unix_nano
    ) FILTER (WHERE span.parent_span_id IS NULL) AS root,
    min(span.start_time_unix_nano) AS start_time_unix_nano,
    max(span.end_time_unix_nano) AS end_time_unix_nano,
    count(*) AS spans,
    count_if(span.status_code = 'STATUS_CODE_ERROR') AS errors,
    -- An agent's span has the tokens of the calls below it again.
    sum(span.input_tokens) FILTER (WHERE parent.input_tokens IS NULL) AS input_tokens,
    sum(span.output_tokens) FILTER (WHERE parent.output_tokens IS NULL) AS output_tokens
  FROM spans_flat AS span
  LEFT JOIN spans_flat AS parent
    ON parent.trace_id = span.trace_id AND parent.span_id = span.parent_span_id
  GROUP BY span.trace_id
);
