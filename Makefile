# Every target sets up what it needs. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt $(shell find src -name '*.c' -o -name '*.h')
# A plain test run stays short; `make test-slow` runs what is marked slow.
PYTEST := $(BIN)/python -m pytest

.PHONY: help setup quickstart test test-slow bench lint sanitize gpu-check clean

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.dependencies: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check \
	    -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed: $(VENV)/.dependencies $(NATIVE)
	$(BIN)/pip install --quiet --no-deps --disable-pip-version-check -e .
	touch $@

setup: $(VENV)/.installed  ## Create .venv with everything, and build the CPU library.

quickstart: setup  ## Train, evaluate, export and picture a small RedNet; under 3 minutes.
	$(BIN)/volution quickstart

test: setup  ## Run the tests.
	$(PYTEST) -m 'not slow'

test-slow: setup  ## Run the full-size tests too.
	$(PYTEST)

lint: setup  ## Check style, types and the direction of imports.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:  ## Remove the environment and what was built.
	rm -rf $(VENV) build dist
