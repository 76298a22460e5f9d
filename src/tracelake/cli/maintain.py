"""`tracelake optimize`, `vacuum` and `retention`: keep the files of a Delta table few, and no older than wanted."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from tracelake.cli.options import Commands, add_command, add_json, chosen_destination, target
from tracelake.cli.output import EXIT_OK, json_text, progress
from tracelake.cli.status import byte_text
from tracelake.destinations.base import Destination
from tracelake.destinations.maintenance import (
    VACUUM_HOURS,
    Elsewhere,
    MaintainableDestination,
    Upkeep,
    optimize,
    remove_older,
    vacuum,
)
from tracelake.errors import TargetError
from tracelake.query.text import duration_text

_SAFE = """
Safe beside running shippers. Does nothing, and says so, on a table that Databricks
maintains itself.
"""

_OPTIMIZE = f"""
Puts the small files of a Delta table together into files of up to 128 MB, in the order in
which they were written. The old files stay on disk until `tracelake vacuum`.
{_SAFE}"""

_VACUUM = f"""
Deletes the files that a Delta table has not needed for a week: those that optimize and
retention replaced, and those of batches that were never committed.
{_SAFE}"""

_RETENTION = f"""
Removes the spans that started more than so many days ago from a Delta table. A trace that
began before and went on after keeps its later spans. The files stay on disk until
`tracelake vacuum`.
{_SAFE}"""

_OPTIMIZE_EXAMPLES = """
  tracelake optimize
  tracelake optimize ./traces
  tracelake optimize main.obs.spans --json
"""

_VACUUM_EXAMPLES = """
  tracelake vacuum ./traces --dry-run
  tracelake vacuum s3://bucket/traces
"""

_RETENTION_EXAMPLES = """
  tracelake retention --days 90 --dry-run
  tracelake retention --days 90 ./traces && tracelake vacuum ./traces
"""

_DAY_NS = 86_400 * 10**9


def add_parser(commands: Commands) -> None:
    """Add the three commands."""
    parser = add_command(
        commands,
        "optimize",
        run_optimize,
        summary="put a table's small files together",
        details=_OPTIMIZE,
        examples=_OPTIMIZE_EXAMPLES,
    )
    _add_table(parser)
    add_json(parser)

    parser = add_command(
        commands,
        "vacuum",
        run_vacuum,
        summary="delete files that a table no longer needs",
        details=_VACUUM,
        examples=_VACUUM_EXAMPLES,
    )
    _add_table(parser)
    parser.add_argument(
        "--hours",
        type=int,
        default=VACUUM_HOURS,
        metavar="N",
        help="keep files that were needed within so many hours (default: %(default)s)",
    )
    parser.add_argument(
        "--force", action="store_true", help=f"take fewer than {VACUUM_HOURS} hours: nobody reads or writes the table"
    )
    _add_dry_run(parser)
    add_json(parser)

    parser = add_command(
        commands,
        "retention",
        run_retention,
        summary="remove spans that are too old from a table",
        details=_RETENTION,
        examples=_RETENTION_EXAMPLES,
    )
    _add_table(parser)
    parser.add_argument("--days", type=days, required=True, metavar="N", help="keep the spans of so many days")
    _add_dry_run(parser)
    add_json(parser)


def run_optimize(arguments: argparse.Namespace) -> int:
    """Put small files together."""
    return _run(arguments, "optimizing", optimize, _optimized)


def run_vacuum(arguments: argparse.Namespace) -> int:
    """Delete files."""

    def work(sink: Any) -> Upkeep:
        return vacuum(sink, arguments.hours, dry_run=arguments.dry_run, force=arguments.force)

    return _run(arguments, "vacuuming", work, lambda done: _vacuumed(done, arguments.hours))


def run_retention(arguments: argparse.Namespace) -> int:
    """Remove spans."""
    cutoff_ns = time.time_ns() - arguments.days * _DAY_NS

    def work(sink: Any) -> Upkeep:
        return remove_older(sink, cutoff_ns, dry_run=arguments.dry_run)

    return _run(arguments, "removing old spans of", work, lambda done: _removed(done, cutoff_ns))


def _run(
    arguments: argparse.Namespace, doing: str, work: Callable[[Any], Upkeep], told: Callable[[Upkeep], list[str]]
) -> int:
    destination = chosen_destination(arguments)
    maintained = _maintainable(destination).maintained()
    if isinstance(maintained, Elsewhere):
        if arguments.json:
            print(json_text({"target": destination.target, "done": False, "reason": maintained.reason}))
        else:
            print(f"{destination.target}: nothing done, since {maintained.reason}.")
        return EXIT_OK
    started_s = time.monotonic()
    with progress(f"{doing} {destination.target}"):
        done = work(maintained)
    seconds = time.monotonic() - started_s
    if arguments.json:
        print(json_text({"target": destination.target, "done": not done.dry_run, **_fields(done), "seconds": seconds}))
        return EXIT_OK
    print(f"{destination.target}{'  (dry run: nothing is changed)' if done.dry_run else ''}")
    for line in told(done):
        print(f"  {line}")
    print(f"  version {done.after.version}, {duration_text(int(seconds * 1e9))}")
    return EXIT_OK


def _maintainable(destination: Destination) -> MaintainableDestination:
    if isinstance(destination, MaintainableDestination):
        return destination
    raise TargetError(
        f"{destination.target} is no Delta table that tracelake writes to itself: whoever takes the spans there keeps "
        "them, too. Use that server's own means, or name a table."
    )


def _fields(done: Upkeep) -> dict[str, Any]:
    return {
        "dry_run": done.dry_run,
        "version": done.after.version,
        "files_before": done.before.files,
        "files_after": done.after.files,
        "bytes_before": done.before.bytes,
        "bytes_after": done.after.bytes,
        "rows_removed": done.rows_removed,
        "files_deleted": done.files_deleted,
    }


def _optimized(done: Upkeep) -> list[str]:
    if done.before == done.after:
        return [f"{_files(done.before.files)}, {byte_text(done.before.bytes)}: nothing to put together"]
    return [_change(done), "the old files stay on disk until `tracelake vacuum`"]


def _vacuumed(done: Upkeep, hours: int) -> list[str]:
    verb = "would be deleted" if done.dry_run else "deleted"
    return [
        f"{_files(done.files_deleted)} {verb}",
        f"files that were needed within {hours} hours stay, and so do the table's {_files(done.after.files)}",
    ]


def _removed(done: Upkeep, cutoff_ns: int) -> list[str]:
    cutoff = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(cutoff_ns // 10**9))
    spans = f"{done.rows_removed:,} span{'s' * (done.rows_removed != 1)}"
    if not done.rows_removed:
        return [f"no span started before {cutoff}"]
    if done.dry_run:
        return [f"{spans} that started before {cutoff} would be removed"]
    return [
        f"{spans} that started before {cutoff} removed",
        _change(done),
        "their files stay on disk until `tracelake vacuum`",
    ]


def _change(done: Upkeep) -> str:
    before, after = done.before, done.after
    return f"{_files(before.files)}, {byte_text(before.bytes)} -> {_files(after.files)}, {byte_text(after.bytes)}"


def _files(count: int) -> str:
    return f"{count:,} file{'s' * (count != 1)}"


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        nargs="?",
        type=target,
        metavar="TARGET",
        help="a Delta table (default: the first that TRACELAKE_DESTINATION names, else ./tracelake/spans)",
    )


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")


def days(text: str) -> int:
    """Return the number of days of an argument, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it takes one day or more")
    return number
