"""A workspace whose tables this process writes to, in directories and on an S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.shipper.conftest import Clock
from tracelake import Sink
from tracelake.databricks.catalog import Catalog
from tracelake.databricks.names import TableName
from tracelake.databricks.workspace import connect
from tracelake.destinations.targets import parse_target
from tracelake.destinations.unity.destination import UnityCatalogSink
from tracelake.testing import MockWorkspace

from .gate import Gate, open_gate

AGENT = "agent@example.com"
PRIVILEGES = ("USE CATALOG", "USE SCHEMA", "SELECT", "MODIFY", "EXTERNAL USE SCHEMA")


@dataclass
class Place:
    """A table of a workspace."""

    workspace: MockWorkspace
    name: str = "main.obs.spans"

    def open(self) -> Sink:
        return parse_target(self.name).open()

    def numbers(self) -> list[int]:
        return sorted(int(span.span_id, 16) for span in self.workspace.table(self.name).spans())


def unity_sink(clock: Clock) -> UnityCatalogSink:
    """Open the table `main.obs.spans` with a clock of the test's."""
    return UnityCatalogSink(TableName("main", "obs", "spans"), Catalog(connect()), "auto", clock=clock)


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch) -> Iterator[MockWorkspace]:
    """A workspace with the schema `main.obs`, to which the environment gives access as the user AGENT."""
    with MockWorkspace() as made:
        prepare(made, monkeypatch)
        yield made


def prepare(workspace: MockWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a schema and a user who may write to its tables, and let the environment be this user's."""
    workspace.create_schema("main.obs")
    workspace.add_user(AGENT)
    workspace.grant(*PRIVILEGES, on="main", to=AGENT)
    for name, value in workspace.environment(AGENT).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def store(workspace: MockWorkspace, s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an S3 server that the workspace uses, as those who write tables do."""
    workspace.use_s3(s3, "AKIALAKE", "0nlyF0rTheW0rkspace")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    return s3


@pytest.fixture
def gate(store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """The same server, behind a gate for those who write tables."""
    with open_gate(store) as opened:
        monkeypatch.setenv("AWS_ENDPOINT_URL", opened.url)
        yield opened
