# `make demo` and `make test` set everything up in .venv first; `make help` lists the rest.
# PYTHON=... chooses the interpreter that .venv is made with.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-gpu lint bench clean

# One thread for each process: tests and workers run several processes side by side.
TEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest
SOURCES := musev pipelines jobs tests benchmarks

help:
	@echo "make demo      render ten short videos from a Parquet manifest into out/demo"
	@echo "make test      the tests that need neither a GPU nor many gigabytes"
	@echo "make test-all  also the large networks and the tests that kill running jobs"
	@echo "make test-gpu  the tests that need a CUDA device"
	@echo "make lint      format, lint, types, import contracts, docstrings"
	@echo "make bench     every script of benchmarks/"
	@echo "make setup     only install (the others do it themselves)"
	@echo "make clean     remove what runs and tools left behind; keeps .venv"

setup:
	@PYTHON="$(PYTHON)" bash .ci/setup

demo: setup
	.venv/bin/python -m jobs.demo

test: setup
	$(TEST) -m "not slow and not faults and not gpu"

test-all: setup
	$(TEST) -m "not gpu"

test-gpu: setup
	$(TEST) -m gpu

# pydoclint's DOC502 is left out: it wants a `raise` in the function itself, but an error that a
# function's helper raises belongs into the function's docstring all the same.
lint: setup
	.venv/bin/ruff format --check $(SOURCES)
	.venv/bin/ruff check $(SOURCES)
	.venv/bin/pyright --pythonpath .venv/bin/python
	.venv/bin/lint-imports
	.venv/bin/pydoclint --quiet musev pipelines jobs 2>&1 \
		| awk '/^[^ ]/ {file = $$0} / DOC[0-9]+:/ && !/ DOC502:/ {print file ":" $$0; bad = 1} END {exit bad}'

bench: setup
	@for file in benchmarks/*.py; do \
		[ -e "$$file" ] || { echo "no benchmarks yet"; break; }; \
		echo "== $$file"; .venv/bin/python -m "benchmarks.$$(basename $$file .py)" || exit 1; \
	done

clean:
	rm -rf out build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .coverage
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
