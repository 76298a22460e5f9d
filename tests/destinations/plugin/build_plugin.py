"""A build backend that needs nothing installed: it makes the wheel that `pyproject.toml` describes.

https://peps.python.org/pep-0517/
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any


def build_wheel(wheel_directory: str, *_: Any, **__: Any) -> str:
    """Zip the package with its metadata, and return the wheel's name."""
    project = Path("pyproject.toml").read_text()
    entry_points = re.sub(r'.*entry-points\."(.+)"\]', r"[\1]", project, flags=re.DOTALL).replace('"', "")
    files = {
        "tracelake_lines.py": Path("tracelake_lines.py").read_text(),
        "tracelake_lines-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tracelake-lines\nVersion: 1.0\n",
        "tracelake_lines-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tracelake_lines-1.0.dist-info/entry_points.txt": entry_points,
    }
    files["tracelake_lines-1.0.dist-info/RECORD"] = "".join(f"{name},,\n" for name in files)
    name = "tracelake_lines-1.0-py3-none-any.whl"
    with zipfile.ZipFile(Path(wheel_directory, name), "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return name
