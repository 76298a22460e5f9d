"""The README and the pages of docs/ are true: what they show runs, what they name exists.

Run as a program, it writes the table of docs/settings.md anew.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import tracelake
from tests.lake import Lake
from tests.pages import PAGES, ROOT, Block, blocks, commands
from tracelake.cli import build_parser
from tracelake.databricks.workspace import CATALOG_TOKEN
from tracelake.destinations.resolve import AUTO
from tracelake.destinations.targets import PLUGIN_GROUP, parse_target, registered_schemes
from tracelake.errors import TargetError
from tracelake.query.conditions import EXPERIMENT
from tracelake.settings import Settings
from tracelake.spans.tables import delta_schema
from tracelake.spans.values import DEGRADED_KEY
from tracelake.tracing.propagation import DESTINATION_KEY

BLOCKS = [block for page in PAGES for block in blocks(page)]
RUN = [page for page in PAGES if any(block.runs for block in blocks(page))]

# What looks like a Python name of the package, and is the name of something else.
OTHER_NAMES = {DEGRADED_KEY, DESTINATION_KEY, EXPERIMENT, PLUGIN_GROUP}

SETTINGS = ROOT / "docs" / "settings.md"
_SETTINGS_TABLE = re.compile(r"(?<=<!-- settings: begin -->\n).*?(?=<!-- settings: end -->)", re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def name_of(item: Path | Block) -> str:
    return item.name if isinstance(item, Path) else str(item)


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    text = page.read_text()
    for block in blocks(page):
        text = text.replace(block.text, "")
    return text


def settings_table() -> str:
    """Return the table of all settings, made from their metadata."""
    rows = ["| variable | takes | default | meaning |", "|---|---|---|---|"]
    for item in fields(Settings):
        about = item.metadata
        meaning = re.sub(r"(\w+<[^>]*>)", r"`\1`", about["meaning"])
        rows.append(f"| `{about['variable']}` | {about['kind']} | {_default(item.default)} | {meaning} |")
    return "\n".join(rows) + "\n"


def _default(value: Any) -> str:
    if value in ("", ()):
        return "(none)"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int):
        for size, unit in _UNITS:
            if value >= size and value % size == 0:
                return f"`{value // size}{unit}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


@pytest.mark.parametrize(
    "page",
    [page if page.name == "README.md" else pytest.param(page, marks=pytest.mark.slow) for page in RUN],
    ids=name_of,
)
def test_page_runs(page: Path, lake: Lake) -> None:
    """Every block of a page does what the page says, in the order of the page."""
    expected = sum(block.runs for block in blocks(page))
    del lake.environ["TRACELAKE_DESTINATION"]
    lake.environ |= {
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), lake.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(lake.root)]),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "90",
    }
    process = lake.start(sys.executable, "-m", "tests.pages", str(page))
    code = process.wait(240)
    assert code == 0, lake.output(process)
    assert f"{expected} blocks ran" in lake.output(process)
    lake.settle()


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "python"], ids=name_of)
def test_python_block_is_marked_for_a_reason(block: Block) -> None:
    """A block that does not run has a reason, and is Python all the same."""
    compile(block.text, str(block.page), "exec")
    if block.marker and not block.marker.startswith("file: "):
        assert re.fullmatch(r"not run: \w.{10,}", block.marker), block.marker


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_fence_is_overlooked(page: Path) -> None:
    """The blocks that are found are all the fences of a page, and no marker stands alone."""
    text = page.read_text()
    assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(blocks(page))
    markers = re.findall(r"^<!-- ((?:file|not run|prints|exit|output with)\b.*) -->", text, re.MULTILINE)
    assert markers == [block.marker for block in blocks(page) if block.marker in markers]


def command_lines() -> Iterator[Any]:
    """Yield every command line of tracelake in the pages, in blocks and in sentences."""
    for block in BLOCKS:
        if block.kind == "console":
            lines = [command for command, _ in commands(block)]
        elif block.kind in ("sh", "bash"):
            lines = block.text.replace("\\\n", " ").splitlines()
        else:
            lines = []
        for line in lines:
            found = re.search(r"^(?:[A-Z_]+=\S+ )*tracelake (.*?)(?: > .*)?$", line)
            if found:
                yield pytest.param(found[1], id=f"{block}: {line[:60]}")
    for page in PAGES:
        for text in re.findall(r"`tracelake ([^`\n]*)`", prose(page)):
            yield pytest.param(text, id=f"{page.name}: {text[:60]}")


@pytest.mark.parametrize("line", list(command_lines()))
def test_command_is_one_of_tracelakes(line: str) -> None:
    """Every command line that is shown is understood, as far as it is shown."""
    arguments = [argument for argument in shlex.split(line, comments=True) if argument not in ("&", "...")]
    known = {command for action in build_parser()._actions for command in (action.choices or ())}
    assert arguments
    assert arguments[0] in known | {"--help", "--version", "COMMAND"}
    if len(arguments) == 1 or "COMMAND" in arguments or "--help" in arguments or "--version" in arguments:
        return  # the name of a command in a sentence
    places = {"TRACE_ID": "0" * 32, "TARGET": "./traces", "QUERY": "SELECT 1"}
    parsed = build_parser().parse_args([places.get(argument, argument) for argument in arguments])
    assert callable(parsed.run)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    """Every link to a file or a heading of the repository leads somewhere."""
    for link in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}; there are {sorted(anchors(target))}"


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_can_be_reached() -> None:
    """The index links every page, and the README links the index."""
    index = ROOT / "docs" / "index.md"
    linked = set(_LINK.findall(index.read_text()))
    assert linked == {page.name for page in PAGES} - {"README.md", "index.md"}
    assert "docs/index.md" in _LINK.findall(PAGES[0].read_text())


def test_settings_table_is_that_of_the_code() -> None:
    """docs/settings.md has the name, type, default and meaning of every setting, as the code has them."""
    found = _SETTINGS_TABLE.search(SETTINGS.read_text())
    assert found is not None
    assert found[0] == settings_table(), "write it anew with: python -m tests.test_docs"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_variables_exist(page: Path) -> None:
    """Every variable of tracelake that a page names is a setting."""
    known = {CATALOG_TOKEN, *(item.metadata["variable"] for item in fields(Settings))}
    named = set(re.findall(r"\bTRACELAKE_[A-Z_]*[A-Z]\b(?!\.\.\.)", page.read_text()))
    assert named <= known


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_names_exist(page: Path) -> None:
    """Every `tracelake.name` that a page mentions is there."""
    for name in sorted(set(re.findall(r"(?<![\w./-])tracelake(?:\.[A-Za-z_]\w*)+", page.read_text()))):
        if name not in OTHER_NAMES:
            assert exists(name), f"{page.name} names {name}"


def exists(name: str) -> bool:
    parts = name.split(".")
    found: Any = tracelake
    for index, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part):
            try:
                importlib.import_module(".".join(parts[:index]))
            except ImportError:
                return False
        found = getattr(found, part)
    return True


def test_every_public_name_is_explained() -> None:
    """Each name of `tracelake.__all__` is in some page, or in the tree of errors."""
    text = "".join(page.read_text() for page in PAGES)
    errors = ast.get_docstring(ast.parse((ROOT / "src/tracelake/errors.py").read_text())) or ""
    missing = [name for name in tracelake.__all__ if not re.search(rf"\b{name}\b", text + errors)]
    assert missing == []


def test_named_tests_exist() -> None:
    """A promise that names its proof names a test that there is."""
    known = set()
    for path in (ROOT / "tests").rglob("*.py"):
        known |= {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text())}
    assert len(named) > 20
    assert named - known == set()


def test_named_files_exist() -> None:
    """A path of the repository that a page names is there."""
    for page in PAGES:
        for path in re.findall(r"`((?:src|tests|config|benchmarks|docs)/[\w./-]*)`", prose(page)):
            assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_pages_that_the_code_names_exist() -> None:
    """An error or a docstring that sends its reader to a page names one that there is."""
    named = set()
    for path in (ROOT / "src").rglob("*.py"):
        named |= set(re.findall(r"\bdocs/[\w-]+\.md", path.read_text()))
    assert named
    assert {path for path in named if not (ROOT / path).is_file()} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_exist(page: Path) -> None:
    """A target of make that a page names is in the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)(?:`|\s+#)", page.read_text(), re.MULTILINE)) <= targets


@pytest.mark.parametrize("version", [1, 2])
def test_columns_are_those_of_the_code(version: Any) -> None:
    """docs/tables.md has the columns of both versions, in their order and types."""
    names = {"string": "STRING", "integer": "INT", "long": "BIGINT", "timestamp": "TIMESTAMP", "date": "DATE"}
    names |= {"variant": "A", "map": "A", "array": "ARRAY of STRUCT", "struct": "STRUCT"}
    expected = []
    for field in delta_schema(version)["fields"]:
        kind = field["type"] if isinstance(field["type"], str) else field["type"]["type"]
        expected.append((field["name"], names[kind]))
    rows = re.findall(r"^\| `(\w+)` \| ([\w -]+) \| ([\w -]+) \|", (ROOT / "docs/tables.md").read_text(), re.MULTILINE)
    columns = [(row[0], row[version]) for row in rows if row[1] in {*names.values(), "-"}]
    assert [(name, kind) for name, kind in columns if kind != "-"] == expected


def test_targets_are_those_of_the_code() -> None:
    """docs/destinations.md says of every example of a target whether it is understood today, and names every scheme."""
    table = (ROOT / "docs/destinations.md").read_text().partition("| target |")[2].partition("\n\n")[0]
    schemes = set()
    for cell, today in re.findall(r"^\| (.*?) \| .* \| (yes|not yet|never) \|$", table, re.MULTILINE):
        for target in re.findall(r"`([^`]+)`", cell):
            if target in ("scheme://...", AUTO):
                continue
            if today == "yes":
                assert parse_target(target).target
            else:
                with pytest.raises(TargetError, match="no destination of that kind is installed"):
                    parse_target(target)
            schemes.add(target.partition("://")[0])
    assert set(registered_schemes()) <= schemes


def test_make_docs_runs_these_tests() -> None:
    """`make docs` does what its help says."""
    recipe = subprocess.run(["make", "-n", "docs"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "tests/test_docs.py" in recipe


if __name__ == "__main__":
    SETTINGS.write_text(_SETTINGS_TABLE.sub(lambda _: settings_table(), SETTINGS.read_text()))
