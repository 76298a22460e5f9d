"""Names of tables: which there can be, and that none gets out of its quotes in SQL, a URL, a header or a command."""

from __future__ import annotations

import re
import shlex
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlglot import exp, parse_one

from tracelake import TargetError
from tracelake.databricks.names import TableName, in_url, literal, parse_parts, quoted, readable
from tracelake.destinations.base import digest
from tracelake.destinations.targets import parse_target, parse_targets, split_targets
from tracelake.destinations.unity.create import TableRequest
from tracelake.destinations.unity.destination import UnityCatalogDestination

# Each can be part of a name, and would mean something else where it is not quoted.
WEIRD = [
    "it's",
    'a"b',
    "back`tick",
    "``",
    "a--b",
    "*",
    "a;DROP",
    "größe",
    "你好",
    "\U0001f600",
    "%2e%2e",
    "a%2Fb",
    "a?b#c",
    "a&b=c",
    "$HOME",
    "$(id)",
    "a|b",
    "a\\b",
    "a:b",
    "a@b",
    "a,b",
    "-rf",
    "a" * 255,
]
# No catalog has these, whether they are quoted or not.
IMPOSSIBLE = ["a b", "a.b", "a/b", "../etc", "..", "a\nb", "a\tb", "a\x00b", "a\x7fb", "a\u2028b", "a" * 256, "\ud800"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("main.obs.spans", ["main", "obs", "spans"]),
        ("`main`.`obs`.`spans`", ["main", "obs", "spans"]),
        ("`a``b`.obs.````", ["a`b", "obs", "`"]),
        ("main.my-schema.größe", ["main", "my-schema", "größe"]),
        ("main", ["main"]),
    ],
)
def test_name_is_parsed(text: str, parts: list[str]) -> None:
    """With and without backticks, of which two are one."""
    assert parse_parts(text) == parts


@pytest.mark.parametrize(
    "text",
    ["", ".", "main.", ".obs", "main..spans", "``.obs.spans", "`main.obs", "main`.obs", "`a`b.obs", "a`b`"],
)
def test_name_of_no_form_is_refused(text: str) -> None:
    """With what to write instead."""
    with pytest.raises(TargetError, match=r"is not a name of Unity Catalog: .*(Write catalog|Separate the parts)"):
        parse_parts(text)


@pytest.mark.parametrize("part", IMPOSSIBLE, ids=ascii)
def test_name_that_no_catalog_has_is_refused(part: str) -> None:
    """Before anybody is asked for it, also in backticks."""
    with pytest.raises(TargetError, match=r"(no name in Unity Catalog|at most 255)") as raised:
        parse_parts(f"main.`{part}`.spans")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 600
    with pytest.raises(TargetError):
        parse_target(f"uc://main.`{part}`.spans")
    with pytest.raises(TargetError):
        parse_target(f"main.`{part}`.spans")


@pytest.mark.parametrize("part", WEIRD, ids=ascii)
def test_weird_name_is_a_target(part: str) -> None:
    """In any part, and its own name means the same again."""
    for name in (TableName(part, "obs", "spans"), TableName("main", part, "spans"), TableName("main", "obs", part)):
        destination = parse_target(name.sql)
        assert isinstance(destination, UnityCatalogDestination)
        assert destination.name == name
        assert parse_target(destination.target) == destination
        assert destination.target == f"uc://{readable(name.catalog, name.schema, name.table)}"


def test_plain_name_has_no_backticks() -> None:
    """As people write it: in targets, messages and commands."""
    assert parse_target("`main`.obs.spans").target == "uc://main.obs.spans"
    assert parse_target("UC://main.obs.spans").target == "uc://main.obs.spans"
    assert readable("main", "my-obs", "größe") == "main.`my-obs`.`größe`"


def test_schema_is_the_table_that_mlflow_has_there() -> None:
    """MLflow means it by the schema alone."""
    assert parse_target("main.obs").target == "uc://main.obs.mlflow_experiment_trace_otel_spans"
    for text in ("uc://main", "uc://a.b.c.d"):
        with pytest.raises(TargetError, match=r"has \d parts\. Write 'catalog\.schema\.table'"):
            parse_target(text)


