"""A client in another language: OpenTelemetry's exporter for Node, as docs/testing.md shows it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.pages import ROOT, blocks
from tracelake.testing import MockWorkspace

PAGE = ROOT / "docs" / "testing.md"
PACKAGES = {
    "@opentelemetry/api": "^1.9.0",
    "@opentelemetry/exporter-trace-otlp-proto": ">=0.200.0",
    "@opentelemetry/sdk-trace-node": "^2.0.0",
    "tsx": "^4.0.0",
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node's npm")
def test_typescript_client_of_the_docs_is_heard(workspace: MockWorkspace, tmp_path: Path) -> None:
    """Its bodies have no length in advance: they come in chunks."""
    (source,) = (block.text for block in blocks(PAGE) if block.marker == "typescript: client.ts")
    (tmp_path / "client.ts").write_text(source)
    (tmp_path / "package.json").write_text(json.dumps({"private": True, "type": "module", "dependencies": PACKAGES}))
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=tmp_path, check=True, timeout=100)
    workspace.create_trace_location("main.obs.shop")
    table = workspace.table("main.obs.shop_otel_spans")
    done = subprocess.run(
        [str(tmp_path / "node_modules" / ".bin" / "tsx"), "client.ts"],
        cwd=tmp_path,
        env={**os.environ, **workspace.environment()},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (span,) = table.spans()
    assert (span.name, span.attributes) == ("checkout", {"cart.items": 3})
    (sent,) = table.requests()
    assert sent.request.headers["transfer-encoding"] == "chunked"
