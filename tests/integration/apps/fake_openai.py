"""A provider of language models on loopback that speaks OpenAI's chat protocol, and always says the same."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = "A lakehouse keeps tables as open files."
USAGE = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}


@dataclass
class Request:
    """What the provider was asked.

    Attributes:
        headers: by their names in lower case.
    """

    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class FakeOpenAI:
    """A provider that runs.

    Attributes:
        url: what `openai.OpenAI` takes as `base_url`.
        requests: what it was asked so far.
    """

    url: str
    requests: list[Request] = field(default_factory=list)


@contextlib.contextmanager
def run_fake_openai() -> Iterator[FakeOpenAI]:
    """Answer on a free port, until the block ends.

    Every model has the same answer, but `error-<status>` has an error of that HTTP status.
    """
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.fake = FakeOpenAI(f"http://127.0.0.1:{server.server_port}/v1")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.fake
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    fake: FakeOpenAI


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.fake.requests.append(Request(headers, body))
        model = body["model"]
        if self.path != "/v1/chat/completions":
            self._answer(404, _error("no such path"))
        elif model.startswith("error-"):
            self._answer(int(model.removeprefix("error-")), _error(f"{model} has no answer"))
        elif body.get("stream"):
            self._stream(model, usage=bool((body.get("stream_options") or {}).get("include_usage")))
        else:
            message = {"role": "assistant", "content": ANSWER}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._answer(200, _head(model, "chat.completion") | {"choices": [choice], "usage": USAGE})

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(body))

    def _stream(self, model: str, usage: bool) -> None:
        deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": part} for part in re.findall(r"\S+\s*", ANSWER)]
        deltas.append({})
        chunks: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}]} for delta in deltas
        ]
        if usage:
            chunks.append({"choices": [], "usage": USAGE})
        lines = [json.dumps(_head(model, "chat.completion.chunk") | chunk) for chunk in chunks]
        self._send(200, "text/event-stream", "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]))

    def _send(self, status: int, kind: str, body: str) -> None:
        content = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _head(model: str, kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1_750_000_000, "model": model}


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "fake_error", "param": None, "code": None}}
