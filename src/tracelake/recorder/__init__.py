"""The app's side of the spool: which lanes a span goes to, and that somebody delivers them."""
