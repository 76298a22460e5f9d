"""MLflow's metrics of traces, asked of a span table.

They are those of `query_metrics` in `mlflow/store/tracking/utils/sql_trace_metrics_utils.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, get_args

from mlflow.exceptions import MlflowException

from tracelake.query.filter import Clause
from tracelake.query.infos import SOURCE_RUN
from tracelake.query.metrics import Aggregation, Kind, Metric, Row, View

if TYPE_CHECKING:
    from mlflow.entities.trace_metrics import MetricAggregation, MetricDataPoint, MetricViewType

_MS_A_S = 1000


def to_metric(
    view_type: MetricViewType,
    metric_name: str,
    aggregations: Sequence[MetricAggregation],
    dimensions: Sequence[str],
    filters: Sequence[str],
    **asked: Any,
) -> Metric:
    """Return what MLflow asks for; `asked` are further attributes of `Metric`.

    Raises:
        MlflowException: INVALID_PARAMETER_VALUE: there is no such metric, or no such filter.
    """
    from mlflow.store.tracking.utils.sql_trace_metrics_utils import validate_query_trace_metrics_params
    from mlflow.utils.search_utils import SearchTraceMetricsUtils

    validate_query_trace_metrics_params(view_type, metric_name, list(aggregations), list(dimensions))
    view = next(each for each in get_args(View) if each == str(view_type).lower())
    of: list[tuple[str, str]] = []
    traces: list[Clause] = []
    for text in filters:
        found = SearchTraceMetricsUtils.parse_search_filter(text)
        if found.view_type == "trace":
            traces.append(_of_trace(found.entity, found.key, found.value))
        elif f"{found.view_type}s" == view:
            of.append((found.entity, found.value))
        else:
            raise MlflowException.invalid_parameter_value(
                f"Filtering by {found.view_type} is only supported for the view type {found.view_type.upper()}S, got "
                f"{view_type}"
            )
    return Metric(
        view=view,
        name=metric_name,
        aggregations=[_aggregation(each) for each in aggregations],
        by=[each.removeprefix(f"{view[:-1]}_") for each in dimensions],
        of=of,
        traces=traces,
        **asked,
    )


def to_point(
    row: Row, metric_name: str, aggregations: Sequence[MetricAggregation], dimensions: Sequence[str]
) -> MetricDataPoint | None:
    """Return MLflow's data point of a row; None if there are no figures in it."""
    from mlflow.entities.trace_metrics import MetricDataPoint

    values = {
        str(aggregation): figure
        for aggregation, figure in zip(aggregations, row.figures, strict=True)
        if figure is not None
    }
    if not values:
        return None
    named = dict(zip(dimensions, row.by, strict=True))
    if row.time_ms is not None:
        started = datetime.fromtimestamp(row.time_ms / _MS_A_S, tz=timezone.utc)
        named = {"time_bucket": started.isoformat(), **named}
    return MetricDataPoint(metric_name=metric_name, dimensions=named, values=values)


def _aggregation(aggregation: MetricAggregation) -> Aggregation:
    kind = next(each for each in get_args(Kind) if each == str(aggregation.aggregation_type).lower())
    return Aggregation(kind, (aggregation.percentile_value or 0.0) / 100)


def _of_trace(entity: str, key: str, value: str) -> Clause:
    if entity == "status":
        return Clause("attribute", "state", "=", value)
    if (entity, key) == ("metadata", SOURCE_RUN):
        return Clause("attribute", "run_id", "=", value)  # of the run that it was made in, or is linked to
    return Clause(entity, key, "=", value)
