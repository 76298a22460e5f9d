"""A FastAPI application whose requests are two spans each."""

from __future__ import annotations

import asyncio
import os

from fastapi import FastAPI

import tracelake

application = FastAPI()
application.add_middleware(tracelake.TracingMiddleware)


@application.get("/")
async def answer() -> str:
    with tracelake.start_span("request", attributes={"pid": os.getpid()}):
        await asyncio.sleep(0)  # so that requests interleave
        with tracelake.start_span("work"):
            await asyncio.sleep(0)
    return str(os.getpid())
