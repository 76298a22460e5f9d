"""The MLflow sink against servers that fail, refuse, are old, or are none; and its targets and credentials."""

from __future__ import annotations

import base64
import json
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import msgspec
import pytest
import responses
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from requests.exceptions import ConnectionError as RequestsConnectionError
from requests.exceptions import ReadTimeout, SSLError

from tests.numbered import TRACE_ID
from tracelake import (
    Destination,
    MissingDependencyError,
    PermanentDeliveryError,
    Rejection,
    SpanRecord,
    TargetError,
    TransientDeliveryError,
)
from tracelake.destinations.targets import parse_target
from tracelake.spans.otlp import from_otlp

from .contract import batch, hopeless, spans

URL = "http://mlflow.example.com:5000"
SPANS = f"{URL}/v1/traces"
TRACES = f"{URL}/api/3.0/mlflow/traces"
EXPERIMENT = f"{URL}/api/2.0/mlflow/experiments/get"
BY_NAME = f"{URL}/api/2.0/mlflow/experiments/get-by-name"
CREATE = f"{URL}/api/2.0/mlflow/experiments/create"

PASSWORD = "correct-horse-battery"
TOKEN = "dapi-0123456789abcdef"

Answer = tuple[int, dict[str, str], str]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without the credentials of the machine's user."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


class Fake:
    """What a server of the latest version answers, until a test says otherwise."""

    def __init__(self, mock: responses.RequestsMock) -> None:
        self.mock = mock
        self.stored: list[SpanRecord] = []
        mock.get(f"{URL}/version", body="3.17.2")
        mock.get(EXPERIMENT, json={"experiment": {"experiment_id": "0", "lifecycle_stage": "active"}})
        mock.add_callback("POST", SPANS, self._take)
        mock.post(TRACES, json={"trace": {"trace_info": {}}})

    def spans(self, answer: Callable[[list[SpanRecord]], Answer | None]) -> None:
        """Let `answer` see the spans of each request, and refuse them unless it returns None."""
        self.mock.remove("POST", SPANS)

        def respond(request: Any) -> Answer:
            return answer(_records(request.body)) or self._take(request)

        self.mock.add_callback("POST", SPANS, respond)

    def sizes(self) -> list[int]:
        """Return how many spans each request had."""
        return [len(_records(call.request.body)) for call in self.mock.calls if call.request.url == SPANS]

    def calls(self, url: str) -> list[Any]:
        return [call.request for call in self.mock.calls if str(call.request.url).partition("?")[0] == url]

    def _take(self, request: Any) -> Answer:
        self.stored += _records(request.body)
        return 200, {}, ""


def _records(body: bytes) -> list[SpanRecord]:
    return from_otlp(ExportTraceServiceRequest.FromString(body))


def numbers(records: list[SpanRecord]) -> list[int]:
    return sorted(int(record.span_id, 16) for record in records)


def refused(status: int, message: str, code: str = "INVALID_PARAMETER_VALUE") -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps({"error_code": code, "message": message})


@pytest.fixture
def fake() -> Iterator[Fake]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield Fake(mock)


def write(*numbers: int, target: str = URL) -> list[Rejection]:
    return parse_target(target).open().write(batch(1, spans(*numbers)))


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_server_that_fails_is_tried_again(fake: Fake, status: int) -> None:
    """With the server's own words, or those of its status."""
    fake.spans(lambda _: refused(status, "database\nis locked", "TEMPORARILY_UNAVAILABLE"))
    with pytest.raises(TransientDeliveryError, match=rf"{URL} answered {status}: database is locked\. It is tried"):
        write(1)
    fake.spans(lambda _: (status, {"Content-Type": "text/html"}, "<html>a page</html>"))
    with pytest.raises(TransientDeliveryError, match=rf"{URL} answered {status}: [A-Z][A-Za-z -]+\. It is tried"):
        write(1)


@pytest.mark.parametrize("error", [RequestsConnectionError("refused"), ReadTimeout("timed out"), SSLError("EOF")])
def test_server_that_is_not_reached_is_tried_again(fake: Fake, error: Exception) -> None:
    """Whatever kept it from answering."""
    fake.mock.replace("POST", SPANS, body=error)
    with pytest.raises(TransientDeliveryError, match=f"{URL} is not reached: .*see if it runs"):
        write(1)


