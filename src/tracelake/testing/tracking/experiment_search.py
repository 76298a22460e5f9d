"""Which experiments a search finds, and in which order.

The language: https://mlflow.org/docs/latest/ml/search/search-experiments/
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from tracelake.testing.state import Experiment
from tracelake.testing.web.http import invalid

_TIMES = ("creation_time", "last_update_time")
_COLUMNS = ("name", "experiment_id", *_TIMES)

_KEY = r"(?:attributes?\.)?(?P<column>\w+)|tags?\.(?:`(?P<quoted>[^`]+)`|\"(?P<double>[^\"]+)\"|(?P<tag>[\w.-]+))"
_CONDITION = re.compile(
    rf"\s*(?:{_KEY})\s*(?P<operator>!=|<=|>=|=|<|>|\bI?LIKE\b)\s*(?:'(?P<text>[^']*)'|\"(?P<text2>[^\"]*)\"|(?P<number>\d+))\s*",
    re.IGNORECASE,
)
_AND = re.compile(r"AND\b", re.IGNORECASE)
_ORDER = re.compile(r"(?:attributes?\.)?`?(\w+)`?(?:\s+(ASC|DESC))?", re.IGNORECASE)

_OF_TEXT: dict[str, Callable[[str, str], bool]] = {
    "=": lambda value, wanted: value == wanted,
    "!=": lambda value, wanted: value != wanted,
    "LIKE": lambda value, wanted: _like(wanted).fullmatch(value) is not None,
    "ILIKE": lambda value, wanted: _like(wanted.lower()).fullmatch(value.lower()) is not None,
}
_OF_TIMES: dict[str, Callable[[int, int], bool]] = {
    "=": lambda value, wanted: value == wanted,
    "!=": lambda value, wanted: value != wanted,
    "<": lambda value, wanted: value < wanted,
    "<=": lambda value, wanted: value <= wanted,
    ">": lambda value, wanted: value > wanted,
    ">=": lambda value, wanted: value >= wanted,
}


class _Condition(NamedTuple):
    """`tag` names a tag, else `column` a column; `wanted` is what the value is compared with."""

    column: str
    tag: str
    operator: str
    wanted: str | int

    def holds(self, experiment: Experiment) -> bool:
        if isinstance(self.wanted, int):
            return _OF_TIMES[self.operator](getattr(experiment, self.column), self.wanted)
        value = experiment.tags.get(self.tag) if self.tag else getattr(experiment, self.column)
        # As in SQL, no value is neither equal nor unequal to anything.
        return value is not None and _OF_TEXT[self.operator](value, self.wanted)


def matching(experiments: Iterable[Experiment], search: str) -> list[Experiment]:
    """Return the experiments that a filter holds for, as `name ILIKE '/Shared/%' AND tags.team = 'search'`.

    Raises:
        ApiError: 400 INVALID_PARAMETER_VALUE, the filter is not of the language.
    """
    conditions = _parsed(search) if search.strip() else []
    return [each for each in experiments if all(condition.holds(each) for condition in conditions)]


def ordered(experiments: Iterable[Experiment], order_by: Sequence[str]) -> list[Experiment]:
    """Return experiments by columns as `name DESC`; the newest first without. Ties are by experiment id, descending.

    Raises:
        ApiError: 400 INVALID_PARAMETER_VALUE, a column is none to order by.
    """
    result = sorted(experiments, key=lambda each: each.experiment_id, reverse=True)
    # Sorting is stable: the last column first.
    for clause in reversed(order_by or ["creation_time DESC"]):
        found = _ORDER.fullmatch(clause.strip())
        if found is None or found[1] not in _COLUMNS:
            raise invalid(
                f"Invalid order_by clause '{clause}'. It needs one of {', '.join(_COLUMNS)}, and ASC or DESC after it."
            )
        column = found[1]
        result.sort(key=lambda each: getattr(each, column), reverse=(found[2] or "").upper() == "DESC")
    return result


def _parsed(search: str) -> list[_Condition]:
    conditions, position = [], 0
    while True:
        found = _CONDITION.match(search, position)
        if found is None:
            raise invalid(
                f"Invalid clause(s) in filter string: '{search[position:].strip()}'. A clause compares "
                f"name, {', '.join(_TIMES)} or tags.`key` with a value, and AND joins clauses."
            )
        conditions.append(_condition(found))
        position = found.end()
        if position == len(search):
            return conditions
        joined = _AND.match(search, position)
        if joined is None:
            raise invalid(f"Invalid clause(s) in filter string: '{search[position:].strip()}'. AND joins clauses.")
        position = joined.end()


def _condition(found: re.Match[str]) -> _Condition:
    column, operator = found["column"] or "", found["operator"].upper()
    tag = found["quoted"] or found["double"] or found["tag"] or ""
    text = found["text"] if found["text"] is not None else found["text2"]
    if column and column not in ("name", *_TIMES):
        raise invalid(f"Invalid attribute key '{column}' in filter. Valid are name, {', '.join(_TIMES)}.")
    is_time = column in _TIMES
    operators: Iterable[str] = _OF_TIMES if is_time else _OF_TEXT
    if operator not in operators:
        raise invalid(f"Invalid comparator '{operator}' of {column or 'tags'}. Valid are {', '.join(operators)}.")
    if is_time != (text is None):
        raise invalid(f"The value of {column or 'tags'} in the filter must be a {'number' if is_time else 'text'}.")
    return _Condition(column, tag, operator, int(found["number"]) if text is None else text)


def _like(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"([%_])", pattern)
    return re.compile(
        "".join({"%": ".*", "_": "."}[part] if part in ("%", "_") else re.escape(part) for part in parts), re.DOTALL
    )
