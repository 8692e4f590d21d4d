# What a newcomer needs: `make up`, `make test`. Everything runs in .venv with the packages that pyproject.toml names.
SHELL := /bin/bash
export PYTHONSAFEPATH := 1
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS := common mgmtd meta storage

.PHONY: venv dev proto proto-fresh check lint test clean

$(BIN)/ffs: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml $(BIN)/ffs
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

venv: $(BIN)/ffs
dev: $(VENV)/.dev

# Regenerate the committed protobuf modules.
proto: dev
	cd src && ../$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. $(PROTOS:%=fireflyfs/proto/%.proto)

# Fails when the committed modules are not what the .proto files give.
proto-fresh: dev
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && cd src && \
	  ../$(BIN)/python -m grpc_tools.protoc -I . --python_out=$$fresh --pyi_out=$$fresh $(PROTOS:%=fireflyfs/proto/%.proto) && \
	  for f in $$fresh/fireflyfs/proto/*; do diff -q $$f fireflyfs/proto/$$(basename $$f) || \
	    { echo "proto/$$(basename $$f) is stale: run 'make proto' and commit"; exit 1; }; done

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The fast checks: about two minutes.
check: lint proto-fresh
	$(BIN)/pytest -q -m "not e2e and not slow"

test: lint proto-fresh
	$(BIN)/pytest

clean:
	rm -rf $(VENV) build dist src/*.egg-info
