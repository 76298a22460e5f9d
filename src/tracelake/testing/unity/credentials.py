"""Temporary credentials for storage, given to clients that read and write tables themselves.

Shapes: https://docs.databricks.com/api/workspace/temporarytablecredentials

For a table on the S3 server they are keys that its STS gives, good for the table's prefix alone. For one in a local
directory, which takes no keys, they have the same shape, as clients need one of the shapes that they know; these keys
open nothing, and the operating system's permissions hold.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from typing import Any
from urllib.parse import urlsplit

from tracelake.testing.state import S3, Table, now_ms
from tracelake.testing.unity.access import EXTERNAL_USE_SCHEMA
from tracelake.testing.unity.catalog import Catalog, overlap
from tracelake.testing.web.http import ApiError, Request, Route, required

_INVALID = "INVALID_PARAMETER_VALUE"
_DENIED = "PERMISSION_DENIED"
# Whether an operation writes.
_ON_TABLES = {"READ": False, "READ_WRITE": True}
_ON_PATHS = {"PATH_READ": False, "PATH_READ_WRITE": True, "PATH_CREATE_TABLE": True}
# The shortest that STS gives, and the longest.
_STS_SECONDS = (900, 43_200)


class CredentialsApi:
    """Gives temporary credentials for the storage of tables and paths."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._state = catalog.store.state
        self._lock = threading.Lock()
        self._sts: tuple[S3, Any] | None = None

    def routes(self) -> list[Route]:
        """Return the routes: databricks-sdk calls version 2.0, delta-rs and open-source Unity Catalog's clients 2.1."""
        return [
            route
            for version in ("2.0", "2.1")
            for route in (
                Route("POST", f"/api/{version}/unity-catalog/temporary-table-credentials", self._of_table),
                Route("POST", f"/api/{version}/unity-catalog/temporary-path-credentials", self._of_path),
            )
        ]

    def _of_table(self, request: Request) -> dict[str, Any]:
        body = request.json()
        table_id, writes = required(body, "table_id"), _writes(body, _ON_TABLES)
        table = next((table for table in list(self._state.tables.values()) if table.table_id == table_id), None)
        if table is None:
            raise ApiError(404, "TABLE_DOES_NOT_EXIST", f"Table '{table_id}' does not exist.")
        self._require_external_access()
        access = self._catalog.access
        access.require(request.principal, EXTERNAL_USE_SCHEMA, self._catalog.find(table.full_name.rpartition(".")[0]))
        access.require(request.principal, "SELECT", table)
        if writes:
            access.require(request.principal, "MODIFY", table)
        _require_direct(table, writes)
        return self._credentials(request.principal, table.storage_location, writes)

    def _of_path(self, request: Request) -> dict[str, Any]:
        body = request.json()
        url, writes = required(body, "url"), _writes(body, _ON_PATHS)
        location = self._catalog.lakehouse.external_location(url)
        self._require_external_access()
        if request.principal != self._state.admin:
            # All storage is one external location of the administrator's: nobody else can be granted it.
            message = f"User does not have EXTERNAL USE LOCATION on External Location '{location}'."
            raise ApiError(403, _DENIED, message, reason=_DENIED)
        is_managed = overlap(location, self._catalog.lakehouse.managed_location(""))
        if is_managed or body["operation"] == "PATH_CREATE_TABLE":
            self._catalog.require_free(location, "GenerateTemporaryPathCredential")
        return {} if body.get("dry_run") else self._credentials(request.principal, location, writes)

    def _require_external_access(self) -> None:
        if not self._state.external_access_enabled:
            raise ApiError(
                403,
                _DENIED,
                "External Data Access from non Databricks Compute environment is disabled for metastore "
                f"'{self._state.metastore_id}'.",
                reason="EXTERNAL_ACCESS_DISABLED_ON_METASTORE",
            )

    def _credentials(self, principal: str, location: str, writes: bool) -> dict[str, Any]:
        s3 = self._state.s3
        if location.startswith("s3://") and s3 is not None:
            keys = self._assume_role(s3, principal, location, writes)
        else:
            keys = {
                "access_key_id": "LOCALDIRECTORY",
                "secret_access_key": secrets.token_hex(20),
                "session_token": secrets.token_hex(32),
            }
        expiration = now_ms() + self._state.credential_lifetime_s * 1000
        return {"aws_temp_credentials": keys, "expiration_time": expiration, "url": location}

    def _assume_role(self, s3: S3, principal: str, location: str, writes: bool) -> dict[str, str]:
        """Return keys for a location: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html"""
        shortest, longest = _STS_SECONDS
        answer = self._client(s3).assume_role(
            RoleArn=s3.role_arn,
            RoleSessionName=re.sub(r"[^\w+=,.@-]", "-", principal, flags=re.ASCII)[:64].ljust(2, "-"),
            Policy=json.dumps(session_policy(location, writes=writes)),
            DurationSeconds=min(max(self._state.credential_lifetime_s, shortest), longest),
        )
        keys = answer["Credentials"]
        return {
            "access_key_id": keys["AccessKeyId"],
            "secret_access_key": keys["SecretAccessKey"],
            "session_token": keys["SessionToken"],
        }

    def _client(self, s3: S3) -> Any:
        """Return a client of the STS of an S3 server; making one takes long."""
        with self._lock:
            if self._sts is None or self._sts[0] != s3:
                self._sts = s3, _sts(s3)
            return self._sts[1]


