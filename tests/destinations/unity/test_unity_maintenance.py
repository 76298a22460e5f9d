"""Maintenance of tables in Unity Catalog: of files that are open to us, by temporary credentials; of no others."""

from __future__ import annotations

import pytest

from tests.numbered import START_NS
from tracelake.destinations.delta import DeltaSink
from tracelake.destinations.maintenance import Elsewhere, MaintainableDestination, optimize, remove_older, vacuum
from tracelake.destinations.targets import parse_target
from tracelake.errors import RefusedError
from tracelake.testing import MockWorkspace

from ..contract import batch, spans
from .conftest import AGENT, Place


def maintained(name: str = "main.obs.spans") -> DeltaSink | Elsewhere:
    destination = parse_target(name)
    assert isinstance(destination, MaintainableDestination)
    return destination.maintained()


@pytest.mark.usefixtures("gate")
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.slow
def test_external_table_is_maintained_by_credentials_of_its_catalog(workspace: MockWorkspace, version: int) -> None:
    """On the store, with what the catalog gives to write."""
    workspace.create_table("main.obs.spans", schema_version=version, location=f"s3://lake/maintained/{version}")
    place = Place(workspace)
    for number in range(1, 6):
        place.open().write(batch(number, spans(number)))
    sink = maintained()
    assert isinstance(sink, DeltaSink)
    assert optimize(sink).after.files == 1
    assert vacuum(sink).files_deleted == 0
    assert place.numbers() == [1, 2, 3, 4, 5]
    assert remove_older(sink, START_NS + 1).rows_removed == 5
    assert place.numbers() == []


def test_managed_table_is_left_to_databricks(workspace: MockWorkspace) -> None:
    """No credentials are asked for."""
    workspace.create_table("main.obs.spans")
    found = maintained()
    assert found == Elsewhere(
        "it is managed, and Databricks (predictive optimization) maintains it; old spans are removed by DELETE in SQL"
    )


def test_table_without_the_right_to_write_is_an_error(workspace: MockWorkspace, tmp_path: object) -> None:
    """As the catalog says it."""
    workspace.create_table("main.obs.spans", location=f"{tmp_path}/table")
    workspace.revoke("MODIFY", on="main", from_=AGENT)
    with pytest.raises(RefusedError, match="MODIFY"):
        maintained()
