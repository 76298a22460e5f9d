"""An MLflow tracking server, over REST: targets such as http://host:5000?experiment=NAME.

Spans go there in OpenTelemetry's wire format, and then, for each root span, what MLflow keeps of a trace as a whole. At
least once: the server keeps one span for each trace and span id, so that a span which comes again replaces itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from tracelake.destinations.base import Batch, Finding, Rejection, shown_target
from tracelake.destinations.http import split_url
from tracelake.destinations.mlflow_api import MlflowApi
from tracelake.destinations.mlflow_trace import (
    SUMS,
    completed,
    mlflow_trace_id,
    reopened,
    span_only,
    trace_info,
    uses_tokens,
    without_sums,
)
from tracelake.errors import (
    DeliveryError,
    LineError,
    MissingDependencyError,
    PermanentDeliveryError,
    TargetError,
    TransientDeliveryError,
)
from tracelake.redaction import one_line
from tracelake.spans.otlp import to_otlp
from tracelake.spans.record import SpanRecord

# The experiment that every server has.
_DEFAULT_ID = "0"

# Settings that tell whose access is used. None is a secret, and none changes when a secret is rotated.
_IDENTITY_VARIABLES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_CLIENT_CERT_PATH")

_ID = re.compile(r"\d{1,19}", re.ASCII)
_EXAMPLES = "Write 'http://host:5000', 'http://host:5000?experiment=NAME' or 'http://host:5000?experiment_id=ID'"

# A request this long is taken by what stands in front of most servers, and holds thousands of spans.
_MAX_REQUEST_BYTES = 4 * 2**20

# An export request of one resource without spans: it stores nothing, and a server that takes spans takes it.
_NO_SPANS = b"\x0a\x00"

# The first version that is known to keep what a trace info leaves out, and to sum up anew over all spans of a trace
# when its sums are taken away.
_SUMS_UP_ANEW = (3, 17)


@dataclass(frozen=True)
class MlflowServerDestination:
    """An experiment of the MLflow server at the URL `server`, by its name or else by its id."""

    server: str
    experiment: str = ""
    experiment_id: str = _DEFAULT_ID
    identity: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def parse(cls, target: str) -> MlflowServerDestination:
        """Return the destination of a URL.

        Raises:
            TargetError: it is not the URL of a server and at most one experiment; the message says what to write.
        """
        if "@" in target.partition("?")[0]:
            raise TargetError(
                f"The target {shown_target(target)} carries credentials. {_EXAMPLES}, and give credentials by "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or by MLFLOW_TRACKING_TOKEN."
            )
        url, _, query = target.partition("?")
        found = split_url(url)
        if found is None:
            raise TargetError(f"The target {shown_target(target)} is not the URL of a server. {_EXAMPLES}.")
        origin, path = found
        server = f"{origin}{path.rstrip('/')}"
        return cls(server, *_experiment(query, target), _identity(server))

    @property
    def target(self) -> str:
        """The URL."""
        if self.experiment:
            return f"{self.server}?experiment={quote(self.experiment, safe='')}"
        return self.server if self.experiment_id == _DEFAULT_ID else f"{self.server}?experiment_id={self.experiment_id}"

    def __str__(self) -> str:
        return self.target

    def check(self) -> list[Finding]:
        """Look whether the server takes spans, and has the experiment. Stores no span and makes no experiment."""
        findings: list[Finding] = []
        try:
            with closing(self.open()) as sink:
                findings.append(sink.look_at_server())
                findings.append(sink.look_at_experiment())
        except (DeliveryError, MissingDependencyError) as error:
            findings.append(Finding("error", str(error), code="server"))
        return findings

    def open(self) -> MlflowServerSink:
        """Return a sink; the server is first asked for something with the first batch.

        Raises:
            MissingDependencyError: a package that writing needs is not installed.
            PermanentDeliveryError: the environment holds credentials that cannot be any.
        """
        try:
            import requests  # noqa: F401
            from opentelemetry.proto.collector.trace.v1 import trace_service_pb2  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError(
                f"Writing to {self.server} needs the package {error.name!r}, which is not installed here. "
                "Run: pip install 'tracelake[mlflow]'"
            ) from error
        return MlflowServerSink(self, MlflowApi(self.server))


class MlflowServerSink:
    """Sends batches to one experiment, each at least once."""

    def __init__(self, destination: MlflowServerDestination, api: MlflowApi) -> None:
        self._destination = destination
        self._api = api
        self._experiment_id = ""
        self._sums_up_anew = False

    def write(self, batch: Batch) -> list[Rejection]:
        """Send the spans of a batch, then the trace infos of its root spans."""
        try:
            if not self._experiment_id:
                self._sums_up_anew = _version(self._api.version()) >= _SUMS_UP_ANEW
                self._experiment_id = self._existing_experiment() or self._made_experiment()
            return self._write(batch)
        except DeliveryError:
            self._experiment_id = ""  # the experiment may be gone, and the server another one
            raise

    def close(self) -> None:
        """Let go of the connection; may be repeated."""
        self._api.close()

    def look_at_server(self) -> Finding:
        """Return what it is that runs there.

        Raises:
            DeliveryError: it is not reached, or refuses access.
        """
        version = self._api.version()
        server = f"MLflow {version}" if version else "A server that does not tell its version"
        return Finding("ok", f"{server} is at {self._destination.server}.", code="server")

    def look_at_experiment(self) -> Finding:
        """Return where traces will be.

        Raises:
            DeliveryError: there is no such place, or it does not take spans.
        """
        experiment_id = self._existing_experiment()
        if experiment_id is None:
            name = self._destination.experiment
            seen = f"There is no experiment {name!r} yet; the first delivery makes it."
            return Finding("ok", seen, code="experiment")
        self._see_whether_any_is_taken(experiment_id)
        return Finding("ok", f"The experiment with the id {experiment_id} takes spans.", code="experiment")

    def _write(self, batch: Batch) -> list[Rejection]:
        rejections: list[Rejection] = []
        roots: dict[str, tuple[int, int, dict[str, Any]]] = {}
        first = 0
        for records in batch.chunks():
            # The first servers that took spans refuse those of two traces in a request; halved, they are of one.
            spans = sorted(enumerate(records, first), key=lambda span: span[1].trace_id)
            first += len(records)
            self._reopen(records)
            rejected = self._send(spans)
            rejections += rejected
            refused = {rejection.index for rejection in rejected}
            for index, record in spans:
                if record.parent_span_id is None and index not in refused:
                    earlier = roots.get(record.trace_id)
                    if earlier is None or record.start_time_unix_nano < earlier[0]:
                        info = trace_info(record, self._experiment_id)
                        roots[record.trace_id] = record.start_time_unix_nano, index, info
        for _, index, info in roots.values():
            rejections += self._send_trace(index, info)
        return sorted(rejections, key=lambda rejection: rejection.index)

    def _send(self, spans: Sequence[tuple[int, SpanRecord]], *, any_is_taken: bool = False) -> list[Rejection]:
        """Send spans in one request, or in smaller ones if that cannot be; return those that cannot be sent alone."""
        try:
            request = to_otlp(span_only(record) for _, record in spans)
        except (LineError, ValueError, TypeError) as error:
            reason = one_line(str(error))
        else:
            if len(request) > _MAX_REQUEST_BYTES and len(spans) > 1:
                reason = "too large"
            else:
                refusal = self._api.send_spans(self._experiment_id, request)
                if refusal is None:
                    return []
                reason = f"{self._destination.server} does not take the span: {refusal}."
                if not any_is_taken:
                    self._see_whether_any_is_taken(self._experiment_id)
                    any_is_taken = True
        if len(spans) == 1:
            return [Rejection(spans[0][0], reason)]
        middle = len(spans) // 2
        return [
            rejection
            for half in (spans[:middle], spans[middle:])
            for rejection in self._send(half, any_is_taken=any_is_taken)
        ]

    def _see_whether_any_is_taken(self, experiment_id: str) -> None:
        """Raise what the server has against all requests, so that no span is set aside for it."""
        refusal = self._api.send_spans(experiment_id, _NO_SPANS)
        if refusal is not None:
            raise PermanentDeliveryError(
                f"{self._destination.server} takes no spans at all: {refusal}. See its log, and that of what is before "
                "it."
            )

    def _send_trace(self, index: int, info: dict[str, Any]) -> list[Rejection]:
        if self._sums_up_anew:
            stored = self._api.send_trace(without_sums(info))
            own = {key for key in SUMS if key in info["trace_metadata"]}
            if isinstance(stored, dict) and own and not own & stored.get("trace_metadata", {}).keys():
                stored = self._api.send_trace(info)  # no span had any
        else:
            stored = self._api.send_trace(completed(info, self._api.trace(info["trace_id"]) or {}))
        if isinstance(stored, dict):
            return []
        server = self._destination.server
        return [Rejection(index, f"The span is stored, but {server} does not take its trace: {stored}.")]

    def _reopen(self, records: Sequence[SpanRecord]) -> None:
        """Have the server sum up tokens anew for traces that end before spans which are sent now.

        So it is when another service is slower to deliver than the one that began the trace.
        """
        if not self._sums_up_anew:
            return
        with_tokens = {record.trace_id for record in records if uses_tokens(record)}
        with_root = {record.trace_id for record in records if record.parent_span_id is None}
        for trace_id in sorted(with_tokens - with_root):
            stored = self._api.trace(mlflow_trace_id(trace_id))
            info = reopened(stored) if stored else None
            if info is not None:
                self._api.send_trace(info)

    def _existing_experiment(self) -> str | None:
        """Return the id of the experiment; None if it has a name and is yet to be made.

        Raises:
            PermanentDeliveryError: it is deleted, or there is none with this id.
        """
        name, server = self._destination.experiment, self._destination.server
        if name:
            found = self._api.experiment_by_name(name)
            if found is None:
                return None
        else:
            found = self._api.experiment_by_id(self._destination.experiment_id)
            if found is None:
                raise PermanentDeliveryError(
                    f"{server} has no experiment with the id {self._destination.experiment_id}. Name one that it has, "
                    f"or one by its name, which is made if it is not there: '{server}?experiment=NAME'."
                )
        experiment_id = str(found.get("experiment_id", ""))
        if found.get("lifecycle_stage") == "deleted":
            raise PermanentDeliveryError(
                f"The experiment {name or experiment_id!r} of {server} is deleted. Restore it (mlflow experiments "
                f"restore --experiment-id {experiment_id}), or name another."
            )
        return experiment_id

    def _made_experiment(self) -> str:
        self._api.create_experiment(self._destination.experiment)
        experiment_id = self._existing_experiment()
        if experiment_id is None:
            raise TransientDeliveryError(
                f"{self._destination.server} does not find the experiment {self._destination.experiment!r} that it "
                "made. It is tried again."
            )
        return experiment_id


def _experiment(query: str, target: str) -> tuple[str, str]:
    """Return the name and the id of the experiment that a query names, one of them empty."""
    key, _, text = query.partition("=")
    if not query:
        return "", _DEFAULT_ID
    if key == "experiment_id" and _ID.fullmatch(text):
        return "", str(int(text))
    if key == "experiment" and not re.search("[&#?]", text):
        try:
            name = unquote_to_bytes(text).decode()
        except UnicodeDecodeError:
            name = ""
        if name and name.isprintable():
            return name, ""
    raise TargetError(
        f"The target {shown_target(target)} asks for something else than one experiment. {_EXAMPLES}, with what is no "
        "letter or digit in a name percent-encoded."
    )


def _identity(server: str) -> Mapping[str, str]:
    set_here = {name: one_line(os.environ[name]) for name in _IDENTITY_VARIABLES if os.environ.get(name)}
    if os.environ.get("MLFLOW_TRACKING_TOKEN"):
        set_here["access"] = "token"
    return {"server": server, **set_here}


def _version(text: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", text, re.ASCII)
    return (int(found[1]), int(found[2])) if found else ()
