"""Temporary credentials of Unity Catalog open the table, and only they do, whatever else is in the environment.

A table is written with the credentials of an answer, and read by another client with access of its own.
"""

from __future__ import annotations

import base64
import json
import math
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import duckdb
import pytest
from deltalake import DeltaTable, Schema, write_deltalake
from deltalake.exceptions import DeltaError
from moto.server import ThreadedMotoServer

from tests.destinations.contract import spans
from tracelake import PermanentDeliveryError
from tracelake.databricks.credentials import Credentials, storage_credentials
from tracelake.spans import tables
from tracelake.spans.rows import convert

from .azurite import ACCOUNT, Azurite, run_azurite
from .gcs import CloudStorage, run_cloud_storage

KEYS = {"access_key_id": "ASIAVENDED", "secret_access_key": "s3cret-vended", "session_token": "t0ken-vended"}
AWS = {"aws_temp_credentials": KEYS}
R2 = {"r2_temp_credentials": KEYS}
SAS = {"azure_user_delegation_sas": {"sas_token": "sp=rl&sig=s1gnature"}}
AAD = {"azure_aad": {"aad_token": "t0ken-aad"}}
GCP = {"gcp_oauth_token": {"oauth_token": "ya29.vended"}}

S3 = "s3://lake/tables/spans"
ABFSS = "abfss://lake@account.dfs.core.windows.net/tables/spans"
GS = "gs://lake/tables/spans"
R2_URL = "r2://lake@0123abcd.r2.cloudflarestorage.com/tables/spans"


def write(opened: Credentials, *numbers: int) -> None:
    """Append numbered spans to the table, which is made if it is not there."""
    options = dict(opened.options)
    DeltaTable.create(
        opened.location, Schema.from_json(tables.delta_schema_json(1)), mode="ignore", storage_options=options
    )
    table = DeltaTable(opened.location, storage_options=options)
    rows, rejected = convert(spans(*numbers), tables.arrow_schema(json.loads(table.schema().to_json())))
    assert rejected == []
    write_deltalake(table, rows, mode="append")


def numbers_in(files: Mapping[str, bytes], tmp_path: Path) -> list[int]:
    """Return the numbers of the spans in the files of a table, by their names in the store, as its log has them."""
    commits = [files[name].splitlines() for name in sorted(files) if name.endswith(".json")]
    added = [action["add"]["path"] for lines in commits for action in map(json.loads, lines) if "add" in action]
    found: list[int] = []
    for path in added:
        (content,) = [content for name, content in files.items() if name.endswith(f"/{path}")]
        local = tmp_path / path
        local.write_bytes(content)
        rows = duckdb.sql(f"SELECT span_id FROM read_parquet('{local}')").fetchall()
        found += [int(span_id, 16) for (span_id,) in rows]
    return sorted(found)


# What an answer becomes.


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(1_700_000_000_000, 1.7e9), ("1700000000500", 1_700_000_000.5), (None, math.inf), ("soon", math.inf)],
)
def test_expiry(given: object, seconds: float) -> None:
    assert storage_credentials({**AWS, "expiration_time": given}, S3).expires_at == seconds
    assert storage_credentials(AWS, S3).expires_at == math.inf


@pytest.mark.parametrize(("answer", "location"), [(AWS, S3), (R2, R2_URL), (SAS, ABFSS), (AAD, ABFSS), (GCP, GS)])
def test_no_secret_is_shown(answer: Mapping[str, Any], location: str) -> None:
    opened = storage_credentials({"url": location, "new": {"key": 1}, **answer}, location + "/")
    assert opened.options
    assert "options" not in repr(opened)
    assert not any(value in repr(opened) for value in opened.options.values())


