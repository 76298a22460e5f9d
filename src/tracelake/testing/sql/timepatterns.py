"""Java's patterns of times, as `date_format` takes them, in the directives of strftime.

Patterns: https://docs.databricks.com/aws/en/sql/language-manual/sql-ref-datetime-pattern
"""

from __future__ import annotations

import re
from typing import Any

from tracelake.testing.sql.sqlerrors import unimitated

# Letters of Java's time patterns in the directives of strftime.
_DIRECTIVES = {
    "yyyy": "%Y",
    "yy": "%y",
    "MM": "%m",
    "MMM": "%b",
    "MMMM": "%B",
    "dd": "%d",
    "HH": "%H",
    "hh": "%I",
    "mm": "%M",
    "ss": "%S",
    "SSS": "%g",
    "SSSSSS": "%f",
    "E": "%a",
    "EEE": "%a",
    "EEEE": "%A",
    "a": "%p",
    "DDD": "%j",
}


def directives(pattern: Any) -> str:
    """Return the pattern of strftime for a literal of one of Java's.

    Raises:
        SqlError: UNSUPPORTED_FEATURE, it has letters that are not known, or is no literal.
    """
    if not pattern.is_string:
        raise unimitated("a time pattern that is not a literal")
    parts = []
    for match in re.finditer(r"'([^']*)'|(([A-Za-z])\3*)|([^A-Za-z'])", pattern.name):
        text, letters, other = match[1], match[2], match[4]
        if letters and letters not in _DIRECTIVES:
            raise unimitated(f"{letters} in a time pattern")
        parts.append(_DIRECTIVES[letters] if letters else (text or other or "").replace("%", "%%"))
    return "".join(parts)
