-- Who may write spans, and who may read them. Run it as the owner of `main.obs`, or as who may manage it.

-- `trace-writers`: by the OTLP endpoint or Zerobus. SELECT and MODIFY count by their names, ALL PRIVILEGES does not.
GRANT USE CATALOG ON CATALOG main TO `trace-writers`;
GRANT USE SCHEMA ON SCHEMA main.obs TO `trace-writers`;
GRANT SELECT, MODIFY ON TABLE main.obs.spans TO `trace-writers`;

-- For an external table that is written directly: neither its owner nor ALL PRIVILEGES has this one.
GRANT EXTERNAL USE SCHEMA ON SCHEMA main.obs TO `trace-writers`;

-- `trace-readers`: the views, and not the table. A view reads with the rights of its owner.
GRANT USE CATALOG ON CATALOG main TO `trace-readers`;
GRANT USE SCHEMA ON SCHEMA main.obs TO `trace-readers`;
GRANT SELECT ON VIEW main.obs.spans_flat TO `trace-readers`;
GRANT SELECT ON VIEW main.obs.traces TO `trace-readers`;
