"""A connection to a Databricks workspace, or to an open-source Unity Catalog server.

databricks-sdk finds whose access is used, in every way that Databricks' own tools have ("unified authentication"), and
makes the calls. Answers are read as plain JSON: the classes of client libraries refuse what they do not know yet.
https://docs.databricks.com/aws/en/dev-tools/auth/unified-auth
"""

from __future__ import annotations

import configparser
import logging
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tracelake.errors import (
    DeliveryError,
    MissingDependencyError,
    PermanentDeliveryError,
    RefusedError,
    SettingError,
    TransientDeliveryError,
)
from tracelake.redaction import hide_access, one_line
from tracelake.settings import read_settings

if TYPE_CHECKING:
    from databricks.sdk.core import ApiClient, Config

# The secret that an open-source Unity Catalog server with authorization asks for.
CATALOG_TOKEN = "TRACELAKE_CATALOG_TOKEN"  # noqa: S105 - its name

# Settings that tell whose access is used. None is a secret, and none changes when a secret is rotated.
_IDENTITY_VARIABLES = (
    "DATABRICKS_HOST",
    "DATABRICKS_CONFIG_FILE",
    "DATABRICKS_CONFIG_PROFILE",
    "DATABRICKS_AUTH_TYPE",
    "DATABRICKS_CLIENT_ID",
    "DATABRICKS_USERNAME",
    "DATABRICKS_AZURE_RESOURCE_ID",
    "ARM_CLIENT_ID",
    "ARM_TENANT_ID",
    "DATABRICKS_GOOGLE_SERVICE_ACCOUNT",
)
# With one of these, the access is the environment's, also where the platform would give its own.
_ACCESS_VARIABLES = ("DATABRICKS_TOKEN", "DATABRICKS_CLIENT_ID", "DATABRICKS_CONFIG_PROFILE", "DATABRICKS_AUTH_TYPE")
_RUNTIME = "DATABRICKS_RUNTIME_VERSION"

# For what databricks-sdk asks when it is set up, on a clock that cannot be another than its own.
_RETRY_S = 1
_TIMEOUT_S = 60
_MAX_REASON = 500
# To see whether the workspace is there at all.
_REACH_S = 10

# An open-source server fails when it is asked who calls, and nobody would take the type of that answer.
_ACCEPT = "application/json, application/scim+json"

_DENIED = "PERMISSION_DENIED"
# What a workspace says, with no such code, of a token that it does not take.
_NO_TOKEN = re.compile(r"token|jwt", re.IGNORECASE)
# How services refuse to give a token, in databricks-sdk's words; others are down, or busy:
# https://www.rfc-editor.org/rfc/rfc6749#section-5.2
_NO_CLIENT = re.compile(r"(invalid_\w+|unauthorized_client|unsupported_grant_type|access_denied): ")
_NO_REASON = "unknown: unknown"
_AMBIGUOUS = re.compile(r"more than one authorization method configured: ([\w ,-]+)")


