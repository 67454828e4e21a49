# make demo | test | check | bench | docs.  Needs Python 3.10 or newer and nothing else: what is
# missing is put into .venv, or installed by apt.  `make test ARGS="-k retry"` narrows the run.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help demo test check bench docs clean
.DELETE_ON_ERROR:

help:
	@echo "make demo   see a queue, a worker and some tasks at work"
	@echo "make test   run the whole test suite (ARGS: pytest's arguments)"
	@echo "make check  formatting, lint, types, layers, module sizes"
	@echo "make bench  measure (ARGS: the benchmarks' arguments)"
	@echo "make docs   run the code blocks of the documentation"
	@echo "make clean  remove what these have made"

demo: $(VENV)/installed
	$(BIN)/minicelery demo

test: $(VENV)/installed-dev redis-server rabbitmq-server postgresql chromium
	$(BIN)/python -m tests $(ARGS)

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/check_module_sizes.py

bench: $(VENV)/installed-dev redis-server rabbitmq-server
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/docs $(ARGS)

clean:
	rm -rf $(VENV) .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist

.PHONY: redis-server rabbitmq-server postgresql chromium
redis-server:
	@.ci/ensure-package redis-server command -v redis-server

rabbitmq-server:
	@.ci/ensure-package rabbitmq-server test -x /usr/lib/rabbitmq/bin/rabbitmq-server

postgresql:
	@.ci/ensure-package postgresql sh -c 'ls /usr/lib/postgresql/*/bin/postgres'

chromium:
	@.ci/ensure-package chromium command -v chromium

$(VENV)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is missing or older than 3.10; say which to use: make PYTHON=python3.12" >&2; exit 1; }
	@.ci/ensure-package python3-venv $(PYTHON) -c 'import ensurepip'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/pip pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/pip pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/installed
