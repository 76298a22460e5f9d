"""Tests of what a span is: its record, its line, its row and its OTLP message."""
