CREATE TABLE IF NOT EXISTS `main`.`obs`.`spans` (
  trace_id string,
  span_id string,
  trace_state string,
  parent_span_id string,
  flags int,
  name string,
  kind string,
  start_time_unix_nano bigint,
  end_time_unix_nano bigint,
  attributes map<string,string>,
  dropped_attributes_count int,
  events array<struct<time_unix_nano:bigint,name:string,attributes:map<string,string>,dropped_attributes_count:int>>,
  dropped_events_count int,
  links array<struct<trace_id:string,span_id:string,trace_state:string,attributes:map<string,string>,dropped_attributes_count:int,flags:int>>,
  dropped_links_count int,
  status struct<message:string,code:string>,
  resource struct<attributes:map<string,string>,dropped_attributes_count:int>,
  resource_schema_url string,
  instrumentation_scope struct<name:string,version:string,attributes:map<string,string>,dropped_attributes_count:int>,
  span_schema_url string
)
USING DELTA
LOCATION 's3://bucket/obs/spans'
COMMENT 'OpenTelemetry spans, one row each'
TBLPROPERTIES (
  'otel.schemaVersion' = 'v1',
  'delta.checkpointPolicy' = 'classic',
  'delta.enableRowTracking' = 'false',
  'delta.enableDeletionVectors' = 'false',
  'delta.autoOptimize.autoCompact' = 'true'
);
