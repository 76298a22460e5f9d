"""MLflow's filters, read."""

from __future__ import annotations

import pytest

from tracelake.errors import QueryError
from tracelake.query.filter import Clause, Order, parse, parse_order


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("", []),
        ("  ", []),
        ("status = 'OK'", [Clause("attribute", "state", "=", "OK")]),
        ("trace.Status = \"OK\"", [Clause("attribute", "state", "=", "OK")]),
        ("attributes.`execution_time` >= 1.5", [Clause("attribute", "execution_time_ms", ">=", 1.5)]),
        ("timestamp <> 5", [Clause("attribute", "timestamp_ms", "!=", 5)]),
        ("timestamp_ms > '1970-01-01T00:00:01Z'", [Clause("attribute", "timestamp_ms", ">", 1000)]),
        ("tags.`a b`.c IS NOT NULL", [Clause("tag", "a b.c", "IS NOT NULL", None)]),
        ('tag."x" = \'it\'\'s\'', [Clause("tag", "x", "=", "it's")]),
        ("name not in ('a','b')", [Clause("attribute", "name", "NOT IN", ["a", "b"])]),
        (
            "span.attributes.gen_ai.model ILIKE 'GPT%' AND text LIKE '%x%'",
            [
                Clause("span", "attributes.gen_ai.model", "ILIKE", "GPT%"),
                Clause("attribute", "text", "LIKE", "%x%"),
            ],
        ),
        ("feedback.quality <= 0.5", [Clause("feedback", "quality", "<=", 0.5)]),
    ],
)  # fmt: skip
def test_filter(text: str, clauses: list[Clause]) -> None:
    assert parse(text) == clauses


@pytest.mark.parametrize(
    ("text", "at", "said"),
    [
        ("name", 5, "expected an operator, and found 'the end'"),
        ("name =", 7, "Expected a quoted value"),
        ("name = 'a' OR name = 'b'", 12, "joined by AND"),
        ("name = 'a' AND", 15, "expected the name of a field"),
        ("  = 'a'", 3, "expected the name of a field"),
        ("name = 'a'; DROP TABLE spans", 11, "cannot be read"),
        ("name = 'open", 8, "cannot be read"),
        ("planet.x = 'a'", 1, "Invalid entity type 'planet'"),
        ("name = 'a' AND trace.colour = 'a'", 16, "Invalid attribute key 'colour'"),
        ("tag.env  IN ('a')", 10, "Invalid comparator 'IN'"),
        ("name = 5", 8, "a quoted string value"),
        ("timestamp_ms = 'yesterday'", 16, "2026-11-22"),
        ("name IN ('a' 'b')", 14, "in parentheses"),
        ("name RLIKE '('", 12, "regular expression"),
        ("prompt = 'ask'", 10, "name/version"),
        ("name = '\x1b[31m' AND x", 20, "Invalid attribute key 'x'"),
        (f"name = '{'a' * 1000}' OR", 1011, "joined by AND"),
        ("name IN (1, 2)", 9, "a quoted string"),
    ],
)
def test_error_points_at_the_character(text: str, at: int, said: str) -> None:
    """The place is given as a number, and by a mark below the filter, of which a part is shown."""
    with pytest.raises(QueryError) as caught:
        parse(text)
    first, where, shown, mark = str(caught.value).split("\n")
    assert said in first
    assert f"character {at}:" in where
    assert len(shown) < 150
    assert mark.strip() == "^"
    assert "\x1b" not in str(caught.value)
    # What follows the mark's column is what follows in the filter.
    following = text[at - 1 :][:5]
    assert shown[len(mark) - 1 :][: len(following)] == following


def test_mark_below_wide_characters() -> None:
    """They take two columns of a terminal."""
    with pytest.raises(QueryError) as caught:
        parse("name = '漢字' OR name = 'a'")
    mark = str(caught.value).split("\n")[-1]
    assert len(mark) - 3 == len("name = '") + 4 + len("' ")


@pytest.mark.parametrize(
    ("texts", "orders"),
    [
        ([], []),
        (["timestamp DESC", "trace.name"], [Order("timestamp_ms", "DESC"), Order("name", "ASC")]),
        (["status asc", "run_id desc"], [Order("state", "ASC"), Order("run_id", "DESC")]),
        (["experiment_id"], [Order("experiment_id", "ASC")]),
    ],
)
def test_order(texts: list[str], orders: list[Order]) -> None:
    assert parse_order(texts) == orders


@pytest.mark.parametrize("text", ["colour", "request", "tag.env", "name down", "", "text ASC"])
def test_order_that_is_none(text: str) -> None:
    with pytest.raises(QueryError, match="order"):
        parse_order([text])
