"""What is asked of a Databricks workspace or a Unity Catalog server: tables, privileges, credentials, SQL."""
