"""The server of MLflow's guide to distributed tracing."""

from __future__ import annotations

import mlflow
from fastapi import FastAPI, Request
from mlflow.tracing import set_tracing_context_from_http_request_headers

app = FastAPI()


@app.post("/handle")
async def handle(request: Request) -> dict[str, bool]:
    headers = dict(request.headers)
    with set_tracing_context_from_http_request_headers(headers), mlflow.start_span("server-handler") as span:
        span.set_inputs(await request.json())
        span.set_attribute("status", "ok")
    return {"ok": True}
