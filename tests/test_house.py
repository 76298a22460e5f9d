"""The rules of the house: rooms, public names, sizes, what an import may do, and what no file may hold."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import tracelake
from tests.lake import Lake
from tracelake import errors

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "tracelake"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 500
HEAVY = (
    "pyarrow",
    "deltalake",
    "duckdb",
    "databricks",
    "mlflow",
    "requests",
    "httpx",
    "fastapi",
    "numpy",
    "pandas",
    "matplotlib",
)

# Imports point from a floor to those below it, or stay on it. The package itself, which holds the public names, is
# above all rooms but the two that use it.
FLOORS = (
    ("cli", "testing", "tracking", "spark", "__main__"),
    ("",),
    ("reading",),
    ("tracing",),
    ("recorder",),
    ("query",),
    ("shipper",),
    ("destinations",),
    ("databricks",),
    ("spool",),
    ("spans",),
    ("settings",),
    ("redaction",),
    ("errors",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Written in two parts, so that this file does not hold them itself.
TO_BE_DONE = "TO" + "DO"
REGISTRIES = ("py" + "pi.", "pythonho" + "sted", "index" + "-url", "index" + "_url")
HOMES = re.compile(r"(?<![\w.$}])/(?:home|Users)/(?!you\b)\w+/|(?<![\w.$}])/" + r"root/\w")


def room_of(path: Path) -> str:
    """Return the room of a module: the folder or file just below the package, "" for the package itself."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if name == "__init__" else name


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imports_of(path: Path) -> Iterator[str]:
    """Yield the modules that a module imports, wherever in it."""
    package = ["tracelake", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            # `from tracelake.spans import rows` is an import of `tracelake.spans.rows`.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room_imported(module: str) -> str | None:
    """Return the room that an imported name belongs to, None for those of other packages."""
    parts = module.split(".")
    if parts[0] != "tracelake":
        return None
    found = parts[1] if len(parts) > 1 else ""
    return found if found in FLOOR else ""


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    """No room knows one above it."""
    room = room_of(path)
    for module in imports_of(path):
        imported = room_imported(module)
        assert imported is None or FLOOR[imported] >= FLOOR[room], f"{name_of(path)} imports {module}"


def test_import_up_would_be_found() -> None:
    """The check sees imports within functions, relative ones, and those of the package's public names."""
    assert set(imports_of(PACKAGE / "cli" / "__init__.py")) >= {"tracelake.__version__", "tracelake.cli.demo"}
    assert "tracelake.spans.rows.convert" in set(imports_of(PACKAGE / "destinations" / "delta.py"))
    names = ("tracelake.flush", "tracelake.spool.lane.Lane", "os")
    assert [room_imported(name) for name in names] == ["", "spool", None]
    assert FLOOR[""] < FLOOR["spool"]


def test_every_room_has_a_floor() -> None:
    """A new room is given its place in the order."""
    assert {room_of(path) for path in MODULES} <= FLOOR.keys()


def test_public_names_are_those_of_all() -> None:
    """`__all__` is sorted, and is exactly what the package exposes beside its modules."""
    assert list(tracelake.__all__) == sorted(set(tracelake.__all__))
    exposed = {
        name
        for name in dir(tracelake)
        if not name.startswith("_") and not isinstance(getattr(tracelake, name), types.ModuleType)
    }
    assert exposed == set(tracelake.__all__)


def test_public_names_have_docstrings() -> None:
    """Each public name says what it is, and so does each of its public methods."""
    for name in tracelake.__all__:
        value = getattr(tracelake, name)
        assert inspect.getdoc(value), name
        if inspect.isclass(value):
            for method, function in inspect.getmembers(value, inspect.isfunction):
                if not method.startswith("_") and function.__module__.startswith("tracelake"):
                    assert inspect.getdoc(function), f"{name}.{method}"


_OBSERVED_IMPORT = """
import atexit, json, os, signal, sys, threading

files, registered = [], []
done = False


def observe(event, arguments):
    if event == "open" and not done and isinstance(arguments[0], str):
        written = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if written or not arguments[0].startswith(tuple(sys.argv[1:])):
            files.append(arguments[0])
    elif event in ("socket.__new__", "subprocess.Popen", "os.posix_spawn", "os.fork", "_thread.start_new_thread"):
        registered.append(event)


def of_tracelake(function, name):
    def register(*arguments, **keywords):
        callers = sys._getframe(1).f_globals.get("__name__", "")
        if callers.partition(".")[0] == "tracelake":
            registered.append(f"{name} by {callers}")
        return function(*arguments, **keywords)
    return register


def state():
    return {
        "threads": threading.active_count(),
        "descriptors": sorted(os.listdir("/dev/fd")),
        "signals": {str(number): str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)},
        "umask": os.umask(0o022),
        "environ": dict(os.environ),
    }


import opentelemetry.trace
import opentelemetry.sdk.trace  # what it does is its own

atexit.register = of_tracelake(atexit.register, "atexit")
os.register_at_fork = of_tracelake(os.register_at_fork, "at fork")
before = state()
sys.addaudithook(observe)
import tracelake
done = True
after = state()
import logging
print(json.dumps({
    "changed": [key for key in before if before[key] != after[key]],
    "files": files,
    "registered": registered,
    "provider": opentelemetry.trace._TRACER_PROVIDER is not None,
    "handlers": len(logging.getLogger("tracelake").handlers),
}))
"""


def test_import_does_nothing(lake: Lake) -> None:
    """Importing tracelake starts no thread or process, opens no file but its code, and registers nothing."""
    script = lake.root / "observed.py"
    script.write_text(_OBSERVED_IMPORT)
    code = {sys.prefix, sys.base_prefix, str(PACKAGE), *filter(None, sys.path[1:])} - {str(ROOT)}
    process = lake.start(sys.executable, "-B", str(script), *sorted(code))
    assert process.wait(30) == 0, lake.output(process)
    seen = json.loads(lake.output(process))
    assert seen == {"changed": [], "files": [], "registered": [], "provider": False, "handlers": 0}
    assert not os.path.exists(lake.spool.path)


def loaded(output: str) -> set[str]:
    return set(output.split(",")) & set(HEAVY)


def test_import_loads_no_heavy_package(lake: Lake) -> None:
    """The import of tracelake loads nothing that only delivery, reading or the tests need."""
    assert loaded(lake.run("import sys, tracelake; print(','.join(sys.modules))")) == set()


def test_reading_is_loaded_when_it_is_asked_for(lake: Lake) -> None:
    """A program that only records does not wait for the code that reads; whoever names it has it."""
    program = """
import sys, tracelake
print(any(name.startswith("tracelake.query") for name in sys.modules))
print(set(tracelake.__all__) <= set(dir(tracelake)))
print(all(hasattr(tracelake, name) for name in tracelake.__all__), hasattr(tracelake, "no_such"))
from tracelake import *
print(Trace.__module__, get_trace.__module__)
"""
    assert lake.run(program).splitlines() == [
        "False",
        "True",
        "True False",
        "tracelake.query.traces tracelake.reading",
    ]


def test_import_of_the_mocked_workspace_loads_no_heavy_package(lake: Lake) -> None:
    """Nor does that of its fixture, which pytest loads at each start: that loads nothing of tracelake at all."""
    assert loaded(lake.run("import sys, tracelake.testing; print(','.join(sys.modules))")) == set()
    assert "tracelake" not in lake.run("import sys, _tracelake_pytest; print(','.join(sys.modules))").split(",")


def test_recording_loads_no_heavy_package(lake: Lake) -> None:
    """Neither does an app that names a destination, records, propagates, and waits for delivery."""
    program = """
import sys, tracelake
tracelake.set_destination(sys.argv[1], service_name="light")
with tracelake.start_span("one"):
    with tracelake.set_tracing_context_from_http_request_headers(
        tracelake.get_tracing_context_headers_for_http_request()
    ):
        pass
assert tracelake.flush().delivered == 1
print(",".join(sys.modules), end="")
"""
    assert loaded(lake.run(program, lake.table)) == set()


def drawn_tree() -> dict[str, str]:
    """Return the parent of each error in the tree that the docstring of errors.py draws."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"((?:[│ ]   )*(?:[├└]── )?)(\w+Error)\b", line)
        if match:
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            parents[match[2]] = path[depth - 1] if depth else "Exception"
    return parents


def all_modules() -> list[types.ModuleType]:
    names = [module.name for module in pkgutil.walk_packages([str(PACKAGE)], "tracelake.")]
    return [importlib.import_module(name) for name in names if not name.endswith("__main__")]


def test_error_tree_is_as_drawn() -> None:
    """Every error class has the parent that the tree at the top of errors.py gives it, and none is left out."""
    classes = {name: value.__base__.__name__ for name, value in vars(errors).items() if inspect.isclass(value)}
    assert drawn_tree() == classes
    assert set(classes) == {name for name in tracelake.__all__ if name.endswith("Error")}


def test_every_error_is_a_tracelake_error() -> None:
    """A class of an exception, wherever it is defined, derives from TracelakeError; those elsewhere reach no user."""
    for module in all_modules():
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == module.__name__:
                assert issubclass(value, tracelake.TracelakeError), f"{module.__name__}.{name}"
                stays_inside = module.__name__.startswith(("tracelake.cli.", "tracelake.testing."))
                assert module is errors or name.startswith("_") or stays_inside, f"{module.__name__}.{name}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_is_short_and_says_its_job(path: Path) -> None:
    """A module has a docstring, and is no longer than can be read in one go."""
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= MAX_LINES


def tracked_files() -> list[Path]:
    """Return the files of the repository: what git knows or would add, or all there are where there is no git."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        return [ROOT / name for name in names if name and (ROOT / name).is_file()]
    kept = (path for path in ROOT.rglob("*") if path.is_file())
    return [path for path in kept if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]


def test_files_hold_nothing_of_this_machine() -> None:
    """No file names a home, the place of this checkout, or where packages come from, and none promises work to do."""
    place = re.compile(rf"(?<![\w.$}}/-]){re.escape(str(ROOT))}(?![\w-])")
    found = []
    files = tracked_files()
    for path in files:
        text = path.read_bytes().decode(errors="replace")
        name = path.relative_to(ROOT)
        found += [f"{name}: {match[0]}" for pattern in (place, HOMES) for match in pattern.finditer(text)]
        found += [f"{name}: {word}" for word in (TO_BE_DONE, *REGISTRIES) if word in text]
    assert len(files) > len(MODULES)
    assert found == []


def test_core_dependencies_are_three() -> None:
    """An app that only records gets no more than the two OpenTelemetry packages and msgspec."""
    project = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    assert listed is not None
    names = re.findall(r'^ *"([\w-]+)', listed[1], re.MULTILINE)
    assert names == ["msgspec", "opentelemetry-api", "opentelemetry-sdk"]


def test_imports_are_of_the_core_or_within_functions() -> None:
    """At the top of the modules that an app loads, only the standard library and core dependencies are imported."""
    core = {"msgspec", "opentelemetry", "tracelake", *sys.stdlib_module_names}
    rooms = {"", "tracing", "recorder", "spool", "settings", "redaction", "errors", "destinations", "shipper", "query"}
    for path in MODULES:
        # What is imported by the hook that waits for MLflow.
        if room_of(path) not in rooms or name_of(path) in {"tracing/mlflow_provider.py", "tracing/mlflow_spans.py"}:
            continue
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                assert name.partition(".")[0] in core, f"{name_of(path)} imports {name} at its top"


def test_package_is_typed() -> None:
    """Type checkers of users read the package's annotations."""
    assert (PACKAGE / "py.typed").is_file()
