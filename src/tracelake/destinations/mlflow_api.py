"""The calls to an MLflow tracking server that delivery needs: whose access they use, and what its answers mean.

REST: https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/protos/service.proto, spans:
https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/server/otel_api.py. Access is given as MLflow's client takes it, by
https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/utils/credentials.py.
"""

from __future__ import annotations

import configparser
import os
import re
from base64 import b64encode
from typing import TYPE_CHECKING, Any

from tracelake.destinations.http import MAX_REASON, Connection, Tls, json_object, retry_after_s, said
from tracelake.errors import DeliveryError, PermanentDeliveryError, TransientDeliveryError
from tracelake.redaction import one_line

if TYPE_CHECKING:
    from requests import PreparedRequest, Response

_TIMEOUTS_S = (10.0, 120.0)  # to connect, and between two bytes of an answer; the latter is MLflow's own

# These the caller of a call understands: what was asked for is not there, or is wrong.
_ANSWERS = (400, 404, 409, 413, 422)
_TRANSIENT = (408, 425, 429)
# How SQLAlchemy says that the database is out of reach or too busy. A server of MLflow 3.9 answers 422 to that, as to
# all that goes wrong with spans, and one of 3.17 answers 400 to some of it. See `mlflow/store/db/utils.py`.
_DATABASE = re.compile(r"OperationalError|InterfaceError|QueuePool limit")
_MISSING = "RESOURCE_DOES_NOT_EXIST"
_OTHER_SERVER = "Name the URL of an MLflow tracking server, with its prefix if it has one."
_CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"


class MlflowApi:
    """A connection to one server, with the access that the environment gives when it is made.

    Every method raises:
        TransientDeliveryError: the server is not reached, fails, or is too busy.
        PermanentDeliveryError: it refuses access, is no MLflow server, or one that cannot do this.
    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._authorization, self._who = _access()
        tls = Tls(
            os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or not _insecure(),
            os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH") or None,
            "MLFLOW_TRACKING_SERVER_CERT_PATH",
            "MLFLOW_TRACKING_CLIENT_CERT_PATH",
        )
        self._connection = Connection(server, tls, timeouts_s=_TIMEOUTS_S, authorize=self._authorize)

    def close(self) -> None:
        """Let go of the connection; may be repeated."""
        self._connection.close()

    def version(self) -> str:
        """Return the server's version, empty if it does not tell."""
        response = self._call("GET", "/version")
        text = response.text.strip()
        return text if response.ok and text[:1].isdigit() and len(text) < 50 else ""

    def experiment_by_id(self, experiment_id: str) -> dict[str, Any] | None:
        """Return an experiment, deleted or not; None if there is none."""
        return self._experiment("get", {"experiment_id": experiment_id})

    def experiment_by_name(self, name: str) -> dict[str, Any] | None:
        """Return an experiment, deleted or not; None if there is none."""
        return self._experiment("get-by-name", {"experiment_name": name})

    def create_experiment(self, name: str) -> None:
        """Make an experiment; one that somebody else made in the meantime is as good."""
        response = self._call("POST", "/api/2.0/mlflow/experiments/create", json={"name": name})
        if _error_code(response) != "RESOURCE_ALREADY_EXISTS":
            self._check(response, "Name another experiment.")

    def trace(self, trace_id: str) -> dict[str, Any] | None:
        """Return the info of a trace; None if there is none."""
        response = self._call("GET", f"/api/3.0/mlflow/traces/{trace_id}")
        if _error_code(response) == _MISSING:
            return None
        return self._trace_info(response)

    def send_trace(self, info: dict[str, Any]) -> dict[str, Any] | str:
        """Store the info of a trace; return it as the server has it now, or why the server does not take it."""
        response = self._call("POST", "/api/3.0/mlflow/traces", json={"trace": {"trace_info": info}})
        if "'active' state" in _reason(response):
            raise self._experiment_gone(response)
        reason = self._refusal(response, "MLflow 3.3 or newer")
        return self._trace_info(response) if reason is None else reason

    def send_spans(self, experiment_id: str, request: bytes) -> str | None:
        """Store the spans of an OTLP export request; return why the server does not take them, None if it does.

        A request without any span in it is taken by a server that takes spans, and changes nothing there.
        """
        headers = {"Content-Type": "application/x-protobuf", "x-mlflow-experiment-id": experiment_id}
        response = self._call("POST", "/v1/traces", data=request, headers=headers)
        return self._refusal(response, "MLflow 3.4 or newer")

    def _experiment(self, call: str, parameters: dict[str, str]) -> dict[str, Any] | None:
        response = self._call("GET", f"/api/2.0/mlflow/experiments/{call}", params=parameters)
        if _error_code(response) == _MISSING:
            return None
        self._check(response, "Name an experiment that the server has.")
        return self._part(response, "experiment")

    def _trace_info(self, response: Response) -> dict[str, Any]:
        self._check(response, "See the server's log.")
        return self._part(response, "trace", "trace_info")

    def _part(self, response: Response, *keys: str) -> dict[str, Any]:
        found: Any = json_object(response)
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            raise PermanentDeliveryError(f"{self._server} does not answer as MLflow does. {_OTHER_SERVER}")
        return found

    def _refusal(self, response: Response, needed: str) -> str | None:
        """Return why a server that has such a call does not take what was sent; None if it took it."""
        if response.ok:
            return None
        reason = _reason(response)
        if response.status_code == 404:
            if _error_code(response) == _MISSING:
                raise self._experiment_gone(response)
            raise PermanentDeliveryError(
                f"{self._server} has no {response.request.path_url}: {reason}. Upgrade the server to {needed} if it is "
                "an MLflow server; name another URL if it is none, or if MLflow is under a prefix there."
            )
        if _DATABASE.search(reason):
            raise TransientDeliveryError(f"The database of {self._server} fails: {reason}. It is tried again.")
        return reason

    def _experiment_gone(self, response: Response) -> TransientDeliveryError:
        return TransientDeliveryError(
            f"{self._server} has the experiment no more: {_reason(response)}. It is looked up again."
        )

    def _check(self, response: Response, remedy: str) -> None:
        if not response.ok:
            # What is no JSON error is not MLflow's.
            remedy = remedy if _error_code(response) else _OTHER_SERVER
            raise PermanentDeliveryError(
                f"{self._server} answered {response.status_code} to {response.request.path_url.partition('?')[0]}: "
                f"{_reason(response)}. {remedy}"
            )

    def _call(self, method: str, path: str, **options: Any) -> Response:
        """Return the server's answer if it is one of success, or that the request is wrong."""
        response = self._connection.request(method, f"{self._server}{path}", **options)
        error = self._error(response)
        if error is not None:
            raise error
        return response

    def _error(self, response: Response) -> DeliveryError | None:
        status, reason = response.status_code, _reason(response)
        if response.ok or status in _ANSWERS:
            return None
        if status in (401, 403):
            return PermanentDeliveryError(
                f"{self._server} refuses access {self._who} ({status}): {reason}. Set {_CREDENTIALS}, to those of an "
                "account that may write there."
            )
        if status == 501:
            return PermanentDeliveryError(
                f"{self._server} cannot store spans: {reason}. It keeps its data in files: move them to a "
                "database (mlflow migrate-filestore), and start it on that (mlflow server --backend-store-uri URI)."
            )
        if status in _TRANSIENT or status >= 500:
            return TransientDeliveryError(
                f"{self._server} answered {status}: {reason}. It is tried again.",
                retry_after_s=retry_after_s(response),
            )
        return PermanentDeliveryError(f"{self._server} answered {status}: {reason}. {_OTHER_SERVER}")

    def _authorize(self, request: PreparedRequest) -> PreparedRequest:
        if self._authorization:
            request.headers["Authorization"] = self._authorization
        return request