def test_server_that_does_not_run() -> None:
    """Nothing listens there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            TransientDeliveryError, match=rf"{url} is not reached: \[Errno \d+\] Connection refused\. It is tried"
        ):
            write(1, target=url)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("3600", 3600), ("a date", 98), ("soon", 0), ("", 0)],
)
def test_busy_server_is_given_the_time_it_asks_for(fake: Fake, header: str, seconds: float) -> None:
    """In seconds or as a date; what is neither asks for nothing."""
    header = formatdate(time.time() + 100, usegmt=True) if header == "a date" else header
    for status in (429, 503):
        fake.spans(lambda _, status=status: (status, {"Retry-After": header}, ""))  # type: ignore[misc]
        with pytest.raises(TransientDeliveryError, match=f"answered {status}") as raised:
            write(1)
        assert seconds <= raised.value.retry_after_s <= seconds + 2


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    ("environ", "who"),
    [
        ({"MLFLOW_TRACKING_USERNAME": "ana", "MLFLOW_TRACKING_PASSWORD": PASSWORD}, "as 'ana'"),
        ({"MLFLOW_TRACKING_TOKEN": TOKEN}, "with a token"),
        ({}, "without credentials"),
    ],
)
def test_refused_access_names_the_variables(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, status: int, environ: dict[str, str], who: str
) -> None:
    """And whose access was refused, but no secret, even if the server repeats it."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    fake.spans(lambda _: (status, {"Content-Type": "text/plain"}, f"No, {PASSWORD} and {TOKEN} are wrong."))
    with pytest.raises(PermanentDeliveryError) as raised:
        write(1)
    text = str(raised.value)
    assert f"{URL} refuses access {who} ({status})" in text
    assert "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN" in text
    assert not any(value in text for name, value in environ.items() if name != "MLFLOW_TRACKING_USERNAME")


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (
            (404, {"Content-Type": "text/html"}, "<h1>Not Found</h1>"),
            "has no /v1/traces: Not Found. Upgrade the server",
        ),
        (
            (501, {}, '{"detail": "not supported by FileStore"}'),
            "not supported by FileStore. It keeps its data in files",
        ),
        ((405, {}, ""), "answered 405: Method Not Allowed. Name the URL of an MLflow tracking server"),
        ((307, {"Location": "https://login.example.com/?x=1"}, ""), "redirects to https://login.example.com/, and"),
        ((302, {}, ""), "redirects to elsewhere"),
    ],
)
def test_server_that_cannot_take_spans(fake: Fake, answer: Answer, seen: str) -> None:
    """Somebody has to act, and is told how; nothing is set aside."""
    fake.spans(lambda _: answer)
    with pytest.raises(PermanentDeliveryError) as raised:
        write(1)
    assert seen in str(raised.value)
    first, second = parse_target(URL).check()
    assert (first.severity, first.seen) == ("ok", f"MLflow 3.17.2 is at {URL}.")
    assert second.severity == "error"
    assert seen in second.seen


@pytest.mark.parametrize(
    "answer", [{"body": "<html>"}, {"body": "no", "status": 404}, {"json": [1]}, {"json": {"experiment": "mine"}}]
)
def test_server_that_is_none_of_mlflow(fake: Fake, answer: dict[str, Any]) -> None:
    """Something else listens at the URL."""
    fake.mock.replace("GET", EXPERIMENT, **answer)
    with pytest.raises(PermanentDeliveryError, match="Name the URL of an MLflow tracking server, with its prefix"):
        write(1)


@pytest.mark.parametrize("status", [400, 422])
def test_only_the_span_at_fault_is_set_aside(fake: Fake, status: int) -> None:
    """It is found in few requests among those of all pieces, with what the sink itself cannot send."""
    fake.spans(lambda records: refused(status, "no\n77") if 77 in numbers(records) else None)
    records = [*spans(*range(100)), hopeless(100), *spans(*range(101, 130))]
    rejections = parse_target(URL).open().write(batch(1, records, piece=50))
    assert [rejection.index for rejection in rejections] == [77, 100]
    assert rejections[0].reason == f"{URL} does not take the span: no 77."
    assert "Not a resource" in rejections[1].reason
    assert numbers(fake.stored) == [*range(77), *range(78, 100), *range(101, 130)]
    assert len(fake.calls(SPANS)) < 30
    assert fake.sizes().count(0) == 1  # whether spans are taken at all, asked once


