"""A headless Chromium, driven by the DevTools protocol: https://chromedevtools.github.io/devtools-protocol/."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lake import wait_until

# The binary is inside this package, so that npm alone is enough.
_PACKAGE, _VERSION = "@sparticuz/chromium", "153.0.0"
_INSTALLED = Path.home() / ".cache" / "tracelake-tests" / f"chromium-{_VERSION}"
_COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

_UNPACK = """
const fs = require("fs"), zlib = require("zlib");
const [bin] = process.argv.slice(1);
for (const name of fs.readdirSync(bin).filter(name => name.endsWith(".br")))
  fs.writeFileSync(`${bin}/${name.slice(0, -3)}`, zlib.brotliDecompressSync(fs.readFileSync(`${bin}/${name}`)));
"""

# The fonts of the package, in place of those of a machine that has none.
_FONTS = '<fontconfig><dir prefix="relative">fonts</dir></fontconfig>'

# It listens on no port: it takes commands from file 3 and answers on file 4, and ends when they are closed,
# so also with a test process that is killed.
_OPTIONS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--window-size=2200,1000",
)

# Descriptors have other numbers in the test process, and a shell takes those of one digit only.
_START = """
import os, sys
for number, given in enumerate(map(int, sys.argv[1:3]), 3):
    os.dup2(given, number)
os.execv(sys.argv[3], sys.argv[3:])
"""

# What of the page's elements a person sees, and the smallest that has a text; `find` is there for every script.
_FIND = """
(() => {
  const seen = element => {
    const box = element.getBoundingClientRect();
    return box.width > 0 && box.height > 0 && getComputedStyle(element).visibility !== "hidden";
  };
  const has = (element, text) => [element.innerText, element.ariaLabel].some(own => (own ?? "").trim() === text);
  window.find = (text, selector = "body *") =>
    [...document.querySelectorAll(selector)].filter(element => seen(element) && (!text || has(element, text))).at(-1);
})();
"""


class Page:
    """The page that the browser shows."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = commands
        self._answers = os.fdopen(answers, "rb", buffering=0)
        self._read = b""
        self._numbers = itertools.count(1)
        self._session = ""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._ask("Page.enable")
        self._ask("Page.addScriptToEvaluateOnNewDocument", source=_FIND)

    def go(self, url: str) -> None:
        """Open an address."""
        failed = self._ask("Page.navigate", url=url).get("errorText")
        assert not failed, f"{url}: {failed}"

    def run(self, script: str) -> Any:
        """Return what a JavaScript expression comes to; `find(text, selector)` returns an element, or nothing."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self) -> str:
        """Return all the text that the page shows."""
        return str(self.run("document.body?.innerText ?? ''"))

    def wait_for(self, text: str, selector: str = "body *") -> None:
        """Wait until an element shows exactly this text."""
        self._wait(f"!!window.find?.({json.dumps(text)}, {json.dumps(selector)})", f"it shows {text!r}")

    def wait_without(self, text: str, selector: str = "body *") -> None:
        """Wait until no element shows exactly this text."""
        self._wait(f"!window.find?.({json.dumps(text)}, {json.dumps(selector)})", f"it no longer shows {text!r}")

    def wait_for_part(self, text: str) -> None:
        """Wait until the page shows this text somewhere."""
        self._wait(f"(document.body?.innerText ?? '').includes({json.dumps(text)})", f"it shows {text!r}")

    def click(self, text: str, selector: str = "body *") -> None:
        """Click with the mouse on the element that shows this text, as soon as there is one."""
        self.wait_for(text, selector)
        x, y = self.run(
            f"""(() => {{
              const element = find({json.dumps(text)}, {json.dumps(selector)});
              element.scrollIntoView({{block: "nearest"}});
              const box = element.getBoundingClientRect();
              return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def write(self, text: str) -> None:
        """Type a text where the cursor is, and Enter."""
        self._ask("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            code = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
            self._ask("Input.dispatchKeyEvent", type=kind, **code)

    def picture(self, path: Path) -> None:
        """Save what the page looks like as a PNG."""
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """Let go of the browser, which ends it."""
        os.close(self._commands)
        self._answers.close()

    def _wait(self, script: str, what: str) -> None:
        try:
            wait_until(lambda: self.run(script), what, timeout_s=90.0)  # the first pages load megabytes of scripts
        except AssertionError as error:
            raise AssertionError(f"{error}; it shows:\n{self.text()}") from None

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": params}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            pass  # an event
        assert "error" not in answer, (method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            got = self._answers.read(65536)
            assert got, "the browser has ended"
            self._read += got
        line, _, self._read = self._read.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def run_browser(root: Path) -> Iterator[Page]:
    """Run a browser until the block ends; installs it the first time. Skips the test where that cannot be.

    A block that fails leaves `page.png` in `root`.
    """
    command, environ = _browser()
    ours, theirs = os.pipe(), os.pipe()  # commands to it, its answers
    start = [sys.executable, "-c", _START, str(ours[0]), str(theirs[1])]
    with (root / "browser.log").open("w") as output:
        process = subprocess.Popen(
            [*start, command, *_OPTIONS, f"--user-data-dir={root / 'browser'}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Without a language pages are told "en-US@posix", which JavaScript does not know.
            env={"PATH": os.environ["PATH"], "HOME": str(root), "LANG": "en_US.UTF-8", **environ},
            pass_fds=(ours[0], theirs[1]),
        )
    os.close(ours[0])
    os.close(theirs[1])
    page = Page(ours[1], theirs[0])
    try:
        yield page
    except BaseException:
        with contextlib.suppress(AssertionError, OSError):
            page.picture(root / "page.png")
        raise
    finally:
        page.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _browser() -> tuple[str, dict[str, str]]:
    """Return a browser's command and the variables it wants."""
    for name in _COMMANDS:
        if found := shutil.which(name):
            return found, {}
    files = _installed()
    return str(files / "chromium"), {"LD_LIBRARY_PATH": str(files / "lib"), "FONTCONFIG_PATH": str(files)}


def _installed() -> Path:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("a browser is needed: there is no command chromium, and none of npm and node to install it by")
    files = _INSTALLED / "node_modules" / _PACKAGE / "bin"
    if not _INSTALLED.exists():
        _INSTALLED.parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(dir=_INSTALLED.parent))
        command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(directory)]
        _run([*command, f"{_PACKAGE}@{_VERSION}"])
        unpacked = directory / files.relative_to(_INSTALLED)
        _run([node, "-e", _UNPACK, str(unpacked)])
        for archive in unpacked.glob("*.tar"):
            shutil.unpack_archive(archive, unpacked)
        (unpacked / "fonts.conf").write_text(_FONTS)
        (unpacked / "chromium").chmod(0o755)
        with contextlib.suppress(OSError):  # another process of the tests was faster
            directory.rename(_INSTALLED)
    return files


def _run(command: list[str]) -> None:
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90)
    except subprocess.TimeoutExpired:
        pytest.skip(f"Chromium {_VERSION} could not be installed within 90 s")
    if ended.returncode != 0:
        pytest.skip(f"npm cannot install Chromium {_VERSION}: {ended.stderr[-300:]}")
