"""`tracelake stats`: rates, errors and durations by service and by name, tokens and cost by model."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, get_args

from tracelake.cli.columns import aligned
from tracelake.cli.options import Commands, add_command, add_json, add_target, at_least_one, chosen_destination
from tracelake.cli.output import EXIT_OK, json_text, progress, style_of
from tracelake.cli.times import moment, moment_text
from tracelake.query.outline import label
from tracelake.query.stats import By, Group, Stats, stats
from tracelake.query.text import counted, duration_text
from tracelake.query.tree import Style

_DETAILS = """
Counts the spans that started in the last hour, or since a time: how many a second, how
many failed, and how long half of them took at most, 95 % and 99 %.
"""

_EXAMPLES = """
  tracelake stats
  tracelake stats --since 1d --by name
  tracelake stats --since 2026-01-31T12:00 --until 2026-01-31T13:00 --target ./traces
  tracelake stats --since 30d --by model --json
"""

_SINCE = "1h"
_LIMIT = 20
_FIELDS: dict[By, str] = {"service": "services", "name": "names", "model": "models"}


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "stats",
        run,
        summary="rates, errors, durations, tokens and cost",
        details=_DETAILS,
        examples=_EXAMPLES,
    )
    parser.add_argument("--by", choices=get_args(By), help="one of the three; without it, all")
    parser.add_argument(
        "--since",
        type=moment,
        metavar="TIME",
        default=_SINCE,
        help="spans that started at this time (UTC) or so long ago, or later (default: %(default)s)",
    )
    parser.add_argument("--until", type=moment, metavar="TIME", help="spans that started before (default: now)")
    parser.add_argument(
        "--limit", type=at_least_one, default=_LIMIT, metavar="N", help="lines of each kind (default: %(default)s)"
    )
    add_target(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what the spans come to."""
    destination = chosen_destination(arguments)
    start, end = arguments.since, time.time_ns() if arguments.until is None else arguments.until
    by = get_args(By) if arguments.by is None else (arguments.by,)
    with progress(f"reading {destination.target}"):
        found = stats(destination, by, start, end)
    if arguments.json:
        print(json_text(_fields(found, destination.target, start, end)))
        return EXIT_OK
    for line in _lines(found, start, end, arguments.limit, style_of(sys.stdout)):
        print(line)
    return EXIT_OK


def _fields(found: Stats, target: str, start: int, end: int) -> dict[str, Any]:
    return {
        "target": target,
        "start_time_unix_nano": start,
        "end_time_unix_nano": end,
        "rows": found.rows,
        "distinct": found.distinct,
        **{
            _FIELDS[by]: [
                asdict(group)
                | {"rate": _rate(group, start, end)}
                | {"tokens": None if group.tokens is None else group.tokens._asdict()}
                for group in groups
            ]
            for by, groups in found.groups.items()
        },
    }


def _lines(found: Stats, start: int, end: int, limit: int, style: Style) -> Iterator[str]:
    window = f"from {moment_text(start)} to {moment_text(end)} UTC, {duration_text(end - start)}"
    if not found.rows:
        yield f"No span started {window}."
        yield "Look further back with --since, as in: tracelake stats --since 7d"
        return
    yield f"{counted(found.rows, 'row')} of spans {window}"
    if not found.distinct:
        yield "So many that those that repeat a span are counted, too."
    for by, groups in found.groups.items():
        if not groups and by == "model" and len(found.groups) > 1:
            continue  # most programs have none
        yield ""
        rows = [_row(by, group, start, end) for group in groups[:limit]]
        head, *lines = aligned([_head(by), *rows], style.width)
        yield style.bold(head)
        yield from lines
        if len(groups) > limit:
            yield f"({len(groups) - limit:,} more; see them with --limit)"


def _head(by: By) -> list[str]:
    if by == "model":
        return ["model", "calls", "errors", "p50", "p95", "tokens in", "out", "cost"]
    return [by, "spans", "rate", "errors", "p50", "p95", "p99"]


def _row(by: By, group: Group, start: int, end: int) -> list[str]:
    name = label(group.name) or f"(no {by})"
    spans = f"{group.spans:,}"
    errors = f"{group.errors / group.spans:.1%}" if group.errors else "-"
    p50, p95, p99 = (
        "-" if each is None else duration_text(each) for each in (group.p50_ns, group.p95_ns, group.p99_ns)
    )
    if by != "model":
        return [name, spans, _rate_text(_rate(group, start, end)), errors, p50, p95, p99]
    tokens = group.tokens
    if tokens is None:
        return [name, spans, errors, p50, p95, "-", "-", "-"]
    cost = "-" if tokens.cost_usd is None else f"${tokens.cost_usd:,.4g}"
    return [name, spans, errors, p50, p95, f"{tokens.input:,}", f"{tokens.output:,}", cost]


def _rate(group: Group, start: int, end: int) -> float:
    """Return how many spans a second there are."""
    return group.spans * 1e9 / max(1, end - start)


def _rate_text(rate: float) -> str:
    for unit, seconds in (("s", 1), ("m", 60)):
        if rate * seconds >= 1:
            return f"{rate * seconds:,.3g}/{unit}" if rate * seconds < 1_000 else f"{rate * seconds:,.0f}/{unit}"
    return f"{rate * 3_600:.3g}/h"
