"""docs/troubleshooting.md has a heading for each code that a finding can have, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

from tracelake.destinations.base import Finding

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [ROOT / "src/tracelake" / path for path in ("destinations", "cli")]
POSITION = list(signature(Finding).parameters).index("code")

# Codes that are no literals where a finding is made, and what they stand for.
COMPUTED = {"kind": {"catalog", "schema", "table"}, "finding.code": set()}


def codes() -> Iterator[str]:
    """Yield the code of each `Finding(...)` in the source."""
    for path in (path for source in SOURCES for path in source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                code = given.get("code") or node.args[POSITION]
                yield from [code.value] if isinstance(code, ast.Constant) else COMPUTED[ast.unparse(code)]


def test_every_code_has_a_heading() -> None:
    """And every heading of a code is one that the code has."""
    headings = re.findall(r"^### `([a-z-]+)`$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert set(headings) == set(codes())