class Workspace:
    """A connection, with the access that the environment gives when it is made.

    Attributes:
        url: of the workspace or server.
        access: whose access is used, as an error may say it; holds no secret.
        open_source: whether it is an open-source Unity Catalog server, which has no more than a catalog.
        warehouse_id: of the SQL warehouse that the environment names, or empty.
        workspace_id: the number of the workspace, as far as it tells; empty otherwise.
    """

    def __init__(self, config: Config, client: ApiClient, *, open_source: bool) -> None:
        self.url = str(config.host).rstrip("/")
        self.open_source = open_source
        self.access = f"by {_catalog_access() if open_source else config.auth_type}"
        self.warehouse_id = os.environ.get("MLFLOW_TRACING_SQL_WAREHOUSE_ID", "") or config.warehouse_id or ""
        self.workspace_id = str(getattr(config, "workspace_id", None) or "")
        self._config = config
        self._client = client
        self._worked = False

    def __repr__(self) -> str:
        return f"<{self.url} {self.access}>"

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """Return the answer to a GET; see `call`."""
        return self.call("GET", path, query=query)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """Return the answer to a POST; see `call`."""
        return self.call("POST", path, body=body)

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the JSON that the workspace answers.

        Raises:
            RefusedError: it answered with 4xx.
            TransientDeliveryError: it is not reached, fails, is too busy, or the access has just run out.
            PermanentDeliveryError: there is no access to it.
        """
        headers = {"Accept": _ACCEPT, **({"Content-Type": "application/json"} if body is not None else {})}
        answer = self._guarded(
            lambda: self._client.do(
                method,
                path,
                query=dict(query) if query else None,
                body=dict(body) if body is not None else None,
                headers=headers,
            )
        )
        self._worked = True
        return answer if isinstance(answer, dict) else {}

    def authorization(self) -> dict[str, str]:
        """Return the headers that a request of somebody else's making needs; they hold a secret, valid for minutes.

        Raises: as `call`.
        """
        headers: dict[str, str] = dict(self._guarded(self._config.authenticate))
        if self.workspace_id:
            headers["X-Databricks-Org-Id"] = self.workspace_id
        return headers

    def oauth(self) -> tuple[str, str] | None:
        """Return the id and the secret of the service principal whose access is used; None if it is none's."""
        if self._config.client_id and self._config.client_secret:
            return self._config.client_id, self._config.client_secret
        return None

    def refusal(self, status: int, code: str, reason: str) -> DeliveryError:
        """Return what it means that the workspace refuses a call: the error of `call` for an answer with 4xx."""
        has_ended = status == 401 or (status == 403 and code != _DENIED and bool(_NO_TOKEN.search(reason)))
        if has_ended and self._worked:
            self._worked = False
            return TransientDeliveryError(f"The access to {self.url} has ended: {reason}. It is asked for again.")
        code = "" if code == str(status) else code
        message = f"{self.url} refuses ({status}{' ' + code if code else ''}): {reason}."
        if has_ended:
            message += f" The access {self.access} is not valid. {access_remedy(open_source=self.open_source)}"
        return RefusedError(message, status=status, code=code, reason=reason)

    def _guarded(self, call: Callable[[], Any]) -> Any:
        from databricks.sdk.errors.base import DatabricksError
        from requests import RequestException

        try:
            with _unlogged():
                return call()
        except DatabricksError as error:
            raise self._translated(error) from None  # its text may have settings of the connection
        except TimeoutError as error:
            cause = error.__cause__ or error.__context__
            if isinstance(cause, DatabricksError):
                raise self._translated(cause) from None
            raise unreached(self.url, error) from error
        except RequestException as error:
            if isinstance(error, ValueError):
                raise TransientDeliveryError(
                    f"{self.url} answers with other than JSON. It is tried again; see whether the URL is right."
                ) from None
            raise unreached(self.url, error) from error
        except (ValueError, NotImplementedError) as error:
            if _NO_CLIENT.match(str(error)):
                raise _no_access(error, open_source=self.open_source) from None
            raise TransientDeliveryError(
                f"{self.url} gives no access now: {_plain(str(error)).replace(_NO_REASON, 'it does not say why')}. "
                "It is tried again."
            ) from None
        except Exception as error:  # noqa: BLE001 - each way of getting access has errors of its own
            raise _no_access(error, open_source=self.open_source) from None

    def _translated(self, error: Any) -> DeliveryError:
        from databricks.sdk import errors

        reason = self._shown(str(error)) or type(error).__name__
        for kind, status in (
            (errors.Unauthenticated, 401),
            (errors.PermissionDenied, 403),
            (errors.NotFound, 404),
            (errors.ResourceConflict, 409),
            (errors.BadRequest, 400),
            (errors.NotImplemented, 501),
        ):
            if isinstance(error, kind):
                return self.refusal(status, str(error.error_code or ""), reason)
        after_s = getattr(error, "retry_after_secs", None) or 0
        return TransientDeliveryError(f"{self.url} fails: {reason}. It is tried again.", retry_after_s=float(after_s))

    def _shown(self, text: str) -> str:
        """Return a text of the workspace's as an error may show it: it may repeat the access that it was sent."""
        with suppress(Exception), _unlogged():  # whoever has no access has sent none
            text = hide_access(text, self._config.authenticate().get("Authorization", ""))
        return _plain(text)


