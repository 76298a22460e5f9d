from __future__ import annotations

import json
import re

import pytest

from tests.cli.commands import Place
from tests.cli.test_main import DOCS
from tests.query.samples import service_span, write_table
from tests.query.test_search import RECORDS, trace_id
from tests.spans.samples import TRACE_ID
from tracelake.cli.traces import info_lines
from tracelake.query.infos import TraceInfo
from tracelake.query.text import display_width
from tracelake.query.tree import Style


def test_traces_prints_two_lines_a_trace_the_newest_first(place: Place) -> None:
    """When, how long, how it ended, what and where; and its id, to be copied, with what was asked."""
    inputs = {"mlflow.spanInputs": {"question": "What is a lake?"}}
    root = service_span(1, "agent", name="answer", attributes=inputs, status_code=2)
    write_table(place.path / "table", [root, service_span(2, "search", parent_span_id=f"{1:016x}")])
    result = place.call("traces", "--target", "./table")
    assert result.code == 0
    assert result.out.splitlines() == [
        "2025-10-09 08:53:20      1 us  ERROR  answer (agent)            2 spans, 1 error",
        f'  {TRACE_ID}  {{"question":"What is a lake?"}}',
    ]
    assert result.err.splitlines()[-1] == "(1 trace)"


def test_traces_json_has_the_documented_fields(place: Place) -> None:
    """One object with a page."""
    write_table(place.path / "table", RECORDS, 2)
    found = json.loads(place.call("traces", "--target", "./table", "--json").out)
    section = DOCS.split("\n## `tracelake traces", 1)[1].split("\n## ", 1)[0]
    for name in [*found, *found["traces"][0], *found["traces"][0]["tokens"]]:
        assert f"`{name}`" in section, name
    first = next(each for each in found["traces"] if each["trace_id"] == trace_id(1))
    assert (first["service_name"], first["metadata"]["mlflow.trace.session"]) == ("agent", "s1")


OPTIONS = {
    "service": ("--service", "search", "--name", "ask"),
    "name": ("--name", "ask", "--user", "ann"),
    "attribute": ("--attribute", "db.rows=3"),
    "tag and session": ("--tag", "team=blue", "--session", "s1"),
    "filter": ("--filter", "tag.team = 'blue'"),
    "time": ("--until", "2025-10-09T08:53:25", "--since", "2025-10-09T08:53:20Z"),
    "state and duration": ("--state", "ok", "--max-duration", "2s", "--min-duration", "0.5s", "--name", "ask"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_find_the_trace(place: Place, options: tuple[str, ...]) -> None:
    """That one alone."""
    write_table(place.path / "table", RECORDS)
    result = place.call("traces", "--target", "./table", *options, "--json")
    assert [each["trace_id"] for each in json.loads(result.out)["traces"]] == [trace_id(1)], result.err


def test_pages_go_on_as_the_command_says(place: Place) -> None:
    """Also from a time that was given as so long ago."""
    write_table(place.path / "table", RECORDS)
    found = []
    more: list[str] = ["--since", "5000d"]
    while more:
        result = place.call("traces", "--target", "./table", "--limit", "2", *more)
        assert result.code == 0, result.err
        found += re.findall(r"^  ([0-9a-f]{32})", result.out, re.MULTILINE)
        asked = re.search(r"ask the same with (.*)", result.err)
        more = asked[1].split() if asked else []
    everything = json.loads(place.call("traces", "--target", "./table", "--json").out)["traces"]
    assert found == [each["trace_id"] for each in everything]
    assert len(found) > 2


def test_a_malformed_filter_points_at_the_character(place: Place) -> None:
    """Exit code 2: the command is wrong."""
    result = place.call("traces", "--filter", "status = 'OK' AND nme = 3")
    assert (result.code, result.out) == (2, "")
    assert result.err.endswith("  status = 'OK' AND nme = 3\n                    ^\n")


@pytest.mark.parametrize(
    "options", [("--attribute", "x"), ("--order-by", "size"), ("--min-duration", "2"), ("--limit", "0")], ids=" ".join
)
def test_a_wrong_option_is_a_wrong_command(place: Place, options: tuple[str, ...]) -> None:
    result = place.call("traces", *options)
    assert (result.code, result.out) == (2, "")
    assert options[0] in result.err


@pytest.mark.parametrize("width", [80, 100, 200])
def test_lines_fit_whatever_the_names_are(width: int) -> None:
    """Wide and combining characters, and what a terminal would obey."""
    odd = "\x1b[31m日本語e\u0301\n" * 30
    info = TraceInfo(TRACE_ID, odd, odd, 2**62, 2**62, "IN_PROGRESS", odd, span_count=10**6, error_count=10**5)
    lines = list(info_lines(info, Style(width=width)))
    assert max(map(display_width, lines)) <= width
    assert all(line.isprintable() for line in lines)
    assert "\x1b[31m" in "".join(info_lines(info, Style(width=width, colour=True)))
