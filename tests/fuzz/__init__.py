"""Hostile input, for whatever reads what strangers write."""
