"""What sinks that speak HTTP share: a connection that sends access nowhere else, and what it means that one fails."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from tracelake.errors import PermanentDeliveryError, TransientDeliveryError
from tracelake.redaction import hide_access, one_line

if TYPE_CHECKING:
    from requests import PreparedRequest, Response

# As much of a foreign text as an error repeats.
MAX_REASON = 500

# As much of an answer as is read, unfolded, and for as long as it is. What sinks are answered is far less; more is a
# mistake or an attack, and must not cost the shipper its memory, nor other lanes its time.
_MAX_ANSWER_BYTES = 8 * 2**20
_MAX_ANSWER_S = 120.0
_PIECE_BYTES = 64 * 1024

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[\w.-]+|\[[0-9a-f:.]+\])(?::(?P<port>\d{1,5}))?"
    r"(?P<path>(?:/(?:[\w.~!$&'()*+,;=:-]|%[0-9a-f]{2})*)*)",
    re.ASCII | re.IGNORECASE,
)


def split_url(url: str) -> tuple[str, str] | None:
    """Return the canonical origin and the path of a URL; None if it is none, or has more: a password, a query."""
    found = _URL.fullmatch(url)
    if found is None or int(found["port"] or 1) not in range(1, 65536):
        return None
    port = f":{int(found['port'])}" if found["port"] else ""
    return f"{found['scheme'].lower()}://{found['host'].lower()}{port}", found["path"]


@dataclass(frozen=True)
class Tls:
    """Whom we trust, and as whom we are known.

    Attributes:
        authority: a file of certificates; True for the usual ones, False to trust anybody.
        certificate: the file of our own certificate and key, or the files of both.
        authority_variable: the environment variable that names the one, for errors.
        certificate_variable: the environment variable that names the other; empty if there is none.
    """

    authority: bool | str = True
    certificate: str | tuple[str, str] | None = None
    authority_variable: str = "REQUESTS_CA_BUNDLE"
    certificate_variable: str = ""


class Connection:
    """Requests to one server, over connections that are kept."""

    def __init__(
        self,
        server: str,
        tls: Tls,
        *,
        timeouts_s: tuple[float, float],
        authorize: Callable[[PreparedRequest], PreparedRequest] | None = None,
    ) -> None:
        """`timeouts_s` are those to connect, and between two bytes of an answer; `authorize` changes each request."""
        import requests

        self._server = server
        self._tls = tls
        self._timeouts_s = timeouts_s
        self._session = requests.Session()
        self._session.headers["User-Agent"] = "tracelake"
        # Set in any case: requests would look for a password in ~/.netrc otherwise.
        self._session.auth = authorize or (lambda request: request)
        self._session.cert = tls.certificate

    def close(self) -> None:
        """Let go of the connections; may be repeated."""
        self._session.close()

    def request(self, method: str, url: str, **options: Any) -> Response:
        """Return the server's answer, whatever its status; cut if it is too long or comes too slowly.

        Raises:
            TransientDeliveryError: the server is not reached, or answers with what is no status.
            PermanentDeliveryError: one side does not trust the other's certificate, or the server redirects.
        """
        import requests
        import urllib3

        try:
            # A redirect would take the credentials elsewhere. The session's `verify` gives way to REQUESTS_CA_BUNDLE.
            response = self._session.request(
                method,
                url,
                timeout=self._timeouts_s,
                allow_redirects=False,
                verify=self._tls.authority,
                stream=True,
                **options,
            )
            _read(response)
        except requests.exceptions.SSLError as error:
            if "certificate" not in str(error).lower():
                raise self._unreached(error) from error
            ours = f", or {self._tls.certificate_variable} to ours" if self._tls.certificate_variable else ""
            raise PermanentDeliveryError(
                f"The certificate of {self._server} is not trusted, or it does not trust ours: "
                f"{one_line(str(error), MAX_REASON)}. Set {self._tls.authority_variable} to the certificate of its "
                f"authority{ours}."
            ) from error
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            raise self._unreached(error) from error
        except OSError as error:  # how requests says that a file of certificates is not there
            variables = filter(None, (self._tls.authority_variable, self._tls.certificate_variable))
            raise PermanentDeliveryError(
                f"A certificate for {self._server} cannot be read: {one_line(str(error), MAX_REASON)}. Repair "
                f"{' or '.join(variables)}."
            ) from error
        if not 200 <= response.status_code < 600:  # requests takes those above for success
            raise TransientDeliveryError(
                f"{self._server} answered {response.status_code}, which is no status of HTTP. It is tried again; see "
                "what is between here and there."
            )
        if 300 <= response.status_code < 400:
            place = one_line(response.headers.get("Location", "elsewhere").partition("?")[0], MAX_REASON)
            raise PermanentDeliveryError(
                f"{self._server} redirects to {place}, and access is not sent on. Name the server that answers itself."
            )
        return response

    def _unreached(self, error: BaseException) -> TransientDeliveryError:
        # What requests and urllib3 wrap around it says less, at length, and differs from time to time.
        while error.__context__ is not None:
            error = error.__context__
        text = one_line(str(error), MAX_REASON)
        return TransientDeliveryError(f"{self._server} is not reached: {text}. It is tried again; see if it runs.")


def _read(response: Response) -> None:
    """Read the body of an answer that is open, piece by piece as it arrives, within the limits."""
    read = getattr(response.raw, "read1", response.raw.read)  # urllib3 before 2.2 waits for whole pieces
    deadline_s = time.monotonic() + _MAX_ANSWER_S
    body = bytearray()
    while len(body) < _MAX_ANSWER_BYTES and time.monotonic() < deadline_s:
        piece = read(_PIECE_BYTES, decode_content=True)
        if not piece:
            response.raw.release_conn()
            break
        body += piece
    else:
        response.close()
    # Where requests keeps what it read itself; it has no way to be told how much that may be.
    response._content = bytes(body[:_MAX_ANSWER_BYTES])


def retry_after_s(response: Response) -> float:
    """Return the seconds that a Retry-After header asks for, which holds these or a date (RFC 9110, section 10.2.3)."""
    value = response.headers.get("Retry-After", "")
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def json_object(response: Response) -> dict[str, Any]:
    """Return the JSON object that an answer is; an empty one if it is none."""
    try:
        found = response.json()
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def said(response: Response, message: str) -> str:
    """Return a message of an answer, or else its plain text, or the name of its status; to be shown by `one_line`.

    Without the access that the request had: the answer may repeat it.
    """
    if not message and response.headers.get("Content-Type", "").startswith("text/plain"):
        with contextlib.suppress(ValueError):  # of an encoding that decodes nothing
            message = response.text
    text = message or response.reason or "no reason given"
    for name in ("Authorization", "Proxy-Authorization"):
        text = hide_access(text, str(response.request.headers.get(name, "")))
    return text
