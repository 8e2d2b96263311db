# What a newcomer types. Every target sets up what it needs, once, in .venv; nothing comes before.
#
#   make setup        only install everything in .venv
#   make quickstart   data, training, evaluation, registry and prediction in a few minutes
#   make test         all tests
#   make lint         style, types and import rules
#   make lock         resolve the dependencies again

PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
READY := $(VENV)/ready

# Every process of Ray imports hundreds of modules: without their bytecode that takes twice as long.
export PYTHONDONTWRITEBYTECODE :=

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup quickstart test lint format lock clean

help:
	@sed -n 's/^#   //p' Makefile

setup: $(READY)

quickstart: $(READY)
	@$(BIN)/python jobs/quickstart.py $(ARGS)

# Two processes, of which one runs the tests that share a Ray; one thread in each.
test: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: $(READY)
	$(BIN)/uv pip compile --universal --python-version 3.11 --group dev --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --quiet pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) runs

$(BIN)/uv:
	@test -n "$(PYTHON)" || { echo "No python found. Install Python 3.11 and try again."; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1), but Python 3.11 or newer is needed."; \
		echo "Install it, or name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	@echo "[set-up] creating $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV) || { \
		echo "$(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv"; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

# The stamp is newer than the lock once everything in the lock is installed.
$(READY): requirements.lock pyproject.toml | $(BIN)/uv
	@echo "[set-up] installing requirements.lock into $(VENV); the first time this downloads several GB"
	@VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(BIN)/uv pip install -r requirements.lock 2>&1 | \
		sed -u '/^ [+~-] /d; /^ Downloaded /d; s/^/[set-up] /'
	@VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(BIN)/uv pip install --quiet --no-deps --editable .
	@touch $@
	@echo "[set-up] done"
