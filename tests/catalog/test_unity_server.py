"""Tests that the catalog, the store and the engine of the other tests are what they are taken for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from deltalake import DeltaTable, QueryBuilder, Schema, write_deltalake

from tests.lake import wait_until
from tests.spans.samples import SPANS, VALUES, table_schema
from tracelake.spans import rows, tables, values

from .spark import Spark
from .unity_server import BUCKET, UnityServer

WRITER = "writer@example.com"

pytestmark = pytest.mark.slow  # a server takes seconds to start


def storage_options(vended: dict[str, Any], s3: str) -> dict[str, str]:
    """Return what delta-rs takes, from the answer of the catalog."""
    keys = vended["aws_temp_credentials"]
    return {
        "AWS_ACCESS_KEY_ID": keys["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": keys["secret_access_key"],
        "AWS_SESSION_TOKEN": keys["session_token"],
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3,
        "AWS_ALLOW_HTTP": "true",
    }


def land(location: str, version: tables.Version, options: dict[str, str] | None = None) -> DeltaTable:
    """Make a span table with all samples, and open it anew."""
    table = DeltaTable.create(
        location,
        Schema.from_json(tables.delta_schema_json(version)),
        configuration=tables.version_property(version),
        storage_options=options,
        raise_if_key_not_exists=False,
    )
    batch, _ = rows.convert(list(SPANS.values()), table_schema(table))
    write_deltalake(table, batch, mode="append")
    return DeltaTable(location, storage_options=options)


def count(table: DeltaTable) -> int:
    """Return the number of rows that DataFusion finds."""
    found = QueryBuilder().register("spans", table).execute("SELECT count(*) AS n FROM spans").read_all()
    return int(found.column("n")[0].as_py())


@pytest.mark.parametrize("version", [1, 2])
def test_columns_are_kept(unity_server: UnityServer, version: tables.Version) -> None:
    """The catalog gives every column back as it was told it, those of VARIANT too."""
    name = f"main.obs.columns_{version}"
    made = unity_server.create_table(name, f"{BUCKET}/{name}", version, properties=tables.version_property(version))
    found = unity_server.ok("GET", f"tables/{name}")
    assert found == made
    names = [field["name"] for field in tables.delta_schema(version)["fields"]]
    assert [column["name"] for column in found["columns"]] == names
    kinds = {column["name"]: column["type_name"] for column in found["columns"]}
    assert (kinds["attributes"], kinds["events"], kinds["status"]) == (
        "VARIANT" if version == 2 else "MAP",
        "ARRAY",
        "STRUCT",
    )
    assert found["properties"] == tables.version_property(version)


def test_vended_keys_are_of_a_session_of_the_store(unity_server: UnityServer, s3: str) -> None:
    """The store's own STS made the keys, for an hour, and delta-rs writes and reads with them."""
    location = f"{BUCKET}/vended"
    unity_server.create_table("main.obs.vended", location)
    vended = unity_server.vend("main.obs.vended")
    assert vended["url"] == location
    assert 3500 < vended["expiration_time"] / 1000 - time.time() <= 3600
    keys = vended["aws_temp_credentials"]
    sts = boto3.client(
        "sts",
        endpoint_url=s3,
        region_name="us-east-1",
        aws_access_key_id=keys["access_key_id"],
        aws_secret_access_key=keys["secret_access_key"],
        aws_session_token=keys["session_token"],
    )
    assert ":assumed-role/lake/uc-" in sts.get_caller_identity()["Arn"]
    assert count(land(location, 1, storage_options(vended, s3))) == len(SPANS)


def test_local_table_needs_no_keys(unity_server: UnityServer, tmp_path: Path) -> None:
    """For a table on disk the catalog says where it is, and nothing else."""
    unity_server.create_table("main.obs.local", f"file://{tmp_path}/local")
    vended = unity_server.vend("main.obs.local")
    assert {key: value for key, value in vended.items() if value is not None} == {"url": f"file://{tmp_path}/local"}
    assert count(land(vended["url"], 1)) == len(SPANS)


def test_managed_table_lies_where_the_catalog_wants_it(unity_server: UnityServer) -> None:
    """A managed table has a place of its own, and says that its commits are the catalog's."""
    made = unity_server.create_managed_table("main.obs.managed", 2)
    assert made["table_type"] == "MANAGED"
    assert made["storage_location"] == f"{BUCKET}/managed/__unitystorage/tables/{made['table_id']}"
    assert made["properties"]["delta.feature.catalogManaged"] == "supported"