def test_aws_region_and_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's, then the metastore's, then that of the first region."""

    def endpoint(region: str = "") -> tuple[str, str]:
        options = storage_credentials(AWS, "s3a://lake/t", region=region).options
        return options["aws_region"], options["aws_endpoint"]

    assert endpoint() == ("us-east-1", "https://s3.us-east-1.amazonaws.com")
    assert endpoint("eu-west-1") == ("eu-west-1", "https://s3.eu-west-1.amazonaws.com")
    assert endpoint("cn-north-1") == ("cn-north-1", "https://s3.cn-north-1.amazonaws.com.cn")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert endpoint("eu-west-1") == ("eu-north-1", "https://s3.eu-north-1.amazonaws.com")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://store.example")
    assert endpoint() == ("eu-north-1", "https://store.example")


def test_aws_access_point() -> None:
    arn = "arn:aws:s3:eu-west-1:123456789012:accesspoint/spans"
    options = storage_credentials({"aws_temp_credentials": {**KEYS, "access_point": arn}}, S3).options
    assert options["aws_endpoint_url_s3"] == "https://spans-123456789012.s3-accesspoint.eu-west-1.amazonaws.com"
    assert options["aws_virtual_hosted_style_request"] == "true"
    assert options["aws_region"] == "eu-west-1"
    with pytest.raises(PermanentDeliveryError, match="'alias', which is no ARN"):
        storage_credentials({"aws_temp_credentials": {**KEYS, "access_point": "alias"}}, S3)


def test_r2_is_s3_at_the_address_of_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://elsewhere.example")
    opened = storage_credentials(R2, R2_URL)
    assert opened.location == S3
    assert opened.options["aws_endpoint_url_s3"] == "https://0123abcd.r2.cloudflarestorage.com"
    assert opened.options["aws_region"] == "auto"


def test_azure_beyond_the_public_cloud() -> None:
    opened = storage_credentials(SAS, "abfss://lake@account.dfs.core.usgovcloudapi.net/t")
    assert opened.location == "abfss://lake/t"
    assert opened.options["azure_storage_account_name"] == "account"
    assert opened.options["azure_storage_endpoint"] == "https://account.blob.core.usgovcloudapi.net"
    assert storage_credentials(AAD, ABFSS).options["azure_storage_token"] == "t0ken-aad"


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/data/spans/", "/data/spans"),
        ("file:///data/spans", "/data/spans"),
        ("file:/data/spans", "/data/spans"),
        ("file://localhost/data/spans", "/data/spans"),
        ("file:///data/my%20spans", "/data/my spans"),
    ],
)
@pytest.mark.parametrize("answer", [{}, AWS, {"aws_temp_credentials": None}], ids=["empty", "keys", "null"])
def test_a_local_table_needs_no_credentials(location: str, path: str, answer: Mapping[str, Any]) -> None:
    assert storage_credentials(answer, location) == Credentials(path)


@pytest.mark.parametrize(
    ("answer", "location", "seen"),
    [
        ({}, S3, "no whole aws_temp_credentials .* its answer has nothing"),
        ({"aws_temp_credentials": {}}, S3, "its answer has nothing"),
        ({"aws_temp_credentials": {**KEYS, "session_token": ""}}, S3, "its answer has aws_temp_credentials"),
        ({**GCP, "expiration_time": 1}, S3, "its answer has expiration_time, gcp_oauth_token"),
        (AWS, ABFSS, "no whole azure_user_delegation_sas or azure_aad"),
    ],
    ids=["nothing", "empties", "without a token", "of another store", "keys for Azure"],
)
def test_answer_without_the_credentials(answer: Mapping[str, Any], location: str, seen: str) -> None:
    with pytest.raises(PermanentDeliveryError, match=seen) as raised:
        storage_credentials(answer, location)
    assert "vended" not in str(raised.value)


@pytest.mark.parametrize(
    "location",
    [
        *(f"s3://lake/a{odd}b" for odd in (" ", "ü", "%20", "?", "#", "[", "\\", "*", "~", "\n", "//", "/../", "/./")),
        "s3://lake",
        "s3://key:secret@lake/t",
        "s3:lake/t",
        "abfss://lake/t",
        "wasbs://lake@account.blob.core.windows.net/t",
        "dbfs:/t",
        "relative/t",
        "file://host/t",
        "file:///a#b",
        "",
    ],
    ids=lambda location: location.encode("unicode_escape").decode(),
)
def test_location_that_delta_rs_misreads(location: str) -> None:
    with pytest.raises(PermanentDeliveryError, match="The table is stored at"):
        storage_credentials({**AWS, **SAS}, location)


@pytest.mark.parametrize(
    ("environ", "answer", "location"),
    [
        (("AZURE_STORAGE_ACCOUNT_KEY",), SAS, ABFSS),
        (("AZURE_STORAGE_ACCESS_KEY",), SAS, ABFSS),
        (("AWS_IAM_ROLE_ARN", "AWS_S3_LOCKING_PROVIDER"), AWS, S3),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_environment_that_delta_rs_would_prefer(
    environ: tuple[str, ...], answer: Mapping[str, Any], location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in environ:
        monkeypatch.setenv(name, "value")
    with pytest.raises(PermanentDeliveryError, match=f"The environment has {environ[0]}, .* Unset it"):
        storage_credentials(answer, location)


# S3 and R2: a server that knows whose keys it gave out, and asks for them.


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    ask(url, "PUT", "/lake")
    yield url
    server.stop()


def ask(url: str, method: str, path: str, body: bytes | None = None) -> None:
    request = urllib.request.Request(url + path, body, {"Content-Type": "text/plain"}, method=method)
    urllib.request.urlopen(request, timeout=10).close()


def aws_client(service: str, url: str) -> Any:
    return boto3.client(
        service, endpoint_url=url, region_name="us-east-1", aws_access_key_id="admin", aws_secret_access_key="admin"
    )


def s3_files(url: str, prefix: str) -> dict[str, bytes]:
    client = aws_client("s3", url)
    listed = client.list_objects_v2(Bucket="lake", Prefix=prefix).get("Contents", [])
    return {item["Key"]: client.get_object(Bucket="lake", Key=item["Key"])["Body"].read() for item in listed}


@pytest.fixture
def vended(s3: str) -> Iterator[dict[str, str]]:
    """Keys of a role of the STS; the server takes no others until the test ends."""
    iam = aws_client("iam", s3)
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    arn = iam.create_role(RoleName="unity", AssumeRolePolicyDocument=json.dumps(policy))["Role"]["Arn"]
    iam.put_role_policy(RoleName="unity", PolicyName="all", PolicyDocument=json.dumps(policy))
    keys = aws_client("sts", s3).assume_role(RoleArn=arn, RoleSessionName="unity")["Credentials"]
    ask(s3, "POST", "/moto-api/reset-auth", b"0")
    yield {
        "access_key_id": keys["AccessKeyId"],
        "secret_access_key": keys["SecretAccessKey"],
        "session_token": keys["SessionToken"],
    }
    ask(s3, "POST", "/moto-api/reset-auth", b"1000000000")
    iam.delete_role_policy(RoleName="unity", PolicyName="all")
    iam.delete_role(RoleName="unity")


WRONG_AWS = {
    "AWS_ACCESS_KEY_ID": "AKIAWRONG",
    "AWS_SECRET_ACCESS_KEY": "wrong",
    "AWS_SESSION_TOKEN": "wrong",
    "AWS_PROFILE": "wrong",
    "AWS_IAM_ROLE_ARN": "arn:aws:iam::123456789012:role/wrong",
    "AWS_SKIP_SIGNATURE": "true",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere",
}


@pytest.mark.parametrize("wrong", [{}, WRONG_AWS], ids=["alone", "beside others"])
@pytest.mark.parametrize("store", ["s3", "r2"])
def test_keys_of_an_answer_write_to_s3(
    s3: str, vended: dict[str, str], wrong: dict[str, str], store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = f"options/{store}/{len(wrong)}"
    with monkeypatch.context() as environ:
        for name, value in {**wrong, "AWS_ENDPOINT_URL": s3, "AWS_ALLOW_HTTP": "true"}.items():
            environ.setenv(name, value)
        if store == "s3":
            opened = storage_credentials({"aws_temp_credentials": vended}, f"s3://lake/{path}")
        else:
            opened = storage_credentials({"r2_temp_credentials": vended}, R2_URL.replace("tables/spans", path))
            # All is as it would be, but that nobody answers at the address of an account.
            there = {"aws_endpoint": s3, "aws_endpoint_url_s3": s3}
            opened = Credentials(opened.location, {**opened.options, **there})
        write(opened, 1, 2)
        with pytest.raises(OSError, match="InvalidAccessKeyId"):
            write(Credentials(opened.location, {**opened.options, "aws_access_key_id": "ASIAOTHER"}), 3)
    ask(s3, "POST", "/moto-api/reset-auth", b"1000000000")
    assert numbers_in(s3_files(s3, path), tmp_path) == [1, 2]


# Azure.


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    with run_azurite(tmp_path_factory.mktemp("azurite")) as running:
        yield running


@pytest.fixture
def at_azurite(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> Azurite:
    for name, value in azurite.environ.items():
        monkeypatch.setenv(name, value)
    return azurite


def signed(sas: str, path: str, domain: str = "dfs.core.windows.net") -> Credentials:
    answer = {"azure_user_delegation_sas": {"sas_token": sas}, "expiration_time": int(time.time() * 1000) + 60_000}
    return storage_credentials(answer, f"abfss://lake@{ACCOUNT}.{domain}/{path}")


WRONG_AZURE = {
    "AZURE_STORAGE_SAS_TOKEN": "sp=r&sig=wrong",
    "AZURE_STORAGE_TOKEN": "wrong",
    "AZURE_CLIENT_ID": "wrong",
    "AZURE_CLIENT_SECRET": "wrong",
    "AZURE_TENANT_ID": "wrong",
    "AZURE_FEDERATED_TOKEN_FILE": "/nowhere",
    "AZURE_USE_AZURE_CLI": "true",
    "AZURE_SKIP_SIGNATURE": "true",
}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [{}, WRONG_AZURE], ids=["alone", "beside others"])
@pytest.mark.parametrize("domain", ["dfs.core.windows.net", "dfs.core.usgovcloudapi.net"])
@pytest.mark.parametrize("mark", ["", "?"], ids=["bare", "with a question mark"])
def test_signature_of_an_answer_writes_to_azure(
    at_azurite: Azurite, wrong: dict[str, str], domain: str, mark: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    path = f"options/{domain}/{len(wrong)}{len(mark)}"
    write(signed(mark + at_azurite.container_sas(), path, domain), 1, 2)
    assert numbers_in(at_azurite.files(path + "/"), tmp_path) == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sas", "code"),
    [
        (lambda azurite: azurite.container_sas(expiry="2021-01-01T00:00:00Z"), "AuthorizationFailure"),
        (lambda azurite: azurite.container_sas().replace("sig=", "sig=x"), "AuthorizationFailure"),
        (lambda azurite: azurite.container_sas("rl"), "AuthorizationPermissionMismatch"),
    ],
    ids=["expired", "forged", "only reading"],
)
def test_signature_that_azure_refuses(at_azurite: Azurite, sas: Callable[[Azurite], str], code: str) -> None:
    write(signed(at_azurite.container_sas(), "refused"), 1)
    with pytest.raises((DeltaError, OSError), match=code) as raised:
        write(signed(sas(at_azurite), "refused"), 2)
    assert "sig=" not in str(raised.value)


@pytest.mark.slow
def test_account_key_of_the_environment_would_win(at_azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it does in delta-rs, and that is why it is refused; if this fails, it need not be any more."""
    opened = signed(at_azurite.container_sas(), "key")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"wrong").decode())
    with pytest.raises(OSError, match="AuthorizationFailure"):
        write(opened, 1)


