"""What a search asks for, as SQL: of single spans, of what a trace's spans come to, and of its annotations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tracelake.destinations.mlflow_trace import CLIENT_REQUEST_ID, EXPERIMENT, METADATA_PREFIX, STATE, TAG_PREFIX
from tracelake.errors import QueryError
from tracelake.query import filter as grammar
from tracelake.query.dialect import IS_ROOT, Dialect
from tracelake.query.filter import Clause
from tracelake.query.infos import SESSION, SOURCE_RUN, TRACE_NAME, USER
from tracelake.query.traces import parse_trace_id
from tracelake.spans import tables
from tracelake.spans.annotations import OWN_METADATA
from tracelake.spans.values import json_text

# The attributes of a span that hold what was asked and answered, the first that is there:
# https://docs.databricks.com/aws/en/mlflow3/genai/tracing/observe-with-traces/query-dbsql
REQUEST = (
    "mlflow.spanInputs",
    "input.value",
    "gen_ai.input.messages",
    "gen_ai.prompt",
    "gcp.vertex.agent.llm_request",
)
RESPONSE = (
    "mlflow.spanOutputs",
    "output.value",
    "gen_ai.output.messages",
    "gen_ai.completion",
    "gcp.vertex.agent.llm_response",
)
SPAN_TYPE = "mlflow.spanType"
_LINKED_PROMPTS = "mlflow.linkedPrompts"
# Where a program that knows OpenTelemetry alone has them.
OF_SPANS = {SESSION: "session.id", USER: "user.id"}

_START, _END = tables.START_TIME, tables.END_TIME
_DURATION = (
    "coalesce(info_duration_ns, CASE WHEN root_start IS NULL THEN last_end - first_start "
    "ELSE greatest(root_end - root_start, 0) END, 0)"
)


class Conditions:
    """The conditions of one statement over traces, with the columns and relations that they need.

    `sql` and `relation` put them together. A trace is what its spans in the statement's time make it, and what is
    annotated of it.

    Attributes:
        look_at_spans: whether one of them is met by any span of a trace, rather than by its root.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self.look_at_spans = False
        self._aggregates: dict[str, str] = {}  # SQL over the spans of a trace, by the column's name
        self._joins: dict[str, str] = {}  # relations of annotations with one row a trace, by name
        self._met: list[str] = []

    def filter(self, text: str) -> None:
        """Ask for what a filter of MLflow's asks for.

        Raises:
            QueryError: it is none.
        """
        self.all_of(grammar.parse(text))

    def all_of(self, clauses: Sequence[Clause]) -> None:
        """Ask for what comparisons ask for; those of spans are all of one span."""
        self.span(*[self._of_span(clause) for clause in clauses if clause.is_of_span])
        self._met += [self._of_trace(clause) for clause in clauses if not clause.is_of_span]

    def span(self, *met: str) -> None:
        """Ask for a trace with one span that meets all of these, which are SQL."""
        if met:
            self.look_at_spans = True
            self._met.append(self._aggregate(f"bool_or({' AND '.join(f'({each})' for each in met)})"))

    def served_by(self, service: str, attributes: Mapping[str, Any]) -> None:
        """Ask for a trace with one span of this service, if it is not empty, that has these attributes."""
        dialect = self._dialect
        met = [f"{dialect.service()} = {dialect.bound(service)}"] if service else []
        met += [
            f"{dialect.attribute(key)} = {dialect.bound(value if isinstance(value, str) else json_text(value))}"
            for key, value in attributes.items()
        ]
        self.span(*met)

    def says(self, text: str) -> None:
        """Ask for a trace with this in the inputs or outputs of one of its spans, in whatever case."""
        wanted = self._dialect.bound(text.lower())
        held = " || ' ' || ".join(f"coalesce({self._dialect.attribute(key)}, '')" for key in (*REQUEST, *RESPONSE))
        self.span(f"instr(lower({held}), {wanted}) > 0")

    def equal(self, field: str, value: Any) -> None:
        """Ask for a trace whose field, one of `filter.FIELDS`, is this."""
        self._met.append(f"{self._field(field)} = {self._dialect.bound(value)}")

    def tagged(self, key: str, value: str) -> None:
        """Ask for a trace with this tag."""
        self._met.append(f"{self._tag(key)} = {self._dialect.bound(value)}")

    def lasting(self, least_ns: int | None, most_ns: int | None) -> None:
        """Ask for a trace that took so many nanoseconds."""
        self._aggregate_root(_END, "root_end")
        if least_ns is not None:
            self._met.append(f"{_DURATION} >= {self._dialect.bound(least_ns)}")
        if most_ns is not None:
            self._met.append(f"{_DURATION} <= {self._dialect.bound(most_ns)}")

    def of_experiments(self, experiment_ids: tuple[str, ...]) -> None:
        """Ask for a trace of one of these experiments."""
        self._met.append(self._dialect.one_of(self.experiment(), experiment_ids))

    def experiment(self) -> str:
        """Return the SQL of a trace's experiment."""
        self.look_at_spans = True
        marked = self._aggregate(f"max({self._dialect.attribute(EXPERIMENT)})")
        return f"coalesce(info_experiment_id, {marked}, '0')"

    def met(self, condition: str) -> None:
        """Ask for what SQL over the columns of `sql` says."""
        self._met.append(condition)

    def key(self, field: str) -> str:
        """Return the SQL of a field of `filter.FIELDS`, or of the experiment, "experiment_id"."""
        return self.experiment() if field == "experiment_id" else self._field(field)

    def metadata(self, key: str) -> str:
        """Return the SQL of a trace's metadata under a key, as text."""
        carried = [METADATA_PREFIX + key, *([OF_SPANS[key]] if key in OF_SPANS else [])]
        held = self._aggregate_root(f"coalesce({', '.join(map(self._dialect.attribute, carried))}, NULL)")
        return f"coalesce({self._dialect.item('known.value', 'trace_metadata', key)}, {held})"

    def assessments(self) -> str:
        """Return the SELECT of the valid assessments of all traces.

        Its columns are trace_id, annotation_type ("FEEDBACK" or "EXPECTATION"), name, value, a VARIANT, and the value's
        `text`.
        """
        latest = self._latest("annotation_type IN ('FEEDBACK', 'EXPECTATION')")
        return (
            f"SELECT trace_id, annotation_type, name, value, text FROM ({latest}) AS latest "  # noqa: S608
            f"WHERE {self._is_valid()}"
        )

    def sql(self, spans: str, columns: str, order: str, limit: int) -> str:
        """Return the statement that finds traces in an order.

        Args:
            spans, columns: those of `relation`.
            order: SQL of the order.
            limit: traces that are returned at most.
        """
        return f"{self.relation(spans, columns)} ORDER BY {order} LIMIT {limit}"

    def relation(self, spans: str, columns: str) -> str:
        """Return the SELECT of all such traces, a row each.

        Args:
            spans: SQL of the spans that are looked at; empty for all.
            columns: SQL of what is selected, over: trace_id, position (when it started, in nanoseconds since the Unix
                epoch), has_root, first_start, last_end.
        """
        aggregates = "".join(f", {sql} AS {name}" for name, sql in self._aggregates.items())
        names = "".join(f", grouped.{name}" for name in self._aggregates)
        relations = "".join(f", {name} AS ({sql})" for name, sql in self._joins.items())
        joins = " ".join(f"LEFT JOIN {name} ON {name}.trace_id = known.trace_id" for name in self._joins)
        met = " AND ".join(["NOT deleted", "position IS NOT NULL", *(f"({each})" for each in self._met)])
        held = {
            name: self._dialect.item("value", name)
            for name in ("state", "client_request_id", "request_preview", "response_preview", "experiment_id")
        }
        return f"""
        WITH grouped AS (
            SELECT
                {tables.TRACE_ID},
                min({_START}) AS first_start,
                max(greatest({_START}, {_END})) AS last_end,
                min({_START}) FILTER (WHERE {IS_ROOT}) AS root_start
                {aggregates}
            FROM spans WHERE {spans or "true"} GROUP BY {tables.TRACE_ID}
        ),
        infos AS (
            SELECT
                trace_id,
                value,
                deleted_at IS NOT NULL AS deleted,
                CAST({self._dialect.item("value", "timestamp_us")} AS BIGINT) * 1000 AS info_start,
                CAST({self._dialect.item("value", "duration_ns")} AS BIGINT) AS info_duration_ns,
                {", ".join(f"{sql} AS info_{name}" for name, sql in held.items())}
            FROM ({self._latest("annotation_type = 'METADATA'")}) AS latest
        ),
        known AS (
            SELECT
                coalesce(grouped.trace_id, infos.trace_id) AS trace_id,
                coalesce(root_start, info_start, first_start) AS position,
                (root_start IS NOT NULL OR info_start IS NOT NULL) AS has_root,
                coalesce(deleted, false) AS deleted,
                root_start, first_start, last_end, value, info_duration_ns,
                {", ".join(f"info_{name}" for name in held)}
                {names}
            FROM grouped FULL OUTER JOIN infos ON grouped.trace_id = infos.trace_id
        )
        {relations}
        SELECT {columns} FROM known {joins} WHERE {met}"""  # noqa: S608

    def _latest(self, wanted: str) -> str:
        """Return the SELECT of those annotations that count, with the trace that each is about."""
        # See `spans.annotations`. Of a span's, the target's id goes on with that of the span.
        return f"""
            SELECT split_part(target_id, ':', 1) AS trace_id, annotation_type, name, value, text, metadata, deleted_at
            FROM (SELECT *, {self._dialect.text("value")} AS text FROM annotations WHERE {wanted}) AS wanted
            QUALIFY row_number() OVER (
                PARTITION BY annotation_id ORDER BY updated_at DESC, deleted_at DESC NULLS LAST, text DESC NULLS LAST
            ) = 1"""  # noqa: S608

    def _aggregate(self, sql: str, name: str = "") -> str:
        for known, held in self._aggregates.items():
            if held == sql:
                return known
        name = name or f"a{len(self._aggregates)}"
        self._aggregates[name] = sql
        return name

    def _aggregate_root(self, sql: str, name: str = "") -> str:
        return self._aggregate(f"min_by({sql}, {_START}) FILTER (WHERE {IS_ROOT})", name)

    def _field(self, field: str) -> str:
        dialect = self._dialect
        match field:
            case "trace_id":
                return "known.trace_id"
            case "timestamp_ms":
                return "CAST(floor(position / 1000000) AS BIGINT)"
            case "execution_time_ms":
                self._aggregate_root(_END, "root_end")
                return f"CAST(floor({_DURATION} / 1000000) AS BIGINT)"
            case "end_time_ms":
                return f"({self._field('timestamp_ms')} + {self._field('execution_time_ms')})"
            case "name":
                name = self._aggregate_root(tables.NAME)
                first = self._aggregate(f"min_by({tables.NAME}, {_START})")
                return f"coalesce({self._annotated_tag(TRACE_NAME)}.text, {name}, {first})"
            case "state":
                carried = self._aggregate_root(dialect.attribute(STATE))
                status = self._aggregate_root(f"{tables.STATUS}.{tables.STATUS_CODE}")
                ended = (
                    f"CASE WHEN {status} = 'STATUS_CODE_ERROR' THEN 'ERROR' WHEN root_start IS NOT NULL THEN 'OK' END"
                )
                posted = "CASE WHEN info_state IN ('OK', 'ERROR') THEN info_state END"
                return f"coalesce({posted}, {carried}, {ended}, info_state, 'IN_PROGRESS')"
            case "request" | "response":
                keys = REQUEST if field == "request" else RESPONSE
                held = self._aggregate_root(f"coalesce({', '.join(map(dialect.attribute, keys))})")
                return f"coalesce({held}, info_{field}_preview)"
            case "client_request_id":
                return f"coalesce(info_client_request_id, {self._aggregate_root(dialect.attribute(CLIENT_REQUEST_ID))})"
            case "user":
                return self.metadata(USER)
            case "session":
                return self.metadata(SESSION)
            case "run_id":
                return self.metadata(SOURCE_RUN)
        raise AssertionError(field)

    def _tag(self, key: str) -> str:
        if key == TRACE_NAME:
            return self._field("name")
        tag = self._annotated_tag(key)
        carried = self._aggregate_root(self._dialect.attribute(TAG_PREFIX + key))
        return f"CASE WHEN {tag}.trace_id IS NOT NULL THEN {tag}.text ELSE {carried} END"

    def _annotated_tag(self, key: str) -> str:
        """Return the relation of a tag's annotations, whose text is NULL where the tag is deleted."""
        latest = self._latest(f"annotation_type = 'TAG' AND name = {self._dialect.bound(key)}")
        name = f"tag{len(self._joins)}"
        text = "CASE WHEN deleted_at IS NULL THEN text END"
        self._joins[name] = f"SELECT trace_id, {text} AS text FROM ({latest}) AS latest"  # noqa: S608
        return name

    def _of_span(self, clause: Clause) -> str:
        key = clause.key
        if key in ("content", "text"):
            return self._compared(self._dialect.content(), clause)
        if key.startswith(grammar.ATTRIBUTE):
            return self._compared(self._dialect.attribute(key.removeprefix(grammar.ATTRIBUTE)), clause)
        if key == "type":
            return self._compared(self._dialect.attribute(SPAN_TYPE), clause)
        status = f"replace({tables.STATUS}.{tables.STATUS_CODE}, 'STATUS_CODE_', '')"
        return self._compared(tables.NAME if key == "name" else status, clause)

    def _of_trace(self, clause: Clause) -> str:
        entity, key = clause.entity, clause.key
        if entity in ("feedback", "expectation", "assessment"):
            return self._of_assessment(clause)
        if entity == "issue":
            return "false"  # no table has any
        if entity == "tag":
            return self._compared(self._tag(key), clause)
        if entity == "metadata":
            return self._compared(self.metadata(key), clause)
        if key == "run_id":
            return self._of_run(clause)
        if key == "prompt":
            return self._of_prompt(clause.value)
        if key == "trace_id":
            clause = clause._replace(value=_bare(clause.value))
        return self._compared(self._field(key), clause)

    def _of_run(self, clause: Clause) -> str:
        """Return whether one of the runs that a trace is linked to, or was made in, is such a one."""
        latest = self._latest("annotation_type = 'RUN_LINK'")
        links = f"SELECT trace_id FROM ({latest}) AS latest WHERE deleted_at IS NULL"  # noqa: S608
        source = self.metadata(SOURCE_RUN)
        if clause.operator == "IS NULL":
            return f"({source} IS NULL AND known.trace_id NOT IN ({links}))"
        met = "true" if clause.operator == "IS NOT NULL" else self._compared("text", clause)
        return f"({self._compared(source, clause)} OR known.trace_id IN ({links} AND {met}))"

    def _of_prompt(self, value: str) -> str:
        name, _, version = value.partition("/")
        wanted = json.dumps({"name": name, "version": version}, separators=(",", ":")).replace(" ", "")
        return f"instr(replace({self._tag(_LINKED_PROMPTS)}, ' ', ''), {self._dialect.bound(wanted)}) > 0"

    def _of_assessment(self, clause: Clause) -> str:
        dialect = self._dialect
        kinds = ("FEEDBACK", "EXPECTATION") if clause.entity == "assessment" else (clause.entity.upper(),)
        wanted = f"{dialect.one_of('annotation_type', kinds)} AND name = {dialect.bound(clause.key)}"
        met = self._is_valid()
        if clause.operator in grammar.ORDER:
            met += f" AND {self._compared('TRY_CAST(text AS DOUBLE)', clause)}"
        elif clause.operator not in grammar.NULL:
            met += f" AND {self._compared('text', clause)}"
        negated = "NOT " if clause.operator == "IS NULL" else ""
        found = f"SELECT trace_id FROM ({self._latest(wanted)}) AS latest WHERE {met}"  # noqa: S608
        return f"known.trace_id {negated}IN ({found})"

    def _is_valid(self) -> str:
        valid = self._dialect.item("metadata", f"{OWN_METADATA}valid")
        return f"deleted_at IS NULL AND coalesce({valid}, 'true') <> 'false'"

    def _compared(self, value: str, clause: Clause) -> str:
        operator = clause.operator
        if operator in grammar.NULL:
            return f"{value} {operator}"
        if operator in grammar.IN:
            bound = ", ".join(map(self._dialect.bound, clause.value))
            return f"{value} {operator} ({bound})"
        wanted = self._dialect.bound(clause.value)
        return self._dialect.matches(value, wanted) if operator == "RLIKE" else f"{value} {operator} {wanted}"


def _bare(value: Any) -> Any:
    """Return an id, or each of several, as tables have it; what is none finds nothing."""
    if isinstance(value, list):
        return [_bare(each) for each in value]
    try:
        return parse_trace_id(value)
    except QueryError:
        return value
