"""The OTLP sink against endpoints that fail, refuse, take a part, or are none; and its targets and variables."""

from __future__ import annotations

import gzip
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Any

import msgspec
import pytest
import responses
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from requests.exceptions import ConnectionError as RequestsConnectionError
from requests.exceptions import ReadTimeout, SSLError

from tests.numbered import TRACE_ID
from tracelake import (
    Destination,
    MissingDependencyError,
    PermanentDeliveryError,
    Rejection,
    SettingError,
    SpanRecord,
    TargetError,
    TracelakeError,
    TransientDeliveryError,
)
from tracelake.destinations.otlp import OtlpSink
from tracelake.destinations.targets import parse_target
from tracelake.errors import DeliveryError
from tracelake.spans.otlp import from_otlp

from .contract import batch, hopeless, spans

ORIGIN = "http://collector.example.com:4318"
URL = f"{ORIGIN}/v1/traces"
TARGET = f"otlp+{ORIGIN}"
HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
KEY = "correct-horse-battery"

Answer = tuple[int, dict[str, str], str | bytes]
PROTOBUF = {"Content-Type": "application/x-protobuf"}
JSON = {"Content-Type": "application/json"}


class Fake:
    """An endpoint that takes all spans, until a test says otherwise."""

    def __init__(self, mock: responses.RequestsMock) -> None:
        self.mock = mock
        self.stored: list[SpanRecord] = []
        mock.add_callback("POST", URL, self._take)

    def spans(self, answer: Callable[[list[SpanRecord]], Answer | None]) -> None:
        """Let `answer` see the spans of each request, and answer it unless it returns None."""

        def respond(request: Any) -> Answer:
            return answer(records_of(request)) or self._take(request)

        self.requests(respond)

    def requests(self, answer: Callable[[Any], Answer]) -> None:
        self.mock.remove("POST", URL)
        self.mock.add_callback("POST", URL, answer)

    def sizes(self) -> list[int]:
        """Return how many spans each request had."""
        return [len(records_of(call.request)) for call in self.mock.calls]

    def _take(self, request: Any) -> Answer:
        self.stored += records_of(request)
        return 200, PROTOBUF, b""


def records_of(request: Any) -> list[SpanRecord]:
    """Return the spans of a request, as its headers say they are written."""
    assert request.headers["Content-Type"] == "application/x-protobuf"
    compressed = request.headers.get("Content-Encoding") == "gzip"
    body = gzip.decompress(request.body) if compressed else request.body
    return from_otlp(ExportTraceServiceRequest.FromString(body))


def numbers(records: list[SpanRecord]) -> list[int]:
    return sorted(int(record.span_id, 16) for record in records)


def partial(rejected: int, message: str = "") -> Answer:
    """Return the answer of an endpoint that left out some spans."""
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = rejected
    answer.partial_success.error_message = message
    return 200, PROTOBUF, answer.SerializeToString()


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the machine's credentials and certificates."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake() -> Iterator[Fake]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield Fake(mock)


def write(*numbers: int) -> list[Rejection]:
    return parse_target(TARGET).open().write(batch(1, spans(*numbers)))


# --- what fails ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_endpoint_that_fails_is_tried_again(fake: Fake, status: int) -> None:
    """With its own words, as JSON, google.rpc.Status or text; or those of its status."""
    error = ExportTraceServiceResponse().partial_success
    error.rejected_spans, error.error_message = 14, "queue\nis full"
    answers: list[tuple[dict[str, str], str | bytes]] = [
        (JSON, '{"code": 14, "message": "queue\\nis full"}'),
        (JSON, '{"error_code": "BUSY", "message": "queue is full."}'),
        (PROTOBUF, error.SerializeToString()),
        ({"Content-Type": "text/plain; charset=utf-8"}, " queue is full\n"),
    ]
    for headers, body in answers:
        fake.spans(lambda _, headers=headers, body=body: (status, headers, body))  # type: ignore[misc]
        with pytest.raises(
            TransientDeliveryError, match=rf"^{URL} answered {status}: queue is full\. It is tried again"
        ):
            write(1)
    unread: list[tuple[dict[str, str], str | bytes]] = [
        ({"Content-Type": "text/html"}, "<html>a page</html>"),
        (PROTOBUF, b"\xff"),
        (JSON, "[1]"),
        ({}, b""),
    ]
    for headers, body in unread:
        fake.spans(lambda _, headers=headers, body=body: (status, headers, body))  # type: ignore[misc]
        with pytest.raises(TransientDeliveryError, match=rf"^{URL} answered {status}: [A-Za-z -]+\. It is tried again"):
            write(1)


