"""A server whose spans are made by tracelake's own front end, or by OpenTelemetry's, in the caller's context."""

from __future__ import annotations

import os

from fastapi import FastAPI, Request
from opentelemetry import propagate, trace

import tracelake

app = FastAPI()


@app.post("/handle")
async def handle(request: Request) -> dict[str, bool]:
    if os.environ.get("CALLEE") == "opentelemetry":
        context = propagate.extract(dict(request.headers))
        with trace.get_tracer("callee").start_as_current_span("server-handler", context=context):
            return {"ok": True}
    with tracelake.start_span("server-handler"):
        return {"ok": True}


if os.environ.get("CALLEE") != "opentelemetry":
    app.add_middleware(tracelake.TracingMiddleware)
