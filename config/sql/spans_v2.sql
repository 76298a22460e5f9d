CREATE TABLE IF NOT EXISTS `main`.`obs`.`spans` (
  record_id string,
  time timestamp,
  date date,
  service_name string,
  trace_id string,
  span_id string,
  trace_state string,
  parent_span_id string,
  flags int,
  name string,
  kind string,
  start_time_unix_nano bigint,
  end_time_unix_nano bigint,
  attributes variant,
  dropped_attributes_count int,
  events array<struct<time_unix_nano:bigint,name:string,attributes:variant,dropped_attributes_count:int>>,
  dropped_events_count int,
  links array<struct<trace_id:string,span_id:string,trace_state:string,attributes:variant,dropped_attributes_count:int,flags:int>>,
  dropped_links_count int,
  status struct<message:string,code:string>,
  resource struct<attributes:variant,dropped_attributes_count:int>,
  resource_schema_url string,
  instrumentation_scope struct<name:string,version:string,attributes:variant,dropped_attributes_count:int>,
  span_schema_url string
)
USING DELTA
CLUSTER BY (time, service_name, trace_id)
COMMENT 'OpenTelemetry spans, one row each'
TBLPROPERTIES (
  'otel.schemaVersion' = 'v2',
  'delta.checkpointPolicy' = 'classic',
  'delta.enableRowTracking' = 'false'
);
