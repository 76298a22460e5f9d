"""The pluggable layer: parse a target, resolve it from code, context and environment, check it, open its sink."""
