"""The pages of documentation: their code blocks, and a program that runs those of one page in order.

What a fence and the HTML comment before it mean:

- `python`: runs, all blocks of a page in one process; with `<!-- not run: REASON -->` it is only compiled.
- any kind after `<!-- file: NAME -->`: is written to that file, and does not run.
- `text` after `<!-- prints -->`: what the block before it prints.
- `console`: every `$ command` runs, and prints what follows it. A command that ends in ` &` is a server, which is ended
  with the page; `<!-- exit: N -->` is the exit code of the block's last command. After `<!-- output with: MODULE -->`,
  what commands print is only looked at where there is such a module: older versions of its package print other things.
- `sh`, `yaml` and others do not run; commands of tracelake in them are parsed.

In what is printed, white space is not looked at, `...` stands for anything, and ids, times and dates for others of
their kind. A trace id that was
printed is the one meant where a later command names it. Port 8000 is a free port of the machine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import socket
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Reference pages whose commands name tables and lanes that are not there; tests/cli runs each of them.
PARSED_ONLY = ("cli.md", "spool-format.md")

_FENCE = re.compile(
    r"^(?:<!-- (?P<marker>[^\n]*) -->\n)?```(?P<kind>[a-z]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_VARYING = re.compile(
    r"(?P<id>\b[0-9a-f]{32}\b)"
    r"|(?P<time>\b\d+(?:\.\d+)? (?:ns|us|ms|s)\b)"
    r"|(?P<date>\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?)"
    r"|(?P<any>\.\.\.)"
)
# What commands say on slow machines, so that one sees that they go on.
PROGRESS = re.compile(r"^tracelake: [a-z].*, \d[\d.]* (?:ms|s|min)\b.*\n", re.MULTILINE)
_READING = re.compile(r"tracelake (show|sql|status)\b")
_PORT = re.compile(r"(?<=127\.0\.0\.1:)8000\b|(?<=--port )8000\b")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page; `line` is that of its first line of text, counted from 1."""

    page: Path
    line: int
    kind: str
    marker: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def runs(self) -> bool:
        """Whether the page's program does something with it."""
        return (
            (self.kind == "console" and self.page.name not in PARSED_ONLY)
            or (self.kind == "python" and not self.marker.startswith("not run: "))
            or self.marker == "prints"
            or self.marker.startswith("file: ")
        )


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, match.start("text")) + 1, match["kind"], match["marker"] or "", match["text"])
        for match in _FENCE.finditer(text)
    ]


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Yield (command, what it prints) of a `console` block."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        lines = part.split("\n")
        last = next(index for index, line in enumerate(lines) if not line.endswith("\\"))
        yield " ".join(line.rstrip("\\").strip() for line in lines[: last + 1]), "\n".join(lines[last + 1 :])


