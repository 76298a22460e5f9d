"""SQL warehouses and statements, by DuckDB."""
