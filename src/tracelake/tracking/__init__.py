"""MLflow's tracking store with its traces in a span table."""
