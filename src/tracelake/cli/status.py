"""`tracelake status`: what waits in the spool, and why."""

from __future__ import annotations

import argparse
import shlex
import textwrap
import time
from collections.abc import Iterator
from typing import Any

from tracelake.cli.options import Commands, add_command, add_json, add_spool, chosen_spool
from tracelake.cli.output import EXIT_FAILED, EXIT_OK, json_text, progress
from tracelake.query.text import clean, duration_text
from tracelake.redaction import one_line
from tracelake.shipper.status import UNRESOLVED_KEY, LaneStatus, SpoolStatus, read_status

_DETAILS = """
A lane is the waiting line of one destination. For each lane this prints how many spans
wait, since when, how many were delivered, and what to do where somebody has to do
something. Exit code 1 means that some lane needs it.
"""

_EXAMPLES = """
  tracelake status
  tracelake status --json
  tracelake status --spool /var/lib/tracelake/spool
"""

_WIDTH = 80
_LABEL_WIDTH = 12
_HEADINGS = ("state", "pending", "size", "oldest", "delivered", "refused", "set aside")
_COLUMN_WIDTHS = (-12, 10, 9, 10, 12, 10, 10)


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "status", run, summary="show what waits for delivery, and why", details=_DETAILS, examples=_EXAMPLES
    )
    add_json(parser)
    add_spool(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the status of a spool."""
    spool = chosen_spool(arguments)
    with progress(f"reading {spool.path}"):
        status = read_status(spool)
    if arguments.json:
        print(json_text(status_fields(status)))
    else:
        for line in status_lines(status, time.time_ns()):
            print(line)
    return EXIT_FAILED if any(lane.needs_action for lane in status.lanes) else EXIT_OK


def status_fields(status: SpoolStatus) -> dict[str, Any]:
    """Return the fields of `status --json`: those of `SpoolStatus` and `LaneStatus`, and each lane's remedy."""
    lanes = [{**vars(lane), "needs_action": lane.needs_action, "remedy": remedy(lane)} for lane in status.lanes]
    return {"spool": status.path, "pending_spans": status.pending_spans, "lanes": lanes}


def status_lines(status: SpoolStatus, now_unix_nano: int) -> Iterator[str]:
    """Yield the lines for people."""
    yield f"Spool: {status.path}"
    if not status.lanes:
        yield "Nothing has been recorded there yet."
        return
    yield ""
    yield _columns(_HEADINGS)
    for lane in status.lanes:
        yield from _lane_lines(lane, now_unix_nano)


def remedy(lane: LaneStatus) -> str:
    """Return what somebody should do about a lane; empty if nothing."""
    name = shlex.quote(lane.name)
    match lane.state:
        case "stopped":
            then = "it is tried again by itself" if lane.shipper_running else "run `tracelake ship --once`"
            return f"Mend what the error says, then {then}. Or send it elsewhere: `tracelake redirect {name} TARGET`."
        case "unresolved":
            return (
                f"The environment named no usable destination ({lane.target}). Mend it for what comes, and send what "
                f"is here where it belongs: `tracelake redirect {name} TARGET`."
            )
        case "no shipper":
            return "Nobody delivers it: run `tracelake ship`, or `tracelake ship --once`."
        case "damaged":
            return f"docs/spool-format.md says how to repair the files of {lane.path}."
    if lane.newer_segments:
        return "Update tracelake here, and run `tracelake ship --once`: a newer one recorded some of these spans."
    return ""


def byte_text(size: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    value = float(size)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1000
    return f"{value:.1f} {unit}" if unit != "B" and value < 99.95 else f"{value:.0f} {unit}"


def _lane_lines(lane: LaneStatus, now_unix_nano: int) -> Iterator[str]:
    oldest = lane.oldest_pending_unix_nano
    yield _columns(
        (
            lane.state,
            f"{lane.pending_spans:,}",
            byte_text(lane.pending_bytes),
            duration_text(max(0, now_unix_nano - oldest)) if oldest else "-",
            f"{lane.delivered:,}",
            f"{lane.refused:,}",
            f"{lane.quarantined:,}",
        )
    )
    yield from _field("lane", lane.name)
    yield from _field("to", lane.target)
    if lane.identity and UNRESOLVED_KEY not in lane.identity:
        yield from _field("access", ", ".join(f"{key}={value}" for key, value in sorted(lane.identity.items())))
    yield from _field("shipper", "running" if lane.shipper_running else "not running")
    if lane.last_commit_unix_nano:
        ago = duration_text(max(0, now_unix_nano - lane.last_commit_unix_nano))
        yield from _field("last commit", f"{ago} ago")
    yield from _field("error", lane.error)
    for text in lane.damage:
        yield from _field("damage", text)
    if lane.refused:
        yield from _field("refused", f"{lane.refused:,} spans are lost. The last was refused because: {lane.refusal}")
    if lane.quarantine_files:
        folder = lane.quarantine_files[0].rpartition("/")[0]
        yield from _field("set aside", f"{lane.quarantined:,} spans, with the reason for each, in {folder}")
    if lane.newer_segments:
        yield from _field("newer", f"{lane.newer_segments} of {lane.segments} files have a format of a newer tracelake")
    yield from _field("next", remedy(lane))


def _field(label: str, text: str) -> list[str]:
    if not text:
        return []
    # Paths and commands are not broken: they are there to be copied.
    lines = textwrap.wrap(
        clean(one_line(text)), _WIDTH - _LABEL_WIDTH - 2, break_long_words=False, break_on_hyphens=False
    )
    return [f"  {label if index == 0 else '':<{_LABEL_WIDTH}}{line}" for index, line in enumerate(lines)]


def _columns(texts: tuple[str, ...]) -> str:
    cells = zip(texts, _COLUMN_WIDTHS, strict=True)
    return "".join(f"{text:<{-width}}" if width < 0 else f"{text:>{width}}" for text, width in cells)
