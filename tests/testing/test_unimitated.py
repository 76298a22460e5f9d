"""What the workspace does not imitate says so, and the documentation has the same list."""

from __future__ import annotations

import re

import pytest
import requests

from tests.pages import ROOT
from tracelake.testing import MockWorkspace
from tracelake.testing.web.unimitated import NAMES, name_of


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/api/2.2/jobs/list", "Jobs"),
        ("POST", "/api/2.0/mlflow/runs/create", "MLflow runs"),
        ("POST", "/api/2.0/mlflow/unity-catalog/registered-models/create", "MLflow model registry"),
        ("POST", "/api/2.0/mlflow/unity-catalog/prompts", "MLflow prompts"),
        ("GET", "/api/2.0/managed-evals/scheduled-scorers/1", "MLflow scorers"),
        ("GET", "/api/2.1/unity-catalog/volumes", "Volumes"),
        ("POST", "/api/2.0/otel/v1/logs", "OTLP ingestion of logs"),
        ("GET", "/api/9.9/nobody/knows", "this path"),
    ],
)
def test_call_is_answered_by_name(workspace: MockWorkspace, method: str, path: str, name: str) -> None:
    """With the status that no client takes for a success, and that none tries again."""
    headers = {"Authorization": f"Bearer {workspace.environment()['DATABRICKS_TOKEN']}"}
    answer = requests.request(method, workspace.url + path, headers=headers, timeout=10)
    assert answer.status_code == 501
    assert answer.json()["error_code"] == "NOT_IMPLEMENTED"
    assert f"does not imitate {name}" in answer.json()["message"]


def test_docs_list_what_is_not_imitated() -> None:
    """In the order of the code."""
    page = " ".join((ROOT / "docs" / "testing.md").read_text().split())
    assert f"a success that is none: {', '.join(dict.fromkeys(NAMES.values()))}." in page


def test_names_are_those_of_the_longest_beginning() -> None:
    """A part of a part has its own."""
    assert name_of("/api/2.0/mlflow/traces/link-prompts") == "MLflow prompts"
    assert name_of("/api/2.0/mlflow/traces/tr-1") != "MLflow prompts"
    assert not any(re.search(r"[{}?]", prefix) for prefix in NAMES)
