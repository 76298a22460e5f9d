"""Temporary credentials: who gets them, and that a real S3 server with STS, and delta-rs, take them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import requests
from databricks.sdk import errors
from databricks.sdk.errors import InvalidParameterValue, NotFound, PermissionDenied
from databricks.sdk.service.catalog import DataSourceFormat, PathOperation, TableOperation, TableType
from deltalake import DeltaTable, write_deltalake

from tracelake import ConfigurationError
from tracelake.testing import MockWorkspace
from tracelake.testing.unity.credentials import session_policy

from .sdk import client

ANN = "ann@example.com"
PATHS = [f"/api/{version}/unity-catalog/temporary-table-credentials" for version in ("2.0", "2.1")]


@pytest.fixture
def table_id(workspace: MockWorkspace, tmp_path: Path) -> str:
    """The id of the external table `main.obs.spans`, in a workspace with a user whose only privileges are to USE."""
    workspace.create_table("main.obs.spans", columns={"id": "long"}, location=str(tmp_path / "spans"))
    workspace.add_user(ANN)
    workspace.grant("USE CATALOG", "USE SCHEMA", on="main", to=ANN)
    return identifier(workspace, "main.obs.spans")


def identifier(workspace: MockWorkspace, name: str) -> str:
    found = client(workspace).tables.get(name).table_id
    assert found
    return found


def get(workspace: MockWorkspace, table_id: str, operation: TableOperation, principal: str = "") -> Any:
    asking = client(workspace, principal)
    return asking.temporary_table_credentials.generate_temporary_table_credentials(
        operation=operation, table_id=table_id
    )


def test_each_privilege_is_needed(workspace: MockWorkspace, table_id: str) -> None:
    with pytest.raises(PermissionDenied, match=r"User does not have EXTERNAL USE SCHEMA on Schema 'main\.obs'"):
        get(workspace, table_id, TableOperation.READ, ANN)
    workspace.grant("EXTERNAL USE SCHEMA", on="main.obs", to=ANN)
    with pytest.raises(PermissionDenied, match="SELECT on Table"):
        get(workspace, table_id, TableOperation.READ, ANN)
    workspace.grant("SELECT", on="main.obs.spans", to=ANN)
    assert get(workspace, table_id, TableOperation.READ, ANN).url
    with pytest.raises(PermissionDenied, match="MODIFY on Table"):
        get(workspace, table_id, TableOperation.READ_WRITE, ANN)
    workspace.grant("MODIFY", on="main.obs.spans", to=ANN)
    assert get(workspace, table_id, TableOperation.READ_WRITE, ANN).url
    workspace.revoke("USE CATALOG", on="main", from_=ANN)
    with pytest.raises(PermissionDenied, match="USE CATALOG on Catalog"):
        get(workspace, table_id, TableOperation.READ, ANN)


def test_neither_owners_nor_all_privileges_have_external_use_schema(workspace: MockWorkspace, table_id: str) -> None:
    with pytest.raises(PermissionDenied, match="EXTERNAL USE SCHEMA"):
        get(workspace, table_id, TableOperation.READ)
    workspace.grant("ALL PRIVILEGES", on="main", to=ANN)
    with pytest.raises(PermissionDenied, match="EXTERNAL USE SCHEMA"):
        get(workspace, table_id, TableOperation.READ, ANN)
    workspace.grant("EXTERNAL USE SCHEMA", on="main", to="account users")
    assert get(workspace, table_id, TableOperation.READ_WRITE).url
    assert get(workspace, table_id, TableOperation.READ_WRITE, ANN).url


def test_external_access_is_the_metastores_to_allow(workspace: MockWorkspace, table_id: str) -> None:
    workspace.grant("EXTERNAL USE SCHEMA", on="main", to=workspace.user)
    workspace.set_external_access(False)
    with pytest.raises(PermissionDenied, match=r"External Data Access .* is disabled for metastore") as denied:
        get(workspace, table_id, TableOperation.READ)
    assert denied.value.get_error_info()[0].reason == "EXTERNAL_ACCESS_DISABLED_ON_METASTORE"
    workspace.set_external_access(True)
    assert get(workspace, table_id, TableOperation.READ).url


def test_a_managed_table_is_only_read(workspace: MockWorkspace) -> None:
    made = workspace.create_table("main.obs.managed", columns={"id": "long"})
    workspace.grant("EXTERNAL USE SCHEMA", on="main", to=workspace.user)
    table_id = identifier(workspace, made.name)
    assert get(workspace, table_id, TableOperation.READ).url == made.location
    with pytest.raises(InvalidParameterValue, match="its kind being TABLE_DELTA") as refused:
        get(workspace, table_id, TableOperation.READ_WRITE)
    assert refused.value.get_error_info()[0].reason == "EXTERNAL_WRITE_NOT_ALLOWED_FOR_TABLE"


def test_what_has_no_files(workspace: MockWorkspace) -> None:
    workspace.grant("EXTERNAL USE SCHEMA", on="main", to=workspace.user)
    view = workspace.create_table("main.obs.view", view_definition="SELECT 1 AS one", columns={"one": "integer"})
    with pytest.raises(InvalidParameterValue, match="its kind being TABLE_VIEW"):
        get(workspace, identifier(workspace, view.name), TableOperation.READ)
    with pytest.raises(NotFound, match="does not exist"):
        get(workspace, "00000000-0000-0000-0000-000000000000", TableOperation.READ)


@pytest.mark.parametrize("path", PATHS)
def test_both_versions_of_the_path(workspace: MockWorkspace, table_id: str, path: str) -> None:
    workspace.grant("EXTERNAL USE SCHEMA", on="main", to=workspace.user)
    headers = {"Authorization": f"Bearer {workspace.environment()['DATABRICKS_TOKEN']}"}

    def ask(body: dict[str, Any]) -> requests.Response:
        return requests.post(workspace.url + path, json=body, headers=headers, timeout=10)

    answer = ask({"table_id": table_id, "operation": "READ"}).json()
    assert answer.keys() == {"aws_temp_credentials", "expiration_time", "url"}
    for wrong in ({"table_id": table_id}, {"operation": "READ"}, {"table_id": table_id, "operation": "WRITE"}):
        refused = ask(wrong)
        assert (refused.status_code, refused.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


def test_they_say_when_they_expire(workspace: MockWorkspace, table_id: str) -> None:
    workspace.grant("EXTERNAL USE SCHEMA", on="main", to=workspace.user)
    for seconds in (3600, 1):
        workspace.set_credential_lifetime(seconds)
        before = time.time()
        expiration = get(workspace, table_id, TableOperation.READ).expiration_time / 1000
        assert before + seconds - 0.001 <= expiration <= time.time() + seconds


def test_a_directory_of_any_name(workspace: MockWorkspace, tmp_path: Path) -> None:
    workspace.grant("EXTERNAL USE SCHEMA", on="main", to=workspace.user)
    directory = tmp_path / "team traces #1"
    workspace.create_table("main.obs.odd", columns={"id": "long"}, location=str(directory / "x" / ".." / "spans"))
    given = get(workspace, identifier(workspace, "main.obs.odd"), TableOperation.READ_WRITE)
    assert given.url == (directory / "spans").as_uri()
    write_deltalake(given.url, pa.table({"id": [1]}), mode="append", storage_options=options(given))
    assert workspace.table("main.obs.odd").rows() == [{"id": 1}]


def test_a_table_in_a_directory(workspace: MockWorkspace, table_id: str) -> None:
    workspace.grant("EXTERNAL USE SCHEMA", on="main", to=workspace.user)
    given = get(workspace, table_id, TableOperation.READ_WRITE)
    write_deltalake(given.url, pa.table({"id": [1, 2]}), mode="append", storage_options=options(given))
    assert sorted(row["id"] for row in workspace.table("main.obs.spans").rows()) == [1, 2]


def test_paths(workspace: MockWorkspace, table_id: str, tmp_path: Path) -> None:
    assert table_id
    url = f"file://{tmp_path}/new"
    mine, anns = (client(workspace, who).temporary_path_credentials for who in ("", ANN))
    for operation in PathOperation:
        given = mine.generate_temporary_path_credentials(url=url, operation=operation)
        assert (given.url, bool(given.aws_temp_credentials)) == (url, True)
    assert mine.generate_temporary_path_credentials(url, PathOperation.PATH_READ, dry_run=True).url is None
    with pytest.raises(PermissionDenied, match="EXTERNAL USE LOCATION on External Location"):
        anns.generate_temporary_path_credentials(url, PathOperation.PATH_READ)
    with pytest.raises(InvalidParameterValue, match="overlaps with other external tables"):
        mine.generate_temporary_path_credentials(f"file://{tmp_path}/spans", PathOperation.PATH_CREATE_TABLE)
    with pytest.raises(InvalidParameterValue, match="has no S3 server"):
        mine.generate_temporary_path_credentials("s3://lake/new", PathOperation.PATH_READ)
    managed = workspace.create_table("main.obs.managed").location
    with pytest.raises(InvalidParameterValue, match="overlaps with managed storage"):
        mine.generate_temporary_path_credentials(managed, PathOperation.PATH_READ)


# --- S3 --------------------------------------------------------------------------------------------------------------


def options(given: Any, endpoint: str = "") -> dict[str, str]:
    keys = given.aws_temp_credentials
    found = {
        "AWS_ACCESS_KEY_ID": keys.access_key_id,
        "AWS_SECRET_ACCESS_KEY": keys.secret_access_key,
        "AWS_SESSION_TOKEN": keys.session_token,
    }
    if endpoint:
        found |= {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}
    return found


def assumed(given: Any) -> Any:
    """Return the role that the S3 server lent with some keys."""
    from moto.sts.models import sts_backends

    roles = [role for account in sts_backends.values() for each in account.values() for role in each.assumed_roles]
    return next(role for role in roles if role.access_key_id == given.aws_temp_credentials.access_key_id)


def test_a_table_on_s3_is_written_with_the_keys_that_its_server_gives(workspace: MockWorkspace, s3: str) -> None:
    workspace.use_s3(s3, "AKIALAKE", "0nlyF0rTheW0rkspace")
    workspace.create_table("main.obs.spans", columns={"id": "long"}, location="s3://lake/team/spans")
    workspace.add_user(ANN)
    workspace.grant("USE CATALOG", "USE SCHEMA", "SELECT", "MODIFY", "EXTERNAL USE SCHEMA", on="main", to=ANN)
    table_id = identifier(workspace, "main.obs.spans")

    given = get(workspace, table_id, TableOperation.READ_WRITE, ANN)
    assert given.url == "s3://lake/team/spans"
    assert given.aws_temp_credentials.access_key_id != "AKIALAKE"
    write_deltalake(given.url, pa.table({"id": [7]}), mode="append", storage_options=options(given, s3))
    assert workspace.table("main.obs.spans").rows() == [{"id": 7}]

    role = assumed(given)
    assert role.session_name == ANN
    assert json.loads(role.policy) == session_policy(given.url, writes=True)
    reading = get(workspace, table_id, TableOperation.READ, ANN)
    assert "s3:PutObject" not in assumed(reading).policy
    assert DeltaTable(reading.url, storage_options=options(reading, s3)).to_pyarrow_table().num_rows == 1
    assert "0nlyF0rTheW0rkspace" not in repr((given, workspace.requests(), workspace._store.state.s3))


def test_a_new_table_on_s3_is_written_first_and_then_registered(workspace: MockWorkspace, s3: str) -> None:
    workspace.use_s3(s3, "AKIALAKE", "0nlyF0rTheW0rkspace")
    workspace.grant("EXTERNAL USE SCHEMA", on="main", to=workspace.user)
    asking = client(workspace)
    given = asking.temporary_path_credentials.generate_temporary_path_credentials(
        "s3://lake/team/new/", PathOperation.PATH_CREATE_TABLE
    )
    write_deltalake(given.url, pa.table({"id": [1]}), storage_options=options(given, s3))
    asking.tables.create("new", "main", "obs", TableType.EXTERNAL, DataSourceFormat.DELTA, "s3://lake/team/new")
    assert workspace.table("main.obs.new").rows() == [{"id": 1}]


def test_without_boto3(workspace: MockWorkspace, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.use_s3(s3, "AKIALAKE", "0nlyF0rTheW0rkspace")
    workspace.grant("EXTERNAL USE SCHEMA", on="main", to=workspace.user)
    workspace.create_table("main.obs.bare", columns={"id": "long"}, location="s3://lake/team/bare")
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(errors.NotImplemented, match="pip install boto3"):
        get(workspace, identifier(workspace, "main.obs.bare"), TableOperation.READ)


def test_policies_are_narrowed_to_the_prefix() -> None:
    reading, listing, _ = session_policy("s3://lake/team/spans", writes=False)["Statement"]
    assert (reading["Action"], reading["Resource"]) == (["s3:GetObject"], ["arn:aws:s3:::lake/team/spans/*"])
    assert listing["Condition"] == {"StringLike": {"s3:prefix": ["team/spans", "team/spans/*"]}}
    whole, _, _ = session_policy("s3://lake", writes=True)["Statement"]
    assert whole["Resource"] == ["arn:aws:s3:::lake/*"]
    assert "s3:DeleteObject" in whole["Action"]


def test_a_location_on_s3_needs_a_server(workspace: MockWorkspace) -> None:
    with pytest.raises(ConfigurationError, match="has no S3 server"):
        workspace.create_table("main.obs.spans", location="s3://lake/spans")
