# Every target sets up what it needs in .venv. PYTHON names the interpreter that makes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The tests start hundreds of programs, each twice as fast with what was compiled for the one before.
unexport PYTHONDONTWRITEBYTECODE
# The tests of a module share its servers.
PARALLEL := -n auto --dist loadscope
# These share one Spark, and one set of jars that the first of them fetches.
JVM := tests/catalog tests/spans/test_engines.py tests/test_spark.py tests/test_spark_tables.py

.PHONY: help demo test test-slow test-pythons test-oldest test-mlflow torture check bench docs clean

help:
	@echo "make demo          run two services and show their one trace"
	@echo "make test          run the tests"
	@echo "make test-slow     run the slow tests: many rounds of kill -9, Spark"
	@echo "make test-pythons  run what depends on the interpreter on the other Pythons found here"
	@echo "make test-oldest   run the tests with the oldest supported dependencies"
	@echo "make test-mlflow   run the tests of MLflow's spans with each of its packages"
	@echo "make torture       rounds of random faults, for MINUTES=10, of any SEED"
	@echo "make check         lint, format and type checks"
	@echo "make bench         measure; docs/benchmarks.md explains the figures"
	@echo "make docs          run every example in README and docs"
	@echo "make clean         remove .venv and what the targets made"

# What the demo needs is there in half a minute; the tests need MLflow and others besides.
$(VENV)/.demo $(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "tracelake needs Python 3.10 or newer; run: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV) (once, a minute or two) ..."
	@config/make-venv $(PYTHON) $(VENV) --editable '.[$(EXTRA)]'
	@touch $@
$(VENV)/.demo: EXTRA := demo
$(STAMP): EXTRA := dev

demo: $(or $(wildcard $(STAMP)),$(VENV)/.demo)
	@$(BIN)/tracelake demo

test: $(STAMP)
	$(BIN)/pytest -m "not slow" $(PARALLEL)

# Modules by name: xdist puts those of few tests last, and here these are the longest.
test-slow: $(STAMP)
	@config/make-venv $(PYTHON) $(VENV) --editable '.[spark,zerobus]'
	$(BIN)/pytest -m slow $(JVM)
	$(BIN)/pytest -m slow $(PARALLEL) --no-loadscope-reorder $(JVM:%=--ignore=%)
	$(BIN)/pytest tests/destinations/test_zerobus.py

test-pythons:
	@config/test-pythons

test-oldest:
	@config/test-oldest $(PYTHON)

test-mlflow:
	@config/test-mlflow $(PYTHON)

torture: $(STAMP)
	$(BIN)/python -m tests.torture --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks

docs: $(STAMP)
	$(BIN)/pytest tests/test_docs.py

clean:
	rm -rf $(VENV) .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis
