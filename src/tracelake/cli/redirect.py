"""`tracelake redirect`: send the spans of a lane to another destination."""

from __future__ import annotations

import argparse
import os
import shlex

from tracelake.cli.options import Commands, add_command, add_spool, chosen_spool, target
from tracelake.cli.output import EXIT_OK, say
from tracelake.destinations.base import Destination
from tracelake.errors import SpoolError
from tracelake.shipper.status import UNRESOLVED_KEY, read_lane_status
from tracelake.spool.files import no_fork, open_locked
from tracelake.spool.lane import Lane, LaneNote, Spool, identity_digest
from tracelake.spool.ledger import Delivery, read_in_flight, write_delivery
from tracelake.spool.notes import write_note

_DETAILS = """
For spans that cannot get where they were sent: their environment named no usable
destination, or their table is gone for good. What waits in the lane, and what is still
recorded to it, then goes to TARGET. What was delivered already stays where it is.
`tracelake status` shows the names of the lanes; a part that only one has is enough.
"""

_EXAMPLES = """
  tracelake redirect unresolved-tracelake-destination-0c5a1bfa7fa9 ./traces
  tracelake redirect unresolved s3://bucket/traces/spans
"""


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "redirect", run, summary="send a lane's spans elsewhere", details=_DETAILS, examples=_EXAMPLES
    )
    parser.add_argument("lane", metavar="LANE", help="the lane's name, or a part of it")
    parser.add_argument("target", type=target, metavar="TARGET", help="where its spans go from now on")
    add_spool(parser)


def run(arguments: argparse.Namespace) -> int:
    """Redirect a lane."""
    spool = chosen_spool(arguments)
    spool.check()
    lane = _find(spool, arguments.lane)
    redirect(spool, lane, arguments.target)
    status = read_lane_status(spool, lane)
    print(f"{lane.name}: {status.pending_spans:,} pending spans go to {status.target}")
    if status.shipper_running:
        say("a shipper of that destination runs, and delivers them now. Follow it with `tracelake status`.")
    else:
        option = f" --spool {shlex.quote(spool.path)}" if arguments.spool else ""
        say(f"deliver them with: tracelake ship --once{option}")
    return EXIT_OK


def redirect(spool: Spool, lane: Lane, destination: Destination) -> None:
    """Make a destination that of all the lane holds and will hold.

    The shipper of the destination's own identity may run: it takes the lane up as it is found.

    Raises:
        SpoolError: a shipper of the lane's present identity runs. Nothing changed.
        LedgerError: the lane's notes cannot be read. Nothing changed.
    """
    note = lane.note()
    with no_fork:
        held = open_locked(spool.lock_path(note.identity))
    if held is None:
        raise _running(spool, lane, note)
    try:
        if note.target == destination.target and note.identity == destination.identity:
            say(f"lane {lane.name} goes to {note.target} already; nothing changed.")
            return
        if read_in_flight(lane) is not None and UNRESOLVED_KEY not in note.identity:
            say(
                f"a batch of this lane was under way to {note.target}, and whether it arrived is not known. It is "
                f"delivered to {destination.target} now, once; if you read both tables, it may be in both."
            )
        write_delivery(lane, Delivery("delivering"))
        write_note(
            lane.note_path,
            LaneNote(
                target=destination.target,
                identity=dict(destination.identity),
                created_unix_nano=note.created_unix_nano,
            ),
        )
    finally:
        os.close(held)


def _find(spool: Spool, name: str) -> Lane:
    lanes = spool.lanes()
    found = [lane for lane in lanes if lane.name == name] or [lane for lane in lanes if name in lane.name]
    if len(found) == 1:
        return found[0]
    names = ", ".join(lane.name for lane in found or lanes) or "none"
    count = len(found) or "no"
    raise SpoolError(
        f"{spool.path} has {count} lane{'' if count == 1 else 's'} with {name!r} in the name. "
        f"Name one of: {names}. `tracelake status` shows what is in them."
    )


def _running(spool: Spool, lane: Lane, note: LaneNote) -> SpoolError:
    digest = identity_digest(note.identity)
    return SpoolError(
        f"A shipper of lane {lane.name} runs, and might be delivering to {note.target} at this moment. End the apps "
        f"that record there, end a `tracelake ship` with Ctrl-C or SIGTERM, and a shipper of the apps' with "
        f"`pkill -f 'tracelake.shipper .*{digest}'` (its log is {spool.log_path(note.identity)}); then run this again."
    )
