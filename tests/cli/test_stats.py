from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.commands import Place
from tests.cli.test_main import DOCS
from tests.query.samples import write_table
from tests.query.test_stats import RECORDS
from tracelake.query.text import display_width

WINDOW = ("--since", "2025-10-09T08:53:20Z", "--until", "2025-10-09T10:33:20+01:00")


def run(place: Place, *arguments: str) -> Any:
    return place.call("stats", "--target", "./table", *WINDOW, *arguments)


def test_stats_prints_a_table_by_service_name_and_model(place: Place) -> None:
    """With the time that it looked at, in 80 columns."""
    write_table(place.path / "table", RECORDS, 2)
    result = run(place)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "107 rows of spans from 2025-10-09 08:53:20 to 2025-10-09 09:33:20 UTC, 40 m 00 s"
    assert [line.split() for line in lines if line.startswith(("service", "search", "find"))] == [
        ["service", "spans", "rate", "errors", "p50", "p95", "p99"],
        ["search", "100", "2.5/m", "5.0%", "0", "us", "0", "us", "0", "us"],
        ["find", "100", "2.5/m", "5.0%", "0", "us", "0", "us", "0", "us"],
    ]
    assert next(line for line in lines if line.startswith("large")).split()[-3:] == ["10", "4", "$0.25"]
    assert "\x1b" not in result.out
    assert max(map(display_width, lines)) <= 80


@pytest.mark.parametrize("by", [None, "service", "name", "model"])
def test_stats_json_has_the_documented_fields(place: Place, by: str | None) -> None:
    """One object."""
    write_table(place.path / "table", RECORDS)
    found = json.loads(run(place, "--json", *(["--by", by] if by else [])).out)
    section = DOCS.split("\n## `tracelake stats", 1)[1].split("\n## ", 1)[0]
    groups = [key for key in found if isinstance(found[key], list)]
    assert groups == ([f"{by}s"] if by else ["services", "names", "models"])
    for name in [*found, *found[groups[-1]][0], *(found[groups[-1]][0]["tokens"] or {})]:
        assert f"`{name}`" in section, name
    first = found[groups[0]][0]
    assert first["rate"] == pytest.approx(first["spans"] / 2_400)


def test_limit_says_how_many_are_left_out(place: Place) -> None:
    write_table(place.path / "table", RECORDS)
    lines = run(place, "--by", "name", "--limit", "1").out.splitlines()
    assert lines[-1] == "(3 more; see them with --limit)"
    assert len(lines) == 5


def test_no_spans_in_the_time_says_where_to_look(place: Place) -> None:
    """The last hour, if nothing else is asked for."""
    write_table(place.path / "table", RECORDS)
    result = place.call("stats", "--target", "./table")
    assert result.code == 0
    assert result.out.startswith("No span started from ")
    assert "--since 7d" in result.out


@pytest.mark.parametrize("since", ["5x", "yesterday", "2026-13-01", "-1h"])
def test_a_wrong_time_is_a_wrong_command(place: Place, since: str) -> None:
    """Exit code 2, and how a time is written."""
    result = place.call("stats", f"--since={since}")
    assert (result.code, result.out) == (2, "")
    assert "2026-01-31T12:00" in result.err