def test_dropped_table_comes_back_as_another(unity_server: UnityServer) -> None:
    """A table that was made again under its name has another id."""
    first = unity_server.create_table("main.obs.again", f"{BUCKET}/again")
    unity_server.drop_table("main.obs.again")
    answer = unity_server.request("GET", "tables/main.obs.again")
    assert (answer.status_code, answer.json()["error_code"]) == (404, "TABLE_NOT_FOUND")
    assert unity_server.create_table("main.obs.again", f"{BUCKET}/again")["table_id"] != first["table_id"]


def test_stopped_server_starts_again_with_its_tables(unity_server: UnityServer) -> None:
    """A catalog that was down is the same one later, at the same address."""
    made = unity_server.create_table("main.obs.kept", f"{BUCKET}/kept")
    unity_server.stop()
    try:
        with pytest.raises(requests.ConnectionError):
            unity_server.request("GET", "tables/main.obs.kept")
    finally:
        unity_server.start()
    assert unity_server.ok("GET", "tables/main.obs.kept") == made


def test_grants_decide_who_gets_keys(guarded_server: UnityServer) -> None:
    """Keys to write take USE CATALOG, USE SCHEMA, SELECT and MODIFY, and are refused once one is taken away."""
    table = guarded_server.create_table("main.obs.guarded", f"{BUCKET}/of_grants")
    token = guarded_server.add_user(WRITER)

    def vend(operation: str) -> int:
        asked = {"table_id": table["table_id"], "operation": operation}
        return guarded_server.request("POST", "temporary-table-credentials", asked, token=token).status_code

    guarded_server.grant(WRITER, "catalog", "main", "USE CATALOG")
    guarded_server.grant(WRITER, "schema", "main.obs", "USE SCHEMA")
    assert (vend("READ"), vend("READ_WRITE")) == (403, 403)
    guarded_server.grant(WRITER, "table", "main.obs.guarded", "SELECT")
    assert (vend("READ"), vend("READ_WRITE")) == (200, 403)
    guarded_server.grant(WRITER, "table", "main.obs.guarded", "MODIFY")
    assert (vend("READ"), vend("READ_WRITE")) == (200, 200)
    guarded_server.revoke(WRITER, "schema", "main.obs", "USE SCHEMA")
    assert (vend("READ"), vend("READ_WRITE")) == (403, 403)


def test_token_decides_who_gets_in(guarded_server: UnityServer) -> None:
    """Nobody without a token gets in, nor with one that is no longer good, nor a user who was never let in."""

    def ask(token: str) -> tuple[int, str]:
        answer = guarded_server.request("GET", "metastore_summary", token=token)
        return answer.status_code, answer.json().get("error_code", "")

    guarded_server.add_user("reader@example.com")
    assert ask(guarded_server.token) == (200, "")
    assert ask(guarded_server.sign_token("reader@example.com")) == (200, "")
    assert ask(guarded_server.sign_token("reader@example.com", lifetime_s=-60)) == (401, "UNAUTHENTICATED")
    assert ask("") == (401, "UNAUTHENTICATED")
    assert ask(guarded_server.sign_token("stranger@example.com")) == (403, "PERMISSION_DENIED")


_KILLED = """
import sys
from pathlib import Path
from tests.catalog.unity_server import UnityServer
server = UnityServer(Path(sys.argv[1]), s3="http://127.0.0.1:9")
server.start()
print(server.url, flush=True)
sys.stdin.read()
"""


def test_server_ends_when_its_test_is_killed(unity_server: UnityServer, tmp_path: Path) -> None:
    """No server stays behind, however the test process ends."""
    assert unity_server.url  # skips this test where there is no server
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _KILLED, str(tmp_path)]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert requests.get(url, timeout=10).ok
        os.kill(process.pid, signal.SIGKILL)

    def is_gone() -> bool:
        try:
            requests.get(url, timeout=10)
        except requests.ConnectionError:
            return True
        except requests.RequestException:
            pass  # it went in the middle of its answer
        return False

    wait_until(is_gone, "the server is gone")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", [1, 2])
def test_spark_reads_through_the_catalog(
    unity_server: UnityServer, spark_catalog: Spark, s3: str, version: tables.Version
) -> None:
    """Spark finds a table by its name, gets keys from the catalog, and reads the rows that delta-rs wrote."""
    name = f"main.obs.spark_{version}"
    unity_server.create_table(name, f"{BUCKET}/spark_{version}", version)
    land(f"{BUCKET}/spark_{version}", version, storage_options(unity_server.vend(name), s3))
    value = "attributes['value']" if version == 1 else "variant_get(attributes, '$.value', 'string')"
    found = {row["span_id"]: row["text"] for row in spark_catalog.sql(f"SELECT span_id, {value} AS text FROM {name}")}
    assert len(found) == len(SPANS)
    for sample, content in VALUES.items():
        if version == 1 or isinstance(content, str):
            expected = values.json_text(content) if version == 1 else content
            assert found[SPANS[sample].span_id] == expected, sample