class _Run:
    """The run of one page, in the current directory."""

    def __init__(self) -> None:
        self.module = types.ModuleType("__main__")
        sys.modules["__main__"] = self.module
        self.printed = ""
        self.ids: dict[str, str] = {}
        self.servers: list[subprocess.Popen[bytes]] = []
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = str(probe.getsockname()[1])

    def run(self, block: Block) -> None:
        if block.marker == "prints":
            self.expect(block.text, self.printed)
        elif block.kind == "console":
            steps = list(commands(block))
            kind, _, value = block.marker.partition(": ")
            code = int(value) if kind == "exit" else 0
            compared = kind != "output with" or _is_there(value)
            for index, (command, printed) in enumerate(steps):
                self.command(command, printed if compared else "", code if index == len(steps) - 1 else 0)
        elif block.marker.startswith("file: "):
            path = Path(block.marker.removeprefix("file: "))
            path.write_text(self.here(block.text))
            if path.name == "pyproject.toml":
                _install(block.text)
        else:
            source = "\n" * (block.line - 1) + self.here(block.text)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(source, str(block.page), "exec", dont_inherit=True), self.module.__dict__)
            self.printed = printed.getvalue()

    def command(self, command: str, printed: str, code: int) -> None:
        command = self.here(command)
        if command.endswith(" &"):
            self.serve(command.removesuffix(" &"))
            return
        deadline_s = time.monotonic() + 30
        while True:
            done = subprocess.run(
                ["/bin/sh", "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            try:
                assert done.returncode == code, f"{command}: exit code {done.returncode}\n{done.stdout}"
                if printed.strip():
                    self.expect(printed, PROGRESS.sub("", done.stdout))
                return
            except AssertionError:
                # What another process recorded a moment ago is on its way to the table.
                if not _READING.match(command) or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.1)

    def serve(self, command: str) -> None:
        server = subprocess.Popen(["/bin/sh", "-c", f"exec {command}"], stdin=subprocess.DEVNULL)
        self.servers.append(server)
        # What it says where it is comes after it listens.
        _, redirected, output = command.partition(" > ")
        deadline_s = time.monotonic() + 60
        while True:
            assert server.poll() is None, f"{command} ended with {server.returncode}"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(self.port)), 1):
                if not redirected or os.path.getsize(output):
                    return
            assert time.monotonic() < deadline_s, f"{command} does not listen on port {self.port}"
            time.sleep(0.05)

    def expect(self, expected: str, printed: str) -> None:
        names: list[str] = []

        def varying(match: re.Match[str]) -> str:
            if match.lastgroup == "id":
                names.append(match[0])
                return "\x01([0-9a-f]{32})\x01"
            other = {"time": r"\d+(?:\.\d+)? (?:ns|us|ms|s)", "date": r"[\d :.-]+", "any": ".*?"}
            return f"\x01{other[match.lastgroup or '']}\x01"

        parts = _VARYING.sub(varying, _plain(expected)).split("\x01")
        pattern = "".join(part if index % 2 else re.escape(part) for index, part in enumerate(parts))
        match = re.fullmatch(pattern, _plain(printed))
        assert match is not None, f"printed:\n{printed}\ninstead of:\n{expected}"
        self.ids.update(zip(names, match.groups(), strict=True))

    def here(self, text: str) -> str:
        for name, trace_id in self.ids.items():
            text = text.replace(name, trace_id)
        return _PORT.sub(self.port, text)

    def close(self) -> None:
        for server in self.servers:
            server.terminate()
            server.wait(15)


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package
        return False


def _install(project: str) -> None:
    """Do what `pip install` would do for the entry points of a project: write them down beside its modules."""
    name, version = (re.search(rf'^{key} = "(.*)"', project, re.MULTILINE) for key in ("name", "version"))
    groups = re.findall(r'^\[project\.entry-points\."(.*)"\]\n((?:.+\n)+)', project, re.MULTILINE)
    assert name
    assert version
    assert groups
    folder = Path(f"{name[1].replace('-', '_')}-{version[1]}.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name[1]}\nVersion: {version[1]}\n")
    entry_points = "".join(f"[{group}]\n{points}" for group, points in groups)
    (folder / "entry_points.txt").write_text(entry_points.replace('"', ""))


def _plain(text: str) -> str:
    """Return a text without what only its layout needs: line breaks, indents, and the lines under headings."""
    return " ".join(re.sub(r"-{3,}", "---", text).split())


def run(page: Path) -> int:
    """Run a page in the current directory; return how many blocks ran."""
    sys.path.insert(0, os.getcwd())
    count = 0
    current = _Run()
    try:
        for block in filter(lambda block: block.runs, blocks(page)):
            try:
                current.run(block)
            except BaseException:
                print(f"In the block at {block}:", file=sys.stderr)
                raise
            count += 1
    finally:
        current.close()
    if "tracelake" in sys.modules:
        report = sys.modules["tracelake"].flush(20)
        assert not report.dropped, report
        assert not report.quarantined, report
    return count


if __name__ == "__main__":
    print(run(Path(sys.argv[1])), "blocks ran")
