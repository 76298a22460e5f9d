"""The rows of tables, and how spans get into them."""
