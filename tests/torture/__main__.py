"""Plays rounds until the time is up: `python -m tests.torture --minutes 10 --seed 1`."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import SystemRandom

from tests.torture.rounds import Outcome, play
from tests.torture.schedule import SERVERS, draw
from tests.torture.servers import run_servers

HEADER = f"{'round':5} {'destinations':21} {'spans':>7} {'refused':>7} {'doubles':>7} {'s':>4} {'':6} faults"


def main(arguments: list[str]) -> int:
    """Play rounds; return how the process is to exit."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="start no round after this long (default: 10)")
    parser.add_argument("--rounds", type=int, default=sys.maxsize, help="play no more than these")
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(10**6), help="default: any")
    parser.add_argument("--round", type=int, help="play this one only")
    parser.add_argument(
        "--only", choices=tuple(SERVERS), nargs="+", default=list(SERVERS), help="kinds of destinations"
    )
    parser.add_argument("--keep", action="store_true", help="keep the files of rounds that went well, too")
    chosen = parser.parse_args(arguments)
    # What is started is ended with the blocks below.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    root = Path(tempfile.mkdtemp(prefix="tracelake-torture-"))
    print(f"seed {chosen.seed}, files in {root}")
    print(HEADER)
    outcomes = []
    with run_servers(root) as servers:
        for number in _numbers(chosen.round, chosen.rounds, chosen.minutes):
            schedule = draw(chosen.seed, number, chosen.only)
            directory = root / f"round-{number}"
            outcome = play(schedule, servers, directory)
            outcomes.append(outcome)
            print(line(outcome), flush=True)
            if outcome.findings:
                print(story(outcome, directory), flush=True)
            elif not chosen.keep:
                shutil.rmtree(directory)
    print(summary(outcomes))
    has_failed = any(outcome.findings for outcome in outcomes)
    if not (has_failed or chosen.keep):
        shutil.rmtree(root)
    return int(has_failed)


def _numbers(only: int | None, rounds: int, minutes: float) -> Iterator[int]:
    """Yield the rounds to play, as long as there is time."""
    end_s = time.monotonic() + minutes * 60
    for number in range(rounds) if only is None else (only,):
        if time.monotonic() >= end_s:
            return
        yield number


def line(outcome: Outcome) -> str:
    """Return a round in a line, under `HEADER`."""
    schedule = outcome.schedule
    return (
        f"{schedule.number:5} {'+'.join(schedule.destinations):21} {outcome.kept:7} {outcome.refused:7} "
        f"{outcome.doubles:7} {outcome.seconds:4.0f} {'FAILED' if outcome.findings else 'ok':6} "
        f"{_counts(outcome.faults)}"
    )


def story(outcome: Outcome, directory: Path) -> str:
    """Return what is to be known of a round that failed."""
    schedule = outcome.schedule
    return "\n  ".join(
        [
            f"Round {schedule.number} of seed {schedule.seed} failed:",
            *(f"FAILED: {finding}" for finding in outcome.findings),
            *(f"app: {plan}" for plan in schedule.apps),
            f"settings: {' '.join('='.join(pair) for pair in schedule.settings)}",
            f"small disk for: {schedule.disk or 'nothing'}",
            *outcome.diary,
            f"its files: {directory}",
            f"again: python -m tests.torture --seed {schedule.seed} --round {schedule.number}",
        ]
    )


def summary(outcomes: list[Outcome]) -> str:
    """Return the sums of a run, one line each."""
    faults = sum((outcome.faults for outcome in outcomes), Counter[str]())
    destinations = Counter(kind for outcome in outcomes for kind in outcome.schedule.destinations)
    rows = {
        "rounds": f"{len(outcomes)}, of which {sum(bool(outcome.findings) for outcome in outcomes)} failed",
        "  to each destination": _counts(destinations),
        "spans acknowledged": f"{sum(outcome.kept for outcome in outcomes):,}",
        "spans refused, counted": f"{sum(outcome.refused for outcome in outcomes):,}",
        "spans under way at a kill": f"{sum(outcome.unknown for outcome in outcomes):,}",
        "torn lines set aside": f"{sum(outcome.quarantined for outcome in outcomes):,}",
        "rows beyond the first": f"{sum(outcome.doubles for outcome in outcomes):,}",
        "faults": f"{faults.total():,}",
        "  of each kind": _counts(faults),
        "faults not to be had here": "; ".join(sorted({each.skipped for each in outcomes} - {""})) or "none",
        "most memory of a shipper": f"{max((outcome.memory_mib for outcome in outcomes), default=0)} MiB",
        "minutes": f"{sum(outcome.seconds for outcome in outcomes) / 60:.1f}",
    }
    return "\n".join(f"{name:26} {value}" for name, value in rows.items())


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{kind} {times}" for kind, times in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