@pytest.mark.parametrize("error", [RequestsConnectionError("refused"), ReadTimeout("timed out"), SSLError("EOF")])
def test_endpoint_that_is_not_reached_is_tried_again(fake: Fake, error: Exception) -> None:
    """Whatever kept it from answering."""
    fake.mock.replace("POST", URL, body=error)
    with pytest.raises(TransientDeliveryError, match=f"{URL} is not reached: .*see if it runs"):
        write(1)


def test_endpoint_that_does_not_run() -> None:
    """Nothing listens there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        destination = parse_target(f"otlp+http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(TransientDeliveryError, match=r"is not reached: \[Errno \d+\] Connection refused\. It is"):
            destination.open().write(batch(1, spans(1)))
        (finding,) = destination.check()
        assert (finding.severity, "Connection refused" in finding.seen) == ("error", True)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("3600", 3600), ("a date", 98), ("soon", 0), ("", 0)],
)
def test_busy_endpoint_is_given_the_time_it_asks_for(fake: Fake, header: str, seconds: float) -> None:
    """In seconds or as a date; what is neither asks for nothing."""
    header = formatdate(time.time() + 100, usegmt=True) if header == "a date" else header
    for status in (429, 503):
        fake.spans(lambda _, status=status: (status, {"Retry-After": header}, ""))  # type: ignore[misc]
        with pytest.raises(TransientDeliveryError, match=f"answered {status}") as raised:
            write(1)
        assert seconds <= raised.value.retry_after_s <= seconds + 2


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        ((401, {}, ""), "refuses access without any header (401): Unauthorized. Set OTEL_EXPORTER_OTLP_HEADERS to"),
        ((403, JSON, '{"message": "no key"}'), "refuses access without any header (403): no key. Set OTEL_"),
        (
            (404, {"Content-Type": "text/html"}, "<h1>"),
            "is not there (404): Not Found. Name the endpoint with its whole",
        ),
        ((405, {}, ""), "answered 405: Method Not Allowed. Name the URL of an OTLP/HTTP endpoint"),
        ((415, {}, ""), "answered 415: Unsupported Media Type. Name the URL of an OTLP/HTTP endpoint"),
        ((501, {}, ""), "answered 501: Not Implemented. Name the URL of an OTLP/HTTP endpoint"),
        ((200, {"Content-Type": "text/html; charset=utf-8"}, "<h1>Log in</h1>"), "answers with a page for people"),
        ((307, {"Location": "https://login.example.com/?x=1"}, ""), "redirects to https://login.example.com/, and"),
        ((302, {}, ""), "redirects to elsewhere"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_endpoint_that_cannot_take_spans(fake: Fake, answer: Answer, seen: str) -> None:
    """Somebody has to act, and is told how; nothing is set aside."""
    fake.spans(lambda _: answer)
    with pytest.raises(PermanentDeliveryError) as raised:
        write(1, 2)
    assert seen in str(raised.value)
    (finding,) = parse_target(TARGET).check()
    assert (finding.severity, seen in finding.seen) == ("error", True)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 422])
def test_only_the_span_at_fault_is_set_aside(fake: Fake, status: int) -> None:
    """It is found in few requests among those of all pieces, with what the sink itself cannot send."""
    fake.spans(lambda records: (status, JSON, '{"message": "no 77"}') if 77 in numbers(records) else None)
    records = [*spans(*range(1, 100)), hopeless(100), *spans(*range(101, 130))]
    rejections = parse_target(TARGET).open().write(batch(1, records, piece=50))
    assert [rejection.index for rejection in rejections] == [76, 99]
    assert rejections[0].reason == f"{URL} does not take the span ({status}): no 77."
    assert "Not a resource" in rejections[1].reason
    assert numbers(fake.stored) == [*range(1, 77), *range(78, 100), *range(101, 130)]
    assert len(fake.sizes()) < 20
    assert fake.sizes().count(0) == 1  # whether spans are taken at all, asked once


@pytest.mark.parametrize("status", [400, 413, 422])
def test_endpoint_that_refuses_everything_loses_no_span(fake: Fake, status: int) -> None:
    """What is wrong with every request is not the fault of a span, be there one or many."""
    fake.spans(lambda _: (status, JSON, '{"message": "The tenant is required"}'))
    for records in (spans(1), spans(*range(1, 20)), [*spans(1, 2), hopeless(3)]):
        with pytest.raises(
            PermanentDeliveryError, match=rf"takes no spans at all \({status}\): The tenant is required"
        ):
            parse_target(TARGET).open().write(batch(1, records))
    (finding,) = parse_target(TARGET).check()
    assert (finding.severity, "The tenant is required" in finding.seen) == ("error", True)


def test_request_that_is_too_large_is_halved(fake: Fake) -> None:
    """Until the endpoint takes it; a span that is too large by itself is set aside."""
    fake.spans(lambda records: (413, {}, "") if len(records) > 3 or 5 in numbers(records) else None)
    (rejection,) = write(*range(1, 11))
    assert rejection.index == 4
    assert "Request Entity Too Large" in rejection.reason or "Content Too Large" in rejection.reason
    assert numbers(fake.stored) == [1, 2, 3, 4, 6, 7, 8, 9, 10]


def test_failure_while_the_fault_is_looked_for(fake: Fake) -> None:
    """The next try goes on where it was; nothing comes twice."""
    given = batch(1, spans(*range(1, 101)))
    fake.spans(lambda records: (400, {}, "") if 77 in numbers(records) else None)
    taken, requests = fake._take, 0

    def fail_once(request: Any) -> Answer:
        nonlocal requests
        requests += 1
        return (503, {}, "") if requests == 3 else taken(request)

    fake._take = fail_once  # type: ignore[method-assign]
    with pytest.raises(TransientDeliveryError):
        parse_target(TARGET).open().write(given)
    (rejection,) = parse_target(TARGET).open().write(given)
    assert rejection.index == 76
    assert numbers(fake.stored) == [*range(1, 77), *range(78, 101)]


def test_compression_that_is_refused_is_given_up(fake: Fake) -> None:
    """For all requests of the sink: the first is sent once more, as it is."""

    def respond(request: Any) -> Answer:
        if "Content-Encoding" in request.headers:
            return 415, {}, ""
        return fake._take(request)

    fake.requests(respond)
    sink = parse_target(TARGET).open()
    assert sink.write(batch(1, spans(1, 2))) == []
    assert sink.write(batch(2, spans(3))) == []
    assert numbers(fake.stored) == [1, 2, 3]
    assert ["Content-Encoding" in call.request.headers for call in fake.mock.calls] == [True, False, False]


# --- what is left out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, b""),
        (200, JSON, "{}"),
        (202, {}, "{}"),
        (204, {}, b""),
        (200, JSON, '{"partialSuccess": {}}'),
        (200, JSON, '{"partialSuccess": null}'),
        (200, JSON, '{"partialSuccess": {"rejectedSpans": "0"}}'),
        (200, {"Content-Type": "text/plain"}, "ok"),
        (200, JSON, "no JSON"),
        (200, PROTOBUF, b"\xff\xff"),
    ],
    ids=lambda answer: f"{answer[0]} {answer[2]!r}",
)
def test_answers_that_are_success(fake: Fake, answer: Answer) -> None:
    """Endpoints differ in what they say."""
    fake.spans(lambda _: answer)
    assert write(1, 2) == []
    assert len(fake.sizes()) == 1


def test_word_of_an_endpoint_that_took_all_is_logged_once(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    """For each text; it is no rejection."""
    sink = parse_target(TARGET).open()
    with caplog.at_level(logging.WARNING, "tracelake.shipper"):
        for number, text in enumerate(("deprecated", "deprecated", "very\nslow."), 1):
            fake.spans(lambda _, text=text: partial(0, text))  # type: ignore[misc]
            assert sink.write(batch(number, spans(number))) == []
    assert [record.getMessage() for record in caplog.records] == [
        f"{URL} took spans, and says: deprecated.",
        f"{URL} took spans, and says: very slow.",
    ]


@pytest.mark.parametrize(
    "answer",
    [
        partial(3, "quota"),
        partial(5, "quota."),
        (200, JSON, '{"partialSuccess": {"rejectedSpans": "3", "errorMessage": "quota"}}'),
        (200, JSON, '{"partial_success": {"rejected_spans": 3, "error_message": "quota"}}'),
    ],
    ids=["protobuf", "more than there are", "JSON", "JSON by the names of the fields"],
)
def test_spans_that_are_all_left_out_are_set_aside(fake: Fake, answer: Answer) -> None:
    """They are not sent again: the protocol forbids it."""
    fake.spans(lambda _: answer)
    assert write(1, 2, 3) == [Rejection(index, f"{URL} left the span out: quota.") for index in range(3)]
    assert len(fake.sizes()) == 1


@pytest.mark.parametrize(
    ("rejected", "message", "expected"),
    [
        (1, "span 0000000000000002 is too old", [1]),
        (2, f"dropped '{1:016x}' and '{3:016X}'", [0, 2]),
        (2, "bad traces: " + "a" * 32, [1, 3]),
        (1, "x" * 3000 + f" {4:016x}", [3]),
    ],
    ids=["a span", "two spans", "a trace", "far into a long text"],
)
def test_spans_that_are_named_are_set_aside(fake: Fake, rejected: int, message: str, expected: list[int]) -> None:
    """By their ids or that of their trace, if their number is that which was left out; the others are stored."""
    fake.spans(lambda _: partial(rejected, message))
    records = spans(1, 2, 3, 4, 5)
    for index in (1, 3):
        records[index] = msgspec.structs.replace(records[index], trace_id="a" * 32)
    rejections = parse_target(TARGET).open().write(batch(1, records))
    assert [rejection.index for rejection in rejections] == expected
    assert all(rejection.reason.startswith(f"{URL} left the span out: ") for rejection in rejections)
    assert all(len(rejection.reason) < 700 for rejection in rejections)


@pytest.mark.parametrize(
    "message",
    ["", f"2 spans were rejected, the first because: span {1:016x} is old", f"trace {TRACE_ID}", "0000000000000001ff"],
    ids=["nothing", "one of two", "the trace of all", "another id"],
)
def test_spans_that_are_not_named_are_all_set_aside(fake: Fake, message: str) -> None:
    """Nobody can know which were left out, and none is lost in silence: the reason says so."""
    fake.spans(lambda records: partial(2, message) if len(records) == 1024 else None)
    rejections = write(*range(1, 1031))
    assert [rejection.index for rejection in rejections] == list(range(1024))
    said = message or "no reason given"
    assert {rejection.reason for rejection in rejections} == {
        f"{URL} took 1022 of these 1024 spans and does not say which: {said}."
    }
    assert fake.sizes() == [1024, 6]


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_headers_are_never_shown(fake: Fake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Even if the endpoint repeats them, in an error, a rejection or a warning, cut off in the middle or not."""
    monkeypatch.setenv(HEADERS, f"api-key={KEY},authorization=Basic%20dXNlcjpwYXNzd29yZA%3D%3D")
    told = f"{'x' * 490} {KEY} or Basic dXNlcjpwYXNzd29yZA== or dXNlcjpwYXNzd29yZA== or {KEY}"
    destination = parse_target(TARGET)
    answers: list[Answer] = [
        *((status, {"Content-Type": "text/plain"}, told) for status in (401, 403, 404, 405, 413, 415, 429, 503)),
        partial(0, told),
        partial(1, told),
    ]
    texts = [repr(destination), destination.target, repr(destination.identity), repr(destination.open())]
    for answer in answers:
        fake.spans(lambda _, answer=answer: answer)  # type: ignore[misc]
        try:
            texts += map(repr, destination.open().write(batch(1, spans(1))))
        except TracelakeError as error:
            texts.append(str(error))
        texts += map(repr, destination.check())
    fake.spans(lambda records: (400, {"Content-Type": "text/plain"}, told) if records else None)
    texts += map(repr, destination.open().write(batch(1, spans(1))))
    texts += [record.getMessage() for record in caplog.records]
    assert len(texts) > 20
    assert not [text for text in texts if KEY[:6] in text or "dXNlcj" in text]


