"""MLflow's experiments and traces."""
