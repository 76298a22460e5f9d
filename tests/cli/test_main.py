from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tracelake
from tests.cli.commands import Place
from tests.query.samples import write_table
from tests.spans.samples import TRACE_ID, span
from tracelake.cli import build_parser

DOCS = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
COMMANDS = (
    *("create-table", "demo", "doctor", "optimize", "redirect", "retention", "ship", "show", "sql", "stats"),
    *("status", "tail", "traces", "ui", "vacuum", "workspace"),
)


def test_the_commands_are_the_ones_tested_here() -> None:
    """So that none goes without help and documentation."""
    assert sorted(set(re.findall(r"^    ([\w-]+)  ", build_parser().format_help(), re.MULTILINE))) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example_and_a_section_in_the_docs(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The help fits a terminal of 100 columns, and its options are documented."""
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"examples:\n  tracelake {command}" in text
    assert f"\n## `tracelake {command}" in DOCS
    section = DOCS.split(f"\n## `tracelake {command}", 1)[1].split("\n## ", 1)[0]
    for option in set(re.findall(r"(?<![\w-])--[a-z-]+", text)) - {"--help"}:
        assert option in section, option
    assert max(map(len, text.splitlines())) <= 100


def test_the_version_is_that_of_the_package(place: Place) -> None:
    """On stdout."""
    assert place.run("--version").out == f"tracelake {tracelake.__version__}\n"


def test_no_command_prints_help_and_is_wrong_usage(place: Place) -> None:
    """Exit code 2, as for every wrong command line."""
    result = place.run()
    assert (result.code, result.out) == (2, "")
    assert "tracelake demo" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "invalid choice"),
        (["show"], "TRACE_ID"),
        (["show", "xyz"], "is not a trace id"),
        (["show", TRACE_ID, "--target", "ftp://x"], "no destination of that kind"),
        (["sql"], "QUERY"),
        (["redirect", "lane", "not a target"], "neither a path, nor a table name"),
    ],
)
def test_wrong_usage_ends_with_code_2_and_says_what_is_wrong(place: Place, arguments: list[str], message: str) -> None:
    """Nothing is on stdout."""
    result = place.run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


@pytest.mark.parametrize("arguments", [["show", TRACE_ID], ["sql", "FROM spans"]])
def test_an_environment_that_names_a_wrong_destination_fails_with_its_name(
    place: Place, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable is what has to be mended."""
    monkeypatch.setenv("TRACELAKE_DESTINATION", "ftp://x/y")
    result = place.run(*arguments)
    assert result.code == 1
    assert result.err.startswith("tracelake: TRACELAKE_DESTINATION: The target 'ftp://x/y'")


def test_a_reader_that_closes_the_pipe_is_no_error(place: Place) -> None:
    """As with `| head`."""
    write_table(place.path / "table", [span(number) for number in range(1, 5_000)])
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "tracelake", "show", TRACE_ID, "--target", "./table"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    # On a slow machine it says how long the reading takes.
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if not line.startswith("tracelake: reading ")] == []


def test_output_that_the_stream_cannot_encode_is_escaped(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a POSIX locale, too."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    write_table(place.path / "table", [span(1, name="größe"), span(2, parent_span_id=f"{1:016x}")])
    result = place.run("show", TRACE_ID, "--target", "./table")
    assert result.code == 0
    assert r"gr\xf6\xdfe" in result.out
    assert "`- span 2" in result.out


def test_the_command_line_imports_nothing_heavy_before_it_is_needed(place: Place) -> None:
    """`tracelake status` and every help is quick."""
    heavy = {"pyarrow", "deltalake", "duckdb", "fastapi", "uvicorn", "requests"}
    program = f"import sys, tracelake.cli; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=place.path)
    assert done.stdout == "set()\n"
