# Every target sets up what it needs. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt $(shell find src -name '*.c' -o -name '*.h')
# A plain test run stays short; `make test-slow` runs what is marked slow.
PYTEST := $(BIN)/python -m pytest -q -n auto

# Where it is set, every process that a test starts would compile all of PyTorch's Python anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup quickstart test test-slow bench lint sanitize gpu-check clean

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.dependencies: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check \
	    -c constraints.txt -e '.[dev]'
	touch $@

# The step above has just built the library, so a fresh environment needs no second build.
$(VENV)/.installed: $(VENV)/.dependencies $(NATIVE)
	[ ! -f $@ ] || $(BIN)/pip install --quiet --no-deps --disable-pip-version-check -e .
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

bench: setup  ## Measure operators and networks on this machine.
	$(BIN)/volution bench ops
	$(BIN)/volution bench models

sanitize: setup  ## Run the C library under the address and undefined-behaviour sanitizers.
	cmake -S . -B build/sanitize -DCMAKE_BUILD_TYPE=Debug -DVOLUTION_SANITIZE=ON
	cmake --build build/sanitize --parallel 2
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	    $(BIN)/python tests/sanitize.py build/sanitize/libvolution_cpu.so

gpu-check:  ## On a GPU machine, from the source tree: every operator test, then the benchmark.
	$(PYTHON) tests/gpu_check.py

clean:  ## Remove the environment and what was built.
	rm -rf $(VENV) build dist
