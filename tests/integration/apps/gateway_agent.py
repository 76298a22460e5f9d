"""An agent that asks a language model through a gateway; of tracing it knows MLflow alone, if not told otherwise.

Its arguments are the MLflow server, the gateway's endpoint, and what to do: `stream` the answer, trace the client by
`autolog`, tell by tracelake's `headers` where it records. It prints what became of it as a line of JSON.
"""

from __future__ import annotations

import json
import sys

import mlflow
import openai

SERVER, ENDPOINT, *OPTIONS = sys.argv[1:]

mlflow.set_tracking_uri(SERVER)
mlflow.set_experiment("agents")
if "headers" in OPTIONS:
    import tracelake
if "autolog" in OPTIONS:
    mlflow.openai.autolog()
client = openai.OpenAI(base_url=f"{SERVER}/gateway/mlflow/v1", api_key="not the provider's", max_retries=0)


told: dict[str, object] = {"error": ""}


def ask(question: str) -> str:
    front_end = tracelake if "headers" in OPTIONS else mlflow.tracing
    headers = front_end.get_tracing_context_headers_for_http_request()
    told["headers"] = headers
    messages = [{"role": "user", "content": question}]
    if "stream" not in OPTIONS:
        answer = client.chat.completions.create(model=ENDPOINT, messages=messages, extra_headers=headers)
        return answer.choices[0].message.content
    chunks = client.chat.completions.create(model=ENDPOINT, messages=messages, stream=True, extra_headers=headers)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


try:
    with mlflow.start_span("agent", span_type="AGENT") as span:
        told["trace_id"] = span.trace_id
        span.set_inputs({"question": "What is a lakehouse?"})
        span.set_outputs(ask("What is a lakehouse?"))
except openai.APIError as error:
    told["error"] = type(error).__name__
print(json.dumps(told))
