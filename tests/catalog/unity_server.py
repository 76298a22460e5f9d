"""The open-source Unity Catalog server on loopback, with its database in a directory of the test.

Its jars come by Maven, and `UnityServer.java` starts it.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import functools
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.lake import FOREIGN, wait_until
from tracelake.databricks.columns import columns_of
from tracelake.spans import tables

BUCKET = "s3://lake"
_HERE = Path(__file__).parent
_POM = _HERE / "unity-server.pom.xml"
_CLASSPATH = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:build-classpath"
# For a start in seconds, not for speed later.
_JVM = ("-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
_PROPERTIES = f"""
server.authorization={{authorization}}
storage-root.tables={BUCKET}/managed
s3.bucketPath.0={BUCKET}
s3.region.0=us-east-1
s3.awsRoleArn.0=arn:aws:iam::123456789012:role/lake
s3.accessKey.0=key-of-the-server
s3.secretKey.0=secret-of-the-server
"""
# The database outlives the process, so that a server that is started again knows its tables.
_HIBERNATE = """
hibernate.connection.driver_class=org.h2.Driver
hibernate.connection.url=jdbc:h2:file:./etc/db/h2db;DB_CLOSE_DELAY=-1
hibernate.hbm2ddl.auto=update
"""


@functools.cache
def classpath(pom: Path) -> str:
    """Return the jars that a pom asks for; skip the test where they cannot be had."""
    for command in ("java", "mvn"):
        if shutil.which(command) is None:
            pytest.skip(f"Unity Catalog needs Java 17 and Maven, and there is no {command} command")
    with open(pom) as lock, tempfile.NamedTemporaryFile("r") as jars:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Maven's repository is shared by the processes of the tests
        maven = [
            "mvn",
            "--batch-mode",
            "--quiet",
            "-Dstyle.color=never",
            f"--file={pom}",
            _CLASSPATH,
            f"-Dmdep.outputFile={jars.name}",
        ]
        for options in (["--offline"], []):
            found = subprocess.run(maven + options, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if found.returncode == 0:
                return Path(jars.name).read_text().strip()
    reason = next((line for line in found.stdout.splitlines() if "ERROR" in line), found.stderr)
    pytest.skip(f"Maven has not what {pom.name} asks for: {reason[:300]}")


class UnityServer:
    """A server that answers between `start` and `stop`.

    Attributes:
        url: its address, with no slash at the end; the same after each start.
        token: what the administrator says who they are with; nobody is asked where authorization is off.
    """

    def __init__(self, root: Path, *, s3: str, authorization: bool = False) -> None:
        self._root = root
        self._s3 = s3
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._conf = root / "etc" / "conf"
        self._conf.mkdir(parents=True)
        enabled = "enable" if authorization else "disable"
        (self._conf / "server.properties").write_text(_PROPERTIES.format(authorization=enabled))
        (self._conf / "hibernate.properties").write_text(_HIBERNATE)
        self.url = f"http://127.0.0.1:{self._port}"
        self.token = ""

    def start(self) -> None:
        """Start the server, and wait until it answers; it finds what an earlier one left."""
        jars = classpath(_POM)
        environ = {key: value for key, value in os.environ.items() if not FOREIGN.match(key)}
        with open(self._root / "log", "ab") as output:
            self._process = subprocess.Popen(
                ["java", *_JVM, "-cp", jars, str(_HERE / "UnityServer.java"), str(self._port), self._s3],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environ | {"HOME": str(self._root)},
                cwd=self._root,
            )
        wait_until(self._answers, "the Unity Catalog server answers", 60)
        self.token = (self._conf / "token.txt").read_text().strip()

    def stop(self) -> None:
        """End the server, and wait until it is gone; stopping it twice does nothing."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def log(self) -> str:
        """Return what the server printed so far."""
        return (self._root / "log").read_text()

    def request(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> requests.Response:
        """Ask below `/api/2.1/unity-catalog/`, or from the root; as the administrator unless told otherwise."""
        url = self.url + path if path.startswith("/") else f"{self.url}/api/2.1/unity-catalog/{path}"
        bearer = self.token if token is None else token
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        return requests.request(method, url, json=body, headers=headers, timeout=30)

    def ok(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> dict[str, Any]:
        """Return the body of an answer, which has to be a good one."""
        answer = self.request(method, path, body, token=token)
        assert answer.status_code in (200, 201), (answer.status_code, answer.text)
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found

    def create_catalog(self, name: str) -> dict[str, Any]:
        """Make a catalog."""
        return self.ok("POST", "catalogs", {"name": name})

    def create_schema(self, full_name: str) -> dict[str, Any]:
        """Make a schema, `catalog.schema`."""
        catalog, name = full_name.split(".")
        return self.ok("POST", "schemas", {"name": name, "catalog_name": catalog})

    def create_table(
        self,
        full_name: str,
        location: str,
        columns: list[dict[str, object]] | tables.Version = 1,
        *,
        table_type: str = "EXTERNAL",
        properties: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Make the catalog know a Delta table, whose columns may be told as the version of a span table."""
        catalog, schema, name = full_name.split(".")
        described = columns if isinstance(columns, list) else columns_of(tables.delta_schema(columns))
        body = {
            "name": name,
            "catalog_name": catalog,
            "schema_name": schema,
            "table_type": table_type,
            "data_source_format": "DELTA",
            "storage_location": location,
            "columns": described,
            "properties": properties or {},
        }
        return self.ok("POST", "tables", body)

    def create_managed_table(
        self, full_name: str, columns: list[dict[str, object]] | tables.Version = 1
    ) -> dict[str, Any]:
        """Make a table whose place and commits are the catalog's."""
        catalog, schema, name = full_name.split(".")
        staged = self.ok("POST", "staging-tables", {"name": name, "catalog_name": catalog, "schema_name": schema})
        properties = {"delta.feature.catalogManaged": "supported", "io.unitycatalog.tableId": staged["id"]}
        return self.create_table(
            full_name, staged["staging_location"], columns, table_type="MANAGED", properties=properties
        )

    def drop_table(self, full_name: str) -> None:
        """Make the catalog forget a table; its files stay."""
        answer = self.request("DELETE", f"tables/{full_name}")
        assert answer.status_code == 200, answer.text

    def vend(self, full_name: str, operation: str = "READ_WRITE", *, token: str | None = None) -> dict[str, Any]:
        """Return temporary credentials for the storage of a table."""
        table_id = self.ok("GET", f"tables/{full_name}", token=token)["table_id"]
        asked = {"table_id": table_id, "operation": operation}
        return self.ok("POST", "temporary-table-credentials", asked, token=token)

    def add_user(self, email: str) -> str:
        """Let a user in, and return a token of theirs."""
        user = {"displayName": email, "emails": [{"value": email, "primary": True}]}
        self.ok("POST", "/api/1.0/unity-control/scim2/Users", user)
        return self.sign_token(email)

    def sign_token(self, email: str, lifetime_s: float = 3600) -> str:
        """Return a token as the server's own are, made with its key: no identity provider is needed."""
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import padding, rsa

        key = serialization.load_der_private_key((self._conf / "private_key.der").read_bytes(), None)
        assert isinstance(key, rsa.RSAPrivateKey)
        header = {"alg": "RS512", "typ": "JWT", "kid": (self._conf / "key_id.txt").read_text().strip()}
        claims = {"iss": "internal", "type": "ACCESS", "sub": email, "exp": int(time.time() + lifetime_s)}
        signed = f"{_encoded(json.dumps(header).encode())}.{_encoded(json.dumps(claims).encode())}"
        return f"{signed}.{_encoded(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA512()))}"

    def grant(self, principal: str, kind: str, name: str, *privileges: str) -> None:
        """Give privileges, such as USE CATALOG, on a `catalog`, `schema` or `table`."""
        self._change(kind, name, {"principal": principal, "add": privileges, "remove": []})

    def revoke(self, principal: str, kind: str, name: str, *privileges: str) -> None:
        """Take privileges away."""
        self._change(kind, name, {"principal": principal, "add": [], "remove": privileges})

    def _change(self, kind: str, name: str, change: dict[str, Any]) -> None:
        self.ok("PATCH", f"permissions/{kind}/{name}", {"changes": [change]})

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(self.url, timeout=10).ok
        return False


@contextlib.contextmanager
def run_unity_server(root: Path, *, s3: str, authorization: bool = False) -> Iterator[UnityServer]:
    """Run a server until the block ends.

    Args:
        s3: address of the S3 server with STS that has the bucket `lake`.
        authorization: tokens and grants count; without it everybody may do everything.
    """
    server = UnityServer(root, s3=s3, authorization=authorization)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
