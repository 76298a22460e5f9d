"""Temporary credentials of Unity Catalog, as what delta-rs opens a table with.

delta-rs looks for credentials in its storage options and in the environment, and adds the one to the other. So each
option that could come from the environment and change whose access is used is given here.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from tracelake.databricks.gcs_relay import relayed
from tracelake.errors import PermanentDeliveryError
from tracelake.redaction import one_line

# What stands in the path of a URL as it is; delta-rs takes anything else for a part of a URL, or encodes it twice.
_PATH = re.compile(r"[A-Za-z0-9._/=@:,;+$&'()!-]+")
_BUCKET = re.compile(r"[A-Za-z0-9._-]+")
_NO_SEGMENT = re.compile(r"(^|/)\.{0,2}(/|$)")
# What it takes for something else in a path of this machine.
_UNUSABLE = re.compile(r"%[0-9A-Fa-f]{2}|[#?\[\]\\^|]")

_ACCESS_POINT = re.compile(r"arn:aws[a-z-]*:s3:([a-z0-9-]+):(\d+):accesspoint[/:]([a-z0-9.-]+)")

# Given both, delta-rs first assumes the role with the access of the environment, whatever keys it is given.
_AWS_ROLE = ("AWS_IAM_ROLE_ARN", "AWS_S3_ASSUME_ROLE_ARN")
_AWS_ROLE_IS_TAKEN = ("AWS_S3_LOCKING_PROVIDER", "AWS_FORCE_CREDENTIAL_LOAD")
# delta-rs takes these before a shared access signature.
_AZURE_FIRST = (
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_MASTER_KEY",
    "AZURE_FABRIC_TOKEN_SERVICE_URL",
)

_DOMAIN = "dfs.core.windows.net"

# Which credentials open which store; the first that an answer has are used.
_KINDS = {
    "s3": ("aws_temp_credentials",),
    "r2": ("r2_temp_credentials",),
    "abfss": ("azure_user_delegation_sas", "azure_aad"),
    "gs": ("gcp_oauth_token",),
}
_SAME = {"s3a": "s3", "abfs": "abfss"}


@dataclass(frozen=True)
class Credentials:
    """How delta-rs opens a table until `expires_at`.

    Attributes:
        location: the URL or absolute path that delta-rs opens.
        options: its storage options; secrets are among them.
        expires_at: seconds since the epoch.
    """

    location: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    expires_at: float = math.inf


def storage_credentials(answer: Mapping[str, Any], location: str, *, region: str = "") -> Credentials:
    """Return how to open a table from the answer to a request for temporary table credentials.

    A table in a directory of this machine needs none, whatever the answer has.

    Args:
        answer: as the catalog sent it; keys that are not known are left alone.
        location: the storage location of the table.
        region: where the metastore is, for tables on AWS; the environment's AWS_REGION goes before it.

    Raises:
        PermanentDeliveryError: the answer has no credentials that open the location, delta-rs cannot open the location,
            or would use other credentials that are in the environment.
    """
    scheme, _, rest = location.partition(":")
    scheme = _SAME.get(scheme.lower(), scheme.lower())
    if location.startswith("/") or scheme == "file":
        return Credentials(_local_path(location))
    if scheme not in _KINDS or not rest.startswith("//"):
        raise PermanentDeliveryError(
            f"The table is stored at {_shown(location)}, and only tables in S3, Azure Data Lake Storage, Google Cloud "
            "Storage, Cloudflare R2 or a local directory are written directly. Use another transport."
        )
    bucket, _, path = rest[2:].partition("/")
    path = path.rstrip("/")
    bucket, _, host = bucket.partition("@")
    if (
        not _PATH.fullmatch(path)
        or _NO_SEGMENT.search(path)
        or not _BUCKET.fullmatch(bucket)
        or (host and not _BUCKET.fullmatch(host))
        or bool(host) != (scheme in ("abfss", "r2"))
    ):
        raise PermanentDeliveryError(
            f"The table is stored at {_shown(location)}, which delta-rs does not read as it is written. Use another "
            "transport, or a table in a path of letters, digits and -._/ only."
        )
    kind, given = _given(answer, scheme, location)
    expires_at = _expires_at(answer)
    if scheme == "s3":
        opened, options = f"s3://{bucket}/{path}", _aws(given, region)
    elif scheme == "r2":
        opened, options = f"s3://{bucket}/{path}", _r2(given, host)
    elif scheme == "abfss":
        opened, options = _azure(kind, given, bucket, host, path)
    else:
        opened, options = f"gs://{bucket}/{path}", relayed(given["oauth_token"], expires_at)
    return Credentials(opened, options, expires_at)


_NEEDED = {
    "aws_temp_credentials": ("access_key_id", "secret_access_key", "session_token"),
    "r2_temp_credentials": ("access_key_id", "secret_access_key", "session_token"),
    "azure_user_delegation_sas": ("sas_token",),
    "azure_aad": ("aad_token",),
    "gcp_oauth_token": ("oauth_token",),
}


def _given(answer: Mapping[str, Any], scheme: str, location: str) -> tuple[str, Mapping[str, str]]:
    """Return the kind of the credentials that fit the store, and the credentials."""
    for kind in _KINDS[scheme]:
        given = answer.get(kind)
        if isinstance(given, Mapping) and all(
            given.get(name) and isinstance(given[name], str) for name in _NEEDED[kind]
        ):
            return kind, given
    has = ", ".join(sorted(one_line(str(name), 60) for name, value in answer.items() if value)) or "nothing"
    raise PermanentDeliveryError(
        f"Unity Catalog gave no whole {' or '.join(_KINDS[scheme])} for {_shown(location)}: its answer has {has}. See "
        "which storage credential the catalog has for the location, or use another transport."
    )


def _aws(given: Mapping[str, str], region: str) -> dict[str, str]:
    if _set(_AWS_ROLE) and _set(_AWS_ROLE_IS_TAKEN):
        raise _outranked(_set(_AWS_ROLE))
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or region or "us-east-1"
    if given.get("access_point"):
        return _aws_access_point(given)
    endpoint = next(filter(None, map(os.environ.get, ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"))), "")
    if endpoint:
        return _aws_options(given, region, endpoint)
    return _aws_options(given, region, f"https://s3.{region}.{_aws_domain(region)}", virtual_host=False)


def _aws_access_point(given: Mapping[str, str]) -> dict[str, str]:
    """https://docs.aws.amazon.com/AmazonS3/latest/userguide/access-points-naming.html"""
    found = _ACCESS_POINT.fullmatch(given["access_point"])
    if found is None:
        raise PermanentDeliveryError(
            f"The table is behind the S3 access point {one_line(given['access_point'], 200)!r}, which is no ARN. "
            "Name its ARN in the external location, or use another transport."
        )
    region, account, name = found.groups()
    endpoint = f"https://{name}-{account}.s3-accesspoint.{region}.{_aws_domain(region)}"
    return _aws_options(given, region, endpoint, virtual_host=True)