class Endpoint:
    """One whose access changes from request to request."""

    url = URL

    def __init__(self) -> None:
        self.asked = 0
        self.token = ""
        self.seen: list[tuple[int, str, str]] = []

    def headers(self) -> Mapping[str, str]:
        self.asked += 1
        return {"Authorization": f"Bearer {self.token or f'token-number-{self.asked}'}", "X-Table": "main.obs.spans"}

    def error(self, status: int, code: str, reason: str) -> DeliveryError | None:
        self.seen.append((status, code, reason))
        return PermanentDeliveryError("mine") if status == 404 else None


def test_headers_are_asked_for_before_each_request(fake: Fake) -> None:
    """An endpoint of another module's own refreshes its tokens itself, and errors are in its terms."""
    endpoint = Endpoint()
    sink = OtlpSink(endpoint)
    assert sink.write(batch(1, spans(*range(1, 2000)))) == []
    assert [call.request.headers["Authorization"] for call in fake.mock.calls] == [
        "Bearer token-number-1",
        "Bearer token-number-2",
    ]
    fake.spans(lambda _: (404, JSON, '{"error_code": "NO_TABLE", "message": "No main.obs.spans, token-number-3"}'))
    with pytest.raises(PermanentDeliveryError, match=r"^mine$"):
        sink.write(batch(2, spans(1)))
    fake.spans(lambda records: (400, JSON, '{"code": 3, "message": "bad"}') if records else None)
    assert len(sink.write(batch(3, spans(1)))) == 1
    assert endpoint.seen == [(404, "NO_TABLE", "No main.obs.spans, ***"), (400, "3", "bad")]


