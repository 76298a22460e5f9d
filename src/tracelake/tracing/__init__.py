"""Front ends: where spans come from, and how their context travels between services."""
