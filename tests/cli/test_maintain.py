"""`tracelake optimize`, `vacuum` and `retention`, as a person and as a program use them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import msgspec
import pytest

from tests.cli.commands import Place
from tests.cli.test_main import DOCS
from tests.destinations.contract import batch
from tests.numbered import numbers, record
from tracelake.cli import main
from tracelake.destinations.delta import DeltaSink
from tracelake.testing import MockWorkspace

COMMANDS = (["optimize"], ["vacuum"], ["retention", "--days", "30"])
COMMAND = pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])

DAY_NS = 86_400 * 10**9


@pytest.fixture
def table(place: Place) -> str:
    """A table of four files, with a span of each of 100, 50, 10 and 0 days ago, numbered from 1."""
    path = str(place.path / "traces")
    sink = DeltaSink(path, version=1, create=True)
    for number, days in enumerate((100, 50, 10, 0), start=1):
        start = time.time_ns() - days * DAY_NS
        span = msgspec.structs.replace(record(number), start_time_unix_nano=start, end_time_unix_nano=start + 1)
        sink.write(batch(number, [span]))
    return path


def test_commands_say_what_they_did(table: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And what they left, within 80 columns."""
    assert main(["optimize", table]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"\n  4 files, .* -> 1 file, .*\n  the old files stay on disk until `tracelake vacuum`\n", shown)
    assert re.search(r"\n  version \d+, \d+", shown)
    assert main(["optimize", table]) == 0
    shown += capsys.readouterr().out
    assert ": nothing to put together" in shown
    assert main(["retention", "--days", "30", table, "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert re.search(r"dry run.*\n  2 spans that started before .* UTC would be removed\n", dry)
    assert numbers(table) == [1, 2, 3, 4]
    assert main(["retention", "--days", "30", table]) == 0
    shown += dry + capsys.readouterr().out
    assert " UTC removed\n" in shown
    assert numbers(table) == [3, 4]
    assert main(["retention", "--days", "30", table]) == 0
    assert "no span started before" in capsys.readouterr().out
    assert main(["vacuum", table]) == 0
    vacuumed = capsys.readouterr().out
    assert "\n  0 files deleted\n  files that were needed within 168 hours stay" in vacuumed
    assert all(len(line) <= 80 for line in (shown + vacuumed).replace(table, "").splitlines())


def test_commands_print_json(table: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the fields of docs/cli.md; the table is the one that the environment names."""
    monkeypatch.setenv("TRACELAKE_DESTINATION", table)
    assert main(["optimize", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    section = DOCS.partition("\n## `tracelake optimize")[2].partition("\n## `tracelake vacuum")[0]
    assert [name for name in report if f"`{name}`" not in section] == []
    assert report["target"] == table
    assert (report["done"], report["files_before"], report["files_after"], report["rows_removed"]) == (True, 4, 1, 0)
    assert main(["retention", "--days", "30", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows_removed"] == 2
    assert main(["vacuum", "--dry-run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["done"], report["dry_run"], report["files_deleted"]) == (False, True, 0)


@pytest.fixture
def workspace(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[MockWorkspace]:
    """A workspace whose administrator this process is."""
    assert place.path
    with MockWorkspace() as made:
        made.create_schema("main.obs")
        for name, value in made.environment().items():
            monkeypatch.setenv(name, value)
        yield made


@COMMAND
def test_table_that_databricks_maintains_is_left_alone(
    workspace: MockWorkspace, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0, and the reason."""
    workspace.create_table("main.obs.spans")
    assert main([*command, "main.obs.spans"]) == 0
    assert "uc://main.obs.spans: nothing done, since it is managed, and Databricks" in capsys.readouterr().out
    assert main([*command, "main.obs.spans", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["done"], "managed" in report["reason"]) == (False, True)


@COMMAND
@pytest.mark.parametrize("target", ["otlp+http://127.0.0.1:4318", "http://127.0.0.1:5000"])
def test_spans_that_a_server_keeps_are_its_own(
    place: Place, command: list[str], target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without asking it anything."""
    assert place.path
    assert main([*command, target]) == 1
    assert "is no Delta table that tracelake writes to itself" in capsys.readouterr().err


@COMMAND
def test_missing_table_is_an_error(place: Place, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It says where was looked."""
    assert main([*command, str(place.path / "nowhere")]) == 1
    assert f"There is no table at {place.path}/nowhere." in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--days", "0"], ["--days", "x"], []])
def test_retention_needs_a_number_of_days(place: Place, arguments: list[str]) -> None:
    """One day or more; nothing is removed by a slip."""
    assert place.path
    with pytest.raises(SystemExit) as ended:
        main(["retention", *arguments])
    assert ended.value.code == 2
