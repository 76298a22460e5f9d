"""Grants, as databricks-sdk makes and reads them, and what they let people do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from databricks.sdk import errors
from databricks.sdk.errors import InvalidParameterValue, NotFound, PermissionDenied
from databricks.sdk.service.catalog import PermissionsChange, Privilege, SecurableType

from tracelake import ConfigurationError, QueryError
from tracelake.testing import MockWorkspace

from .sdk import client

BASE = "/api/2.1/unity-catalog"
ANN = "ann@example.com"


@pytest.fixture(autouse=True)
def people(workspace: MockWorkspace) -> None:
    workspace.create_table("main.obs.spans")
    workspace.add_group("engineers")
    workspace.add_user(ANN, groups=["engineers"])


def change(principal: str, *, add: list[Privilege] | None = None, remove: list[Privilege] | None = None) -> Any:
    return [PermissionsChange(principal=principal, add=add, remove=remove)]


def held(response: Any) -> dict[str, list[str]]:
    return {
        each.principal: [privilege.value for privilege in each.privileges]
        for each in response.privilege_assignments or []
    }


def patch(workspace: MockWorkspace, path: str, body: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {workspace.environment()['DATABRICKS_TOKEN']}"}
    return requests.patch(f"{workspace.url}{BASE}/{path}", json=body, headers=headers, timeout=10)


@pytest.mark.parametrize("kind", ["TABLE", "table", SecurableType.TABLE, "SecurableType.TABLE"])
def test_grants_are_made_read_and_taken_back(workspace: MockWorkspace, kind: Any) -> None:
    grants = client(workspace).grants
    made = grants.update(
        kind, "main.obs.spans", changes=change(ANN, add=[Privilege.SELECT, Privilege.MODIFY, Privilege.SELECT])
    )
    assert held(made) == {ANN: ["MODIFY", "SELECT"]}
    assert held(grants.get(kind, "main.obs.spans")) == {ANN: ["MODIFY", "SELECT"]}
    changed = grants.update(
        kind,
        "main.obs.spans",
        changes=[
            *change(ANN, remove=[Privilege.MODIFY]),
            *change("engineers", add=[Privilege.APPLY_TAG], remove=[Privilege.SELECT]),
        ],
    )
    assert held(changed) == {ANN: ["SELECT"], "engineers": ["APPLY_TAG"]}
    assert held(grants.get(kind, "main.obs.spans", principal="engineers")) == {"engineers": ["APPLY_TAG"]}
    assert held(grants.get(kind, "main.obs.spans", principal="nobody")) == {}


def test_effective_permissions_say_where_they_come_from(workspace: MockWorkspace) -> None:
    workspace.grant("USE CATALOG", "SELECT", on="main", to="engineers")
    workspace.grant("USE SCHEMA", "MODIFY", on="main.obs", to=ANN)
    workspace.grant("SELECT", on="main.obs.spans", to=ANN)
    found = client(workspace).grants.get_effective("TABLE", "main.obs.spans").privilege_assignments
    assert {
        each.principal: [
            (
                privilege.privilege.value,
                privilege.inherited_from_type.value if privilege.inherited_from_type else None,
                privilege.inherited_from_name,
            )
            for privilege in each.privileges
        ]
        for each in found
    } == {
        ANN: [("SELECT", None, None), ("MODIFY", "SCHEMA", "main.obs"), ("USE_SCHEMA", "SCHEMA", "main.obs")],
        "engineers": [("SELECT", "CATALOG", "main"), ("USE_CATALOG", "CATALOG", "main")],
    }
    mine = client(workspace, ANN).grants.get_effective("schema", "main.obs", principal=ANN).privilege_assignments
    assert [(each.privilege.value, each.inherited_from_name) for each in mine[0].privileges] == [
        ("MODIFY", None),
        ("USE_SCHEMA", None),
    ]


def test_grants_on_the_metastore(workspace: MockWorkspace) -> None:
    asking = client(workspace)
    metastore = asking.metastores.current().metastore_id
    with pytest.raises(PermissionDenied):
        client(workspace, ANN).catalogs.create("lab")
    asking.grants.update("METASTORE", metastore, changes=change("engineers", add=[Privilege.CREATE_CATALOG]))
    assert held(asking.grants.get("metastore", metastore)) == {"engineers": ["CREATE_CATALOG"]}
    assert len(asking.grants.get_effective("METASTORE", metastore).privilege_assignments) == 1
    assert client(workspace, ANN).catalogs.create("lab").owner == ANN
    with pytest.raises(PermissionDenied, match="not an owner of Metastore"):
        client(workspace, ANN).grants.get("METASTORE", metastore)
    with pytest.raises(PermissionDenied, match="not an owner of Metastore"):
        client(workspace, ANN).grants.update("METASTORE", metastore, changes=change(ANN, add=[]))
    with pytest.raises(NotFound, match="Metastore 'other' does not exist"):
        asking.grants.get("METASTORE", "other")
    with pytest.raises(InvalidParameterValue, match="SELECT is not applicable"):
        asking.grants.update("METASTORE", metastore, changes=change(ANN, add=[Privilege.SELECT]))


def test_what_cannot_be_granted(workspace: MockWorkspace) -> None:
    grants = client(workspace).grants
    with pytest.raises(InvalidParameterValue, match=r"Privilege USE CATALOG is not applicable to this entity") as wrong:
        grants.update("TABLE", "main.obs.spans", changes=change(ANN, add=[Privilege.SELECT, Privilege.USE_CATALOG]))
    assert wrong.value.get_error_info()[0].reason == "PRIVILEGE_NOT_APPLICABLE_TO_ENTITY"
    with pytest.raises(NotFound, match="Could not find principal with name nobody") as unknown:
        grants.update(
            "TABLE",
            "main.obs.spans",
            changes=[*change(ANN, add=[Privilege.SELECT]), *change("nobody", add=[Privilege.SELECT])],
        )
    assert unknown.value.error_code == "PRINCIPAL_DOES_NOT_EXIST"
    # All changes of a call are made, or none.
    assert held(grants.get("TABLE", "main.obs.spans")) == {}
    with pytest.raises(InvalidParameterValue, match="not a valid securable type"):
        grants.get("BUCKET", "main")
    with pytest.raises(errors.NotImplemented, match="does not imitate grants of the type EXTERNAL_LOCATION"):
        grants.get("EXTERNAL_LOCATION", "lake")
    with pytest.raises(InvalidParameterValue, match="not a valid name of a SCHEMA"):
        grants.get("SCHEMA", "main.obs.spans")
    with pytest.raises(NotFound, match="does not exist"):
        grants.get("TABLE", "main.obs.no")


@pytest.mark.parametrize(
    "body",
    [
        {"changes": ["a"]},
        {"changes": [{"add": ["SELECT"]}]},
        {"changes": [{"principal": ANN, "add": "SELECT"}]},
        {"changes": [{"principal": ANN, "add": [1]}]},
        {"changes": [{"principal": ANN, "add": ["READ EVERYTHING"]}]},
    ],
)
def test_changes_that_cannot_be_read(workspace: MockWorkspace, body: Any) -> None:
    answer = patch(workspace, "permissions/table/main.obs.spans", body)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


def test_the_answer_can_be_left_out(workspace: MockWorkspace) -> None:
    body = {"changes": [{"principal": ANN, "add": ["SELECT"]}], "omit_permissions_in_response": True}
    assert patch(workspace, "permissions/table/main.obs.spans", body).json() == {}


def test_who_may_see_and_change_grants(workspace: MockWorkspace) -> None:
    workspace.grant("SELECT", on="main.obs.spans", to="engineers")
    ann = client(workspace, ANN)
    with pytest.raises(PermissionDenied, match="MANAGE on Table"):
        ann.grants.get("TABLE", "main.obs.spans")
    assert held(ann.grants.get("TABLE", "main.obs.spans", principal="engineers")) == {"engineers": ["SELECT"]}
    with pytest.raises(PermissionDenied, match="MANAGE on Table"):
        ann.grants.update("TABLE", "main.obs.spans", changes=change(ANN, add=[Privilege.MODIFY]))
    workspace.grant("MANAGE", on="main.obs", to=ANN)
    assert held(ann.grants.update("TABLE", "main.obs.spans", changes=change(ANN, add=[Privilege.MODIFY])))[ANN]
    # Only the catalog's owner lets data out of the workspace.
    with pytest.raises(PermissionDenied, match="not an owner of Catalog 'main'"):
        ann.grants.update("SCHEMA", "main.obs", changes=change(ANN, add=[Privilege.EXTERNAL_USE_SCHEMA]))


def test_privileges_by_group_by_all_and_for_everybody(workspace: MockWorkspace) -> None:
    tables = client(workspace, ANN).tables
    workspace.grant("USE CATALOG", "USE SCHEMA", on="main", to="account users")
    with pytest.raises(PermissionDenied, match="SELECT on Table"):
        tables.get("main.obs.spans")
    workspace.grant("SELECT", on="main.obs", to="engineers")
    assert tables.get("main.obs.spans").name == "spans"
    workspace.revoke("SELECT", on="main.obs", from_="engineers")
    with pytest.raises(PermissionDenied, match="SELECT on Table"):
        tables.get("main.obs.spans")
    workspace.grant("ALL PRIVILEGES", on="main.obs.spans", to=ANN)
    assert tables.get("main.obs.spans").name == "spans"


def test_a_group_owns_for_its_members(workspace: MockWorkspace) -> None:
    client(workspace).catalogs.update("main", owner="engineers")
    client(workspace, ANN).schemas.create("mine", "main")
    assert held(
        client(workspace, ANN).grants.update(
            "SCHEMA", "main.mine", changes=change(ANN, add=[Privilege.EXTERNAL_USE_SCHEMA])
        )
    ) == {ANN: ["EXTERNAL_USE_SCHEMA"]}


def test_by_code(workspace: MockWorkspace) -> None:
    with pytest.raises(ConfigurationError, match="not applicable"):
        workspace.grant("DANCE", on="main", to=ANN)
    with pytest.raises(QueryError, match="PRINCIPAL_DOES_NOT_EXIST"):
        workspace.grant("SELECT", on="main", to="nobody")
    workspace.revoke("SELECT", on="main", from_=ANN)
    assert held(client(workspace).grants.get("CATALOG", "main")) == {}


def test_changes_made_at_once_are_all_kept(workspace: MockWorkspace) -> None:
    """And nobody loses a privilege for a moment because others are given some."""
    workspace.grant("USE CATALOG", "USE SCHEMA", "SELECT", on="main", to=ANN)
    token = workspace.environment(ANN)["DATABRICKS_TOKEN"]
    names = [f"user{number}@example.com" for number in range(16)]
    for name in names:
        workspace.add_user(name)

    def change_and_read(name: str) -> set[int]:
        statuses = set()
        for privilege in ("SELECT", "MODIFY", "APPLY_TAG"):
            body = {"changes": [{"principal": who, "add": [privilege]} for who in (name, ANN)]}
            statuses.add(patch(workspace, "permissions/table/main.obs.spans", body).status_code)
            table = requests.get(
                f"{workspace.url}{BASE}/tables/main.obs.spans", headers={"Authorization": f"Bearer {token}"}, timeout=10
            )
            statuses.add(table.status_code)
        return statuses

    with ThreadPoolExecutor(len(names)) as pool:
        assert set().union(*pool.map(change_and_read, names)) == {200}
    assert held(client(workspace).grants.get("TABLE", "main.obs.spans")) == {
        name: ["APPLY_TAG", "MODIFY", "SELECT"] for name in (*names, ANN)
    }
