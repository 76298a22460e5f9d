"""What a span is: its record, its line in the spool, its row in a table, its OTLP message."""
