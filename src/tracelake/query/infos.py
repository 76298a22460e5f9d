"""What is known of a trace as a whole: its root span's name and times, its tags, feedback and token counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

# Keys of MLflow's, in the metadata and tags of a trace.
SESSION = "mlflow.trace.session"
USER = "mlflow.trace.user"
SOURCE_RUN = "mlflow.sourceRun"
TRACE_NAME = "mlflow.traceName"

State = Literal["OK", "ERROR", "IN_PROGRESS"]


class Tokens(NamedTuple):
    """What went into the language models of a trace and what came out, as its spans say.

    Attributes:
        cost_usd: what that cost in US dollars, None if no span says.
    """

    input: int = 0
    output: int = 0
    cost_usd: float | None = None

    @property
    def total(self) -> int:
        """Both together."""
        return self.input + self.output


@dataclass(frozen=True)
class Assessment:
    """Feedback on a trace, or what is expected of it; the latest version.

    Attributes:
        kind: whether it is feedback or an expectation.
        value: plain JSON: a number, a text, a boolean, a list or a dict of these, or None.
        source_type: "HUMAN", "LLM_JUDGE" or "CODE"; `source_id` says who.
        span_id: the span it is about; None for the whole trace.
        error: of feedback that failed: `error_code`, `error_message` and `stack_trace`.
        overrides: id of the assessment that this one replaces, which is not `valid` any more.
        serialization_format: how the text in `value` is written, of an expectation that JSON cannot hold.
        create_time_us, update_time_us: microseconds since the Unix epoch.
    """

    assessment_id: str
    kind: Literal["feedback", "expectation"]
    name: str
    value: Any
    source_type: str = "CODE"
    source_id: str = ""
    rationale: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    span_id: str | None = None
    error: Mapping[str, str] | None = None
    overrides: str | None = None
    valid: bool = True
    serialization_format: str | None = None
    create_time_us: int = 0
    update_time_us: int = 0


@dataclass(frozen=True)
class TraceInfo:
    """A trace without its spans.

    Attributes:
        trace_id: 32 lowercase hex digits.
        name: the tag `mlflow.traceName`, or else the name of its root span; of its first span while it has no root.
        service_name: service of that span; "" if it names none.
        start_time_unix_nano: when that span started, in nanoseconds since the Unix epoch.
        duration_ns: nanoseconds that the root span took; without one, up to the end of the last span so far.
        state: IN_PROGRESS while the table has no root span and no info of it; ERROR if the root span failed.
        request_preview, response_preview: beginning of what was asked and answered, as text; None if nothing says.
        span_count: spans in the table, each counted once.
        error_count: those of them that failed.
        tags, metadata: as MLflow has them; both text by key.
        run_ids: MLflow runs that it is linked to.
        experiment_id: the experiment of MLflow's that it was logged to; what is recorded into the table is in "0".
    """

    trace_id: str
    name: str
    service_name: str
    start_time_unix_nano: int
    duration_ns: int
    state: State
    request_preview: str | None = None
    response_preview: str | None = None
    span_count: int = 0
    error_count: int = 0
    tokens: Tokens = Tokens()
    client_request_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    assessments: tuple[Assessment, ...] = ()
    run_ids: tuple[str, ...] = ()
    experiment_id: str = "0"

    @property
    def session(self) -> str | None:
        """The conversation that it is a part of."""
        return self.metadata.get(SESSION)

    @property
    def user(self) -> str | None:
        """Who asked."""
        return self.metadata.get(USER)
