"""How many spans there are, how many failed, and how long they took: by service, name or language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tracelake.destinations.base import Destination
from tracelake.query.dialect import Dialect
from tracelake.query.infos import Tokens
from tracelake.query.reader import Reader, open_reader
from tracelake.query.relations import Times, spans_sql
from tracelake.query.tokens import COST, INPUT, OUTPUT, USAGE
from tracelake.spans import tables

By = Literal["service", "name", "model"]

# With more rows, leaving out those that repeat a span takes longer than all else; and they are few, if there are any.
MAX_DISTINCT = 1_000_000

# MLflow's, and those of OpenTelemetry's conventions; the first that a span has.
MODEL = ("mlflow.llm.model", "gen_ai.response.model", "gen_ai.request.model")
_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_DURATION = f"CASE WHEN {tables.END_TIME} >= {tables.START_TIME} THEN {tables.END_TIME} - {tables.START_TIME} END"


@dataclass(frozen=True)
class Group:
    """The spans of one service, name or model.

    Attributes:
        name: of the service, the spans or the model; empty for spans that have none.
        p50_ns, p95_ns, p99_ns: so many nanoseconds took half of them at most, 95 % and 99 %; None if none has ended.
        tokens: of a model: what went in and came out.
    """

    name: str
    spans: int
    errors: int
    p50_ns: int | None
    p95_ns: int | None
    p99_ns: int | None
    tokens: Tokens | None = None


@dataclass(frozen=True)
class Stats:
    """The spans that started in some time.

    Attributes:
        rows: how many there are in the table.
        distinct: whether rows that repeat a span are left out of the groups.
        groups: what was asked for, each by what, those with the most spans first.
    """

    rows: int
    distinct: bool
    groups: dict[By, list[Group]]


def stats(destination: Destination, by: tuple[By, ...], start_ns: int, end_ns: int) -> Stats:
    """Return what the spans come to that started at or after the one time, and before the other. Blocks.

    Files without such spans are not read, nor columns that nothing depends on. Of a span that is there twice, the row
    that ends last counts, unless there are more than `MAX_DISTINCT` rows. By model, spans count that name one.

    Raises:
        QueryError: the table is missing, or cannot be read.
        MissingDependencyError: DuckDB, delta-rs or pyarrow is not installed.
    """
    times = Times(start_ns, end_ns)
    with open_reader(destination) as reader:
        rows = count_rows(reader, times)
        distinct = rows <= MAX_DISTINCT
        return Stats(rows, distinct, {each: _groups(reader, each, times, distinct) for each in by})


def count_rows(reader: Reader, times: Times) -> int:
    """Return how many rows of spans there are that started in a time."""
    where = " AND ".join(times.conditions()) or "true"
    found = reader.run(f"SELECT count(*) AS counted FROM spans WHERE {where}", times=times)  # noqa: S608
    return int(found.column(0)[0].as_py())


def _groups(reader: Reader, by: By, times: Times, distinct: bool) -> list[Group]:
    dialect = Dialect.of(reader)
    where = " AND ".join(times.conditions())
    columns = {"name": _name(dialect, by), "code": f"{tables.STATUS}.{tables.STATUS_CODE}", "took": _DURATION}
    if by == "model":
        columns |= {key: f"TRY_CAST({sql} AS DOUBLE)" for key, sql in _counts(dialect).items()}
    wanted = f"{where} AND {columns['name']} <> ''" if by == "model" else where
    quantiles = ", ".join(f"{dialect.quantile('took', share)} AS {key}" for key, share in _QUANTILES.items())
    sums = "".join(f", sum({key}) AS {key}" for key in ("tokens_in", "tokens_out", "cost") if by == "model")
    chosen = spans_sql(columns, wanted, distinct=distinct)
    found = reader.run(
        f"""
        SELECT coalesce(name, '') AS name, count(*) AS spans,
            count(*) FILTER (WHERE code = 'STATUS_CODE_ERROR') AS errors, {quantiles}{sums}
        FROM ({chosen}) AS chosen GROUP BY coalesce(name, '') ORDER BY 2 DESC, 1""",  # noqa: S608
        dialect.parameters,
        times,
    )
    return [
        Group(
            row["name"],
            row["spans"],
            row["errors"],
            row["p50"],
            row["p95"],
            row["p99"],
            Tokens(int(row["tokens_in"] or 0), int(row["tokens_out"] or 0), row["cost"]) if by == "model" else None,
        )
        for row in found.to_pylist()
    ]


def _name(dialect: Dialect, by: By) -> str:
    if by == "name":
        return tables.NAME
    return dialect.service() if by == "service" else f"coalesce({', '.join(map(dialect.attribute, MODEL))})"


def _counts(dialect: Dialect) -> dict[str, str]:
    usage, cost = dialect.attribute(USAGE), dialect.attribute(COST)
    counts = {"tokens_in": ("input_tokens", INPUT), "tokens_out": ("output_tokens", OUTPUT)}
    return {
        **{
            name: f"coalesce({dialect.field(usage, key)}, {dialect.attribute(plain)})"
            for name, (key, plain) in counts.items()
        },
        "cost": dialect.field(cost, "total_cost"),
    }
