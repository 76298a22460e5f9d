"""The client of MLflow's guide to distributed tracing."""

from __future__ import annotations

import sys

import mlflow
import requests
from mlflow.tracing import get_tracing_context_headers_for_http_request

with mlflow.start_span("client-root"):
    headers = get_tracing_context_headers_for_http_request()
    requests.post(f"{sys.argv[1]}/handle", headers=headers, json={"input": "hello"}, timeout=20).raise_for_status()
