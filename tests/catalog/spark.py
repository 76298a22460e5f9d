"""A Spark that finds its tables in Unity Catalog.

A JVM gets its jars when it starts, and a test process has one at most; so this file is also the program that runs
in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


class Spark:
    """A session whose catalog `main` is the one of a Unity Catalog server."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def sql(self, query: str) -> list[dict[str, Any]]:
        """Return the rows of a query; a value that JSON has not comes as text."""
        return self._rows({"sql": query})

    def traces(self, target: str) -> list[dict[str, Any]]:
        """Return the rows of `tracelake.spark.traces`."""
        return self._rows({"traces": target})

    def _rows(self, asked: dict[str, str]) -> list[dict[str, Any]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self._log.read_text()
        answer: dict[str, Any] = json.loads(line)
        assert "rows" in answer, answer["error"]
        rows: list[dict[str, Any]] = answer["rows"]
        return rows


@contextlib.contextmanager
def run_spark(root: Path, *, uri: str, s3: str, token: str = "") -> Iterator[Spark]:
    """Run Spark until the block ends; skip the test where a part of it cannot be had.

    Args:
        uri: address of the Unity Catalog server, which vends the keys to the store.
        s3: address of the S3 server.
    """
    import pytest

    from tests.lake import FOREIGN

    from .unity_server import classpath

    pytest.importorskip("pyspark", reason="pyspark is not installed: pip install 'tracelake[spark]'")
    jars = classpath(_HERE / "unity-spark.pom.xml").split(os.pathsep)
    settings = {
        "spark.jars": ",".join(jars),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.catalog.main": "io.unitycatalog.spark.UCSingleCatalog",
        "spark.sql.catalog.main.uri": uri,
        "spark.sql.catalog.main.token": token or "none",
        "spark.hadoop.fs.s3.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem",
        "spark.hadoop.fs.s3a.endpoint": s3,
        "spark.hadoop.fs.s3a.endpoint.region": "us-east-1",
        "spark.hadoop.fs.s3a.path.style.access": "true",
        "spark.hadoop.fs.s3a.connection.ssl.enabled": "false",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": "2g",
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.warehouse.dir": str(root / "warehouse"),
    }
    environ = {key: value for key, value in os.environ.items() if not FOREIGN.match(key)}
    log = root / "spark.log"
    with open(log, "w") as output:
        process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env=environ | {"HOME": str(root), "PYSPARK_PYTHON": sys.executable},
            cwd=root,
            text=True,
        )
    with process:  # closes its input at the end, and waits: without input the program ends
        assert process.stdin is not None
        process.stdin.write(json.dumps(settings) + "\n")
        yield Spark(process, log)


def _serve() -> None:
    from py4j.protocol import Py4JError  # type: ignore[import-untyped]
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    import tracelake.spark

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Spark prints goes to the log
    builder = SparkSession.builder.master("local[1]").appName("tracelake tests")
    for key, value in json.loads(sys.stdin.readline()).items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    for line in sys.stdin:
        try:
            asked = json.loads(line)
            frame = session.sql(asked["sql"]) if "sql" in asked else tracelake.spark.traces(session, asked["traces"])
            rows = [row.asDict(recursive=True) for row in frame.collect()]
            answer: dict[str, Any] = {"rows": rows}
        except (PySparkException, Py4JError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer, default=str), file=answers, flush=True)
    session.stop()


if __name__ == "__main__":
    _serve()
