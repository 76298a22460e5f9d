"""A job that is traced, and waits a bounded time for its last spans.

The cluster's disk, with the spool on it, goes when the job has ended: what is not delivered by then is lost.
"""

from __future__ import annotations

import argparse

import tracelake


@tracelake.trace(span_type="TOOL")
def look_up(question: str) -> str:
    """Do a part of the work."""
    return f"An answer to {question!r}"


def main() -> None:
    """Do the work, and say what became of its spans, also if it fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wait", type=float, default=60.0, help="seconds to wait for delivery at most")
    arguments = parser.parse_args()
    try:
        with tracelake.start_span("nightly job", span_type="CHAIN") as span:
            span.set_outputs(look_up("What is a trace?"))
    finally:
        print(tracelake.flush(arguments.wait), flush=True)  # noqa: T201 - it is what the job's log shows


if __name__ == "__main__":
    main()
