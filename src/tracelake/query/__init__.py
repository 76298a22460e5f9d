"""Read traces back from a span table: by trace id, as a tree, by SQL."""
