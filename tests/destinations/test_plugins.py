"""Destinations of other packages: one is built and installed by pip, then used by its scheme alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lake import Lake
from tracelake import Destination, Sink, TargetError
from tracelake.destinations.targets import parse_target, registered_schemes

from .contract import SinkContract

SOURCE = Path(__file__).parent / "plugin"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the plugin installed in it."""
    source = shutil.copytree(SOURCE, tmp_path_factory.mktemp("source") / "plugin")
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--quiet"]
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--no-cache-dir", "--root-user-action=ignore"]
    command = [*pip, *options, "--target", str(site), str(source)]
    installed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert installed.returncode == 0, installed.stderr
    return site


@pytest.fixture
def plugin(site: Path, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A lake whose processes, and this one, have the plugin."""
    monkeypatch.syspath_prepend(site)
    lake.environ["PYTHONPATH"] = str(site)
    return lake


def stored(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


@dataclass
class Folder:
    """Where the plugin writes."""

    path: Path

    def open(self) -> Sink:
        return parse_target(f"lines://{self.path}").open()

    def numbers(self) -> list[int]:
        return sorted(int(line["span_id"], 16) for line in stored(self.path))


@pytest.mark.usefixtures("plugin")
class TestContract(SinkContract):
    """The suite of the built-in sinks is there for those of plugins."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Folder:
        return Folder(tmp_path / "folder")


APP = """
import sys
import tracelake
destination, = tracelake.set_destination(sys.argv[1])
for name in sys.argv[2:]:
    with tracelake.start_span(name):
        pass
report = tracelake.flush(30)
print(type(destination).__module__, report.delivered, report.quarantined, report.pending)
"""


def test_plugin_is_used_by_its_scheme(plugin: Lake, tmp_path: Path) -> None:
    """From the app, through a shipper process of its own, to the plugin's files."""
    output = plugin.run(APP, f"lines://{tmp_path}/folder", "a", "b")
    plugin.settle()
    assert output == "tracelake_lines 2 0 0\n"
    assert [line["name"] for line in stored(tmp_path / "folder")] == ["a", "b"]
    assert parse_target("lines:///x").target == "lines:///x"
    assert isinstance(parse_target("LINES:///x"), Destination)


@pytest.mark.slow
def test_plugin_may_be_one_of_several_destinations(plugin: Lake, tmp_path: Path) -> None:
    """Beside a table, by the environment alone; each has the span."""
    plugin.environ["TRACELAKE_DESTINATION"] = f"lines://{tmp_path}/folder,{plugin.table}"
    plugin.run("import tracelake\nwith tracelake.start_span('a'): pass")
    assert [row["name"] for row in plugin.rows()] == ["a"]
    assert [line["name"] for line in stored(tmp_path / "folder")] == ["a"]


def test_spans_that_a_plugin_rejects_are_quarantined(plugin: Lake, tmp_path: Path) -> None:
    """The others are delivered, and the report counts both."""
    output = plugin.run(APP, f"lines-picky://{tmp_path}/folder", "good", "bad", "good")
    plugin.settle()
    assert output == "tracelake_lines 2 1 0\n"
    (lane,) = plugin.spool.lanes()
    (quarantine,) = Path(lane.quarantine_dir).iterdir()
    assert "it is bad" in quarantine.read_text()


def test_plugin_that_fails_is_tried_again(plugin: Lake, tmp_path: Path) -> None:
    """By its own TransientDeliveryError, or by an error that it should not raise."""
    output = plugin.run(APP, f"lines-unstable://{tmp_path}/folder", "a")
    plugin.settle()
    assert output == "tracelake_lines 1 0 0\n"
    assert [line["name"] for line in stored(tmp_path / "folder")] == ["a"]
    assert "The first attempt fails." in plugin.log()
    assert "KeyError" in plugin.log()


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("target", "seen", "remedy"),
    [
        ("lines-missing:///x", "'tracelake_lines.not_there:parse' for lines-missing:// cannot be loaded", "uninstall"),
        ("lines-raises:///x", "lines-raises:// failed on 'lines-raises:///x': ZeroDivisionError", "Report it"),
        ("lines-none:///x", "lines-none:// made a NoneType of 'lines-none:///x'", "Report it to its authors."),
        ("lines-raises://u:password@h", "failed on 'lines-raises://***@h'", "Report it"),
    ],
)
def test_broken_plugin_is_named(target: str, seen: str, remedy: str) -> None:
    """And the error is the library's, with what to do."""
    with pytest.raises(TargetError) as raised:
        parse_target(target)
    assert seen in str(raised.value)
    assert remedy in str(raised.value)


def test_broken_plugin_in_the_environment_leaves_the_app_alone(plugin: Lake) -> None:
    """Logged once; the spans wait in the spool."""
    plugin.environ["TRACELAKE_DESTINATION"] = "lines-raises:///x"
    output = plugin.run("import tracelake\nfor _ in range(3):\n    with tracelake.start_span('a'): pass")
    assert output.count("ZeroDivisionError") == 1
    assert len(plugin.records()) == 3


@pytest.mark.usefixtures("plugin")
def test_schemes_of_plugins_are_listed() -> None:
    """In the error for a scheme that there is not."""
    assert {"file", "s3", "lines", "lines-picky"} <= set(registered_schemes())
    with pytest.raises(TargetError, match=r"there are: .*https, lines, lines-missing"):
        parse_target("line:///x")


@pytest.mark.slow
def test_uninstalled_plugin_leaves_its_spans_in_the_spool(plugin: Lake, tmp_path: Path) -> None:
    """Whoever cannot parse the target leaves the lane alone and says why; with the plugin back, it is delivered."""
    target = f"lines://{tmp_path}/folder"
    plugin.run(APP.replace("tracelake.flush(30)", "tracelake.flush(0)"), target, "a", TRACELAKE_SHIPPER="external")
    ship = (sys.executable, "-m", "tracelake", "ship", "--once")
    process = plugin.start(*ship, PYTHONPATH="")
    process.wait(30)
    assert "no destination of that kind is installed" in plugin.output(process)
    assert len(plugin.records()) == 1
    process = plugin.start(*ship)
    assert process.wait(30) == 0, plugin.output(process)
    assert [line["name"] for line in stored(tmp_path / "folder")] == ["a"]