def connect() -> Workspace:
    """Connect to the server that `TRACELAKE_CATALOG_URL` names, or else to the workspace of unified authentication.

    Raises:
        MissingDependencyError: databricks-sdk is not installed.
        SettingError: the URL is none.
        TransientDeliveryError: the workspace is not reached.
        PermanentDeliveryError: the environment gives no access to one.
    """
    try:
        from databricks.sdk.core import ApiClient, Config
    except ImportError as error:
        raise MissingDependencyError(
            "A Unity Catalog table needs the package databricks-sdk, which is not installed here. "
            "Run: pip install 'tracelake[databricks]'"
        ) from error
    settings, problems = read_settings()
    ours = [problem for problem in problems if problem.startswith("TRACELAKE_CATALOG_URL")]
    if ours:
        raise SettingError(" ".join(ours))
    options: dict[str, Any] = {
        "product": "tracelake",
        "product_version": version("tracelake"),
        "retry_timeout_seconds": _RETRY_S,
        "http_timeout_seconds": _TIMEOUT_S,
        "clock": _NoWaiting(),
    }
    if settings.catalog_url:
        options |= {
            "host": settings.catalog_url,
            "credentials_strategy": _CatalogAccess(),
            "auth_type": _CatalogAccess.name,
        }
    elif profile := _tracking_profile():
        options["profile"] = profile
    url = settings.catalog_url or _host()
    if url and not settings.catalog_url:
        _reach(url)
    try:
        with _unlogged():
            config = Config(**options)
    except (ValueError, NotImplementedError) as error:
        raise _no_access(error, open_source=bool(settings.catalog_url)) from None
    except OSError as error:
        raise unreached(url or "The workspace", error) from error
    if not config.host:
        raise _no_access(ValueError("no host is configured"), open_source=False)
    return Workspace(config, ApiClient(config), open_source=bool(settings.catalog_url))


def identity() -> Mapping[str, str]:
    """Return whose access `connect` would use, by the settings alone; loads nothing and asks nobody."""
    if catalog := os.environ.get("TRACELAKE_CATALOG_URL", "").strip():
        return {
            "catalog": one_line(catalog, 200),
            **({"access": "token"} if os.environ.get(CATALOG_TOKEN) else {}),
        }
    found = {name: one_line(os.environ[name], 200) for name in _IDENTITY_VARIABLES if os.environ.get(name)}
    if os.environ.get("DATABRICKS_TOKEN"):
        found["access"] = "token"
    if profile := _tracking_profile():
        found["profile"] = profile
    if os.environ.get(_RUNTIME) and not profile and not any(os.environ.get(name) for name in _ACCESS_VARIABLES):
        found["access"] = "runtime"
    return found


