"""Traces found in the tables that they are kept in: by id, and as `mlflow.search_traces` asks for them."""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tracelake.query.sql import rows_of
from tracelake.query.traces import traces_of
from tracelake.spans import rows, tables
from tracelake.spans.annotations import Annotation
from tracelake.spans.record import SpanRecord
from tracelake.testing.sql.engine import Engine
from tracelake.testing.state import Table
from tracelake.testing.storage.lakehouse import Lakehouse
from tracelake.testing.tracking.trace_filter import Filter, order_sql
from tracelake.testing.tracking.trace_json import trace_info
from tracelake.testing.tracking.trace_tables import Source
from tracelake.testing.tracking.trace_views import traces_sql
from tracelake.testing.web.http import ApiError

if TYPE_CHECKING:
    import duckdb

DEFAULT_RESULTS = 100
MAX_RESULTS = 500

_COLUMNS = (
    "trace_id, client_request_id, timestamp_us, duration_ns, state, name, request_preview, response_preview, "
    "trace_metadata, tags, assessments"
)


class Search(NamedTuple):
    """What is searched for; as the request of MLflow's API has it.

    Attributes:
        max_results: at most this many, 1 to MAX_RESULTS.
        page_token: where a search before this ended; empty for the beginning.
    """

    filter: str = ""
    order_by: Sequence[str] = ()
    max_results: int = DEFAULT_RESULTS
    page_token: str = ""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Search:
        """Return the search of a body.

        Raises:
            ApiError: 400 INVALID_PARAMETER_VALUE, a field is of the wrong type, or out of bounds.
        """
        search = cls(
            body.get("filter") or "",
            body.get("order_by") or (),
            _number(body.get("max_results")),
            body.get("page_token") or "",
        )
        if not isinstance(search.filter, str) or not isinstance(search.page_token, str):
            raise ApiError(400, "INVALID_PARAMETER_VALUE", "The fields filter and page_token are text.")
        if not isinstance(search.order_by, (list, tuple)) or not all(isinstance(each, str) for each in search.order_by):
            raise ApiError(400, "INVALID_PARAMETER_VALUE", "The field order_by is a list of text.")
        return search


