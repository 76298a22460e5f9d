"""Measure parts of the comparison, keep their figures, and write charts and tables into docs/."""

from __future__ import annotations

import argparse
import datetime
import time
from types import ModuleType

from benchmarks.compare import burst, delivery, disk, freshness, growth, page, recording
from benchmarks.compare.harness import SIZES, Options, say

PARTS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module for module in (recording, burst, delivery, disk, freshness, growth)
}


def write_page() -> None:
    """Make charts and tables anew from the figures that are kept."""
    page.write({name: module.TABLES for name, module in PARTS.items()})


def measure(names: list[str], options: Options, *, keep: bool = True) -> None:
    """Measure parts in turn; each is kept as soon as it is done, so that a run can be taken up with the others."""
    for name in names or PARTS:
        say(f"{name}: {(PARTS[name].__doc__ or '').splitlines()[0]}")
        begun_s = time.perf_counter()
        tables = PARTS[name].run(options)
        took_s, day = time.perf_counter() - begun_s, datetime.date.today().isoformat()
        if keep:
            page.keep(name, tables, took_s=took_s, day=day)
            write_page()
        print(
            page.markdown(
                PARTS[name].TABLES, {"tables": tables, "took_s": round(took_s), "day": day, "machine": page.machine()}
            )
        )


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(float(part)) for part in text.split(","))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--sizes", type=_sizes, default=SIZES, help="spans of the table in `growth`, as 1e4,1e5")
    parser.add_argument("--largest", type=float, default=max(SIZES), help="leave out larger ones; 1e7")
    parser.add_argument("--spans", type=int, help="spans (or tries) of a run in the other parts")
    parser.add_argument("--rounds", type=int, help="rounds of all contenders in turn")
    parser.add_argument(
        "--fill", type=float, default=Options.fill_s, help="seconds for which MLflow's server is filled"
    )
    parser.add_argument("--print", action="store_true", help="print the figures only; docs/ stays as it is")
    parser.add_argument("--page", action="store_true", help="measure nothing; make charts and tables anew")
    arguments = parser.parse_args()
    if arguments.page:
        write_page()
        return
    sizes = tuple(size for size in arguments.sizes if size <= arguments.largest)
    options = Options(arguments.spans, arguments.rounds, sizes, arguments.fill)
    measure(arguments.parts, options, keep=not arguments.print)


if __name__ == "__main__":
    main()
