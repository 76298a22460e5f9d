"""Many hosts write to one table at once, each with a spool of its own: no span is lost, none is there twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest

from tests.lake import Lake, open_lake, wait_until
from tests.numbered import add_segment, lines
from tracelake.settings import Settings
from tracelake.shipper.lane import LaneShipper
from tracelake.spool.lane import Spool
from tracelake.spool.ledger import pending_bytes, read_delivery, read_ledger
from tracelake.testing import MockWorkspace

NAME = "main.obs.spans"
HOSTS = 16
# A batch may lose against the others for longer than delta-rs tries.
TRIES = 20


class Stored:
    """The files of a table, read without the library that wrote them: its log by us, its rows by DuckDB."""

    def __init__(self, directory: Path) -> None:
        commits = sorted((directory / "_delta_log").glob("*.json"))
        assert [int(commit.stem) for commit in commits] == list(range(len(commits)))
        actions = [json.loads(line) for commit in commits for line in commit.read_text().splitlines()]
        removed = {action["remove"]["path"] for action in actions if "remove" in action}
        added = [action["add"]["path"] for action in actions if "add" in action]
        assert len(set(added)) == len(added)
        files = [str(directory / path) for path in added if path not in removed]
        self.commits = [action["txn"]["appId"] for action in actions if "txn" in action]
        self.spans = Counter(
            span_id for (span_id,) in duckdb.execute("SELECT span_id FROM read_parquet(?)", [files]).fetchall()
        )


@dataclass
class Shared:
    """The table of a test, in a directory or on S3.

    Attributes:
        batches: how many each host delivers; a commit takes long on this S3 server.
    """

    location: str
    copy: Path
    batches: int
    s3: str = ""

    def stored(self) -> Stored:
        return Stored(download(self.s3, self.location, self.copy) if self.s3 else Path(self.location))


@pytest.fixture(params=["directory", "s3"])
def shared(request: pytest.FixtureRequest, workspace: MockWorkspace, tmp_path: Path) -> Shared:
    if request.param == "directory":
        made = Shared(str(tmp_path / "table"), tmp_path, batches=3)
    else:
        made = Shared(f"s3://lake/writers/{tmp_path.name}", tmp_path / "copy", 1, request.getfixturevalue("store"))
    workspace.create_table(NAME, location=made.location)
    return made


def download(s3: str, location: str, directory: Path) -> Path:
    """Copy what is at a location of an S3 server."""
    import boto3

    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    client = boto3.client(
        "s3", endpoint_url=s3, region_name="us-east-1", aws_access_key_id="AKIAREADER", aws_secret_access_key="reads"
    )
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
        for item in page["Contents"]:
            path = directory / item["Key"].removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, item["Key"], str(path))
    return directory


@pytest.mark.slow
def test_sixteen_hosts_at_once(shared: Shared, tmp_path: Path) -> None:
    """Each delivers its batches one after the other, and begins when all are ready."""
    ready = threading.Barrier(HOSTS)

    def deliver(host: int) -> None:
        spool = Spool(str(tmp_path / f"host-{host}"))
        spool.create()
        lane = spool.lane(f"uc://{NAME}", {})
        lane.create(f"uc://{NAME}", {})
        shipper = LaneShipper(lane, Settings())
        ready.wait(30)
        for number in range(shared.batches):
            add_segment(lane, lines(range(100 * host + 10 * number, 100 * host + 10 * number + 10)))
            for _ in range(TRIES):
                shipper.ship(flush=True)
                if not pending_bytes(lane):
                    break
            assert read_delivery(lane).state == "delivering"
        assert (read_ledger(lane).delivered, read_ledger(lane).quarantined) == (10 * shared.batches, 0)

    with ThreadPoolExecutor(HOSTS) as hosts:
        list(hosts.map(deliver, range(HOSTS)))
    stored = shared.stored()
    recorded = [100 * host + number for host in range(HOSTS) for number in range(10 * shared.batches)]
    assert stored.spans == {f"{number:016x}": 1 for number in recorded}
    assert sorted(Counter(stored.commits).values()) == [shared.batches] * HOSTS


APP = """
import sys
import tracelake
for number in range(int(sys.argv[1])):
    with tracelake.start_span(f"span {number}"):
        pass
    if number % 20 == 19:
        tracelake.flush(60)
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_sixteen_hosts_of_processes(shared: Shared, tmp_path: Path) -> None:
    """Whole ones: an app and a shipper each, of which some are killed and come again."""
    spans = 200
    with contextlib.ExitStack() as stack:
        lakes = []
        for host in range(HOSTS):
            (tmp_path / f"host-{host}").mkdir()
            lake = stack.enter_context(open_lake(tmp_path / f"host-{host}"))
            foreign = {name: value for name, value in os.environ.items() if name.startswith(("DATABRICKS_", "AWS_"))}
            lake.environ |= {**foreign, "TRACELAKE_DESTINATION": NAME, "TRACELAKE_EXIT_TIMEOUT": "120"}
            lakes.append(lake)
        apps = [lake.start(sys.executable, "-c", APP, str(spans)) for lake in lakes]
        for lake in lakes[::4]:
            (pid,) = wait_until(lake.shippers, "a shipper is started")[:1]
            wait_until(lambda lake=lake: delivered(lake), "something is delivered", 120)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for lake, app in zip(lakes, apps, strict=True):
            assert app.wait(300) == 0, lake.output(app)
            lake.settle()
        recorded = sum(delivered(lake) for lake in lakes)
    stored = shared.stored()
    assert recorded == HOSTS * spans
    assert (stored.spans.total(), max(stored.spans.values())) == (HOSTS * spans, 1)


def delivered(lake: Lake) -> int:
    return sum(read_ledger(lane).delivered for lane in lake.spool.lanes())
