"""Any OTLP/HTTP endpoint, such as OpenTelemetry's collector: targets such as otlp+http://host:4318."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tracelake.destinations.base import Finding, shown_target
from tracelake.destinations.http import Tls, split_url
from tracelake.errors import ConfigurationError, DeliveryError, PermanentDeliveryError, SettingError, TargetError
from tracelake.redaction import one_line

if TYPE_CHECKING:
    from tracelake.destinations.otlp import OtlpSink

# Where receivers listen by default.
_PATH = "/v1/traces"
_PREFIX = "otlp+"
_EXAMPLES = "Write 'otlp+http://host:4318' or 'otlp+https://host/path/v1/traces'"

# A name and a value of the header list: https://opentelemetry.io/docs/specs/otel/protocol/exporter/
_HEADER = re.compile(r"([\w!#$%&'*+.^`|~-]+)\s*=\s*([ -~]*)", re.ASCII)


@dataclass(frozen=True)
class OtlpDestination:
    """The endpoint at `url`."""

    url: str
    identity: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def parse(cls, target: str) -> OtlpDestination:
        """Return the destination of a URL; without a path, `/v1/traces` is meant.

        Raises:
            TargetError: it is no URL, or has more: credentials, a query, a fragment.
        """
        if "@" in target:
            raise TargetError(
                f"The target {shown_target(target)} carries credentials. {_EXAMPLES}, and give access by "
                "OTEL_EXPORTER_OTLP_HEADERS."
            )
        found = split_url(target[len(_PREFIX) :])
        if found is None:
            raise TargetError(f"The target {shown_target(target)} is not the URL of an endpoint. {_EXAMPLES}.")
        origin, path = found
        url = origin + (path if path.strip("/") else _PATH)
        return cls(url, _identity(url))

    @property
    def target(self) -> str:
        """The URL, after `otlp+`."""
        return f"{_PREFIX}{self.url}"

    def __str__(self) -> str:
        return self.target

    def check(self) -> list[Finding]:
        """Send a request without spans, which stores nothing."""
        try:
            with closing(self.open()) as sink:
                sink.probe()
        except (DeliveryError, ConfigurationError) as error:
            return [Finding("error", str(error), code="endpoint")]
        return [Finding("ok", f"{self.url} takes spans.", code="endpoint")]

    def open(self) -> OtlpSink:
        """Return a sink; nothing is sent before the first batch.

        Raises:
            MissingDependencyError: a package that sending needs is not installed.
            SettingError: a variable of OpenTelemetry's has a value that it cannot have.
        """
        from tracelake.destinations.otlp import OtlpSink  # encodes spans, which apps do not

        headers, compress, tls = _headers(), _compress(), _tls()
        return OtlpSink(_Endpoint(self.url, headers), tls, compress=compress, secrets=headers.values())


class _Endpoint:
    """An endpoint to which the environment gives access."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self.url = url
        self._headers = headers

    def headers(self) -> Mapping[str, str]:
        return self._headers

    def error(self, status: int, code: str, reason: str) -> DeliveryError | None:  # noqa: ARG002 - of no meaning here
        if status in (401, 403):
            who = f"with the headers {', '.join(sorted(self._headers))}" if self._headers else "without any header"
            return PermanentDeliveryError(
                f"{self.url} refuses access {who} ({status}): {reason}. Set OTEL_EXPORTER_OTLP_HEADERS to what it asks "
                "for, such as 'authorization=Bearer%20TOKEN'."
            )
        if status == 404:
            return PermanentDeliveryError(
                f"{self.url} is not there ({status}): {reason}. Name the endpoint with its whole path, which most have "
                f"at {_PATH}."
            )
        return None


def _variable(name: str) -> tuple[str, str]:
    """Return the name and the value of a variable, that of traces before that of all signals; empty if not set."""
    for full_name in (f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
        if value := os.environ.get(full_name, "").strip():
            return full_name, value
    return f"OTEL_EXPORTER_OTLP_{name}", ""


def _headers() -> dict[str, str]:
    variable, text = _variable("HEADERS")
    headers: dict[str, str] = {}
    for number, item in enumerate(filter(None, map(str.strip, text.split(","))), 1):
        found = _HEADER.fullmatch(item)
        value = unquote(found[2]).strip() if found else ""
        if found is None or not (value.isascii() and value.isprintable()):
            raise SettingError(
                f"{variable} has an entry, number {number}, that is no header. Set it to name=value,name=value, with "
                "what is no letter or digit in a value percent-encoded."
            )
        headers[found[1].lower()] = value
    return headers


def _compress() -> bool:
    variable, text = _variable("COMPRESSION")
    if text.lower() not in ("", "gzip", "none"):
        raise SettingError(f"{variable} is {one_line(text, 50)!r}. Set it to gzip or none.")
    return text.lower() != "none"


def _tls() -> Tls:
    authority_variable, authority = _variable("CERTIFICATE")
    certificate_variable, certificate = _variable("CLIENT_CERTIFICATE")
    _, key = _variable("CLIENT_KEY")
    return Tls(
        authority or True,
        (certificate, key) if certificate and key else certificate or None,
        authority_variable,
        certificate_variable,
    )


def _identity(url: str) -> Mapping[str, str]:
    """Return whose access is used: by the names of the headers, never by their values, which are secret."""
    names = sorted(item.partition("=")[0].strip().lower() for item in _variable("HEADERS")[1].split(",") if "=" in item)
    _, certificate = _variable("CLIENT_CERTIFICATE")
    return {
        "endpoint": url,
        **({"headers": one_line(",".join(names), 200)} if names else {}),
        **({"certificate": one_line(certificate, 200)} if certificate else {}),
    }
