"""Run every benchmark and print its figures; docs/benchmarks.md says what they mean."""

from __future__ import annotations

import os
import platform

from benchmarks import committing, importing, opening, redaction, shipping, unity_catalog, workspace
from benchmarks.compare import __main__ as compare
from benchmarks.compare.harness import Options


def main() -> None:
    """Write charts and tables of the comparison into docs/, then print a line a figure of the others."""
    print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    compare.measure([], Options())
    for version in (1, 2):
        print(f"\nShipping {shipping.SPANS:,} spans to a Delta table of schema version {version}")
        for label, figure in shipping.run(shipping.SPANS, version).items():
            print(f"  {label:50} {figure:10.1f}")
    print(f"\nShipping {shipping.BACKLOG:,} spans that piled up: memory stays")
    for label, figure in shipping.run(shipping.BACKLOG, 1).items():
        print(f"  {label:50} {figure:10.1f}")
    print(f"\nCommitting {committing.SPANS} spans at a time, as the table's log grows")
    for label, figure in committing.run().items():
        print(f"  {label:50} {figure:10.1f}")
    print("\nOpening a table")
    for label, figure in opening.run().items():
        print(f"  {label:50} {figure:10.1f}")
    for version in (1, 2):
        print(f"\nThe mocked workspace, a span table of schema version {version}")
        for label, figure in workspace.ingestion(version).items():
            print(f"  {label:50} {figure:10.1f}")
    print("\nThe mocked workspace: start, many commits, memory")
    for label, figure in (workspace.start() | workspace.commits() | workspace.memory()).items():
        print(f"  {label:50} {figure:10.1f}")
    for kind, figures in unity_catalog.run().items():
        print(f"\nA table in Unity Catalog, {kind}")
        for label, figure in figures.items():
            print(f"  {label:50} {figure:10.2f}")
    print("\nRedaction")
    for label, figure in redaction.run().items():
        print(f"  {label:50} {figure:10.2f}")
    print("\nImporting")
    for label, value in importing.run().items():
        print(f"  {label:50} {value:>10.1f}" if isinstance(value, float) else f"  {label:50} {value:>10}")


if __name__ == "__main__":
    main()
