"""The detached shipper process: `python -m tracelake.shipper SPOOL IDENTITY-DIGEST LOCK-DESCRIPTOR`.

Started by recorders; people run `tracelake ship`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading

from tracelake.settings import read_settings
from tracelake.shipper.service import Shipper, own_process
from tracelake.spool.lane import Spool, identity_digest


def main(arguments: list[str]) -> int:
    """Deliver the lanes of one identity until idle; return the exit code."""
    spool_path, digest, lock = arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(message)s")
    settings, problems = read_settings()
    for problem in problems:
        logging.warning("%s", problem)
    with contextlib.suppress(OSError):
        os.nice(5)  # the app goes first
    os.set_inheritable(int(lock), False)
    own_process()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    shipper = Shipper(
        Spool(spool_path),
        settings,
        serves=lambda _, identity: identity_digest(identity) == digest,
        held={digest: int(lock)},
    )
    logging.info("shipper of %s started", spool_path)
    shipper.run(stop, idle_s=settings.shipper_idle_s)
    if stop.is_set():
        shipper.drain()
    shipper.release()
    logging.info("shipper ended")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
