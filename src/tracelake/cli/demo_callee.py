"""The service of `tracelake demo`: it answers requests inside the trace of whoever asks.

Run it as `uvicorn tracelake.cli.demo_callee:app`, or copy it: there is nothing here but FastAPI and tracelake.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request

import tracelake

PASSAGES = {
    "lakehouse": "A lakehouse keeps tables as open files, with transactions.",
    "trace": "A trace is the spans of one request, in all the services it went through.",
    "span": "A span is one operation: its name, its time, what went in and what came out.",
}


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Name the service at its start; at its end, wait for its spans' delivery and print what became of them."""
    # None: to where the environment says, which is the table ./tracelake/spans if it says nothing.
    tracelake.set_destination(None, service_name="demo-search")
    print("ready", flush=True)
    yield
    print(json.dumps(dataclasses.asdict(tracelake.flush(timeout=20))), flush=True)


# FastAPI's newer versions make spans of their own, and would have them in the same trace. Left out here, so that the
# trace shows what this file does; a service that wants both adds `tracelake.TracingMiddleware` instead.
app = FastAPI(lifespan=lifespan, telemetry={"tracing": False})


@app.post("/search")
async def search(request: Request) -> list[str]:
    """Return the passages that have something to do with the question."""
    question = str(await request.json())
    # From here on, spans are children of the span that the caller had open when it sent the request.
    with (
        tracelake.set_tracing_context_from_http_request_headers(request.headers),
        tracelake.start_span("search passages", span_type="RETRIEVER") as span,
    ):
        span.set_inputs({"question": question})
        passages = rank(question)
        span.set_outputs(passages)
        return passages


@tracelake.trace(name="rank passages", span_type="RERANKER")
def rank(question: str) -> list[str]:
    """Return the passages about a word of the question."""
    time.sleep(0.02)  # a model would think here
    return [text for word, text in PASSAGES.items() if word in question.lower()]
