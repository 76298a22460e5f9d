"""What of a root span is its trace's: the trace info that an MLflow server keeps beside the spans.

The record has tags, metadata and the like as attributes of the root span, and they leave it here. The JSON is that of
`TraceInfoV3`, which MLflow's own client sends with `POST /api/3.0/mlflow/traces`:
https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/protos/service.proto
The lengths are those of `mlflow/tracing/constant.py`, and of the server's columns in `dbmodels/models.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import msgspec

from tracelake.spans.record import Attributes, SpanRecord
from tracelake.spans.values import json_text

TOKEN_USAGE = "mlflow.trace.tokenUsage"  # noqa: S105 - these tokens are those of a language model
COST = "mlflow.trace.cost"
# What the server sums up over the spans of a trace.
SUMS = (TOKEN_USAGE, COST)

# Under these a root span carries what belongs to its trace; docs/mlflow.md.
TAG_PREFIX = "mlflow.trace.tag."
METADATA_PREFIX = "mlflow.trace.metadata."
STATE = "mlflow.trace.state"
CLIENT_REQUEST_ID = "mlflow.trace.client_request_id"
# The experiment of the MLflow server that has the table as its store; not of another, whose experiments are others.
EXPERIMENT = "tracelake.experiment_id"
PREVIEWS = {
    "mlflow.trace.request_preview": "request_preview",
    "mlflow.trace.response_preview": "response_preview",
}
_FIELDS = {STATE, CLIENT_REQUEST_ID, *PREVIEWS}
_STATES = ("OK", "ERROR", "IN_PROGRESS", "STATE_UNSPECIFIED")

# MLflow shows a trace only once it has as many spans as this says, so one span that is set aside would hide all others.
_SIZE_STATS = "mlflow.trace.sizeStats"

_MAX_KEY = 250
_MAX_METADATA = 250
_MAX_TAG = 4096
MAX_PREVIEW = 1000

_STATUS_ERROR = 2

# A trace whose info was sent keeps the sums that it has: the server adds no later span to them, unless they are
# nothing. See `_log_spans_once` and `analytics_columns_from_metadata` in `mlflow/store/tracking/`.
_NO_SUMS = {
    TOKEN_USAGE: dict.fromkeys(
        (
            "input_tokens",
            "output_tokens",
            "total_tokens",
            "cache_read_input_tokens",
            "cache_creation_input_tokens",
            "cache_creation_input_tokens_above_1hr",
        )
    ),
    COST: dict.fromkeys(("input_cost", "output_cost", "total_cost")),
}
_FINALIZED = "mlflow.trace.infoFinalized"


def mlflow_trace_id(trace_id: str) -> str:
    """Return MLflow's id of a trace."""
    return f"tr-{trace_id}"


def span_only(record: SpanRecord) -> SpanRecord:
    """Return a root span without what is its trace's, any other span as it is."""
    if record.parent_span_id is not None or not any(map(_is_of_trace, record.attributes)):
        return record
    attributes = {key: value for key, value in record.attributes.items() if not _is_of_trace(key)}
    return msgspec.structs.replace(record, attributes=attributes)


def trace_info(root: SpanRecord, experiment_id: str) -> dict[str, Any]:
    """Return the trace info of a root span, complete also if the record has nothing for it.

    Previews are left out if the record has none: the server makes them of the root span's inputs and outputs.
    """
    tags = {"mlflow.traceName": root.name, **carried(root.attributes, TAG_PREFIX)}
    metadata = {"mlflow.trace_schema.version": "3", **carried(root.attributes, METADATA_PREFIX)}
    metadata.pop(_SIZE_STATS, None)
    info: dict[str, Any] = {
        "trace_id": mlflow_trace_id(root.trace_id),
        "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment_id}},
        "request_time": rfc3339(root.start_time_unix_nano),
        "execution_duration": _duration(max(0, root.end_time_unix_nano - root.start_time_unix_nano)),
        "state": state_of(root),
        "tags": {key[:_MAX_KEY]: text[:_MAX_TAG] for key, text in tags.items()},
        "trace_metadata": {key[:_MAX_KEY]: text[:_MAX_METADATA] for key, text in metadata.items()},
    }
    if CLIENT_REQUEST_ID in root.attributes:
        info["client_request_id"] = json_text(root.attributes[CLIENT_REQUEST_ID])
    for key, field in PREVIEWS.items():
        if key in root.attributes:
            info[field] = json_text(root.attributes[key])[:MAX_PREVIEW]
    return info


def carried(attributes: Attributes, prefix: str) -> dict[str, str]:
    """Return the tags or the metadata that a root span carries for its trace; `prefix` is the one of theirs."""
    return {key[len(prefix) :]: json_text(value) for key, value in attributes.items() if key.startswith(prefix)}


def state_of(root: SpanRecord) -> str:
    """Return the state of the trace that a root span has ended, one of MLflow's."""
    # The server takes an info with a state that it does not know for an empty one.
    state = root.attributes.get(STATE)
    if state in _STATES:
        return str(state)
    return "ERROR" if root.status_code == _STATUS_ERROR else "OK"


def rfc3339(unix_nano: int) -> str:
    """Return a time as protobuf's JSON mapping writes a `Timestamp`: https://protobuf.dev/programming-guides/json/."""
    seconds, nanos = divmod(unix_nano, 10**9)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}.{nanos:09d}Z"


def without_sums(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trace info without the sums: the root's process knows its own spans only, the server all of them."""
    metadata = {key: text for key, text in info["trace_metadata"].items() if key not in SUMS}
    return {**info, "trace_metadata": metadata}


def completed(info: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trace info with what the server has of the trace that the info has not, and with the server's sums.

    A server of MLflow 3.9 loses what is left out, or fails with it.
    """
    had = stored.get("trace_metadata", {})
    sums = {key: had[key] for key in SUMS if key in had}
    return {
        **{field: stored[field] for field in PREVIEWS.values() if field in stored},
        **info,
        "tags": {**stored.get("tags", {}), **info["tags"]},
        "trace_metadata": {**had, **info["trace_metadata"], **sums},
    }


def uses_tokens(record: SpanRecord) -> bool:
    """Say whether a span may add to the sums of its trace, by whatever convention: all have "token" in their keys."""
    return any("token" in key.lower() for key in record.attributes)


def reopened(stored: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the trace info that makes the server sum up anew with the next span of this stored trace.

    None if it does so anyway. Fields that are left out stay as they are stored, but for those that are here.
    """
    metadata = stored.get("trace_metadata", {})
    if _FINALIZED not in metadata or not any(key in metadata for key in SUMS):
        return None
    kept = ("trace_id", "trace_location", "request_time", "execution_duration", "state", "client_request_id")
    info = {field: stored[field] for field in kept if field in stored}
    info["trace_metadata"] = {key: json_text(nothing) for key, nothing in _NO_SUMS.items()}
    return info


def _is_of_trace(key: str) -> bool:
    return key in _FIELDS or key.startswith((TAG_PREFIX, METADATA_PREFIX))


def _duration(nanos: int) -> str:
    return f"{nanos // 10**9}.{nanos % 10**9:09d}s"
