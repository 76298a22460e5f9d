"""`tracelake sql`: a query over the span table."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from decimal import Decimal
from itertools import chain, islice
from typing import Any

from tracelake.cli.options import Commands, add_command, add_json, add_target, chosen_destination
from tracelake.cli.output import EXIT_OK, json_text, progress
from tracelake.query.sql import rows_of, sql
from tracelake.query.text import clean, display_width, fit, preview

_DETAILS = """
The table is the view `spans`, one row a span, as it is stored. DuckDB runs the query; it
reads this table and nothing else, and changes nothing. See the columns with DESCRIBE spans.
"""

_EXAMPLES = """
  tracelake sql "DESCRIBE spans"
  tracelake sql "SELECT name, count(*) AS calls FROM spans GROUP BY name ORDER BY calls DESC"
  tracelake sql "SELECT trace_id, name FROM spans WHERE status.code = 'STATUS_CODE_ERROR'"
  tracelake sql "SELECT attributes['mlflow.spanInputs']::VARCHAR AS inputs FROM spans" --json
"""

# Rows whose widths are looked at; those after them are cut to fit.
_MEASURED_ROWS = 1_000
_GAP = "  "
_MIN_WIDTH = 8
_ID_WIDTH = 32
_LEAST_OF_LONG = 12
_EXPLAIN_COLUMNS = ["explain_key", "explain_value"]


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "sql", run, summary="query the spans by SQL", details=_DETAILS, examples=_EXAMPLES)
    parser.add_argument("query", metavar="QUERY", help="one SELECT over the view spans")
    add_target(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what a query finds."""
    destination = chosen_destination(arguments)
    with progress(f"querying {destination.target}"):
        found = sql(arguments.query, destination)
    rows = rows_of(found)
    if arguments.json:
        for row in rows:
            print(json_text(row))
    elif found.column_names == _EXPLAIN_COLUMNS:
        for row in rows:
            print(row["explain_value"])
    else:
        # Made distinct: two columns of a query may have one name, and a row is a dict.
        for line in table_lines(rows, list(dict.fromkeys(found.column_names)), shutil.get_terminal_size().columns):
            print(line)
        print(f"({found.num_rows:,} row{'' if found.num_rows == 1 else 's'})", file=sys.stderr)
    return EXIT_OK


def table_lines(rows: Iterator[dict[str, Any]], columns: list[str], width: int) -> Iterator[str]:
    """Yield the lines of an aligned table no wider than `width`; of one line a cell where the columns are too many."""
    head = list(islice(rows, _MEASURED_ROWS))
    names = [clean(column) for column in columns]
    if len(columns) * (_MIN_WIDTH + len(_GAP)) > width:
        yield from _blocks(chain(head, rows), columns, names, width)
        return
    cells = [[_cell(row[column]) for column in columns] for row in head]
    wanted = [max(map(display_width, texts)) for texts in zip(names, *cells, strict=True)]
    widths = _shrunk(wanted, width - len(_GAP) * (len(columns) - 1))
    right = [bool(head) and all(_is_number(row[column]) for row in head) for column in columns]
    yield _aligned(names, widths, right)
    yield _GAP.join("-" * each for each in widths)
    for texts in chain(cells, ([_cell(row[column]) for column in columns] for row in rows)):
        yield _aligned(texts, widths, right)


def _blocks(rows: Iterator[dict[str, Any]], columns: list[str], names: list[str], width: int) -> Iterator[str]:
    indent = max(map(display_width, names))
    for number, row in enumerate(rows, 1):
        yield f"-- row {number}"
        for column, name in zip(columns, names, strict=True):
            yield fit(f"{name:<{indent}}{_GAP}{_cell(row[column])}", width)


def _shrunk(widths: list[int], room: int) -> list[int]:
    """Take columns from the widest until all fit; ids, which are there to be copied, give way last."""
    shrunk = [max(1, width) for width in widths]
    while sum(shrunk) > room:
        every = range(len(widths))
        long = [index for index in every if widths[index] > _ID_WIDTH and shrunk[index] > _LEAST_OF_LONG]
        shrunk[max(long or every, key=shrunk.__getitem__)] -= 1
    return shrunk


def _aligned(texts: list[str], widths: list[int], right: list[bool]) -> str:
    parts = []
    for text, width, is_right in zip(texts, widths, right, strict=True):
        shown = fit(text, width)
        space = " " * (width - display_width(shown))
        parts.append(space + shown if is_right else shown + space)
    return _GAP.join(parts).rstrip()


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return preview(value)
    return preview(json_text(value).strip('"'))


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float, Decimal)) and not isinstance(value, bool))