@pytest.mark.parametrize("token", [f"{KEY}\nX-Other: 1", f"{KEY}\N{EURO SIGN}", f"{KEY} "])
def test_header_that_none_can_be(fake: Fake, token: str) -> None:
    """It is not sent, and not shown."""
    endpoint = Endpoint()
    endpoint.token = token
    with pytest.raises(PermanentDeliveryError, match=r"The header Authorization .* holds what none can") as raised:
        OtlpSink(endpoint).write(batch(1, spans(1)))
    assert KEY not in str(raised.value)
    assert fake.sizes() == []


# --- targets and variables -------------------------------------------------------------------------------------------


def sent(fake: Fake) -> Any:
    """Return the request that brought a span."""
    fake.mock.calls.reset()
    assert write(1) == []
    (call,) = fake.mock.calls
    return call.request


def test_headers_of_the_environment(fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those of traces before those of all signals, with values percent-encoded or not; never those of ~/.netrc."""
    (tmp_path / ".netrc").write_text(f"machine collector.example.com login ana password {KEY}\n")
    assert "Authorization" not in sent(fake).headers
    monkeypatch.setenv(HEADERS, " api-key = a%20b%3D== , x-tenant=shop,,empty=")
    found = sent(fake).headers
    assert (found["api-key"], found["x-tenant"], found["empty"]) == ("a b===", "shop", "")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "Authorization=Bearer one,content-type=text/html")
    found = sent(fake).headers
    assert found["authorization"] == "Bearer one"
    assert found["content-type"] == "application/x-protobuf"
    assert "api-key" not in found


@pytest.mark.parametrize(
    "text", [KEY, f"a=b,{KEY}", f"={KEY}", f"a b={KEY}", f"key={KEY}%0Aa", f"key={KEY}%ff", f"k={KEY}\x01"]
)
def test_headers_that_cannot_be_any(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The error says which entry it is, and does not show it."""
    monkeypatch.setenv(HEADERS, text)
    destination = parse_target(TARGET)
    with pytest.raises(SettingError, match=rf"^{HEADERS} has an entry, number [12], that is no header\. Set") as raised:
        destination.open()
    assert KEY not in str(raised.value) + repr(destination)
    (finding,) = destination.check()
    assert (finding.severity, KEY in finding.seen) == ("error", False)


def test_compression_of_the_environment(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """gzip unless it is turned off."""
    assert sent(fake).headers["Content-Encoding"] == "gzip"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    assert "Content-Encoding" not in sent(fake).headers
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "GZIP")
    assert sent(fake).headers["Content-Encoding"] == "gzip"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "deflate")
    with pytest.raises(
        SettingError, match=r"OTEL_EXPORTER_OTLP_TRACES_COMPRESSION is 'deflate'\. Set it to gzip or none"
    ):
        write(1)


