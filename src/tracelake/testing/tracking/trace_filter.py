"""The filters and orders of `mlflow.search_traces`, as SQL with bound parameters over `trace_views.traces_sql`.

Grammar: https://mlflow.org/docs/latest/genai/tracing/search-traces/
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tracelake.errors import QueryError
from tracelake.query import filter as grammar
from tracelake.query.conditions import SPAN_TYPE
from tracelake.query.filter import Clause
from tracelake.testing.tracking.trace_tables import Source
from tracelake.testing.tracking.trace_views import as_text_of_json, attribute_sql
from tracelake.testing.web.http import invalid

_TIMESTAMP_MS = "timestamp_us // 1000"
_RUN = "trace_metadata['mlflow.sourceRun']"
_FIELDS = {
    "timestamp_ms": _TIMESTAMP_MS,
    "execution_time_ms": "duration_ns // 1000000",
    "end_time_ms": f"({_TIMESTAMP_MS} + coalesce(duration_ns, 0) // 1000000)",
    **{name: name for name in ("trace_id", "state", "client_request_id", "name", "request", "response")},
    "user": "trace_metadata['mlflow.trace.user']",
    "session": "trace_metadata['mlflow.trace.session']",
    "run_id": _RUN,
    # All traces of a source have the same.
    "experiment_id": "source",
}
_SPAN_TEXTS = {"name": "span.name", "status": "replace(span.status.code, 'STATUS_CODE_', '')"}


class Filter:
    """A filter, ready to be asked of sources.

    Attributes:
        parameters: the values that its SQL binds, by name.
    """

    def __init__(self, text: str) -> None:
        """Parse a filter; an empty one finds all.

        Raises:
            ApiError: 400 INVALID_PARAMETER_VALUE, with what is wrong in it and what would be right.
        """
        self.parameters: dict[str, Any] = {}
        try:
            self._clauses = grammar.parse(text)
        except QueryError as error:
            raise invalid(str(error)) from error

    def sql(self, source: Source, suffix: str) -> str:
        """Return the predicate over `traces` of one source, whose relations have this suffix."""
        spans = [clause for clause in self._clauses if clause.is_of_span]
        predicates = [self._predicate(clause, source, suffix) for clause in self._clauses if not clause.is_of_span]
        if spans:
            # Comparisons of spans are all of one span.
            met = " AND ".join(self._span_predicate(clause, source) for clause in spans)
            predicates.append(f"trace_id IN (SELECT span.trace_id FROM spans{suffix} AS span WHERE {met})")  # noqa: S608
        return " AND ".join(f"({predicate})" for predicate in predicates) or "true"

    def _predicate(self, clause: Clause, source: Source, suffix: str) -> str:
        entity, key = clause.entity, clause.key
        if entity in ("feedback", "expectation", "assessment"):
            return self._assessment_predicate(clause, suffix)
        if entity == "issue":
            return "false"  # Databricks keeps none
        if entity == "tag":
            return self._compared("name" if key == "mlflow.traceName" else f"tags[{self._bound(key)}]", clause)
        if entity == "metadata":
            return self._compared(f"trace_metadata[{self._bound(key)}]", clause)
        if key == "run_id":
            met = self._compared("run_id", clause)
            runs = f"list_distinct(list_filter(list_append(run_ids, {_RUN}), lambda each: each IS NOT NULL))"
            if clause.operator in grammar.NULL:
                return f"len({runs}) {'=' if clause.operator == 'IS NULL' else '>'} 0"
            return f"EXISTS (SELECT 1 FROM (SELECT unnest({runs}) AS run_id) WHERE {met})"  # noqa: S608
        if key == "prompt":
            name, _, version = str(clause.value).partition("/")
            tag = "TRY_CAST(tags['mlflow.linkedPrompts'] AS JSON)"
            linked = f"TRY_CAST({tag} AS STRUCT(name VARCHAR, version VARCHAR)[])"
            return (
                f"list_contains({linked}, struct_pack(name := {self._bound(name)}, version := {self._bound(version)}))"
            )
        if key == "trace_id":
            clause = clause._replace(value=_each(clause.value, source.bare))
        return self._compared(_FIELDS[key], clause)

    def _span_predicate(self, clause: Clause, source: Source) -> str:
        key = clause.key
        if key in ("content", "text"):
            attributes = "span.attributes::JSON" if source.version == 2 else "to_json(span.attributes)"
            events = (
                "to_json(list_transform(span.events, lambda each: struct_pack(name := each.name, attributes := {})))"
            )
            held = "each.attributes::JSON" if source.version == 2 else "each.attributes"
            content = f"concat_ws(' ', span.name, {attributes}::VARCHAR, {events.format(held)}::VARCHAR)"
            return self._compared(content, clause)
        if key.startswith(grammar.ATTRIBUTE):
            name = self._bound(key.removeprefix(grammar.ATTRIBUTE))
            return self._compared(attribute_sql("span.", name, source.version), clause)
        if key == "type":
            return self._compared(attribute_sql("span.", f"'{SPAN_TYPE}'", source.version), clause)
        return self._compared(_SPAN_TEXTS[key], clause)

    def _assessment_predicate(self, clause: Clause, suffix: str) -> str:
        met = f"assessment_name = {self._bound(clause.key)} AND valid"
        if clause.entity != "assessment":
            met += f" AND kind = '{clause.entity}'"
        if clause.operator in grammar.ORDER:
            met += f" AND {self._compared('TRY_CAST(json AS DOUBLE)', clause)}"
        elif clause.operator not in grammar.NULL:
            met += f" AND {self._compared(as_text_of_json('json'), clause)}"
        negated = "NOT " if clause.operator == "IS NULL" else ""
        return f"trace_id {negated}IN (SELECT trace_id FROM assessments{suffix} WHERE {met})"  # noqa: S608

    def _compared(self, value: str, clause: Clause) -> str:
        operator = clause.operator
        if operator in grammar.NULL:
            return f"{value} {operator}"
        if operator in grammar.IN:
            return f"{value} {operator} ({', '.join(map(self._bound, clause.value))})"
        bound = self._bound(clause.value)
        return f"regexp_matches({value}, {bound})" if operator == "RLIKE" else f"{value} {operator} {bound}"

    def _bound(self, value: Any) -> str:
        name = f"p{len(self.parameters)}"
        self.parameters[name] = value
        return f"${name}"


def order_sql(order_by: Sequence[str]) -> str:
    """Return the ORDER BY of an order, which ties are broken in.

    Raises:
        ApiError: 400 INVALID_PARAMETER_VALUE, a key or direction is not known.
    """
    try:
        orders = grammar.parse_order(order_by)
    except QueryError as error:
        raise invalid(str(error)) from error
    terms = [f"{_FIELDS[key]} {direction} NULLS LAST" for key, direction in orders]
    return ", ".join([*terms, "timestamp_us DESC NULLS LAST", "trace_id", "source"])


def _each(value: Any, change: Callable[[str], str]) -> Any:
    return [change(each) for each in value] if isinstance(value, list) else change(value)
