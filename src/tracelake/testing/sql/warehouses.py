"""SQL warehouses: https://docs.databricks.com/api/workspace/warehouses

A new workspace has one that runs. One that is started is STARTING in the answer to the first GET, and runs in the next.
"""

from __future__ import annotations

import secrets
from typing import Any

from tracelake.testing.state import Store, Warehouse, WarehouseState
from tracelake.testing.web.http import ApiError, Request, Route, required

_PATH = "/api/2.0/sql/warehouses"
FIRST_NAME = "Starter Warehouse"


class Warehouses:
    """The warehouses of a workspace."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, name: str, *, warehouse_id: str = "", state: WarehouseState = "RUNNING") -> Warehouse:
        """Make a warehouse.

        Raises:
            ApiError: 400, there is one of that name or id.
        """
        made = Warehouse(id=warehouse_id or secrets.token_hex(8), name=name, state=state)
        with self._store.changing() as kept:
            if made.id in kept.warehouses or any(each.name == name for each in kept.warehouses.values()):
                raise ApiError(400, "INVALID_PARAMETER_VALUE", f"SQL warehouse with name `{name}` already exists")
            kept.warehouses[made.id] = made
        return made

    def find(self, warehouse_id: str) -> Warehouse:
        """Return a warehouse.

        Raises:
            ApiError: 404, there is none of that id.
        """
        found = self._store.state.warehouses.get(warehouse_id)
        if found is None:
            raise ApiError(404, "RESOURCE_DOES_NOT_EXIST", f"The warehouse {warehouse_id} was not found.")
        return found

    def use(self, warehouse_id: str) -> None:
        """Have a warehouse run, for a statement that comes to it."""
        found = self.find(warehouse_id)
        if found.state != "RUNNING":
            self._turn(found, "RUNNING")

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("GET", _PATH, self._list),
            Route("POST", _PATH, self._create),
            Route("GET", f"{_PATH}/{{warehouse_id}}", self._get),
            Route("DELETE", f"{_PATH}/{{warehouse_id}}", self._delete),
            Route("POST", f"{_PATH}/{{warehouse_id}}/start", self._start),
            Route("POST", f"{_PATH}/{{warehouse_id}}/stop", self._stop),
        ]

    def _list(self, _: Request) -> dict[str, Any]:
        return {"warehouses": [_json(each) for each in list(self._store.state.warehouses.values())]}

    def _create(self, request: Request) -> dict[str, Any]:
        return {"id": self.create(required(request.json(), "name")).id}

    def _get(self, _: Request, warehouse_id: str) -> dict[str, Any]:
        found = self.find(warehouse_id)
        answer = _json(found)
        if found.state == "STARTING":
            self._turn(found, "RUNNING")
        return answer

    def _delete(self, _: Request, warehouse_id: str) -> dict[str, Any]:
        self.find(warehouse_id)
        with self._store.changing() as state:
            state.warehouses.pop(warehouse_id, None)
        return {}

    def _start(self, _: Request, warehouse_id: str) -> dict[str, Any]:
        found = self.find(warehouse_id)
        if found.state not in {"RUNNING", "STARTING"}:
            self._turn(found, "STARTING")
        return {}

    def _stop(self, _: Request, warehouse_id: str) -> dict[str, Any]:
        self._turn(self.find(warehouse_id), "STOPPED")
        return {}

    def _turn(self, warehouse: Warehouse, state: WarehouseState) -> None:
        with self._store.changing():
            warehouse.state = state


def _json(warehouse: Warehouse) -> dict[str, Any]:
    return {
        "id": warehouse.id,
        "name": warehouse.name,
        "state": warehouse.state,
        "cluster_size": "2X-Small",
        "warehouse_type": "PRO",
        "enable_serverless_compute": True,
        "num_clusters": 1 if warehouse.state == "RUNNING" else 0,
    }
