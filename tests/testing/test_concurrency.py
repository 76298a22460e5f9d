"""Many clients at once, and the end of the server while they write."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanContext, TraceFlags

from tests.testing.otlp_client import START, TIMEOUT_S, body, headers, headers_of, numbers, post
from tracelake.testing import MockWorkspace
from tracelake.testing.storage.ingestion import PATH

NAME = "main.obs.spans"
CLIENTS = 32
REQUESTS = 12
SPANS = 5

# Sends the spans of these numbers and the SPANS - 1 after each, one request a number, and returns the statuses.
Client = Callable[[MockWorkspace, list[int]], list[int]]


def by_requests(workspace: MockWorkspace, firsts: list[int]) -> list[int]:
    with requests.Session() as session:
        session.headers.update(headers(workspace, NAME))
        sent = [session.post(workspace.url + PATH, body(first, SPANS), timeout=TIMEOUT_S) for first in firsts]
        return [response.status_code for response in sent]


def by_http_client(workspace: MockWorkspace, firsts: list[int]) -> list[int]:
    """One half in chunks, as clients in other languages do."""
    statuses = []
    with closing(HTTPConnection(urlsplit(workspace.url).netloc, timeout=TIMEOUT_S)) as connection:
        for first in firsts:
            sent = body(first, SPANS)
            chunks = iter([sent[:100], sent[100:]])
            connection.request(
                "POST", PATH, chunks if first % 2 else sent, headers(workspace, NAME), encode_chunked=bool(first % 2)
            )
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
    return statuses


def by_exporter(workspace: MockWorkspace, firsts: list[int]) -> list[int]:
    exporter = OTLPSpanExporter(
        workspace.url + PATH, headers=headers(workspace, NAME), compression=Compression.Gzip, timeout=TIMEOUT_S
    )
    results = [exporter.export([readable(first + number) for number in range(SPANS)]) for first in firsts]
    exporter.shutdown()
    return [200 if result is SpanExportResult.SUCCESS else 0 for result in results]


def readable(number: int) -> ReadableSpan:
    context = SpanContext(number + 1, number, is_remote=False, trace_flags=TraceFlags(1))
    return ReadableSpan("span", context, attributes={"number": number}, start_time=START, end_time=START + 1)


@pytest.mark.slow
def test_many_clients_at_once() -> None:
    """Each request is answered; each span is there once."""
    clients: list[Client] = [by_requests, by_http_client, by_exporter]
    with MockWorkspace() as workspace:
        workspace.create_schema("main.obs")
        table = workspace.create_table(NAME)
        workspace.serve()
        start = threading.Barrier(CLIENTS)

        def run(number: int) -> list[int]:
            firsts = [1 + SPANS * (number * REQUESTS + each) for each in range(REQUESTS)]
            start.wait(TIMEOUT_S)
            return clients[number % len(clients)](workspace, firsts)

        with ThreadPoolExecutor(CLIENTS) as pool:
            statuses = [status for found in pool.map(run, range(CLIENTS)) for status in found]
        assert statuses == [200] * CLIENTS * REQUESTS
        assert numbers(table.location) == list(range(1, CLIENTS * REQUESTS * SPANS + 1))
        assert len(workspace.requests(PATH)) == CLIENTS * REQUESTS


SERVER = """
import sys, threading
from tracelake.testing import MockWorkspace
workspace = MockWorkspace(sys.argv[1])
if workspace.is_new:
    workspace.create_schema("main.obs")
    workspace.create_table("main.obs.spans")
print(workspace.serve(), workspace.environment()["DATABRICKS_TOKEN"], flush=True)
threading.Event().wait()
"""


@pytest.mark.slow
def test_a_table_that_is_dropped_and_made_again(workspace: MockWorkspace) -> None:
    """Whoever writes in the moments between hears that it is not there, never of a fault of the workspace."""
    workspace.create_table(NAME)
    done = threading.Event()

    def write(client: int) -> set[int]:
        statuses = set()
        number = client
        while not done.is_set():
            statuses.add(post(workspace, NAME, number).status_code)
            number += CLIENTS
        return statuses

    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(write, client) for client in range(1, 7)]
        try:
            for _ in range(30):
                workspace.table(NAME).wait_for_spans(1, TIMEOUT_S)
                workspace.drop(NAME)
                workspace.create_table(NAME)
        finally:
            done.set()
    assert set().union(*(client.result() for client in clients)) <= {200, 404}


@pytest.mark.slow
def test_what_was_answered_survives_the_end_of_the_server(tmp_path: Path) -> None:
    """Every span that was answered with 200 is there after a kill in mid-load, and no span is there twice."""
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url, token = process.stdout.readline().split()
        answered: list[int] = []
        enough = threading.Event()

        def load(number: int) -> None:
            with requests.Session() as session:
                session.headers.update(headers_of(token, NAME))
                for each in range(10_000):
                    first = 1 + SPANS * (number * 10_000 + each)
                    try:
                        response = session.post(url + PATH, body(first, SPANS), timeout=TIMEOUT_S)
                    except requests.RequestException:
                        return
                    assert response.status_code == 200
                    answered.extend(range(first, first + SPANS))
                    if len(answered) > 1000:
                        enough.set()

        with ThreadPoolExecutor(8) as pool:
            loads = [pool.submit(load, number) for number in range(8)]
            assert enough.wait(TIMEOUT_S)
            process.send_signal(signal.SIGKILL)
            for each in loads:
                each.result(TIMEOUT_S)
    finally:
        process.kill()
        process.communicate()
    with MockWorkspace(str(tmp_path)) as workspace:
        found = numbers(workspace.table(NAME).location)
        assert len(found) == len(set(found))
        assert set(answered) <= set(found)
        assert by_requests(workspace, [900_001]) == [200]
