"""A Delta table in an object store: a real S3 server on loopback, with credentials from the environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from deltalake import DeltaTable

from tests.lake import Lake, wait_until
from tests.numbered import START_NS
from tracelake import DeliveryError, PermanentDeliveryError
from tracelake.destinations.delta import DeltaSink
from tracelake.destinations.maintenance import optimize, remove_older, vacuum
from tracelake.destinations.targets import parse_target
from tracelake.spool.ledger import Delivery, read_delivery

from .contract import SinkContract, batch, spans

SECRET = "sEcr3t/Key+0fAStore"
TOKEN = "t0ken0fASessi0n=="


@dataclass
class Store:
    """A server of one bucket, and the settings that lead there."""

    url: str
    bucket: str = "lake"

    @property
    def environ(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "AKIATRACELAKE",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_SESSION_TOKEN": TOKEN,
            "AWS_REGION": "eu-west-1",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def ask(self, method: str, path: str, body: bytes | None = None) -> None:
        headers = {"Content-Type": "text/plain"}
        urllib.request.urlopen(
            urllib.request.Request(self.url + path, body, headers, method=method), timeout=10
        ).close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("w") as output:
        command = [Path(sys.executable).parent / "moto_server", "-H", "127.0.0.1", "-p", "0"]
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        found = wait_until(lambda: re.search(r"http://127\.0\.0\.1:[1-9]\d*", log.read_text()), "the S3 server listens")
        store = Store(found[0])
        store.ask("PUT", f"/{store.bucket}")
        yield store
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def store(server: Store, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The server, in the environment of the test and of the processes it starts."""
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    lake.environ |= server.environ
    return server


@dataclass
class Table:
    """A table in the store."""

    location: str

    def open(self) -> object:
        return parse_target(self.location).open()

    def numbers(self) -> list[int]:
        rows = DeltaTable(self.location).to_pyarrow_table(columns=["span_id"]).to_pylist()
        return sorted(int(row["span_id"], 16) for row in rows)


@pytest.mark.usefixtures("store")
class TestContract(SinkContract):
    """What holds on a disk holds in a store; commits are conditional puts there."""

    @pytest.fixture
    def place(self, request: pytest.FixtureRequest) -> Table:
        return Table(f"s3://lake/contract/{request.node.name}")


APP = """
import sys
import tracelake
for number in range(int(sys.argv[1])):
    with tracelake.start_span(f"span {number}"):
        pass
    if number % 10 == 9:
        tracelake.flush(30)
"""


def target(name: str, bucket: str = "lake") -> str:
    return f"s3://{bucket}/tables/{name}"


def files_with(root: Path, *secrets: str) -> list[str]:
    """Return the files below a directory that hold one of the secrets, in content or name."""
    found = []
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            if any(secret.encode() in path.read_bytes() or secret in str(path) for secret in secrets):
                found.append(str(path))
    return found


def tracelake(lake: Lake, *arguments: str) -> str:
    process = lake.start(sys.executable, "-m", "tracelake", *arguments)
    process.wait(30)
    return lake.output(process)


def test_app_to_rows_in_a_store(lake: Lake, store: Store) -> None:
    """End to end, and no file of ours and no output has a secret."""
    lake.environ["TRACELAKE_DESTINATION"] = target("app")
    assert lake.run(APP, "25") == ""
    rows = lake.rows(target("app"))
    assert sorted(row["name"] for row in rows) == sorted(f"span {number}" for number in range(25))
    assert "AKIATRACELAKE" not in lake.log()
    tracelake(lake, "status")
    tracelake(lake, "doctor")
    assert files_with(lake.root, SECRET, TOKEN, "AKIATRACELAKE") == []
    assert store.url in (Path(lake.spool.lanes()[0].note_path)).read_text()


def stopped(lake: Lake) -> Delivery | None:
    (lane,) = lake.spool.lanes()
    delivery = read_delivery(lane)
    return delivery if delivery.state == "stopped" else None