def test_trace_without_its_root_is_none_yet(fake: Fake) -> None:
    """What is known of it is set aside with the root span."""
    fake.spans(lambda records: refused(400, "no") if 1 in numbers(records) else None)
    other = msgspec.structs.replace(spans(2)[0], trace_id="7" * 32)
    (rejection,) = parse_target(URL).open().write(batch(1, [*spans(1), other]))
    assert rejection.index == 0
    (request,) = fake.calls(TRACES)
    assert json.loads(request.body)["trace"]["trace_info"]["trace_id"] == f"tr-{other.trace_id}"


@pytest.mark.parametrize("status", [400, 422])
def test_server_that_refuses_everything_loses_no_span(fake: Fake, status: int) -> None:
    """What is wrong with every request is not the fault of a span, be there one or many."""
    fake.spans(lambda _: refused(status, "The workspace is required"))
    large = [msgspec.structs.replace(record, attributes={"text": "x" * 2**20}) for record in spans(*range(8))]
    for records in (spans(1), spans(*range(20)), [*spans(1, 2), hopeless(3)], large):
        with pytest.raises(PermanentDeliveryError, match="takes no spans at all: The workspace is required"):
            parse_target(URL).open().write(batch(1, records))
    (_, finding) = parse_target(URL).check()
    assert (finding.severity, "The workspace is required" in finding.seen) == ("error", True)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (422, "Failed to log OpenTelemetry spans: (sqlite3.OperationalError) database is locked"),
        (400, "(psycopg2.InterfaceError) connection already closed"),
        (400, "QueuePool limit of size 5 overflow 10 reached, connection timed out, timeout 30.00"),
    ],
)
def test_database_that_is_out_of_reach_is_no_fault_of_a_span(fake: Fake, status: int, text: str) -> None:
    """Though the server answers as if it were."""
    fake.spans(lambda records: refused(status, text, "BAD_REQUEST") if records else None)
    with pytest.raises(TransientDeliveryError, match=f"The database of {URL} fails: {re.escape(text)}"):
        write(1, 2)


def test_request_that_is_too_large_is_halved(fake: Fake) -> None:
    """Until the server takes it; a span that is too large by itself is set aside."""
    fake.spans(lambda records: (413, {}, "") if len(records) > 3 or 5 in numbers(records) else None)
    (rejection,) = write(*range(10))
    assert rejection.index == 5
    assert "Request Entity Too Large" in rejection.reason or "Content Too Large" in rejection.reason
    assert numbers(fake.stored) == [0, 1, 2, 3, 4, 6, 7, 8, 9]


def test_requests_are_few_and_bounded(fake: Fake) -> None:
    """One for the spans of a piece, unless they are large; one for a trace, whatever roots it has."""
    assert parse_target(URL).open().write(batch(1, spans(*range(1500)))) == []
    assert fake.sizes() == [1000, 500]
    assert len(fake.calls(TRACES)) == 1
    fake.mock.calls.reset()
    large = [msgspec.structs.replace(record, attributes={"text": "x" * 2**20}) for record in spans(*range(10))]
    assert parse_target(URL).open().write(batch(1, large)) == []
    assert sum(fake.sizes()) == 10
    assert max(len(call.body) for call in fake.calls(SPANS)) < 4 * 2**20
    fake.mock.calls.reset()
    child = msgspec.structs.replace(spans(1)[0], parent_span_id="1" * 16)
    assert parse_target(URL).open().write(batch(1, [child])) == []
    assert (len(fake.calls(SPANS)), len(fake.calls(TRACES))) == (1, 0)


def test_trace_that_is_refused_is_said(fake: Fake) -> None:
    """By its root span, which is stored; the other traces are complete."""
    fake.mock.remove("POST", TRACES)
    fake.mock.add_callback(
        "POST",
        TRACES,
        lambda request: (
            refused(400, "bad tag") if TRACE_ID in str(request.body) else (200, {}, '{"trace": {"trace_info": {}}}')
        ),
    )
    other = msgspec.structs.replace(spans(2)[0], trace_id="7" * 32)
    (rejection,) = parse_target(URL).open().write(batch(1, [*spans(1), other]))
    assert rejection == Rejection(0, f"The span is stored, but {URL} does not take its trace: bad tag.")
    assert len(fake.calls(TRACES)) == 2


