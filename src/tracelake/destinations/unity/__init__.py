"""A table in Unity Catalog: of a Databricks workspace, or of an open-source server."""