def _access() -> tuple[str, str]:
    """Return the Authorization header, empty if there is none, and in words whose it is."""
    in_file = _credentials_file()
    username = os.environ.get("MLFLOW_TRACKING_USERNAME") or in_file.get("mlflow_tracking_username")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or in_file.get("mlflow_tracking_password")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN", "").strip()
    if username and password:
        return f"Basic {b64encode(f'{username}:{password}'.encode()).decode()}", f"as {one_line(username, 100)!r}"
    if token:
        if not (token.isascii() and token.isprintable()):
            raise PermanentDeliveryError("MLFLOW_TRACKING_TOKEN holds what no token has. Set it anew.")
        return f"Bearer {token}", "with a token"
    return "", "without credentials"


def _credentials_file() -> dict[str, str]:
    path = os.path.expanduser("~/.mlflow/credentials")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(path)
    except (configparser.Error, UnicodeDecodeError, OSError):
        # The text of these errors has lines of the file.
        raise PermanentDeliveryError(f"{path} cannot be read as an INI file. Repair or remove it.") from None
    return dict(parser["mlflow"]) if "mlflow" in parser else {}


def _insecure() -> bool:
    return os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")


def _error_code(response: Response) -> str:
    return "" if response.ok else str(json_object(response).get("error_code", ""))


def _reason(response: Response) -> str:
    """Return what the server says itself, on one line; the name of the status if that is a page for people."""
    if response.ok:
        return ""
    body = json_object(response)
    text = said(response, str(body.get("message") or body.get("detail") or ""))
    return one_line(text.strip(), MAX_REASON).rstrip(".")
