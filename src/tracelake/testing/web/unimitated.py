"""The parts of a Databricks workspace that are not imitated, by the beginning of their paths."""

from __future__ import annotations

# docs/testing.md has the same list.
NAMES = {
    "/api/2.0/accounts": "Accounts",
    "/api/2.0/clusters": "Clusters",
    "/api/2.1/clusters": "Clusters",
    "/api/2.0/dbfs": "DBFS",
    "/api/2.0/fs": "Files",
    "/api/2.0/jobs": "Jobs",
    "/api/2.1/jobs": "Jobs",
    "/api/2.2/jobs": "Jobs",
    "/api/2.0/mlflow/runs": "MLflow runs",
    "/api/2.0/mlflow/registered-models": "MLflow model registry",
    "/api/2.0/mlflow/model-versions": "MLflow model registry",
    "/api/2.0/mlflow/unity-catalog": "MLflow model registry",
    "/api/2.0/mlflow/logged-models": "MLflow logged models",
    "/api/2.0/mlflow/artifacts": "MLflow artifacts of runs",
    "/api/2.0/mlflow/traces": "MLflow 2 trace API",
    "/api/2.0/mlflow/traces/link-prompts": "MLflow prompts",
    "/api/2.0/mlflow/unity-catalog/prompts": "MLflow prompts",
    "/api/2.0/mlflow/unified-traces": "MLflow search of traces by model",
    "/api/3.0/mlflow/datasets": "MLflow datasets",
    "/api/3.0/mlflow/issues": "MLflow issues",
    "/api/3.0/mlflow/label-schemas": "MLflow label schemas",
    "/api/3.0/mlflow/review-queues": "MLflow review queues",
    "/api/3.0/mlflow/scorers": "MLflow scorers",
    "/api/3.0/mlflow/traces/batchGet": "MLflow batches of traces of experiments",
    "/api/3.0/mlflow/traces/calculate-filter-correlation": "MLflow correlation of trace filters",
    "/api/3.0/mlflow/traces/metrics": "MLflow metrics of traces",
    "/api/2.0/managed-evals": "MLflow datasets",
    "/api/2.0/managed-evals/scheduled-scorers": "MLflow scorers",
    "/api/2.0/permissions": "Permissions outside Unity Catalog",
    "/api/2.0/pipelines": "Pipelines",
    "/api/2.0/secrets": "Secrets",
    "/api/2.0/serving-endpoints": "Model serving",
    "/api/2.0/workspace": "Workspace files",
    "/api/2.0/preview/scim": "SCIM beyond the current user",
    "/api/2.1/unity-catalog/external-locations": "External locations",
    "/api/2.1/unity-catalog/storage-credentials": "Storage credentials",
    "/api/2.1/unity-catalog/volumes": "Volumes",
    "/api/2.1/unity-catalog/functions": "Functions",
    "/api/2.1/unity-catalog/models": "Models in Unity Catalog",
    "/api/2.1/unity-catalog/delta": "Catalog commits",
    "/api/2.0/otel/v1/logs": "OTLP ingestion of logs",
    "/api/2.0/otel/v1/metrics": "OTLP ingestion of metrics",
}


def name_of(path: str) -> str:
    """Return the name of what a path belongs to, empty for none; the longest beginning counts."""
    found = max((prefix for prefix in NAMES if path.startswith(prefix)), key=len, default="")
    return NAMES.get(found, "")