def _r2(given: Mapping[str, str], host: str) -> dict[str, str]:
    """https://developers.cloudflare.com/r2/api/s3/api/"""
    return _aws_options(given, "auto", f"https://{host}", virtual_host=False)


def _aws_options(
    given: Mapping[str, str], region: str, endpoint: str, *, virtual_host: bool | None = None
) -> dict[str, str]:
    options = {
        "aws_access_key_id": given["access_key_id"],
        "aws_secret_access_key": given["secret_access_key"],
        "aws_session_token": given["session_token"],
        "aws_skip_signature": "false",
        "aws_region": region,
        # Without one, delta-rs asks each source of credentials that AWS has, over the network, before it uses ours.
        "aws_endpoint": endpoint,
        "aws_endpoint_url_s3": endpoint,
    }
    if virtual_host is not None:
        options["aws_virtual_hosted_style_request"] = str(virtual_host).lower()
    return options


def _aws_domain(region: str) -> str:
    return "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"


def _azure(kind: str, given: Mapping[str, str], container: str, host: str, path: str) -> tuple[str, dict[str, str]]:
    if _set(_AZURE_FIRST):
        raise _outranked(_set(_AZURE_FIRST))
    account, _, domain = host.partition(".")
    options = {"azure_skip_signature": "false"}
    if kind == "azure_aad":
        options["azure_storage_token"] = given["aad_token"]
    else:
        options["azure_storage_sas_token"] = given["sas_token"]
    if domain == _DOMAIN:
        return f"abfss://{container}@{host}/{path}", options
    # delta-rs knows the domain of the public cloud only, and speaks the protocol of Blob Storage.
    options["azure_storage_account_name"] = account
    options["azure_storage_endpoint"] = f"https://{host.replace('.dfs.', '.blob.', 1)}"
    return f"abfss://{container}/{path}", options


def _set(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if os.environ.get(name)]


def _outranked(names: list[str]) -> PermanentDeliveryError:
    return PermanentDeliveryError(
        f"The environment has {' and '.join(names)}, which delta-rs would use in place of the credentials of Unity "
        "Catalog. Unset it for the process that delivers, or use another transport."
    )


def _expires_at(answer: Mapping[str, Any]) -> float:
    try:
        milliseconds = float(answer.get("expiration_time") or "inf")
    except (TypeError, ValueError):
        return math.inf
    return math.inf if math.isnan(milliseconds) else milliseconds / 1000


def _local_path(location: str) -> str:
    """Return the path of `/path`, `file:/path`, `file:///path` or `file://localhost/path`."""
    path = location
    if not location.startswith("/"):
        path = unquote(location.partition(":")[2])
        if path.startswith("//"):
            host, _, path = path[2:].partition("/")
            path = f"/{path}" if host in {"", "localhost"} else ""
    path = path.rstrip("/")
    if not path.startswith("/") or not path.isprintable() or _UNUSABLE.search(path):
        raise PermanentDeliveryError(
            f"The table is stored at {_shown(location)}, which delta-rs does not read as a directory of this machine. "
            "Use another transport, or a table in a directory without such characters."
        )
    return path


def _shown(location: str) -> str:
    return repr(one_line(location, 300))
