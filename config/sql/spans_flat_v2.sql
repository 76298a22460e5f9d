-- One row a span, its attributes as columns: over a table `spans` of version 2, whose attributes are a VARIANT.
-- Run it in the schema of the table. A span that was delivered twice is there once, as it ended last.
CREATE OR REPLACE VIEW spans_flat
COMMENT 'OpenTelemetry spans, one row each, with their attributes as columns'
AS
SELECT
  trace_id,
  span_id,
  nullif(parent_span_id, '') AS parent_span_id,
  name,
  service_name AS service,
  try_variant_get(attributes, '$["mlflow.spanType"]', 'string') AS span_type,
  kind,
  time AS start_time,
  start_time_unix_nano,
  end_time_unix_nano,
  (end_time_unix_nano - start_time_unix_nano) / 1000000 AS duration_ms,
  status.code AS status_code,
  status.message AS status_message,
  coalesce(
    try_variant_get(attributes, '$["mlflow.spanInputs"]', 'string'),
    try_variant_get(attributes, '$["input.value"]', 'string'),
    try_variant_get(attributes, '$["gen_ai.input.messages"]', 'string'),
    try_variant_get(attributes, '$["gen_ai.prompt"]', 'string')
  ) AS inputs,
  coalesce(
    try_variant_get(attributes, '$["mlflow.spanOutputs"]', 'string'),
    try_variant_get(attributes, '$["output.value"]', 'string'),
    try_variant_get(attributes, '$["gen_ai.output.messages"]', 'string'),
    try_variant_get(attributes, '$["gen_ai.completion"]', 'string')
  ) AS outputs,
  coalesce(
    try_variant_get(attributes, '$["mlflow.llm.model"]', 'string'),
    try_variant_get(attributes, '$["gen_ai.response.model"]', 'string'),
    try_variant_get(attributes, '$["gen_ai.request.model"]', 'string'),
    try_variant_get(attributes, '$["llm.model_name"]', 'string')
  ) AS model,
  try_cast(
    coalesce(
      get_json_object(try_variant_get(attributes, '$["mlflow.chat.tokenUsage"]', 'string'), '$.input_tokens'),
      try_variant_get(attributes, '$["gen_ai.usage.input_tokens"]', 'string')
    ) AS BIGINT
  ) AS input_tokens,
  try_cast(
    coalesce(
      get_json_object(try_variant_get(attributes, '$["mlflow.chat.tokenUsage"]', 'string'), '$.output_tokens'),
      try_variant_get(attributes, '$["gen_ai.usage.output_tokens"]', 'string')
    ) AS BIGINT
  ) AS output_tokens,
  try_variant_get(attributes, '$["session.id"]', 'string') AS session_id,
  try_variant_get(attributes, '$["user.id"]', 'string') AS user_id,
  -- What a root span carries for its trace, as `tag.env`; NULL in other spans.
  CASE WHEN coalesce(parent_span_id, '') = '' THEN map_from_entries(
    transform(
      filter(
        map_entries(from_json(to_json(attributes), 'MAP<STRING, STRING>')),
        entry -> startswith(entry.key, 'mlflow.trace.')
      ),
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
