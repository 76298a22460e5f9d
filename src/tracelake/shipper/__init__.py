"""From spool to sink: batches, retries, exactly once, and the life of the process that does it."""