def test_certificates_of_the_environment(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose authority is trusted, and the client's own with its key."""
    assert (sent(fake).req_kwargs["verify"], sent(fake).req_kwargs["cert"]) == (True, None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "/authority.pem")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/client.pem")
    request = sent(fake)
    assert (request.req_kwargs["verify"], request.req_kwargs["cert"]) == ("/authority.pem", "/client.pem")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/traces.pem")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key.pem")
    request = sent(fake)
    assert (request.req_kwargs["verify"], request.req_kwargs["cert"]) == ("/traces.pem", ("/client.pem", "/key.pem"))


def test_certificates_that_are_no_good(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has to act; the variables are named."""
    fake.mock.replace("POST", URL, body=SSLError("certificate verify failed: unable to get local issuer certificate"))
    with pytest.raises(PermanentDeliveryError, match=r"is not trusted.*Set OTEL_EXPORTER_OTLP_CERTIFICATE to"):
        write(1)
    with pytest.raises(PermanentDeliveryError, match=r"is not trusted.*Set REQUESTS_CA_BUNDLE to .* its authority\.$"):
        OtlpSink(Endpoint()).write(batch(1, spans(1)))
    fake.mock.stop()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/authority.pem")
    with pytest.raises(
        PermanentDeliveryError, match=r"cannot be read: .*authority\.pem.*OTEL_EXPORTER_OTLP_CERTIFICATE"
    ):
        parse_target("otlp+https://127.0.0.1:9").open().write(batch(1, spans(1)))
    fake.mock.start()


def test_identity_is_whose_access_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names of the headers: a rotated secret is the same identity, and no header holds one."""
    assert parse_target(TARGET).identity == {"endpoint": URL}
    monkeypatch.setenv(HEADERS, f"X-Tenant=a,api-key={KEY}")
    first = parse_target(TARGET)
    assert first.identity == {"endpoint": URL, "headers": "api-key,x-tenant"}
    monkeypatch.setenv(HEADERS, "api-key=rotated, x-tenant=a")
    assert parse_target(TARGET).identity == first.identity
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/client.pem")
    assert parse_target(TARGET).identity["certificate"] == "/client.pem"


@pytest.mark.parametrize("package", ["requests", "opentelemetry.proto.collector.trace.v1"])
def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """With the command that installs it; the target is parsed all the same."""
    monkeypatch.setitem(sys.modules, package, None)
    destination = parse_target(TARGET)
    with pytest.raises(MissingDependencyError, match=rf"{URL} needs .*{package}.*pip install 'tracelake\[otlp\]'"):
        destination.open()
    assert [finding.severity for finding in destination.check()] == ["error"]


@pytest.mark.parametrize(
    ("target", "canonical"),
    [
        ("otlp+http://host:4318", "otlp+http://host:4318/v1/traces"),
        ("OTLP+HTTP://Host.Example.COM:04318/", "otlp+http://host.example.com:4318/v1/traces"),
        ("otlp+https://host/otlp/v1/traces", "otlp+https://host/otlp/v1/traces"),
        ("otlp+http://[::1]:4318", "otlp+http://[::1]:4318/v1/traces"),
        ("otlp+https://host/a/B%20c/", "otlp+https://host/a/B%20c/"),
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
    "rest", ["", "/x", "host:0", "host:99999", "a b", "host#x", f"host?token={KEY}", f"host/?{KEY}", "host/a%zz"]
)
def test_target_without_an_endpoint_is_refused(rest: str) -> None:
    """And it is said what one looks like."""
    with pytest.raises(
        TargetError, match=r"is not the URL of an endpoint\. Write 'otlp\+http://host:4318' or"
    ) as raised:
        parse_target(f"otlp+http://{rest}")
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    "target", [f"otlp+http://ana:{KEY}@host", f"otlp+https://{KEY}@host/v1/traces", f"otlp+http://host/{KEY}@x"]
)
def test_target_with_credentials_is_refused(target: str) -> None:
    """They have variables of their own."""
    with pytest.raises(TargetError, match=f"carries credentials.*give access by {HEADERS}") as raised:
        parse_target(target)
    assert KEY not in str(raised.value)
