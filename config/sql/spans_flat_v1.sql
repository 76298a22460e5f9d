-- One row a span, its attributes as columns: over a table `spans` of version 1, whose attributes are a MAP.
-- Run it in the schema of the table. A span that was delivered twice is there once, as it ended last.
CREATE OR REPLACE VIEW spans_flat
COMMENT 'OpenTelemetry spans, one row each, with their attributes as columns'
AS
SELECT
  trace_id,
  span_id,
  nullif(parent_span_id, '') AS parent_span_id,
  name,
  resource.attributes['service.name'] AS service,
  attributes['mlflow.spanType'] AS span_type,
  kind,
  timestamp_micros(start_time_unix_nano DIV 1000) AS start_time,
  start_time_unix_nano,
  end_time_unix_nano,
  (end_time_unix_nano - start_time_unix_nano) / 1000000 AS duration_ms,
  status.code AS status_code,
  status.message AS status_message,
  coalesce(
    attributes['mlflow.spanInputs'],
    attributes['input.value'],
    attributes['gen_ai.input.messages'],
    attributes['gen_ai.prompt']
  ) AS inputs,
  coalesce(
    attributes['mlflow.spanOutputs'],
    attributes['output.value'],
    attributes['gen_ai.output.messages'],
    attributes['gen_ai.completion']
  ) AS outputs,
  coalesce(
    attributes['mlflow.llm.model'],
    attributes['gen_ai.response.model'],
    attributes['gen_ai.request.model'],
    attributes['llm.model_name']
  ) AS model,
  try_cast(
    coalesce(
      get_json_object(attributes['mlflow.chat.tokenUsage'], '$.input_tokens'),
      attributes['gen_ai.usage.input_tokens']
    ) AS BIGINT
  ) AS input_tokens,
  try_cast(
    coalesce(
      get_json_object(attributes['mlflow.chat.tokenUsage'], '$.output_tokens'),
      attributes['gen_ai.usage.output_tokens']
    ) AS BIGINT
  ) AS output_tokens,
  attributes['session.id'] AS session_id,
  attributes['user.id'] AS user_id,
  -- What a root span carries for its trace, as `tag.env`; NULL in other spans.
  CASE WHEN coalesce(parent_span_id, '') = '' THEN map_from_entries(
    transform(
      filter(map_entries(attributes), entry -> startswith(entry.key, 'mlflow.trace.')),
      entry -> struct(substring(entry.key, 14), entry.value)
    )
  ) END AS trace_info
FROM (
  SELECT
    *,
    row_number() OVER (PARTITION BY trace_id, span_id ORDER BY end_time_unix_nano DESC) AS delivery
  FROM spans
)
WHERE delivery = 1;
