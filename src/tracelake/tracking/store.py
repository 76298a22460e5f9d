"""MLflow's tracking store with its traces in a span table; all else stays in MLflow's database."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from mlflow.entities import Assessment as MlflowAssessment
from mlflow.entities import Span, Trace, ViewType
from mlflow.entities import TraceInfo as MlflowTraceInfo
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    NOT_IMPLEMENTED,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from tracelake.destinations.annotations import add
from tracelake.destinations.base import Destination
from tracelake.errors import MissingTableError, QueryError, TracelakeError
from tracelake.query import annotate
from tracelake.query.convert import whole_trace
from tracelake.query.metrics import Metric, Row, measure
from tracelake.query.reader import spans_of
from tracelake.query.search import Search, TracePage, get_infos, search_traces
from tracelake.query.traces import parse_trace_id, traces_of
from tracelake.recorder.recorder import current_recorder
from tracelake.spans.annotations import info, tag
from tracelake.tracing.mlflow_spans import mark_experiments
from tracelake.tracing.otel_span import Origins
from tracelake.tracking import metrics
from tracelake.tracking.entities import from_assessment, from_info, from_span, here, to_assessment, to_info

if TYPE_CHECKING:
    from mlflow.entities.trace_metrics import MetricAggregation, MetricDataPoint, MetricViewType

# Seconds that a read waits for the spans that this process received to be in the table.
_WAIT_S = 5.0
_NS_A_MS = 1_000_000
_MS_A_S = 1000
_PAGE = 500
_MAX_POINTS = 1000  # of a metric, as MLflow has it
_LINKED_PROMPTS = "mlflow.linkedPrompts"


class LakeStore(SqlAlchemyStore):  # type: ignore[misc]
    """Keeps experiments, runs and the like as MLflow does, and traces in the table of a destination.

    Spans that it is given go through the spool: they are on disk when it returns. What it reads waits until those that
    its own process was given are in the table.
    """

    def __init__(self, db_uri: str, default_artifact_root: str, destination: Destination) -> None:
        self._destination = destination
        self._origins = Origins()
        super().__init__(db_uri, default_artifact_root)
        mark_experiments()

    @property
    def supports_trace_archival(self) -> bool:
        """Nothing is moved out of the table."""
        return False

    def start_trace(self, trace_info: MlflowTraceInfo) -> MlflowTraceInfo:
        """Keep what a client says of a trace as a whole."""
        self.get_experiment(trace_info.experiment_id)
        with _said_to_clients():
            trace_id = parse_trace_id(trace_info.trace_id)
            tags = [tag(trace_id, key, str(value)) for key, value in trace_info.tags.items()]
            add(self._destination, [info(trace_id, from_info(trace_info)), *tags])
        return here(trace_info)

    def log_spans(self, location: str, spans: list[Span], tracking_uri: str | None = None) -> list[Span]:  # noqa: ARG002
        """Put spans into the spool; a span that comes twice is in the table twice, and read once."""
        self.get_experiment(location)
        recorder = current_recorder()
        route = recorder.route((self._destination,))
        refused = sum(writer.refused for writer in route.writers)
        for span in spans:
            recorder.record(from_span(span, location, self._origins), route.writers)
        if sum(writer.refused for writer in route.writers) > refused:
            raise MlflowException(
                "Spans could not be put into the spool, and none of this request counts as received; send it again. "
                f"{' '.join(recorder.report().errors)}",
                TEMPORARILY_UNAVAILABLE,
            )
        return spans

    async def log_spans_async(self, location: str, spans: list[Span]) -> list[Span]:
        """As `log_spans`, which waits for nothing but the disk."""
        return self.log_spans(location, spans)

    def get_trace_info(self, trace_id: str) -> MlflowTraceInfo:
        """Return the info of a trace."""
        found = self.batch_get_trace_infos([trace_id])
        if not found:
            _raise_missing(f"Trace with ID '{trace_id}' not found.")
        return found[0]

    def get_trace(self, trace_id: str, *, allow_partial: bool = False) -> Trace:  # noqa: ARG002
        """Return a trace with the spans that are there so far."""
        found = self.batch_get_traces([trace_id])
        if not found:
            _raise_missing(f"Trace with ID '{trace_id}' not found.")
        return found[0]

    def batch_get_trace_infos(
        self, trace_ids: list[str], location: str | None = None, experiment_ids: list[str] | None = None
    ) -> list[MlflowTraceInfo]:
        """Return the infos of those of these traces that are there."""
        with self._reading():
            found = [to_info(each) for each in get_infos(self._destination, trace_ids)]
            wanted = self._among(experiment_ids or ([location] if location else ()))
            return [each for each in found if not wanted or each.experiment_id in wanted]
        return []

    def batch_get_traces(
        self, trace_ids: list[str], location: str | None = None, experiment_ids: list[str] | None = None
    ) -> list[Trace]:
        """Return those of these traces that are there."""
        infos = self.batch_get_trace_infos(trace_ids, location, experiment_ids)
        if not infos:
            return []
        with self._reading():
            spans = spans_of(self._destination, [parse_trace_id(each.trace_id) for each in infos])
            traces = {trace.trace_id: trace for trace in traces_of(spans)}
            return [whole_trace(each, traces.get(parse_trace_id(each.trace_id))) for each in infos]
        return []

    def search_traces(
        self,
        experiment_ids: list[str] | None = None,
        filter_string: str | None = None,
        max_results: int = 100,
        order_by: list[str] | None = None,
        page_token: str | None = None,
        model_id: str | None = None,  # noqa: ARG002 - nor does MLflow's own store look at it
        locations: list[str] | None = None,
    ) -> tuple[list[MlflowTraceInfo], str | None]:
        """Return a page of the traces that a filter finds, and the token of the next."""
        self._validate_max_results_param(max_results)
        search = Search(
            filter=filter_string or "",
            experiment_ids=self._among(locations or experiment_ids or ()),
            order_by=tuple(order_by or ()),
            max_results=max_results,
            page_token=page_token or "",
        )
        page = self._search(search)
        return [to_info(each) for each in page], page.next_page_token or None

    def set_trace_tag(self, trace_id: str, key: str, value: str) -> None:
        """Give a trace a tag."""
        self.get_trace_info(trace_id)
        with _said_to_clients():
            annotate.set_tags(self._destination, trace_id, {key: str(value)})

    def delete_trace_tag(self, trace_id: str, key: str) -> None:
        """Take a tag from a trace."""
        if key not in self.get_trace_info(trace_id).tags:
            _raise_missing(f"No trace tag with key '{key}' for trace with ID '{trace_id}'")
        with _said_to_clients():
            annotate.delete_tag(self._destination, trace_id, key)

    def create_assessment(self, assessment: MlflowAssessment) -> MlflowAssessment:
        """Add feedback on a trace, or what is expected of it."""
        self.get_trace_info(assessment.trace_id)
        with _said_to_clients():
            made = annotate.log_assessment(self._destination, assessment.trace_id, from_assessment(assessment))
            return to_assessment(made, assessment.trace_id)

    def get_assessment(self, trace_id: str, assessment_id: str) -> MlflowAssessment:
        """Return an assessment of a trace."""
        found = [each for each in self.get_trace_info(trace_id).assessments if each.assessment_id == assessment_id]
        if not found:
            _raise_missing(f"Assessment with ID '{assessment_id}' not found for trace '{trace_id}'")
        return found[0]

    def update_assessment(
        self,
        trace_id: str,
        assessment_id: str,
        name: str | None = None,
        expectation: Any = None,
        feedback: Any = None,
        rationale: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> MlflowAssessment:
        """Change what is given of an assessment; metadata is added to its own."""
        known = from_assessment(self.get_assessment(trace_id, assessment_id))
        given = {"feedback": feedback, "expectation": expectation}
        wrong = [kind for kind, value in given.items() if value is not None and kind != known.kind]
        if wrong:
            raise MlflowException(
                f"Assessment '{assessment_id}' is {known.kind}, and cannot be updated by {wrong[0]}.",
                INVALID_PARAMETER_VALUE,
            )
        changed = replace(
            known,
            name=known.name if name is None else name,
            rationale=known.rationale if rationale is None else rationale,
            metadata={**known.metadata, **(metadata or {})},
        )
        if (value := given[known.kind]) is not None:
            error = getattr(value, "error", None)
            changed = replace(changed, value=value.value, error=error.to_dictionary() if error else None)
        with _said_to_clients():
            return to_assessment(annotate.update_assessment(self._destination, trace_id, changed), trace_id)

    def delete_assessment(self, trace_id: str, assessment_id: str) -> None:
        """Remove an assessment."""
        self.get_assessment(trace_id, assessment_id)
        with _said_to_clients():
            annotate.delete_assessment(self._destination, trace_id, assessment_id)

    def link_traces_to_run(self, trace_ids: list[str], run_id: str) -> None:
        """Link traces to a run."""
        with _said_to_clients():
            annotate.link_run(self._destination, trace_ids, run_id)

    def unlink_traces_from_run(self, trace_ids: list[str], run_id: str) -> None:
        """Take links to a run back."""
        with _said_to_clients():
            annotate.unlink_run(self._destination, trace_ids, run_id)

    def link_prompts_to_trace(self, trace_id: str, prompt_versions: Sequence[Any]) -> None:
        """Note the versions of prompts in the tag where MLflow's clients and UI look for them."""
        linked = json.loads(self.get_trace_info(trace_id).tags.get(_LINKED_PROMPTS, "[]"))
        versions = [{"name": each.name, "version": str(each.version)} for each in prompt_versions]
        linked += [each for each in versions if each not in linked]
        self.set_trace_tag(trace_id, _LINKED_PROMPTS, json.dumps(linked))

    def find_completed_sessions(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse it."""
        _refuse("scores no sessions by itself")

    def calculate_trace_filter_correlation(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse it."""
        _refuse("correlates no filters")

    def query_trace_metrics(
        self,
        experiment_ids: list[str],
        view_type: MetricViewType,
        metric_name: str,
        aggregations: list[MetricAggregation],
        dimensions: list[str] | None = None,
        filters: list[str] | None = None,
        time_interval_seconds: int | None = None,
        start_time_ms: int | None = None,
        end_time_ms: int | None = None,
        max_results: int = _MAX_POINTS,
        page_token: str | None = None,  # noqa: ARG002 - nor does MLflow's own store look at it
    ) -> PagedList[MetricDataPoint]:
        """Return the data points of a metric, all of them on one page; none if there is no table yet."""
        self._validate_max_results_param(max_results)
        if time_interval_seconds and (start_time_ms is None or end_time_ms is None):
            raise MlflowException(
                "start_time_ms and end_time_ms are required if time_interval_seconds is set", INVALID_PARAMETER_VALUE
            )
        metric = metrics.to_metric(
            view_type,
            metric_name,
            aggregations,
            dimensions or (),
            filters or (),
            experiment_ids=self._among(experiment_ids),
            start_ms=start_time_ms,
            end_ms=end_time_ms,
            interval_ms=time_interval_seconds * _MS_A_S if time_interval_seconds else None,
            limit=max_results,
        )
        rows = self._measure(metric) if aggregations and experiment_ids else []
        points = [metrics.to_point(row, metric_name, aggregations, dimensions or ()) for row in rows]
        return PagedList([each for each in points if each is not None], None)

    def sum_gateway_trace_cost(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse it: a budget that finds no cost would never be used up."""
        _refuse("sums up no cost of a gateway, so set no budget there")

    def link_mcp_server_versions_to_trace(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse it."""
        _refuse("links no MCP servers to traces")

    def get_mcp_server_versions_for_trace(self, trace_id: str) -> list[Any]:  # noqa: ARG002
        """Return none, since none are linked."""
        return []

    def archive_traces(self, **_: Any) -> NoReturn:
        """Refuse it."""
        _refuse("archives no traces: they are in a table already")

    def deprecated_start_trace_v2(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse it."""
        _refuse("takes no traces of clients older than MLflow 3.0")

    def deprecated_end_trace_v2(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse it."""
        _refuse("takes no traces of clients older than MLflow 3.0")

    def _delete_traces(
        self,
        experiment_id: str,
        max_timestamp_millis: int | None = None,
        max_traces: int | None = None,
        trace_ids: list[str] | None = None,
    ) -> int:
        """Have traces of an experiment found no more; the oldest first, if there is a limit."""
        if trace_ids:
            gone = [each.trace_id for each in self.batch_get_trace_infos(trace_ids, experiment_ids=[experiment_id])]
        else:
            gone = list(self._until(experiment_id, max_timestamp_millis or 0, max_traces))
        with _said_to_clients():
            annotate.delete_traces(self._destination, gone)
        return len(gone)

    def _until(self, experiment_id: str, timestamp_ms: int, limit: int | None) -> Iterator[str]:
        search = Search(
            end_ns=(timestamp_ms + 1) * _NS_A_MS,
            experiment_ids=(experiment_id,),
            order_by=("timestamp_ms ASC",),
            max_results=min(limit or _PAGE, _PAGE),
        )
        left = limit
        while left is None or left > 0:
            page = self._search(search)
            yield from (each.trace_id for each in page[:left])
            left = None if left is None else left - len(page)
            if not page.next_page_token:
                return
            search = replace(search, page_token=page.next_page_token)

    def _among(self, experiment_ids: Iterable[str]) -> tuple[str, ...]:
        """Return the experiments that a trace has to be in; empty where these are all that there are.

        Which experiment a trace is in, attributes say, and to read those of all spans takes longer than all else.
        """
        wanted = tuple(map(str, experiment_ids))
        known = self.search_experiments(ViewType.ALL, max_results=len(wanted) + 1)
        return () if {each.experiment_id for each in known} <= set(wanted) else wanted

    def _measure(self, metric: Metric) -> list[Row]:
        with self._reading():
            return measure(self._destination, metric)
        return []

    def _search(self, search: Search) -> TracePage:
        with self._reading():
            return search_traces(self._destination, search)
        return TracePage(())

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Wait for the spans that this process was given; end the with-body early if there is no table yet."""
        current_recorder().flush(_WAIT_S)
        with _said_to_clients():
            try:
                yield
            except MissingTableError:
                return


@contextmanager
def _said_to_clients() -> Iterator[None]:
    """Turn our errors into those that MLflow's server gives to its clients."""
    try:
        yield
    except MissingTableError:
        raise
    except QueryError as error:
        raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
    except TracelakeError as error:
        raise MlflowException(str(error), TEMPORARILY_UNAVAILABLE) from error


def _raise_missing(message: str) -> NoReturn:
    raise MlflowException(message, RESOURCE_DOES_NOT_EXIST)


def _refuse(what: str) -> NoReturn:
    raise MlflowException(f"tracelake's tracking store {what}.", NOT_IMPLEMENTED)