def unreached(url: str, error: BaseException) -> DeliveryError:
    """Return that a server is not reached, by what its system said last."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    text = _plain(str(error)) or type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        return PermanentDeliveryError(
            f"The certificate of {url} is not trusted: {text}. Set REQUESTS_CA_BUNDLE to the certificate of its "
            "authority."
        )
    return TransientDeliveryError(f"{url} is not reached: {text}. It is tried again; see whether the URL is right.")


def _host() -> str:
    """Return the host that databricks-sdk is going to find, as far as settings have it."""
    host = os.environ.get("DATABRICKS_HOST", "")
    if not host:
        profiles = configparser.RawConfigParser()
        with suppress(configparser.Error, UnicodeDecodeError):
            profiles.read(os.path.expanduser(os.environ.get("DATABRICKS_CONFIG_FILE") or "~/.databrickscfg"))
        profile = os.environ.get("DATABRICKS_CONFIG_PROFILE") or _tracking_profile() or "DEFAULT"
        host = profiles.get(profile, "host", fallback="")
    return host if "://" in host or not host else f"https://{host}"


def _reach(url: str) -> None:
    """See that a workspace answers. Where none does, databricks-sdk takes minutes, or says that there is no access.

    Raises:
        TransientDeliveryError: it does not.
        PermanentDeliveryError: its certificate is not trusted.
    """
    import requests

    try:
        answer = requests.get(
            f"{url.rstrip('/')}/.well-known/databricks-config",
            timeout=_REACH_S,
            auth=lambda request: request,  # or requests would look for a password in ~/.netrc
        )
    except requests.RequestException as error:
        raise unreached(url, error) from error
    if answer.status_code in (429, 502, 503, 504):
        after = answer.headers.get("Retry-After", "")
        raise TransientDeliveryError(
            f"{url} fails: {answer.status_code} {answer.reason}. It is tried again.",
            retry_after_s=float(after) if after.isascii() and after.isdigit() else 0.0,
        )


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep databricks-sdk from logging what this thread does with it.

    Its log of answers shows the credentials in them, and it warns of each server that does not describe itself, as no
    open-source one does.
    """
    logger, thread = logging.getLogger("databricks.sdk"), threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        return record.thread != thread or (
            record.levelno > logging.DEBUG and "host metadata" not in record.getMessage()
        )

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


class _NoWaiting:
    """The clock of databricks-sdk, which waits as long as a busy server asks.

    Whoever calls us tries again on a clock of its own, and a call that waits holds up other lanes.
    """

    def time(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        raise TimeoutError(f"it would take {seconds} s")


class _CatalogAccess:
    """How databricks-sdk gives access to an open-source server: by a token, or by none."""

    name = "catalog-token"

    def auth_type(self) -> str:
        return self.name

    def __call__(self, _: Config) -> Callable[[], dict[str, str]]:
        token = os.environ.get(CATALOG_TOKEN, "").strip()
        if not (token.isascii() and token.isprintable()):
            raise ValueError(f"{CATALOG_TOKEN} holds what no token has")
        return lambda: {"Authorization": f"Bearer {token}"} if token else {}


def _catalog_access() -> str:
    return CATALOG_TOKEN if os.environ.get(CATALOG_TOKEN, "").strip() else "no token"


def _tracking_profile() -> str:
    """Return the profile in a tracking URI such as `databricks://profile`, unless the environment has its own host."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    found = re.fullmatch(r"databricks(?:-uc)?://([\w.-]+)", uri)
    if found is None or os.environ.get("DATABRICKS_HOST") or os.environ.get("DATABRICKS_CONFIG_PROFILE"):
        return ""
    return found[1]


def _no_access(error: BaseException, *, open_source: bool) -> PermanentDeliveryError:
    if several := _AMBIGUOUS.search(str(error)):
        return PermanentDeliveryError(
            f"There is more than one access: by {several[1].strip()}. Unset the variables of all but one, or set "
            "DATABRICKS_AUTH_TYPE to one."
        )
    text = _plain(str(error)) or type(error).__name__
    return PermanentDeliveryError(f"There is no access: {text}. {access_remedy(open_source=open_source)}")


def access_remedy(*, open_source: bool) -> str:
    """Return what gives access: the last sentence of the error that there is none."""
    if open_source:
        return f"Set {CATALOG_TOKEN} to a token of the server's."
    return (
        "Set DATABRICKS_HOST with DATABRICKS_TOKEN, or with DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET, or "
        "DATABRICKS_CONFIG_PROFILE; `databricks auth describe` shows what is found."
    )


def _plain(text: str) -> str:
    """Return what databricks-sdk says without the settings that it adds."""
    text = re.split(r"\.? (?:Config: |Env: |This is likely a bug in)|, please check https:", text, maxsplit=1)[0]
    return one_line(text, _MAX_REASON).rstrip(".")
