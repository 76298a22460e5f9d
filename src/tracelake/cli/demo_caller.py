"""The agent of `tracelake demo`: it asks a service over HTTP, and both are in one trace.

Run it as `python -m tracelake.cli.demo_caller http://127.0.0.1:8000`, or copy it: there is nothing here but requests
and tracelake.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time

import requests

import tracelake

QUESTION = "What is a trace in a lakehouse?"


def answer(url: str, question: str) -> str:
    """Answer a question with the help of the service at `url`; return the trace's id."""
    with tracelake.start_span("answer question", span_type="AGENT") as span:
        span.set_inputs({"question": question})
        # These headers make the service's spans children of this one.
        headers = tracelake.get_tracing_context_headers_for_http_request()
        response = requests.post(f"{url}/search", json=question, headers=headers, timeout=20)
        response.raise_for_status()
        span.set_outputs(write(question, response.json()))
        return span.trace_id


@tracelake.trace(name="write answer", span_type="LLM")
def write(question: str, passages: list[str]) -> str:  # noqa: ARG001 - it is one of the span's inputs
    """Return the answer that the passages give."""
    time.sleep(0.03)  # a model would write here
    return " ".join(passages)


def main() -> None:
    """Ask one question; print the trace's id and what became of the spans of this process."""
    # None: to where the environment says, which is the table ./tracelake/spans if it says nothing.
    tracelake.set_destination(None, service_name="demo-agent")
    trace_id = answer(sys.argv[1], QUESTION)
    report = tracelake.flush(timeout=20)
    print(json.dumps({"trace_id": trace_id, "report": dataclasses.asdict(report)}), flush=True)


if __name__ == "__main__":
    main()
