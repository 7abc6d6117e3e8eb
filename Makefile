# Two commands do all the set-up: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# `make test EXTRAS=dev,tvm` in a fresh checkout installs TVM too and runs its tests, which are skipped without it.
EXTRAS ?= dev

.PHONY: install quickstart test lint

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "hwnas needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

quickstart: install
	$(BIN)/hwnas quickstart

test: install
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check hwnas tests benchmarks
	$(BIN)/ruff format --check hwnas tests benchmarks fpga
	$(BIN)/mypy