def session_policy(location: str, *, writes: bool) -> dict[str, Any]:
    """Return the policy that narrows keys to what is under an `s3://` location, and to reading unless it writes.

    Format: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html
    """
    parts = urlsplit(location)
    bucket, prefix = parts.netloc, parts.path.strip("/")
    objects = ["s3:GetObject", *(("s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload") if writes else ())]
    below = f"{prefix}/*" if prefix else "*"
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": objects, "Resource": [f"arn:aws:s3:::{bucket}/{below}"]},
            {
                "Effect": "Allow",
                "Action": ["s3:ListBucket"],
                "Resource": [f"arn:aws:s3:::{bucket}"],
                "Condition": {"StringLike": {"s3:prefix": [prefix, below] if prefix else [below]}},
            },
            {"Effect": "Allow", "Action": ["s3:GetBucketLocation"], "Resource": [f"arn:aws:s3:::{bucket}"]},
        ],
    }


def _sts(s3: S3) -> Any:
    try:
        import boto3
    except ImportError as error:
        raise ApiError(
            501,
            "NOT_IMPLEMENTED",
            "The mocked workspace needs the package 'boto3' to have temporary keys of an S3 server, and it is not "
            "installed here. Run: pip install boto3",
        ) from error
    return boto3.client(
        "sts",
        endpoint_url=s3.endpoint_url,
        region_name=s3.region,
        aws_access_key_id=s3.access_key_id,
        aws_secret_access_key=s3.secret_access_key,
    )


def _writes(body: dict[str, Any], operations: dict[str, bool]) -> bool:
    operation = required(body, "operation")
    if operation not in operations:
        raise ApiError(400, _INVALID, f"The operation {operation} is none of {', '.join(operations)}.")
    return operations[operation]


def _require_direct(table: Table, writes: bool) -> None:
    """Raise unless a table's files may be read, or written, without the workspace."""
    if table.table_type not in {"MANAGED", "EXTERNAL"} or not table.storage_location:
        raise ApiError(
            400,
            _INVALID,
            f"Table with id {table.table_id} cannot be accessed from outside of Databricks Compute Environment due to "
            f"its kind being {table.securable_kind}.",
            reason="EXTERNAL_ACCESS_NOT_ALLOWED_FOR_TABLE",
        )
    if writes and table.table_type == "MANAGED":
        raise ApiError(
            400,
            _INVALID,
            f"Table with id {table.table_id} cannot be written from outside of Databricks Compute Environment due to "
            f"its kind being {table.securable_kind}. Only 'TABLE_EXTERNAL' and 'TABLE_DELTA_EXTERNAL' table kinds can "
            "be written externally.",
            reason="EXTERNAL_WRITE_NOT_ALLOWED_FOR_TABLE",
        )
