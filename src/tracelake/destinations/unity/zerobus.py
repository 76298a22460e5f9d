"""Open Zerobus for a table: where the service is, and whose access it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracelake.destinations.zerobus import ZerobusSink
from tracelake.errors import PermanentDeliveryError, SettingError
from tracelake.settings import read_settings
from tracelake.spans import tables

if TYPE_CHECKING:
    from tracelake.databricks.catalog import Catalog, TableInfo

# https://docs.databricks.com/aws/en/ingestion/zerobus-ingest
_DOMAINS = {"aws": "cloud.databricks.com", "azure": "azuredatabricks.net", "gcp": "gcp.databricks.com"}


def open_zerobus(catalog: Catalog, table: TableInfo) -> ZerobusSink:
    """Return a sink for a managed table.

    Raises:
        MissingDependencyError: the SDK of Zerobus is not installed.
        SettingError: the service's URL is not known, or is none.
        PermanentDeliveryError: the access is not that of a service principal, or the table cannot hold spans.
    """
    access = catalog.workspace.oauth()
    if access is None:
        raise PermanentDeliveryError(
            f"Zerobus takes spans from service principals, and access to {catalog.workspace.url} is "
            f"{catalog.workspace.access}. Set DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET, or another "
            "TRACELAKE_TRANSPORT."
        )
    client_id, client_secret = access
    return ZerobusSink(
        str(table.name),
        endpoint=read_settings()[0].zerobus_url or _endpoint(catalog),
        workspace_url=catalog.workspace.url,
        client_id=client_id,
        client_secret=client_secret,
        schema=tables.arrow_schema(table.schema),
    )


def _endpoint(catalog: Catalog) -> str:
    """Return the URL that the service has for a workspace of this cloud and region."""
    metastore = catalog.metastore()
    domain = _DOMAINS.get(str(metastore.get("cloud") or "").lower())
    region, workspace_id = str(metastore.get("region") or ""), catalog.workspace.workspace_id
    if not (domain and region and workspace_id):
        raise SettingError(
            f"The metastore of {catalog.workspace.url} does not say where Zerobus is. Set TRACELAKE_ZEROBUS_URL to "
            "https://<workspace-id>.zerobus.<region>.cloud.databricks.com."
        )
    return f"https://{workspace_id}.zerobus.{region}.{domain}"
