"""`tracelake create-table`: make a span table in Unity Catalog."""

from __future__ import annotations

import argparse

from tracelake.cli.options import Commands, add_command, target
from tracelake.cli.output import EXIT_OK, progress
from tracelake.destinations.unity.create import TableRequest, create
from tracelake.destinations.unity.destination import UnityCatalogDestination
from tracelake.errors import TargetError

_DETAILS = """
On Databricks a SQL warehouse makes it: that of DATABRICKS_WAREHOUSE_ID, or else a running
one. In an open-source Unity Catalog server it is registered, and begun at its location.
With --location the table is external, and spans go to its files directly, each exactly
once; without, Databricks manages it, and spans go through its OTLP endpoint. A table that
is there already stays as it is. --print-sql prints the statements, for whoever may run
them, and needs no access.
"""

_EXAMPLES = """
  tracelake create-table main.obs.spans --grant-to my-service
  tracelake create-table main.obs.spans --location s3://bucket/obs/spans --schema-version 2
  tracelake create-table main.obs.spans --print-sql > spans.sql
"""


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "create-table",
        run,
        summary="make a span table in Unity Catalog",
        details=_DETAILS,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "target", type=target, metavar="TARGET", help="catalog.schema.table, or catalog.schema for MLflow's table in it"
    )
    parser.add_argument(
        "--schema-version",
        type=int,
        choices=(1, 2),
        default=1,
        help="1 has MAP attributes, 2 has VARIANT (default: %(default)s)",
    )
    parser.add_argument("--location", metavar="URL", default="", help="where the files of an external table are")
    parser.add_argument(
        "--grant-to",
        action="append",
        default=[],
        metavar="PRINCIPAL",
        help="a user, group or application id that is to write spans; may be repeated",
    )
    parser.add_argument("--print-sql", action="store_true", help="print the statements, and run none")


def run(arguments: argparse.Namespace) -> int:
    """Make the table, or print how."""
    destination = arguments.target
    if not isinstance(destination, UnityCatalogDestination):
        raise TargetError(
            f"{destination.target} is not in Unity Catalog: a Delta table at a path is made with the first delivery, "
            "and an experiment likewise. Write catalog.schema.table."
        )
    request = TableRequest(destination.name, arguments.schema_version, arguments.location, tuple(arguments.grant_to))
    if arguments.print_sql:
        for statement in request.statements():
            print(f"{statement};\n")
        return EXIT_OK

    from tracelake.databricks.catalog import Catalog
    from tracelake.databricks.workspace import connect

    with progress(f"making {destination.name}"):
        done = create(Catalog(connect()), request)
    for step in done:
        print(step.partition("\n")[0].removesuffix(" ("))
    print(f"\nCheck it: tracelake doctor {destination.name.argument}")
    return EXIT_OK
