"""Metrics of traces, spans or assessments, by time and by what they are: counted, summed up and averaged in SQL.

Nothing but the figures is read out of a table. A trace is looked at with those of its spans that started up to an hour
before and after the time in question: one that is silent for longer than that is taken for two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tracelake.destinations.base import Destination
from tracelake.destinations.mlflow_trace import TOKEN_USAGE
from tracelake.errors import QueryError
from tracelake.query import usage
from tracelake.query.conditions import SPAN_TYPE, Conditions
from tracelake.query.dialect import Dialect
from tracelake.query.filter import Clause
from tracelake.query.reader import Reader, open_reader
from tracelake.query.relations import Times, spans_sql
from tracelake.query.stats import MAX_DISTINCT, MODEL, count_rows
from tracelake.query.tokens import COST
from tracelake.spans import tables

View = Literal["traces", "spans", "assessments"]
Kind = Literal["count", "sum", "avg", "min", "max", "percentile"]

# Traces are this long at most between two spans.
_LONG_NS = 3_600 * 10**9
_NS_A_MS = 10**6
_COSTS = ("input_cost", "output_cost", "total_cost")
# MLflow's, and those of OpenTelemetry's conventions, the newer one first.
_PROVIDER = ("mlflow.llm.provider", "gen_ai.provider.name", "gen_ai.system")
_START, _END = tables.START_TIME, tables.END_TIME


class Aggregation(NamedTuple):
    """What is made of the values of a metric.

    Attributes:
        share: of a percentile, from 0 to 1; it is interpolated between two values.
    """

    kind: Kind
    share: float = 0.0


class Row(NamedTuple):
    """The figures of one group.

    Attributes:
        time_ms: when its time begins, in milliseconds since the Unix epoch; None if times are not asked for.
        by: its values of what is grouped by, in that order.
        figures: one for each aggregation, in their order; None where there is nothing to aggregate.
    """

    time_ms: int | None
    by: tuple[str, ...]
    figures: tuple[float | None, ...]


@dataclass(frozen=True)
class Metric:
    """What is asked for.

    Attributes:
        name: of traces: "trace_count", "session_count", "latency" or one of `usage.KEYS`; of spans: "span_count",
            "latency", "input_cost", "output_cost", "total_cost"; of assessments: "assessment_count",
            "assessment_value". Latencies are milliseconds, costs US dollars.
        by: what is grouped by, "name" and the like: of traces name and status; of spans name, type, status, model_name
            and model_provider; of assessments name and value.
        of: values of what is counted, by "name", "type" (of spans and assessments) or "status" (of spans).
        traces: what is asked of the trace itself.
        experiment_ids: it is in one of these experiments of MLflow's; empty for any.
        start_ms, end_ms: the trace started in one of these milliseconds since the Unix epoch, or in one between; of
            costs it is the span that did. None is the beginning and the end of time.
        interval_ms: grouped by as many milliseconds, too; None for all of the time in one.
        limit: groups that are returned at most.
    """

    view: View
    name: str
    aggregations: Sequence[Aggregation]
    by: Sequence[str] = ()
    of: Sequence[tuple[str, str]] = ()
    traces: Sequence[Clause] = ()
    experiment_ids: Sequence[str] = ()
    start_ms: int | None = None
    end_ms: int | None = None
    interval_ms: int | None = None
    limit: int = 1000


def measure(destination: Destination, metric: Metric) -> list[Row]:
    """Return the figures of each group, ordered by time and by what is grouped by. Blocks.

    Traces that are deleted do not count, nor what has no value of the metric, or nothing of what is grouped by. Of a
    span that is in the table twice, the row that ends last counts, unless there are more than `stats.MAX_DISTINCT`
    rows of that time.

    Raises:
        QueryError: the table is missing, or cannot be read; or a SQL warehouse cannot say.
        MissingDependencyError: DuckDB, delta-rs or pyarrow is not installed.
    """
    with open_reader(destination) as reader:
        found = _Statement(reader, metric).run()
    return [
        Row(
            None if time_ns is None else time_ns // _NS_A_MS,
            tuple(cells[: len(metric.by)]),
            tuple(cells[len(metric.by) :]),
        )
        for time_ns, *cells in found
    ]


class _Statement:
    def __init__(self, reader: Reader, metric: Metric) -> None:
        self._reader = reader
        self._metric = metric
        self._dialect = Dialect.of(reader)
        self._conditions = Conditions(self._dialect)
        self._start_ns = None if metric.start_ms is None else metric.start_ms * _NS_A_MS
        self._end_ns = None if metric.end_ms is None else (metric.end_ms + 1) * _NS_A_MS
        self._times = Times(
            None if self._start_ns is None else self._start_ns - _LONG_NS,
            None if self._end_ns is None else self._end_ns + _LONG_NS,
        )

    def run(self) -> list[tuple[Any, ...]]:
        """Return the rows: nanoseconds of the group's time, what is grouped by, the figures."""
        metric = self._metric
        by = [f"by{index}" for index in range(len(metric.by))]
        # A group without figures would take the place of another within the limit.
        known = [f"{name} IS NOT NULL" for name in (*by, "measured")]
        groups = ", ".join(["time_ns", *by])
        figures = ", ".join(f"CAST({self._aggregate(each)} AS DOUBLE)" for each in metric.aggregations)
        grouped = f"GROUP BY {groups}" if by or metric.interval_ms else ""
        relations = self._relations()
        recursive = "RECURSIVE" if "above" in relations else ""
        ctes = ", ".join(f"{name} AS ({sql})" for name, sql in relations.items())
        columns = groups if grouped else "CAST(NULL AS BIGINT) AS time_ns"
        found = self._reader.run(
            f"""
            WITH {recursive} {ctes}
            SELECT {columns}, {figures} FROM counted WHERE {" AND ".join(known)} {grouped}
            ORDER BY {groups if grouped else "1"} LIMIT {metric.limit}""",  # noqa: S608
            self._dialect.parameters,
            self._times,
        )
        return list(zip(*(column.to_pylist() for column in found.columns), strict=True))

    def _aggregate(self, aggregation: Aggregation) -> str:
        if aggregation.kind == "percentile":
            return self._dialect.percentile("measured", aggregation.share)
        distinct = "DISTINCT " if self._metric.name == "session_count" else ""
        return f"{aggregation.kind}({distinct}measured)"

    def _relations(self) -> dict[str, str]:
        """Return those that a statement is made of, by name; the last is `counted`: time_ns, by0 and so on, measured.

        A relation may need those before it.
        """
        conditions, metric = self._conditions, self._metric
        if metric.experiment_ids:
            conditions.of_experiments(tuple(metric.experiment_ids))
        conditions.all_of(metric.traces)
        match metric.view:
            case "traces":
                return self._of_traces()
            case "spans":
                return self._of_spans()
            case "assessments":
                return self._of_assessments()

    def _of_traces(self) -> dict[str, str]:
        conditions, metric = self._conditions, self._metric
        fields = {"name": "name", "status": "state"}
        columns = {f"by{index}": conditions.key(fields[each]) for index, each in enumerate(metric.by)}
        relations = {}
        source, measured = "found", "measured"
        if metric.name in usage.KEYS:
            self._check_tokens()
            relations = usage.used(self._dialect, metric.name, self._spans(), distinct=self._is_distinct())
            columns["said"] = conditions.metadata(TOKEN_USAGE)
            is_stated, stated = usage.stated(self._dialect, "said", metric.name)
            source = "found LEFT JOIN used ON used.trace_id = found.trace_id"
            measured = f"CASE WHEN {is_stated} THEN {stated} ELSE tokens END"
        else:
            measures = {"trace_count": "trace_id", "session_count": "session", "latency": "execution_time_ms"}
            columns["measured"] = conditions.key(measures[metric.name])
        return {
            **relations,
            "found": self._found(columns),
            "counted": self._counted(source, "position", measured),
        }

    def _of_spans(self) -> dict[str, str]:
        dialect, metric = self._dialect, self._metric
        status = f"{tables.STATUS}.{tables.STATUS_CODE}"
        fields = {
            "name": tables.NAME,
            "type": dialect.attribute(SPAN_TYPE),
            "status": f"replace(coalesce({status}, 'UNSET'), 'STATUS_CODE_', '')",
            "model_name": f"coalesce({', '.join(map(dialect.attribute, MODEL))})",
            "model_provider": f"coalesce({', '.join(map(dialect.attribute, _PROVIDER))})",
        }
        columns = {"start_ns": _START, **self._row(fields)}
        is_cost = metric.name in _COSTS
        if is_cost:
            columns["measured"] = dialect.number(dialect.field(dialect.attribute(COST), metric.name))
        elif metric.name == "latency":
            took = f"CAST(floor(({_END} - {_START}) / {_NS_A_MS}) AS BIGINT)"
            columns["measured"] = f"CASE WHEN {_END} >= {_START} THEN {took} END"
        else:
            columns["measured"] = tables.SPAN_ID
        where = " AND ".join(Times(self._start_ns, self._end_ns).conditions()) or "true" if is_cost else self._spans()
        return {
            "found": self._found({}, at_any_time=is_cost),
            "rows": spans_sql(columns, where, distinct=self._is_distinct()),
            "counted": self._counted("rows JOIN found ON found.trace_id = rows.trace_id", "start_ns"),
        }

    def _of_assessments(self) -> dict[str, str]:
        dialect = self._dialect
        value = dialect.json("value")
        fields = {"name": "name", "type": "lower(annotation_type)", "value": f"coalesce({value}, 'null')"}
        columns = self._row(fields)
        if self._metric.name == "assessment_value":
            # Of texts, these two are figures to MLflow; `text` has them, and `value` has them quoted.
            columns["measured"] = (
                f"CASE WHEN {value} = 'true' OR lower(trim(text)) = 'yes' THEN 1.0 "
                f"WHEN {value} = 'false' OR lower(trim(text)) = 'no' THEN 0.0 ELSE {dialect.number(value)} END"
            )
        else:
            columns["measured"] = "trace_id"
        chosen = ", ".join(f"{sql} AS {name}" for name, sql in columns.items())
        return {
            "found": self._found({}),
            "rows": f"SELECT trace_id, {chosen} FROM ({self._conditions.assessments()}) AS valid",  # noqa: S608
            "counted": self._counted("rows JOIN found ON found.trace_id = rows.trace_id", "position"),
        }

    def _row(self, fields: Mapping[str, str]) -> dict[str, str]:
        """Return the columns of what is grouped by and what is asked of a span or an assessment, of these fields."""
        by = {f"by{index}": fields[each] for index, each in enumerate(self._metric.by)}
        return by | {f"of{index}": fields[key] for index, (key, _) in enumerate(self._metric.of)}

    def _found(self, columns: Mapping[str, str], *, at_any_time: bool = False) -> str:
        """Return the traces, with these columns beside their id and position."""
        if self._start_ns is not None and not at_any_time:
            self._conditions.met(f"position >= {self._start_ns}")
        if self._end_ns is not None and not at_any_time:
            self._conditions.met(f"position < {self._end_ns}")
        chosen = "".join(f", {sql} AS {name}" for name, sql in columns.items())
        return self._conditions.relation(self._spans(), f"known.trace_id AS trace_id, position{chosen}")

    def _counted(self, source: str, time: str, measured: str = "measured") -> str:
        interval_ms = self._metric.interval_ms
        interval_ns = interval_ms * _NS_A_MS if interval_ms else 0
        time_ns = f"{time} - {time} % {interval_ns}" if interval_ns else "CAST(NULL AS BIGINT)"
        by = "".join(f"by{index}, " for index in range(len(self._metric.by)))
        met = [f"of{index} = {self._dialect.bound(value)}" for index, (_, value) in enumerate(self._metric.of)]
        where = " AND ".join(met) or "true"
        return f"SELECT {time_ns} AS time_ns, {by}{measured} AS measured FROM {source} WHERE {where}"  # noqa: S608

    def _spans(self) -> str:
        return " AND ".join(self._times.conditions()) or "true"

    def _is_distinct(self) -> bool:
        """Say whether there are so few rows that those which repeat a span are left out."""
        return count_rows(self._reader, self._times) <= MAX_DISTINCT

    def _check_tokens(self) -> None:
        if self._reader.dialect != "duckdb":
            raise QueryError(
                f"Tokens of traces cannot be summed up in {self._reader.destination.target}: its files are closed to "
                "us, and the SQL warehouse that reads them is not asked to walk up the spans of each trace. Get "
                "EXTERNAL USE SCHEMA on its schema, or see the tokens of each model with: tracelake stats --by model"
            )
