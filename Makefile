# `make demo` runs the main job, `make test` the tests. Both make .venv first when there is none.
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
# Small networks run fastest on one thread each.
export OMP_NUM_THREADS := 1

.PHONY: help demo test test-ci test-slow lint format typecheck sb3-suite benchmarks clean

help:
	@echo "make demo       train A2C, H-PWR and Meta-PWR on the depth-8 DAG; writes runs/demo/index.html"
	@echo "make test       lint, types and the fast tests"
	@echo "make test-ci    the slow checks that continuous integration runs"
	@echo "make test-slow  all slow checks"
	@echo "make sb3-suite  Stable-Baselines3's own tests against our classes"
	@echo "make benchmarks ratios against Stable-Baselines3 and other environments"
	@echo "make format     ruff format and ruff check --fix"

$(VENV)/.installed: pyproject.toml constraints-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is older than Python 3.10; write: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints-dev.txt -e ".[dev]"
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py --out runs/demo

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/.installed
	$(BIN)/mypy

test: lint typecheck
	$(BIN)/python -m pytest -n 2

test-ci: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 -m ci

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m "slow or ci"

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sb3-suite: $(VENV)/.installed
	$(BIN)/python tests/sb3_suite/run.py

benchmarks: $(VENV)/.installed
	$(BIN)/python examples/benchmarks/algorithm_speed.py
	$(BIN)/python examples/benchmarks/env_speed.py

clean:
	rm -rf $(VENV) build dist *.egg-info tca_*/build tca_*/*.egg-info .pytest_cache .mypy_cache .ruff_cache
