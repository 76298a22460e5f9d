"""Keep secrets out of every text that leaves tracelake: logs, errors, status files."""

from __future__ import annotations

import os
import re
from base64 import b64decode
from contextlib import suppress

_SECRET_NAME = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCOUNT_KEY|SAS_KEY|API_KEY|ACCESS_KEY", re.IGNORECASE
)
_URL_USERINFO = re.compile(r"(?<=://)[^/\s]+@")
_SECRET_PARAMETER = re.compile(
    r"((?:sig|signature|token|secret|password|(?:access|account|api)[_-]?key|x-amz-[a-z-]+|authorization|bearer)"
    r"[\"']?\s*[=: ↳]\s*[\"']?(?:(?:bearer|basic)\s+)?)([^\s&\"',;]{5,}[^\s&\"',;.])",
    re.IGNORECASE,
)
# Shorter values ("true", "1") would blank ordinary words.
_MIN_SECRET_LENGTH = 8


def redact(text: str) -> str:
    """Return `text` without the values of secret environment variables, URL passwords and signatures."""
    for name, value in os.environ.items():
        if len(value) >= _MIN_SECRET_LENGTH and _SECRET_NAME.search(name) and value in text:
            text = text.replace(value, "***")
    return _SECRET_PARAMETER.sub(r"\1***", _URL_USERINFO.sub("***@", text))


def hide_access(text: str, authorization: str) -> str:
    """Return `text` without what a header Authorization has: the credentials, and the password within."""
    scheme, _, credentials = authorization.rpartition(" ")
    secrets = [authorization, credentials, credentials.rstrip("=")]
    if scheme.lower() == "basic":
        with suppress(ValueError):
            secrets.append(b64decode(credentials).decode().partition(":")[2])
    for secret in secrets:
        if len(secret) >= _MIN_SECRET_LENGTH:
            text = text.replace(secret, "***")
    return text


def one_line(text: str, limit: int = 2000) -> str:
    """Return `text` redacted, on one line without control characters, and no longer than `limit` characters."""
    text = "".join(char if char.isprintable() else " " for char in redact(text))
    return text if len(text) <= limit else text[: limit - 1] + "…"