# Google Cloud.


TOKEN = "ya29.t0ken-0f-the-answer"


@pytest.fixture
def cloud_storage(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[CloudStorage]:
    with run_cloud_storage(s3, TOKEN) as running:
        monkeypatch.setenv("GOOGLE_BASE_URL", running.url)
        yield running


def with_token(token: str, path: str, expires_in_s: float = 60) -> Credentials:
    answer = {"gcp_oauth_token": {"oauth_token": token}, "expiration_time": (time.time() + expires_in_s) * 1000}
    return storage_credentials(answer, f"gs://lake/{path}")


WRONG_GOOGLE = {
    "GOOGLE_APPLICATION_CREDENTIALS": "/nowhere",
    "GOOGLE_SERVICE_ACCOUNT_KEY": "{}",
    "GOOGLE_SKIP_SIGNATURE": "false",
}


@pytest.mark.parametrize("wrong", [{}, WRONG_GOOGLE], ids=["alone", "beside others"])
def test_token_of_an_answer_writes_to_google_cloud(
    s3: str, cloud_storage: CloudStorage, wrong: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = f"options/gs/{len(wrong)}"
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    opened = with_token(TOKEN, path)
    write(opened, 1, 2)
    DeltaTable(opened.location, storage_options=dict(opened.options)).create_checkpoint()
    write(with_token(TOKEN, path), 3)
    assert cloud_storage.tokens == {f"Bearer {TOKEN}"}
    assert numbers_in(s3_files(s3, path), tmp_path) == [1, 2, 3]


@pytest.mark.usefixtures("cloud_storage")
def test_token_that_google_cloud_refuses() -> None:
    """The error is the store's; neither the token nor the relay's password is in it."""
    opened = with_token("ya29.expired", "refused")
    with pytest.raises(OSError, match="401 Unauthorized") as raised:
        write(opened, 1)
    assert "AuthenticationRequired" in str(raised.value)
    assert not any(value in str(raised.value) for name, value in opened.options.items() if name != "google_base_url")


def test_relay_serves_who_knows_the_password(cloud_storage: CloudStorage) -> None:
    """Other users of the machine reach it too, and get nothing; tokens that expired are forgotten."""
    opened = with_token(TOKEN, "guarded")
    forged = {**opened.options, "google_proxy_url": opened.options["google_base_url"]}
    with pytest.raises(OSError, match="407"):
        write(Credentials(opened.location, forged), 1)
    old = with_token(TOKEN, "guarded", expires_in_s=-1)
    with_token(TOKEN, "guarded")
    with pytest.raises(OSError, match="407"):
        write(old, 1)
    assert cloud_storage.tokens == set()


def test_store_that_is_away(cloud_storage: CloudStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay says so, as a server does that delta-rs asks again."""
    assert cloud_storage.url
    monkeypatch.setenv("GOOGLE_BASE_URL", "http://127.0.0.1:9")
    opened = with_token(TOKEN, "away")
    quick = {**opened.options, "max_retries": "1", "retry_timeout": "1s"}
    with pytest.raises(OSError, match="502 Bad Gateway"):
        write(Credentials(opened.location, quick), 1)
