"""Randomised fault runs: `make torture`, or `python -m tests.torture --minutes 10 --seed 1`."""