@pytest.mark.usefixtures("store")
@pytest.mark.slow
def test_bucket_that_is_not_there_stops_the_lane(lake: Lake) -> None:
    """The app ends at once and well, says what is left and why, and the spans wait."""
    lake.environ["TRACELAKE_DESTINATION"] = target("app", "no-such-bucket")
    output = lake.run(APP, "5")
    assert "5 spans recorded: 0 delivered, 5 pending" in output
    assert "NoSuchBucket" in output
    delivery = stopped(lake)
    assert delivery is not None
    assert "no-such-bucket" in delivery.error
    assert "NoSuchBucket" in delivery.error
    assert "Repair the access" in delivery.error
    assert len(lake.records()) == 5
    tracelake(lake, "status")
    assert files_with(lake.root, SECRET, TOKEN) == []


@pytest.fixture
def guarded(store: Store) -> Iterator[Store]:
    """The server, while it asks who is there; it knows nobody."""
    store.ask("POST", "/moto-api/reset-auth", b"0")
    yield store
    store.ask("POST", "/moto-api/reset-auth", b"1000000000")


@pytest.mark.usefixtures("guarded")
@pytest.mark.slow
def test_forbidden_store_stops_the_lane(lake: Lake) -> None:
    """The reason is the store's, without the key that it names."""
    lake.environ["TRACELAKE_DESTINATION"] = target("forbidden")
    lake.run(APP, "5")
    delivery = stopped(lake)
    assert delivery is not None
    assert re.search("403|Forbidden|AccessDenied|InvalidAccessKeyId", delivery.error)
    with pytest.raises(PermanentDeliveryError):
        parse_target(target("forbidden")).open().write(batch(1, spans(1)))
    (finding,) = parse_target(target("forbidden")).check()
    assert finding.severity == "error"
    assert files_with(lake.root, SECRET, TOKEN) == []


@pytest.mark.slow
def test_store_that_is_away_is_tried_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens there: transient, within a bounded time."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert store.url != "http://127.0.0.1:9"
    with pytest.raises(DeliveryError) as raised:
        parse_target(target("away")).open().write(batch(1, spans(1)))
    assert not isinstance(raised.value, PermanentDeliveryError)


@pytest.mark.usefixtures("store")
@pytest.mark.slow
def test_two_shippers_lose_nothing(lake: Lake, tmp_path: Path) -> None:
    """Two hosts, with a spool each, write to one table at the same time."""
    (tmp_path / "other").mkdir()
    other = Lake(tmp_path / "other")
    other.environ |= lake.environ | {"TRACELAKE_SPOOL_DIR": other.spool.path}
    lake.environ["TRACELAKE_DESTINATION"] = other.environ["TRACELAKE_DESTINATION"] = target("shared")
    try:
        script = tmp_path / "app.py"
        script.write_text(APP)
        apps = [(here, here.start(sys.executable, str(script), "60")) for here in (lake, other)]
        for here, app in apps:
            assert app.wait(60) == 0, here.output(app)
            assert here.output(app) == ""
        other.settle()
    finally:
        other.close()
    rows = lake.rows(target("shared"))
    assert len({row["span_id"] for row in rows}) == len(rows) == 120


@pytest.mark.usefixtures("store")
@pytest.mark.slow
def test_table_in_a_store_is_maintained() -> None:
    """Small files become one, old spans go, and files that are too young to delete are found and stay."""
    location = target("maintained")
    sink = DeltaSink(location, version=1, create=True)
    for number in range(1, 6):
        sink.write(batch(number, spans(number)))
    assert optimize(sink).after.files == 1
    assert remove_older(sink, START_NS).rows_removed == 0
    assert Table(location).numbers() == [1, 2, 3, 4, 5]
    assert remove_older(sink, START_NS + 1, dry_run=True).rows_removed == 5
    assert vacuum(sink).files_deleted == 0
    assert remove_older(sink, START_NS + 1).after.files == 0
