"""Writing to the files of a table by credentials of its catalog: what every sink promises, and their renewal."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import pytest

from tests.destinations.contract import SinkContract, batch, spans
from tests.shipper.conftest import Clock
from tracelake import PermanentDeliveryError, TransientDeliveryError
from tracelake.testing import MockWorkspace

from .conftest import Place, unity_sink
from .gate import DENIED, EXPIRED, FAILED, LOST, Gate, Refusal


class TestDirectory(SinkContract):
    """A table in a directory of this machine, of either schema version."""

    @pytest.fixture(params=[1, 2], ids=["v1", "v2"])
    def place(self, workspace: MockWorkspace, tmp_path: Path, request: pytest.FixtureRequest) -> Place:
        workspace.create_table("main.obs.spans", schema_version=request.param, location=str(tmp_path / "table"))
        return Place(workspace)


@pytest.mark.usefixtures("gate")
class TestS3(SinkContract):
    """A table on S3, by temporary keys."""

    @pytest.fixture
    def place(self, workspace: MockWorkspace, request: pytest.FixtureRequest) -> Place:
        workspace.create_table("main.obs.spans", location=f"s3://lake/contract/{request.node.name}")
        return Place(workspace)


class TestManaged(SinkContract):
    """A managed table, by OTLP."""

    exactly_once = False

    @pytest.fixture
    def place(self, workspace: MockWorkspace) -> Place:
        workspace.create_table("main.obs.spans")
        return Place(workspace)


def vends(workspace: MockWorkspace) -> int:
    """Return how often credentials were asked for."""
    return len(workspace.requests("/api/2.1/unity-catalog/temporary-table-credentials"))


@pytest.fixture
def on_s3(workspace: MockWorkspace, gate: Gate, request: pytest.FixtureRequest) -> Place:
    """A table on S3, behind the gate."""
    # No word of it is one that errors are told apart by.
    workspace.create_table("main.obs.spans", location=f"s3://lake/renewal/{crc32(request.node.name.encode())}")
    assert gate.requests == []
    return Place(workspace)


@pytest.mark.parametrize(("lifetime_s", "renewed_after_s"), [(43_200, 42_600), (3600, 3000), (900, 450)])
def test_credentials_are_renewed_before_they_expire(
    workspace: MockWorkspace, on_s3: Place, gate: Gate, lifetime_s: int, renewed_after_s: float
) -> None:
    """Asked for once, and again when ten minutes, or half of a short life, are left."""
    workspace.set_credential_lifetime(lifetime_s)
    clock = Clock()
    writing = unity_sink(clock)
    for number in range(1, 4):
        writing.write(batch(number, spans(number)))
    clock.now_s += renewed_after_s - 10
    writing.write(batch(4, spans(4)))
    assert (vends(workspace), len(gate.keys_used())) == (1, 1)
    clock.now_s += 20
    writing.write(batch(5, spans(5)))
    writing.write(batch(6, spans(6)))
    assert (vends(workspace), len(gate.keys_used())) == (2, 2)
    assert on_s3.numbers() == [1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("gate")
@pytest.mark.slow
def test_clock_that_is_wrong_costs_few_renewals(workspace: MockWorkspace, on_s3: Place) -> None:
    """By the clock of this machine the credentials are an hour old when they are made; S3 takes them all the same."""
    workspace.set_credential_lifetime(-3600)
    clock = Clock()
    writing = unity_sink(clock)
    for number in range(1, 11):
        writing.write(batch(number, spans(number)))
        clock.now_s += 10
    assert vends(workspace) == 2
    assert on_s3.numbers() == list(range(1, 11))


@pytest.mark.parametrize("refusal", [EXPIRED, DENIED], ids=["expired", "denied"])
@pytest.mark.parametrize("when", ["log", "upload", "commit"])
@pytest.mark.slow
def test_credentials_that_end_in_the_middle_of_a_batch(
    workspace: MockWorkspace, on_s3: Place, gate: Gate, refusal: Refusal, when: str
) -> None:
    """They are renewed once, and the batch is written once, whatever of it was there before."""
    writing = on_s3.open()
    writing.write(batch(1, spans(1)))
    is_first = {
        "log": lambda _: True,
        "upload": lambda seen: seen.is_upload,
        "commit": lambda seen: seen.is_commit,
    }[when]
    gate.refuse_key_from(is_first, refusal)
    writing.write(batch(2, spans(2, 3)))
    writing.write(batch(3, spans(4)))
    assert (vends(workspace), len(gate.keys_used())) == (2, 2)
    assert on_s3.numbers() == [1, 2, 3, 4]


def test_commit_that_ends_with_its_credentials_is_known_again(on_s3: Place, gate: Gate) -> None:
    """The store made it, and refused the key in the same breath: this is no batch of somebody else's."""
    writing = on_s3.open()
    writing.write(batch(1, spans(1)))
    refusals = [EXPIRED._replace(is_carried_out=True)]
    gate.decide = lambda seen: refusals.pop() if seen.is_commit and refusals else None
    assert writing.write(replace(batch(2, spans(2)), retried=False)) == []
    assert refusals == []
    assert on_s3.numbers() == [1, 2]


def test_store_that_refuses_every_key_is_not_asked_for_ever(workspace: MockWorkspace, on_s3: Place, gate: Gate) -> None:
    """One renewal a try, then an error that names the table; the keys are in none of it."""
    writing = on_s3.open()
    writing.write(batch(1, spans(1)))
    gate.decide = lambda _: DENIED
    with pytest.raises(PermanentDeliveryError, match=r"^main\.obs\.spans: .*Repair the access") as raised:
        writing.write(batch(2, spans(2)))
    assert vends(workspace) == 2
    assert not any(key in str(raised.value) for key in gate.keys_used())
    gate.decide = lambda _: None
    writing.write(batch(2, spans(2)))
    assert on_s3.numbers() == [1, 2]


@pytest.mark.parametrize("refusal", [LOST, FAILED], ids=["lost", "failed"])
def test_commit_whose_answer_is_lost_is_made_once(on_s3: Place, gate: Gate, refusal: Refusal) -> None:
    """The store has it, and does not say so: whoever tries again finds it there."""
    writing = on_s3.open()
    writing.write(batch(1, spans(1)))
    lost = [refusal]
    gate.decide = lambda seen: lost.pop() if seen.is_commit and lost else None
    with suppress(TransientDeliveryError):
        writing.write(batch(2, spans(2)))
    assert on_s3.open().write(batch(2, spans(2))) == []
    assert on_s3.numbers() == [1, 2]
