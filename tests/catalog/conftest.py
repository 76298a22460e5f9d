from __future__ import annotations

from collections.abc import Iterator

import pytest

from .spark import Spark, run_spark
from .unity_server import UnityServer, run_unity_server


@pytest.fixture(scope="session")
def unity_server(s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UnityServer]:
    """A catalog server that asks nobody who they are, with the schema `main.obs`."""
    with run_unity_server(tmp_path_factory.mktemp("unity"), s3=s3) as server:
        server.create_catalog("main")
        server.create_schema("main.obs")
        yield server


@pytest.fixture(scope="session")
def guarded_server(s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UnityServer]:
    """A catalog server where tokens and grants count, with the schema `main.obs`."""
    with run_unity_server(tmp_path_factory.mktemp("guarded"), s3=s3, authorization=True) as server:
        server.create_catalog("main")
        server.create_schema("main.obs")
        yield server


@pytest.fixture(scope="session")
def spark_catalog(unity_server: UnityServer, s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spark]:
    """A Spark whose catalog `main` is that of `unity_server`."""
    with run_spark(tmp_path_factory.mktemp("spark"), uri=unity_server.url, s3=s3) as spark:
        yield spark
