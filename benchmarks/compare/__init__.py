"""tracelake beside what users would pick instead: one question a module, all contenders in turn in one run.

Run: python -m benchmarks.compare, or with the names of some parts; --help has the rest.
"""
