"""`tracelake ship`: deliver the spool in the foreground, as a sidecar or from cron."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Mapping

from tracelake.cli.options import Commands, add_command, add_spool, chosen_spool
from tracelake.cli.output import EXIT_FAILED, EXIT_OK, progress, say
from tracelake.cli.status import byte_text, remedy
from tracelake.destinations.targets import parse_target
from tracelake.errors import TracelakeError
from tracelake.settings import load_settings
from tracelake.shipper.service import Shipper, own_process
from tracelake.shipper.status import UNRESOLVED_KEY, LaneStatus, read_status
from tracelake.spool.lane import Lane, Spool, identity_digest
from tracelake.spool.ledger import pending_bytes
from tracelake.spool.segment import FORMAT_VERSION

_DETAILS = """
Delivers the lanes that this environment has the access for, until it is ended by Ctrl-C
or SIGTERM; it then delivers what is there and ends. Apps with TRACELAKE_SHIPPER=external
leave all delivery to it. With --once it delivers what is there now and ends: exit code 1
means that some of it could not be delivered.
"""

_EXAMPLES = """
  tracelake ship
  tracelake ship --once
  tracelake ship --once --spool /var/lib/tracelake/spool
"""


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "ship", run, summary="deliver what waits in the spool", details=_DETAILS, examples=_EXAMPLES
    )
    parser.add_argument("--once", action="store_true", help="deliver what is there now, and end")
    add_spool(parser)


def run(arguments: argparse.Namespace) -> int:
    """Deliver a spool."""
    own_process()
    spool = chosen_spool(arguments)
    spool.check()
    choice = LaneChoice(spool)
    shipper = Shipper(spool, load_settings(), serves=choice)
    try:
        return _ship_once(spool, shipper, choice) if arguments.once else _ship(spool, shipper)
    finally:
        shipper.release()


class LaneChoice:
    """Says which lanes are delivered here, and says once for each of the others why it is not.

    Attributes:
        left: why a lane is left alone, by its name.
    """

    def __init__(self, spool: Spool) -> None:
        self.left: dict[str, str] = {}
        self._spool = spool
        self._ours: set[str] = set()

    def __call__(self, lane: Lane, identity: Mapping[str, str]) -> bool:
        """Say whether this process delivers a lane. Asked again and again for those that it does not."""
        reason = self._reason(lane, identity)
        if reason and self.left.get(lane.name) != reason:
            say(f"leaving lane {lane.name} alone: {reason}")
        if reason:
            self.left[lane.name] = reason
            return False
        self.left.pop(lane.name, None)
        newer = sum(segment.version > FORMAT_VERSION for segment in lane.segments())
        if newer:
            say(
                f"leaving {newer} files of lane {lane.name} alone: a newer tracelake wrote them. Update tracelake here."
            )
        self._ours.add(identity_digest(identity))
        return True

    def _reason(self, lane: Lane, identity: Mapping[str, str]) -> str:
        if UNRESOLVED_KEY in identity:
            return f"it names no destination. Run: tracelake redirect {lane.name} TARGET"
        try:
            here = dict(parse_target(lane.note().target).identity)
        except TracelakeError as error:
            return str(error)
        if here != dict(identity):
            return f"it belongs to the access {_text(identity)}, and this environment gives {_text(here)}"
        # A lock of our own would look the same: it is held by this process, in another open file.
        if identity_digest(identity) not in self._ours and self._spool.is_shipped(identity):
            return "another shipper delivers it"
        return ""


def _ship(spool: Spool, shipper: Shipper) -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    say(f"delivering {spool.path}; Ctrl-C delivers what is there and ends")
    shipper.run(stop)
    # From here on a second Ctrl-C ends it at once: what waits stays in the spool.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    say("ending: delivering what is there")
    shipper.drain()
    return EXIT_OK


def _ship_once(spool: Spool, shipper: Shipper, choice: LaneChoice) -> int:
    # What goes wrong is in the lanes' delivery notes, and said below, once.
    logging.getLogger("tracelake").setLevel(logging.ERROR)
    before = {lane.name: lane for lane in read_status(spool).lanes}
    with progress("delivering", lambda: f"{byte_text(sum(map(pending_bytes, spool.lanes())))} left"):
        shipper.drain()
    failed = False
    for lane in read_status(spool).lanes:
        if lane.name not in choice.left:
            failed = _say_result(lane, before.get(lane.name)) or failed
    if not before:
        say(f"nothing waits in {spool.path}")
    return EXIT_FAILED if failed else EXIT_OK


def _say_result(lane: LaneStatus, before: LaneStatus | None) -> bool:
    """Print what became of a lane; return whether something is left in it that should not be."""
    delivered = lane.delivered - (before.delivered if before else 0)
    print(f"{lane.name}: {delivered:,} spans delivered, {lane.pending_spans:,} left")
    set_aside = lane.quarantined - (before.quarantined if before else 0)
    if set_aside:
        say(f"{lane.name}: {set_aside:,} spans were set aside; the reason for each is in {lane.path}/quarantine")
    if lane.error or lane.state == "damaged":
        say(" ".join(filter(None, (f"{lane.name}:", lane.error, *lane.damage, remedy(lane)))))
        return True
    waited = before.pending_spans if before else 0
    if waited and lane.pending_spans and not (delivered or set_aside or lane.newer_segments):
        say(f"{lane.name}: nothing was delivered, and the reason could not be noted. Is the disk of {lane.path} full?")
        return True
    return False


def _text(identity: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(identity.items())) or "(none)"