@pytest.mark.parametrize("call", ["spans", "traces"])
def test_experiment_that_is_gone_is_looked_up_again(fake: Fake, call: str) -> None:
    """It may have been replaced by one of the same name."""
    fake.mock.get(BY_NAME, json={"experiment": {"experiment_id": "7", "lifecycle_stage": "active"}})
    sink = parse_target(f"{URL}?experiment=mine").open()
    assert sink.write(batch(1, spans(1))) == []
    assert sink.write(batch(2, spans(2))) == []
    assert len(fake.calls(BY_NAME)) == 1
    gone = refused(404, "No Experiment with id=7 exists", "RESOURCE_DOES_NOT_EXIST")
    fake.mock.replace("POST", SPANS if call == "spans" else TRACES, status=gone[0], body=gone[2])
    with pytest.raises(TransientDeliveryError, match=r"No Experiment with id=7 exists\. It is looked up again"):
        sink.write(batch(3, spans(3)))
    fake.mock.replace("GET", BY_NAME, json={"experiment": {"experiment_id": "8", "lifecycle_stage": "active"}})
    fake.spans(lambda _: None)
    fake.mock.replace("POST", TRACES, json={"trace": {"trace_info": {}}})
    assert sink.write(batch(3, spans(3))) == []
    assert fake.calls(SPANS)[-1].headers["x-mlflow-experiment-id"] == "8"


def test_experiment_that_another_makes_first(fake: Fake) -> None:
    """The lookup found none, and the creation one."""
    missing = refused(404, "Could not find it", "RESOURCE_DOES_NOT_EXIST")
    fake.mock.get(BY_NAME, status=missing[0], body=missing[2])
    fake.mock.get(BY_NAME, json={"experiment": {"experiment_id": "7", "lifecycle_stage": "active"}})
    fake.mock.post(CREATE, status=400, json={"error_code": "RESOURCE_ALREADY_EXISTS", "message": "already exists"})
    assert write(1, target=f"{URL}?experiment=mine") == []
    assert fake.calls(SPANS)[-1].headers["x-mlflow-experiment-id"] == "7"


def test_experiment_that_cannot_be_made(fake: Fake) -> None:
    """Its name is not one that the server takes; or the server makes it and does not have it."""
    missing = refused(404, "Could not find it", "RESOURCE_DOES_NOT_EXIST")
    fake.mock.get(BY_NAME, status=missing[0], body=missing[2])
    fake.mock.post(CREATE, status=400, json={"error_code": "INVALID_PARAMETER_VALUE", "message": "Too long"})
    with pytest.raises(PermanentDeliveryError, match=r"Too long\. Name another experiment"):
        write(1, target=f"{URL}?experiment=mine")
    fake.mock.replace("POST", CREATE, json={"experiment_id": "7"})
    with pytest.raises(TransientDeliveryError, match="does not find the experiment 'mine' that it made"):
        write(1, target=f"{URL}?experiment=mine")


@pytest.mark.parametrize("version", ["3.9.0", "2.22.1", "<html>", ""])
def test_sums_of_another_version_are_left_alone(fake: Fake, version: str) -> None:
    """They are kept in another way there, and would be lost."""
    fake.mock.replace("GET", f"{URL}/version", body=version)
    child = msgspec.structs.replace(spans(1)[0], parent_span_id="1" * 16, attributes={"gen_ai.usage.input_tokens": 1})
    assert parse_target(URL).open().write(batch(1, [child])) == []
    assert [call.request.method for call in fake.mock.calls if TRACE_ID in str(call.request.url)] == []


