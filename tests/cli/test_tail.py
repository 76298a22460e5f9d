from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.cli.commands import Place
from tests.cli.test_main import DOCS
from tests.query.samples import full_span, service_span, write_table
from tests.spans.samples import TRACE_ID, span
from tracelake.cli.tail import span_line
from tracelake.query.text import display_width
from tracelake.query.tree import Style


@contextmanager
def tail(path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `tracelake tail` on ./table until the with-block ends; it looks every 20 ms, and waits when this begins."""
    command = [sys.executable, "-m", "tracelake", "tail", "--target", "./table", "--interval", "20ms", *arguments]
    process = subprocess.Popen(command, cwd=path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert "waiting for" in line_of(process.stderr)
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def line_of(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline()


def test_tail_prints_roots_as_they_land_until_it_is_interrupted(place: Place) -> None:
    """From a table that is not there yet; children are not printed, and rows from before neither."""
    with tail(place.path) as process:
        write_table(place.path / "table", [service_span(1, "agent"), span(2, parent_span_id=f"{1:016x}")])
        assert line_of(process.stdout) == f"08:53:20      1 us  {TRACE_ID}  span 1 (agent)\n"
        write_table(place.path / "table", [full_span(3)], number=2)
        assert line_of(process.stdout).endswith(f"{TRACE_ID}  ERROR span 3 (search)\n")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (130, "", "tracelake: interrupted\n")


def test_tail_prints_the_spans_that_are_asked_for_as_json(place: Place) -> None:
    """With the fields of a span, and ends when nobody reads any more."""
    write_table(place.path / "table", [span(1)], 2)
    asked = ("--spans", "--service", "search", "--errors", "--text", "QUOTE", "--json")
    with tail(place.path, *asked) as process:
        others = [service_span(2, "search"), service_span(3, "other", status_code=2)]
        others.append(service_span(4, "search", status_code=2))
        write_table(place.path / "table", [*others, full_span(5)], 2, number=2)
        found = json.loads(line_of(process.stdout))
        assert (found["name"], found["attributes"]["count"]) == ("span 5", 3)
        assert process.stdout is not None
        process.stdout.close()
        write_table(place.path / "table", [full_span(6)], 2, number=3)
        assert process.wait(timeout=30) == 0


def test_a_destination_that_is_no_table_fails_with_what_to_do(place: Place) -> None:
    """At once."""
    result = place.run("tail", "--target", "http://127.0.0.1:9/v1/traces")
    assert result.code != 0
    assert "--target" in result.err


def test_lines_of_odd_names_are_safe_and_fit() -> None:
    """A name that a terminal would obey, and wide characters."""
    odd = service_span(1, "検索" * 50, name="\x1b[31m\u0301日本語" * 20)
    line = span_line(odd, Style(width=80))
    assert display_width(line) <= 80
    assert "\x1b" not in line
    assert TRACE_ID in line


def test_documentation_says_what_tail_prints() -> None:
    """By reference to a span's fields."""
    section = DOCS.split("\n## `tracelake tail", 1)[1].split("\n## ", 1)[0]
    for option in ("--spans", "--service", "--errors", "--text", "--interval", "--json"):
        assert f"`{option}" in section, option