def test_however_a_table_is_written_it_has_one_digest() -> None:
    """Services compare digests to know that they record to the same table."""
    same = ["main.obs.spans", "uc://main.obs.spans", "`main`.`obs`.`spans`", "uc://`main`.obs.spans"]
    assert len({digest(parse_target(text)) for text in same}) == 1
    assert parse_targets(same) == (parse_target("main.obs.spans"),)
    assert digest(parse_target("main.obs.spans")) != digest(parse_target("main.obs.other"))


@given(st.text(alphabet=st.sampled_from("ab1_-.`:\\/' \u00e9"), min_size=1, max_size=12))
@example("a.b.`c.d`")
@example("a.`b``c`")
def test_text_is_a_name_with_its_scheme_if_it_is_one_without(text: str) -> None:
    """The grammar of targets takes nothing for a table's name that is none, and means the same by it."""
    try:
        destination = parse_target(text)
    except TargetError:
        return
    if isinstance(destination, UnityCatalogDestination):
        assert parse_target(f"uc://{text.strip()}") == destination


def test_comma_in_a_variable_ends_a_target() -> None:
    """So a name with a comma is refused there, and never taken for two others."""
    for text in split_targets("main.obs.`a,b`"):
        with pytest.raises(TargetError):
            parse_target(text)


parts = st.text(min_size=1, max_size=20)
weird_parts = st.text(alphabet=st.sampled_from("ab_`'\"\\;-.%/*?#@:,$ \n\u00e9\u4f60\x00"), min_size=1, max_size=8)


@given(st.lists(st.one_of(parts, weird_parts), min_size=1, max_size=3))
@example(["a`.`b"])
@example(["`"])
def test_quoted_name_is_parsed_back_by_a_sql_parser(names: list[str]) -> None:
    """Whatever it holds: one identifier for each part, the very same."""
    if any(not name.isprintable() for name in names):
        return  # no such name gets as far as SQL
    table = parse_one(f"SELECT 1 FROM {quoted(*names)}", dialect="databricks").find(exp.Table)
    assert table is not None
    assert [part.name for part in table.parts] == names


@given(st.one_of(parts, weird_parts, st.sampled_from(WEIRD)))
@example("\\'; DROP TABLE x --")
@example("\\")
def test_literal_is_one_string_to_a_sql_parser(text: str) -> None:
    """Whatever it holds."""
    if not text.isprintable():
        return
    expression = parse_one(f"SELECT {literal(text)}", dialect="databricks").expressions[0]
    assert isinstance(expression, exp.Literal)
    assert expression.this == text


@given(weird_parts, weird_parts, weird_parts)
@example("%2e%2e", "a%2Fb", "..")
def test_what_is_understood_is_one_segment_of_a_url_and_one_argument(first: str, second: str, third: str) -> None:
    """No name leads a URL's path elsewhere, and none is more than one word to a shell."""
    try:
        destination = parse_target(quoted(first, second, third))
    except TargetError:
        return
    assert isinstance(destination, UnityCatalogDestination)
    name = destination.name
    assert (name.catalog, name.schema, name.table) == (first, second, third)
    assert parse_target(destination.target) == destination
    segment = in_url(first, second, third)
    assert re.fullmatch(r"(?:[A-Za-z0-9_.~-]|%[0-9A-F]{2})+", segment)
    assert unquote(segment) == str(name)
    assert shlex.split(f"tracelake doctor {name.argument}")[2:] == [readable(first, second, third)]


@pytest.mark.parametrize("part", WEIRD, ids=ascii)
def test_every_statement_for_a_weird_name_is_one_statement(part: str) -> None:
    """With that name for the table, its schema, its catalog, its location and who is granted."""
    request = TableRequest(TableName(part, part, part), location=f"s3://lake/{part}", writers=[part])
    statements = list(request.statements())
    created = parse_one(statements[0], dialect="databricks")
    table = created.find(exp.Table)
    assert table is not None
    assert [each.name for each in table.parts] == [part] * 3
    location = created.find(exp.LocationProperty)
    assert location is not None
    assert location.this.this == f"s3://lake/{part}"
    assert len(statements) == 5
    for statement in statements[1:]:
        assert statement.endswith(f" TO {quoted(part)}")