def test_trace_of_another_version_is_completed(fake: Fake) -> None:
    """With what the server has of it, which would be lost: some of it the server made of the spans."""
    fake.mock.replace("GET", f"{URL}/version", body="3.9.0")
    stored = {
        "trace_id": f"tr-{TRACE_ID}",
        "tags": {"service.name": "search", "mlflow.traceName": "old"},
        "trace_metadata": {"mlflow.trace.tokenUsage": '{"input_tokens": 9}', "mlflow.trace.user": "ana"},
        "request_preview": "Why?",
        "response_preview": "Because.",
    }
    fake.mock.get(f"{TRACES}/tr-{TRACE_ID}", json={"trace": {"trace_info": stored}})
    attributes = {
        "mlflow.trace.metadata.mlflow.trace.tokenUsage": '{"input_tokens": 1}',
        "mlflow.trace.metadata.mine": "x",
        "mlflow.trace.request_preview": "How?",
    }
    root = msgspec.structs.replace(spans(1)[0], attributes=attributes)
    assert parse_target(URL).open().write(batch(1, [root])) == []
    (request,) = fake.calls(TRACES)
    info = json.loads(request.body)["trace"]["trace_info"]
    assert info["tags"] == {"service.name": "search", "mlflow.traceName": "span 1"}
    assert info["trace_metadata"] == {
        "mlflow.trace_schema.version": "3",
        "mlflow.trace.tokenUsage": '{"input_tokens": 9}',
        "mlflow.trace.user": "ana",
        "mine": "x",
    }
    assert (info["request_preview"], info["response_preview"]) == ("How?", "Because.")


def sent(fake: Fake) -> Any:
    """Return the request that brought the spans."""
    fake.mock.calls.reset()
    assert write(1) == []
    (request,) = fake.calls(SPANS)
    return request


def test_credentials_of_the_environment(fake: Fake, monkeypatch: pytest.MonkeyPatch, own_home: Path) -> None:
    """As MLflow takes them: a user and password before a token, variables before its file, never those of others."""
    (own_home / ".netrc").write_text(f"machine mlflow.example.com login ana password {PASSWORD}\n")
    assert "Authorization" not in sent(fake).headers
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", f" {TOKEN}\n")
    assert sent(fake).headers["Authorization"] == f"Bearer {TOKEN}"
    (own_home / ".mlflow").mkdir()
    credentials = own_home / ".mlflow" / "credentials"
    credentials.write_text(f"[mlflow]\nmlflow_tracking_username = file\nmlflow_tracking_password = {PASSWORD}%\n")
    assert sent(fake).headers["Authorization"] == basic("file", PASSWORD + "%")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "zoë")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pässword")
    assert sent(fake).headers["Authorization"] == basic("zoë", "pässword")


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_credentials_that_cannot_be_any(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says where they are, and does not show them."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", f"{TOKEN}\nX-Other: 1")
    with pytest.raises(PermanentDeliveryError, match="MLFLOW_TRACKING_TOKEN holds what no token has") as raised:
        parse_target(URL).open()
    assert TOKEN not in str(raised.value)
    (own_home / ".mlflow").mkdir()
    (own_home / ".mlflow" / "credentials").write_text(f"{PASSWORD}\n")
    with pytest.raises(PermanentDeliveryError, match="credentials cannot be read as an INI file") as raised:
        parse_target(URL).open()
    assert PASSWORD not in str(raised.value)
    (finding,) = parse_target(URL).check()
    assert finding.severity == "error"


def test_certificates_of_the_environment(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose authority is trusted, or that none is asked for, and the client's own."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/elsewhere.pem")
    assert sent(fake).req_kwargs["verify"] == "/elsewhere.pem"
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    assert sent(fake).req_kwargs["verify"] is False
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "/authority.pem")
    monkeypatch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", "/client.pem")
    request = sent(fake)
    assert (request.req_kwargs["verify"], request.req_kwargs["cert"]) == ("/authority.pem", "/client.pem")


