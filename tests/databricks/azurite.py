"""Azurite, the emulator of Azure Storage, on loopback: https://github.com/Azure/Azurite."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from tests.lake import wait_until

_VERSION = "3.35.0"
_INSTALLED = Path.home() / ".cache" / "tracelake-tests" / f"azurite-{_VERSION}"

# The one account that it has: https://learn.microsoft.com/azure/storage/common/storage-use-azurite
ACCOUNT = "devstoreaccount1"
_KEY = base64.b64decode("Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==")
_API = "2021-12-02"

# Ends with whoever holds the other end of its input, however that ends.
_START = """
process.argv.splice(1, 0, "azurite-blob");
process.stdin.resume();
process.stdin.on("end", () => process.exit());
require(process.env.AZURITE_MAIN);
"""


@dataclass(frozen=True)
class Azurite:
    """A server with one container.

    Attributes:
        url: of the account.
    """

    url: str
    container: str = "lake"

    @property
    def environ(self) -> dict[str, str]:
        """What leads delta-rs there; no credentials."""
        return {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": self.url.rpartition("/")[0]}

    def container_sas(self, permissions: str = "racwdl", expiry: str = "2099-01-01T00:00:00Z") -> str:
        """Return a signature for the container, of the form that Unity Catalog gives out one for a table.

        https://learn.microsoft.com/rest/api/storageservices/create-service-sas
        """
        fields = [permissions, "", expiry, f"/blob/{ACCOUNT}/{self.container}", "", "", "", _API, "c", *[""] * 7]
        return urlencode({"sp": permissions, "se": expiry, "sv": _API, "sr": "c", "sig": _signature(fields)})

    def create_container(self) -> None:
        self._ask("PUT", "?restype=container")

    def files(self, prefix: str) -> dict[str, bytes]:
        """Return what is stored under a prefix, read with the access of the account."""
        listed = self._ask("GET", f"?restype=container&comp=list&prefix={quote(prefix)}").decode()
        return {name: self._ask("GET", f"/{quote(name)}?") for name in re.findall("<Name>(.*?)</Name>", listed)}

    def _ask(self, method: str, rest: str) -> bytes:
        request = urllib.request.Request(f"{self.url}/{self.container}{rest}&{_account_sas()}", method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())


def _account_sas() -> str:
    """https://learn.microsoft.com/rest/api/storageservices/create-account-sas"""
    expiry = "2099-01-01T00:00:00Z"
    signature = _signature([ACCOUNT, "rwdlac", "b", "sco", "", expiry, "", "", _API, "", ""])
    return urlencode({"sp": "rwdlac", "ss": "b", "srt": "sco", "se": expiry, "sv": _API, "sig": signature})


def _signature(fields: list[str]) -> str:
    return base64.b64encode(hmac.new(_KEY, "\n".join(fields).encode(), hashlib.sha256).digest()).decode()


@contextlib.contextmanager
def run_azurite(root: Path) -> Iterator[Azurite]:
    """Run it until the block ends; installs it the first time. Skips the test where that cannot be."""
    main = _installed() / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    log = root / "azurite.log"
    options = ["--blobHost=127.0.0.1", "--blobPort=0", "--inMemoryPersistence", "--skipApiVersionCheck"]
    with log.open("w") as output:
        process = subprocess.Popen(
            ["node", "-e", _START, "--", *options, "--disableTelemetry", "--silent"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={"PATH": _path(), "HOME": str(root), "AZURITE_MAIN": str(main)},
            cwd=root,
        )
    try:
        found = wait_until(
            lambda: re.search(r"listens on (http://127\.0\.0\.1:\d+)", log.read_text()), "Azurite listens"
        )
        azurite = Azurite(f"{found[1]}/{ACCOUNT}")
        azurite.create_container()
        yield azurite
    finally:
        process.communicate()  # closes its input


def _installed() -> Path:
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("Azurite needs Node.js, and there are no commands npm and node")
    if not _INSTALLED.exists():
        _INSTALLED.parent.mkdir(parents=True, exist_ok=True)
        directory = tempfile.mkdtemp(dir=_INSTALLED.parent)
        command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", directory]
        try:
            ended = subprocess.run(
                [*command, f"azurite@{_VERSION}"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm could not install Azurite {_VERSION} within 90 s")
        if ended.returncode != 0:
            pytest.skip(f"npm cannot install Azurite {_VERSION}: {ended.stderr[-300:]}")
        with contextlib.suppress(OSError):  # another process of the tests was faster
            Path(directory).rename(_INSTALLED)
    return _INSTALLED


def _path() -> str:
    return str(Path(shutil.which("node") or "node").parent)
