"""The colours of a trace's services, for pages and pictures; they show on white and on black."""

from __future__ import annotations

from zlib import crc32

from tracelake.query.traces import Trace
from tracelake.query.tree import service_name

COLOURS = ("#4c8dd6", "#c9822b", "#4fa36c", "#a373c9", "#c95f8f", "#3aa3a8", "#96923a", "#8a7fdb")
# Of no service.
ERROR = "#d63a40"


def service_colours(trace: Trace) -> dict[str, str]:
    """Return the colour of each service by its name; spans of none are of the service "".

    A service has the same colour in most traces, and one of its own in each until there are more services than colours.
    """
    services = {service_name(span) for span in trace.spans}
    found: dict[str, str] = {}
    for name in sorted(services):
        first = crc32(name.encode("utf-8", "replace"))
        places = [(first + step) % len(COLOURS) for step in range(len(COLOURS))]
        free = (COLOURS[place] for place in places if COLOURS[place] not in found.values())
        found[name] = next(free, COLOURS[places[0]])
    return found
