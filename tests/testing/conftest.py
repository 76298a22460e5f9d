from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from tracelake.testing import MockWorkspace


@pytest.fixture
def workspace() -> Iterator[MockWorkspace]:
    """A workspace with the catalog `main` and the schema `main.obs`; `workspace.url` serves it."""
    with MockWorkspace() as made:
        made.create_schema("main.obs")
        yield made


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 server with STS, that has a bucket `lake`."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    requests.put(f"{url}/lake", timeout=10).raise_for_status()
    yield url
    server.stop()
