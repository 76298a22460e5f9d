"""MLflow's web page, in a browser, over traces that tracelake recorded."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_servers import BIN, start_server
from tests.lake import Lake, wait_until
from tests.mlflow_server import QUIET
from tests.tracking.browser import Page, run_browser

pytest.importorskip("mlflow")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # a server and a browser

QUESTION = "What is a trace in a lakehouse?"
TREE = ("answer question", "search passages", "rank passages", "write answer")
SEARCH = "input[placeholder^='Search traces']"
ROWS = "[...document.querySelectorAll('[role=row]')].slice(1).map(row => row.innerText)"
# How far right the name of a span is in the tree, which comes before the span that is looked at.
LEFT = """
[...document.querySelectorAll("body *")].find(each => !each.children.length && each.innerText === NAME)
  .getBoundingClientRect().x
"""


@contextlib.contextmanager
def run_ui(lake: Lake) -> Iterator[str]:
    """Run `tracelake ui` on the lake's table until the block ends; gives the server's address."""
    with (lake.root / "ui.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tracelake", "ui", "--target", lake.table, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=lake.root,
            env=lake.environ | QUIET,
        )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            url = process.stdout.readline().strip()
            assert url, (lake.root / "ui.log").read_text()
            yield url
        finally:
            process.terminate()


def record(lake: Lake) -> str:
    """Have an agent and a FastAPI service record one trace, and another program a second; returns the first's id."""
    service = [str(BIN / "uvicorn"), "--host=127.0.0.1", "--port=0", "tracelake.cli.demo_callee:app"]
    process, client = start_server(lake, *service)
    agent = lake.start(sys.executable, "-m", "tracelake.cli.demo_caller", f"http://127.0.0.1:{client.port}")
    assert agent.wait(60) == 0, lake.output(agent)
    process.terminate()
    process.wait(30)
    lake.run(OTHER)
    lake.settle()
    return str(json.loads(lake.output(agent))["trace_id"])


OTHER = """
import tracelake
with tracelake.start_span("forecast") as span:
    span.set_inputs({"question": "Will it rain?"})
    span.set_outputs("no")
"""


def annotate(url: str, lake: Lake, trace_id: str) -> None:
    """Give feedback and a tag by MLflow's client."""
    lake.run(
        f"""
import mlflow
mlflow.set_tracking_uri({url!r})
mlflow.log_feedback(trace_id={f"tr-{trace_id}"!r}, name="helpful", value="very", rationale="it is short")
mlflow.set_trace_tag({f"tr-{trace_id}"!r}, "team", "blue")
""",
        **QUIET,
    )


CHATS = """
import tracelake
for session in ("morning", "evening"):
    for turn in range(3):
        with tracelake.start_span("chat", span_type="AGENT", attributes={"session.id": session}) as span:
            span.set_inputs({"question": f"{session}, question {turn}"})
            with tracelake.start_span("model", span_type="LLM") as call:
                call.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 5, "output_tokens": 7})
"""


def rows(page: Page) -> list[str]:
    """Return the traces that the list shows."""
    shown: list[str] = page.run(ROWS)
    return shown


def test_trace_of_two_services(lake: Lake, tmp_path: Path) -> None:
    """It is in the list, one tree with inputs and outputs; text narrows the list, feedback and tags show, it goes."""
    trace_id = record(lake)
    with run_ui(lake) as url, run_browser(tmp_path) as page:
        annotate(url, lake, trace_id)
        page.go(f"{url}/#/experiments/0/traces")
        page.click("Got it")
        page.wait_without("Got it")
        page.wait_for_part("2 of 2")
        page.wait_for_part(QUESTION)
        page.wait_for("very")
        page.picture(tmp_path / "list.png")

        page.click("", SEARCH)
        page.write("lakehouse")
        (row,) = wait_until(lambda: len(rows(page)) == 1 and rows(page), "one trace is found")
        assert QUESTION in row

        page.click(json.dumps({"question": QUESTION}, separators=(",", ":")))
        for name in TREE:
            page.wait_for(name)
        left = [page.run(LEFT.replace("NAME", json.dumps(name))) for name in TREE]
        assert left[0] < left[1] < left[2]
        assert left[3] == left[1]
        page.picture(tmp_path / "trace.png")
        page.click("1 tag")
        page.wait_for("blue")
        page.picture(tmp_path / "tags.png")
        page.click("search passages")
        page.wait_for_part("A lakehouse keeps tables as open files, with transactions.")
        page.picture(tmp_path / "span.png")

        page.go(f"{url}/#/experiments/0/traces")
        page.click(f"Select trace tr-{trace_id}")
        page.click("Actions (1)")
        page.click("Delete")
        page.wait_for("Delete traces")
        page.picture(tmp_path / "delete.png")
        page.click("Delete", "[role=dialog] button")
        (row,) = wait_until(lambda: len(rows(page)) == 1 and rows(page), "one trace is left")
        assert "Will it rain?" in row


def test_overview_and_sessions(lake: Lake, tmp_path: Path) -> None:
    """The first page of the experiment has the figures of its traces; these can be grouped by their sessions."""
    lake.run(CHATS)
    lake.settle()
    with run_ui(lake) as url, run_browser(tmp_path) as page:
        page.go(f"{url}/#/experiments/0")
        page.click("Got it")
        page.wait_for_part("72 (30 input, 42 output)")
        page.wait_for_part("0 (Overall error rate: 0.0%)")
        page.wait_for_part("12 avg per trace")
        page.picture(tmp_path / "overview.png")

        page.go(f"{url}/#/experiments/0/traces")
        page.wait_for_part("6 of 6")
        page.click("Group traces by session")
        for session in ("morning", "evening"):
            page.wait_for(session)
        found = wait_until(lambda: len(rows(page)) == 2 and rows(page), "the traces are in two groups")
        assert sorted(row.split()[0] for row in found) == ["evening", "morning"]
        assert all("36" in row.split() for row in found)
        page.picture(tmp_path / "sessions.png")