class Traces:
    """Reads traces."""

    def __init__(self, engine: Engine, lakehouse: Lakehouse) -> None:
        self._engine = engine
        self._lakehouse = lakehouse

    def infos(self, source: Source, trace_ids: Collection[str]) -> list[dict[str, Any]]:
        """Return the TraceInfos of those of these traces that are there, in the order of their ids."""
        ids = [source.bare(trace_id) for trace_id in trace_ids]
        found = self._select([source], ["list_contains($ids, trace_id)"], "trace_id", {"ids": ids})
        return [info for _, info in found]

    def ids(self, source: Source, *, before_ms: int, limit: int | None = None) -> list[str]:
        """Return the ids of the oldest traces that began up to a time, in milliseconds since the Unix epoch."""
        found = self._select(
            [source],
            ["timestamp_us // 1000 <= $before"],
            f"timestamp_us, trace_id {'' if limit is None else f'LIMIT {max(limit, 0)}'}",
            {"before": before_ms},
        )
        return [str(info["trace_id"]) for _, info in found]

    def annotations(self, source: Source, trace_ids: Collection[str]) -> list[Annotation]:
        """Return what is annotated of traces, without its values."""
        statement = (
            f"WITH {traces_sql('span_table', 'annotation_table', source.version)} "  # noqa: S608
            "SELECT annotation_id, annotation_type, trace_id, name FROM latest "
            "WHERE deleted_at IS NULL AND list_contains($ids, trace_id)"
        )
        views = {"span_table": source.spans, "annotation_table": source.annotations}
        with self._engine.connection(views) as connection:
            found = _run(connection, statement, {"ids": [source.bare(trace_id) for trace_id in trace_ids]})
        return [Annotation(**row) for row in rows_of(found)]

    def spans(self, source: Source, trace_ids: Collection[str]) -> dict[str, tuple[SpanRecord, ...]]:
        """Return the spans of traces by the bare trace id, by start time, each span once."""
        import pyarrow.compute as pc

        ids = [source.bare(trace_id) for trace_id in trace_ids]
        dataset = self._lakehouse.open(source.spans).to_pyarrow_dataset()
        found = traces_of(rows.from_arrow(dataset.to_table(filter=pc.field(tables.TRACE_ID).isin(ids))))
        return {**dict.fromkeys(ids, ()), **{trace.trace_id: trace.spans for trace in found}}

    def search(self, sources: Sequence[Source], search: Search) -> tuple[list[dict[str, Any]], str]:
        """Return the TraceInfos that a search finds, newest first unless it has an order, and the next page's token.

        The token is empty at the end. It counts traces: one that comes in between may shift the pages.

        Raises:
            ApiError: 400 INVALID_PARAMETER_VALUE, the filter, the order or the token is not one.
        """
        chosen, order = Filter(search.filter), order_sql(search.order_by)
        offset = _offset(search, sources)
        predicates = [chosen.sql(source, f"_{index}") for index, source in enumerate(sources)]
        limited = f"{order} LIMIT {search.max_results + 1} OFFSET {offset}"
        found = self._select(sources, predicates, limited, chosen.parameters)
        infos = [info for _, info in found[: search.max_results]]
        more = len(found) > search.max_results
        return infos, _token(search, sources, offset + search.max_results) if more else ""

    def _select(
        self, sources: Sequence[Source], predicates: Sequence[str], order: str, parameters: Mapping[str, Any]
    ) -> list[tuple[Source, dict[str, Any]]]:
        if not sources:
            return []
        views: dict[str, Table] = {}
        relations, selects = [], []
        for index, (source, predicate) in enumerate(zip(sources, predicates, strict=True)):
            spans, annotations = f"span_table_{index}", f"annotation_table_{index}"
            views |= {spans: source.spans, annotations: source.annotations}
            relations.append(traces_sql(spans, annotations, source.version, f"_{index}"))
            selects.append(f"SELECT {_COLUMNS}, {index} AS source FROM traces_{index} WHERE {predicate}")  # noqa: S608
        statement = (
            f"WITH {', '.join(relations)}, found AS ({' UNION ALL '.join(selects)}) "  # noqa: S608
            f"SELECT * FROM found ORDER BY {order}"
        )
        with self._engine.connection(views) as connection:
            table = _run(connection, statement, parameters)
        return [(sources[row["source"]], trace_info(row, sources[row["source"]])) for row in rows_of(table)]


def _run(connection: duckdb.DuckDBPyConnection, statement: str, parameters: Mapping[str, Any]) -> Any:
    import duckdb

    try:
        return connection.sql(statement, params=dict(parameters)).to_arrow_table()
    except duckdb.InvalidInputException as error:
        # What a filter can have that only shows when it is run is a regular expression.
        raise ApiError(400, "INVALID_PARAMETER_VALUE", f"The filter cannot be run: {error}") from error


def _number(value: Any) -> int:
    if value is None:
        return DEFAULT_RESULTS
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RESULTS:
        raise ApiError(
            400, "INVALID_PARAMETER_VALUE", f"The field max_results is {value!r}, and has to be 1 to {MAX_RESULTS}."
        )
    return value


def _token(search: Search, sources: Sequence[Source], offset: int) -> str:
    return urlsafe_b64encode(json.dumps([offset, _digest(search, sources)]).encode()).decode()


def _offset(search: Search, sources: Sequence[Source]) -> int:
    if not search.page_token:
        return 0
    try:
        offset, digest = json.loads(urlsafe_b64decode(search.page_token))
        if digest == _digest(search, sources) and int(offset) >= 0:
            return int(offset)
    except (ValueError, TypeError):
        pass
    raise ApiError(400, "INVALID_PARAMETER_VALUE", "The page_token is not one that this search was answered with.")


def _digest(search: Search, sources: Sequence[Source]) -> str:
    # Clients ask for fewer with each page.
    asked = [search.filter, list(search.order_by), [source.trace_location for source in sources]]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
