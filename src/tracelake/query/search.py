"""Traces found by what they are: in time, of a service, with attributes, tags, feedback, or by MLflow's filters.

Where traces are listed by time, only as much of the table is looked at as fills the page: the newest part first, as the
statistics of its files tell, and then more. So that the parts need not be put together, a part has all of the time up
to the page's end. Any other order takes one pass over the time that is asked for.
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import ceil, floor
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from tracelake.destinations.annotations import open_annotations
from tracelake.destinations.base import Destination
from tracelake.destinations.delta import DeltaDestination
from tracelake.errors import QueryError
from tracelake.query import filter as grammar
from tracelake.query.annotations import Annotated, read_annotations
from tracelake.query.conditions import Conditions
from tracelake.query.convert import data_frame, info_fields, infos_to_arrow, mlflow_info, whole_trace
from tracelake.query.dialect import IS_ROOT, Dialect
from tracelake.query.filter import Order
from tracelake.query.infos import State, TraceInfo
from tracelake.query.reader import Reader, open_reader, spans_of
from tracelake.query.relations import LONG_NS, SKEW_NS, Times, among
from tracelake.query.summary import info_of, infos_of
from tracelake.query.text import counted
from tracelake.query.traces import Trace, parse_trace_id, traces_of
from tracelake.spans import tables

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from mlflow.entities import Trace as MlflowTrace

# Spans in the part of the table that is looked at first, and how much more each next part has.
_FIRST_PART = 20_000
_GROWTH = 8
_S = 10**9
# What a trace does after its root span has ended is looked at for so long.
_LATE_NS = 60 * _S
# A root is looked for that started as much before the other spans of its trace.
_LONGEST_NS = 24 * LONG_NS

_POSITION = "position"
_NS_A_MS = 10**6
_ID = "^[0-9a-f]{32}$"


@dataclass(frozen=True)
class Search:
    """What traces are looked for; all of it has to be true of a trace.

    Attributes:
        filter: as `mlflow.search_traces` takes it.
        start_ns, end_ns: it started at or after the one, and before the other; nanoseconds since the Unix epoch.
        service, attributes: one of its spans is of this service, and has these values.
        name, state: its own.
        min_duration_ns, max_duration_ns: it took as many nanoseconds at least, and at most.
        tags: values by key.
        session, user: whose it is.
        text: is in the inputs or outputs of one of its spans, in whatever case.
        experiment_ids: it is in one of these experiments of MLflow's; empty for any.
        order_by: as `mlflow.search_traces` takes it; empty for the newest first.
        max_results: traces on a page.
        page_token: the `next_page_token` of the page before; empty for the first.
    """

    filter: str = ""
    start_ns: int | None = None
    end_ns: int | None = None
    service: str = ""
    name: str = ""
    state: State | None = None
    min_duration_ns: int | None = None
    max_duration_ns: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    session: str = ""
    user: str = ""
    text: str = ""
    experiment_ids: Sequence[str] = ()
    order_by: Sequence[str] = ()
    max_results: int = 100
    page_token: str = ""


@dataclass(frozen=True, repr=False)
class TracePage(Sequence[TraceInfo]):
    """Traces that a search found, without their spans.

    Attributes:
        next_page_token: of the page after this; empty on the last. Traces that come meanwhile do not shift it.
        destination: where their spans are.
    """

    infos: tuple[TraceInfo, ...]
    next_page_token: str = ""
    destination: Destination | None = None

    @overload
    def __getitem__(self, index: int) -> TraceInfo: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TraceInfo]: ...
    def __getitem__(self, index: int | slice) -> TraceInfo | Sequence[TraceInfo]:
        return self.infos[index]

    def __len__(self) -> int:
        return len(self.infos)

    def __repr__(self) -> str:
        return f"<{counted(len(self), 'trace')}{', and more' if self.next_page_token else ''}>"

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return them as plain values, with the fields of `tracelake traces --json`."""
        return [info_fields(info) for info in self]

    def to_arrow(self) -> pa.Table:
        """Return them as Arrow, a row each; what was asked and answered is text, as are the values of assessments."""
        return infos_to_arrow(self.infos)

    def to_pandas(self) -> pd.DataFrame:
        """Return them as a DataFrame, with the fields of `to_dicts` as columns.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return data_frame(self.to_dicts(), [field.name for field in fields(TraceInfo)])

    def to_mlflow(self) -> list[MlflowTrace]:
        """Return them as MLflow's `Trace`, with their tags and feedback, and their spans. Blocks: these are read now.

        Raises:
            MissingDependencyError: MLflow is not installed.
            QueryError: the table cannot be read any more, or a span has an id that MLflow does not take.
            DamageError: a value of a span cannot be read.
        """
        infos = [mlflow_info(info) for info in self]
        ids = [info.trace_id for info in self]
        spans = spans_of(self.destination, ids) if self.destination and ids else []
        traces = {trace.trace_id: trace for trace in traces_of(spans)}
        return [whole_trace(info, traces.get(trace_id)) for info, trace_id in zip(infos, ids, strict=True)]

    def _repr_html_(self) -> str:
        from tracelake.query.page_html import page_html

        return page_html(self.infos, more=bool(self.next_page_token))


def search_traces(destination: Destination, search: Search) -> TracePage:
    """Return a page of the traces that a search finds in the table of a destination. Blocks.

    A trace is listed by its root span; one whose root is not in the table, up to a day before the others, by its
    first. Traces that are deleted are not there.

    Raises:
        QueryError: the search is wrong, or the table is missing or cannot be read.
        MissingDependencyError: DuckDB, delta-rs or pyarrow is not installed.
        DamageError: a value of a trace cannot be read.
    """
    plan = _Plan.of(search)
    with open_reader(destination) as reader:
        found = _Finder(reader, plan).page()
        page = found[: search.max_results]
        infos = _details(reader, page)
    token = plan.token(page[-1].keys) if len(found) > len(page) else ""
    return TracePage(tuple(infos), token, destination)


def get_infos(destination: Destination, trace_ids: Sequence[str]) -> list[TraceInfo]:
    """Return the infos of those of these traces that are there and not deleted, in their order. Blocks.

    Raises:
        QueryError: an id is none, or the table is missing or cannot be read.
        MissingDependencyError: DuckDB, delta-rs or pyarrow is not installed.
        DamageError: a value of a trace cannot be read.
    """
    wanted = list(dict.fromkeys(map(parse_trace_id, trace_ids)))
    with open_reader(destination) as reader:
        return list(infos_of(reader, wanted).values())


def get_info(destination: Destination, trace: Trace) -> TraceInfo | None:
    """Return the info of a trace whose spans are at hand; None if it is deleted. Reads what is annotated alone.

    Raises what `get_infos` does.
    """
    known = Annotated()
    # Mostly there is nothing annotated, which takes no DuckDB to see.
    if not isinstance(destination, DeltaDestination) or open_annotations(destination) is not None:
        with open_reader(destination) as reader:
            known = read_annotations(reader, [trace.trace_id]).get(trace.trace_id, known)
    return None if known.deleted else info_of(trace, known)


class _Found(NamedTuple):
    """A trace that a statement found; `keys` are what it is sorted by."""

    trace_id: str
    position: int
    has_root: bool
    first_start: int
    last_end: int
    keys: tuple[Any, ...]


def _details(reader: Reader, page: Sequence[_Found]) -> list[TraceInfo]:
    if not page:
        return []
    first = min(each.first_start for each in page) - SKEW_NS
    last = max(each.last_end for each in page) + _LATE_NS
    return list(infos_of(reader, [each.trace_id for each in page], Times(first, last + 1)).values())


@dataclass(frozen=True)
class _Plan:
    """A search, checked.

    Attributes:
        orders: what traces are sorted by before their time.
        newest_first: whether those of one order are.
        after: the keys of the last trace of the page before; None for the first page.
        start_ns, end_ns: traces start at or after the one, and before the other; nanoseconds since the Unix epoch.
    """

    search: Search
    orders: tuple[Order, ...]
    newest_first: bool
    after: tuple[Any, ...] | None
    start_ns: int | None
    end_ns: int | None

    @classmethod
    def of(cls, search: Search) -> _Plan:
        """Raises QueryError where the search is wrong."""
        if search.max_results < 1:
            raise QueryError(f"max_results is {search.max_results}; ask for at least one trace.")
        orders = tuple(grammar.parse_order(search.order_by))
        newest_first = True
        for index, order in enumerate(orders):
            if order.key == "timestamp_ms":
                # Whatever comes after time itself sorts nothing.
                orders, newest_first = orders[:index], order.direction == "DESC"
                break
        start_ns, end_ns = _times(search)
        plan = cls(search, orders, newest_first, None, start_ns, end_ns)
        after = plan._after() if search.page_token else None
        if after is not None and not orders:
            # The rest starts where the page before ended; of one time, further ids are left to the keys.
            if newest_first:
                end_ns = min(after[0] + 1, after[0] + 1 if end_ns is None else end_ns)
            else:
                start_ns = max(after[0], 0 if start_ns is None else start_ns)
        return replace(plan, after=after, start_ns=start_ns, end_ns=end_ns)

    def token(self, keys: tuple[Any, ...]) -> str:
        """Return the token of the page that comes after a trace of these keys."""
        return urlsafe_b64encode(json.dumps([self._digest(), *keys]).encode()).decode()

    def _after(self) -> tuple[Any, ...]:
        try:
            digest, *keys = json.loads(urlsafe_b64decode(self.search.page_token))
        except (ValueError, TypeError):
            digest, keys = "", []
        if digest != self._digest():
            raise QueryError("The page_token is not one that this search was answered with. Begin without one.")
        return tuple(keys)

    def _digest(self) -> str:
        # Clients ask for fewer with each page.
        asked = repr(replace(self.search, max_results=0, page_token=""))
        return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _times(search: Search) -> tuple[int | None, int | None]:
    """Return when traces start that a search may find, as its filter says it, too."""
    starts = [] if search.start_ns is None else [search.start_ns]
    ends = [] if search.end_ns is None else [search.end_ns]
    for entity, key, operator, value in grammar.parse(search.filter):
        if (entity, key) == ("attribute", "timestamp_ms"):
            if operator in (">", ">=", "="):
                starts.append(floor(value) * _NS_A_MS)
            if operator in ("<", "<=", "="):
                ends.append((ceil(value) + 1) * _NS_A_MS)
    return max(starts, default=None), min(ends, default=None)


class _Finder:
    """Finds the traces of one page, and one more if there are more."""

    def __init__(self, reader: Reader, plan: _Plan) -> None:
        self._reader = reader
        self._plan = plan
        self._wanted = plan.search.max_results + 1
        # Of traces without a root in the part that is looked at, those that belong to another, and those with none.
        self._elsewhere: set[str] = set()
        self._rootless: set[str] = set()

    def page(self) -> list[_Found]:
        for start, end in self._parts():
            self._elsewhere = set()
            while True:
                found = self._find(start, end)
                doubtful = {each.trace_id: each for each in found if not each.has_root}
                unknown = doubtful.keys() - self._rootless
                if not unknown or (start is None and end is None):
                    break
                rooted = self._rooted([doubtful[trace_id] for trace_id in unknown])
                self._rootless |= unknown - rooted
                if not rooted:
                    break
                self._elsewhere |= rooted
            if len(found) >= self._wanted:
                return found
        return found

    def _parts(self) -> Iterator[tuple[int | None, int | None]]:
        """Yield times between which traces start, each with the one before in it, up to all of it."""
        plan = self._plan
        start, end = plan.start_ns, plan.end_ns
        count = _FIRST_PART
        while not plan.orders:
            if plan.newest_first:
                part = self._reader.recent(count, end)
                if part <= (start or 0):
                    break
                yield part, end
            else:
                until = self._reader.earliest(count, start or 0)
                if until is None or (end is not None and until >= end):
                    break
                yield start, until
            count *= _GROWTH
        yield start, end

    def _find(self, start: int | None, end: int | None) -> list[_Found]:
        plan, search = self._plan, self._plan.search
        dialect = Dialect.of(self._reader)
        conditions = Conditions(dialect)
        conditions.met(dialect.matches("known.trace_id", dialect.bound(_ID)))  # a row of another writer may have none
        conditions.filter(search.filter)
        if search.service or search.attributes:
            conditions.served_by(search.service, search.attributes)
        for name, value in (
            ("name", search.name), ("state", search.state), ("session", search.session), ("user", search.user)
        ):  # fmt: skip
            if value:
                conditions.equal(name, value)
        for key, tag in search.tags.items():
            conditions.tagged(key, tag)
        if search.min_duration_ns is not None or search.max_duration_ns is not None:
            conditions.lasting(search.min_duration_ns, search.max_duration_ns)
        if search.text:
            conditions.says(search.text)
        if search.experiment_ids:
            conditions.of_experiments(tuple(search.experiment_ids))
        if start is not None:
            conditions.met(f"{_POSITION} >= {start}")
        if end is not None:
            conditions.met(f"{_POSITION} < {end}")
        if self._elsewhere:
            conditions.met(f"NOT {among(sorted(self._elsewhere), 'known.trace_id')}")
        terms = self._terms(conditions)
        if plan.after is not None:
            conditions.met(_beyond(dialect, terms, plan.after))
        later_ns = LONG_NS if conditions.look_at_spans else SKEW_NS
        times = Times(None if start is None else start - SKEW_NS, None if end is None else end + later_ns)
        keys = ", ".join(f"{sql} AS k{index}" for index, (sql, _) in enumerate(terms))
        statement = conditions.sql(
            " AND ".join(times.conditions()),
            f"known.trace_id AS trace_id, {_POSITION}, has_root, first_start, last_end, {keys}",
            ", ".join(f"k{index} {direction}" for index, (_, direction) in enumerate(terms)),
            self._wanted,
        )
        found = self._reader.run(statement, dialect.parameters, times)
        cells = (found.column(name).to_pylist() for name in found.column_names)
        return [
            _Found(trace_id, position, has_root, first or position, last or position, tuple(keys))
            for trace_id, position, has_root, first, last, *keys in zip(*cells, strict=True)
        ]

    def _terms(self, conditions: Conditions) -> list[tuple[str, str]]:
        """Return the SQL that traces are sorted by, none of it NULL, with its direction."""
        terms = []
        for order in self._plan.orders:
            sql = conditions.key(order.key)
            missing = "0" if order.key in grammar.NUMBERS else "''"
            terms.append((f"CASE WHEN {sql} IS NULL THEN 1 ELSE 0 END", "ASC"))
            terms.append((f"coalesce({sql}, {missing})", order.direction))
        terms.append((_POSITION, "DESC" if self._plan.newest_first else "ASC"))
        return [*terms, ("known.trace_id", "ASC")]

    def _rooted(self, doubtful: Sequence[_Found]) -> set[str]:
        """Return which of these traces have a root after all, outside of the part that was looked at."""
        first = min(each.first_start for each in doubtful) - _LONGEST_NS
        last = max(each.last_end for each in doubtful) + _LATE_NS
        times = Times(first, last + 1)
        where = " AND ".join([among([each.trace_id for each in doubtful]), IS_ROOT, *times.conditions()])
        found = self._reader.run(f"SELECT DISTINCT {tables.TRACE_ID} FROM spans WHERE {where}", times=times)  # noqa: S608
        return set(found.column(0).to_pylist())


def _beyond(dialect: Dialect, terms: Sequence[tuple[str, str]], keys: Sequence[Any]) -> str:
    """Return whether a trace comes after one of these keys."""
    bound = [dialect.bound(key) for key in keys]
    cases = []
    for index, (sql, direction) in enumerate(terms):
        same = [f"{term} = {value}" for (term, _), value in zip(terms[:index], bound, strict=False)]
        cases.append(" AND ".join([*same, f"{sql} {'<' if direction == 'DESC' else '>'} {bound[index]}"]))
    return " OR ".join(f"({case})" for case in cases)