def test_certificates_that_are_no_good(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has to act; the variables are named."""
    fake.mock.replace("POST", SPANS, body=SSLError("certificate verify failed: unable to get local issuer certificate"))
    with pytest.raises(PermanentDeliveryError, match=r"is not trusted.*Set MLFLOW_TRACKING_SERVER_CERT_PATH"):
        write(1)
    fake.mock.stop()
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "/nowhere/authority.pem")
    with pytest.raises(PermanentDeliveryError, match=r"cannot be read: .*authority\.pem.*Repair"):
        write(1, target="https://127.0.0.1:9")
    fake.mock.start()


@pytest.mark.parametrize("package", ["requests", "opentelemetry.proto.collector.trace.v1"])
def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """With the command that installs it; the target is parsed all the same."""
    monkeypatch.setitem(sys.modules, package, None)
    destination = parse_target(URL)
    with pytest.raises(MissingDependencyError, match=rf"{URL} needs .*{package}.*pip install 'tracelake\[mlflow\]'"):
        destination.open()
    assert [finding.severity for finding in destination.check()] == ["error"]


@pytest.mark.parametrize(
    ("target", "canonical"),
    [
        ("http://host:5000", "http://host:5000"),
        ("HTTP://Host.Example.COM:5000/", "http://host.example.com:5000"),
        ("https://host/a/B%20c//", "https://host/a/B%20c"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("http://127.0.0.1:05000?", "http://127.0.0.1:5000"),
        ("http://host?experiment_id=0", "http://host"),
        ("http://host?experiment_id=012", "http://host?experiment_id=12"),
        ("http://host/?experiment=mine", "http://host?experiment=mine"),
        ("http://host?experiment=a%20b%2Fc%26d", "http://host?experiment=a%20b%2Fc%26d"),
        ("http://host?experiment=/Shared/me@b c+d", "http://host?experiment=%2FShared%2Fme%40b%20c%2Bd"),
        ("http://host?experiment=größe", "http://host?experiment=gr%C3%B6%C3%9Fe"),
    ],
)
def test_target_is_canonical(target: str, canonical: str) -> None:
    """The shipper parses what is left of it in the spool."""
    destination = parse_target(target)
    assert (destination.target, str(destination)) == (canonical, canonical)
    assert parse_target(canonical) == destination
    assert hash(parse_target(canonical)) == hash(destination)
    assert isinstance(destination, Destination)


@pytest.mark.parametrize(
    "query",
    [
        "experiment",
        "experiment=",
        "experiment=%00",
        "experiment=%ff",
        "experiment=a&experiment_id=1",
        "experiment=a#b",
        "experiment_id=",
        "experiment_id=x",
        "experiment_id=-1",
        "experiment_id=1&x=2",
        "Experiment=a",
        f"token={TOKEN}",
    ],
)
def test_query_is_one_experiment(query: str) -> None:
    """Anything else might be a secret, or a misunderstanding."""
    with pytest.raises(TargetError, match=re.escape("Write 'http://host:5000', 'http://host:5000?experiment=NAME'")):
        parse_target(f"http://host?{query}")


@pytest.mark.parametrize(
    "url", ["http://", "http:///x", "http://host:0", "http://host:99999", "http://a b", "http://h#x"]
)
def test_target_without_a_server_is_refused(url: str) -> None:
    """And it is said what one looks like."""
    with pytest.raises(TargetError, match=r"is not the URL of a server\. Write 'http://host:5000'"):
        parse_target(url)


@pytest.mark.parametrize("credentials", [f"ana:{PASSWORD}", f"ana:{PASSWORD}/x", f":{PASSWORD}@x", f"ana:?{PASSWORD}"])
def test_credentials_in_a_target_are_refused_and_not_shown(credentials: str) -> None:
    """The error says where they belong."""
    with pytest.raises(TargetError) as raised:
        parse_target(f"https://{credentials}@host:5000")
    assert PASSWORD not in str(raised.value)
    if "?" not in credentials:
        assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or by MLFLOW_TRACKING_TOKEN" in str(raised.value)


def test_identity_says_who_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotated secret continues the lane; another user has another."""
    assert parse_target(URL).identity == {"server": URL}
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    first = parse_target(URL)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "another")
    assert parse_target(URL).identity == first.identity == {"server": URL, "access": "token"}
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ana")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", "/client.pem")
    identity = parse_target(f"{URL}?experiment=x").identity
    assert (identity["server"], identity["MLFLOW_TRACKING_USERNAME"]) == (URL, "ana")
    assert identity["MLFLOW_TRACKING_CLIENT_CERT_PATH"] == "/client.pem"
    assert PASSWORD not in str(identity)
    assert parse_target(URL) == first


def test_session_is_let_go_of(fake: Fake) -> None:
    """Close may be repeated, and a closed sink opens its connection again."""
    sink = parse_target(URL).open()
    sink.close()
    sink.close()
    assert sink.write(batch(1, spans(1))) == []
    assert numbers(fake.stored) == [1]
