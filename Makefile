# What a newcomer needs: `make up`, `make down`, `make test`. Everything runs in .venv with the packages that pyproject.toml names.
SHELL := /bin/bash
export PYTHONSAFEPATH := 1
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FFS_ROOT ?= $(CURDIR)/.ffs
MOUNT ?= mnt
TEST_WORKERS ?= 2
SOAK_MINUTES ?= 30
PROTOS := common mgmtd meta storage

SEED ?=
RUNS ?= 1000
FIRST ?= 0
FAULTS ?=
WORLD ?= both

.PHONY: venv dev proto proto-fresh check lint test test-rdma test-packages sim soak up down bench clean

# The C libraries are built with the package: where their source has changed, the package is installed anew.
LIBRARY := $(wildcard client/usrbio/c/* common/native/c/*)

$(BIN)/ffs: pyproject.toml $(LIBRARY)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# The same with all that development needs, in one go.
$(VENV)/.dev: pyproject.toml $(LIBRARY)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(BIN)/ffs $@

# Programs written for 3FS, which tests run.
$(VENV)/usrbio-clients/.complete: tests/e2e/usrbio_clients.sh $(VENV)/.dev
	@$< $(VENV)/usrbio-clients $(BIN)/pip
	@touch $@

venv: $(BIN)/ffs
dev: $(VENV)/.dev $(VENV)/usrbio-clients/.complete

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

# Everything, real clusters and mounts first, and the rest in fresh processes, which hold nothing of them. A skipped test
# fails the run: FFS_ALLOW_SKIPS=1 accepts skips.
PYTEST_ALL = $(if $(FFS_ALLOW_SKIPS),,FFS_NO_SKIPS=1) $(BIN)/pytest -n $(TEST_WORKERS) --dist load
test: test-packages lint proto-fresh
	$(PYTEST_ALL) tests/e2e tests/fault
	$(PYTEST_ALL) --ignore tests/e2e --ignore tests/fault

# The rdma link over real verbs, on this machine's device or in a guest that has one (QEMU, slow).
test-rdma: dev test-packages
	@tests/rdma/run.sh

# Simulated clusters with faults: `make sim RUNS=1000`, `make sim RUNS=1000 FIRST=5000`, `make sim SEED=42` in detail;
# WORLD=files or WORLD=storage for one kind alone.
sim: dev
	@PYTHONPATH=tests/sim $(BIN)/python -m simulator $(if $(SEED),--seed $(SEED),--runs $(RUNS) --first $(FIRST)) \
	  --world $(WORLD) $(if $(FAULTS),--faults $(FAULTS))

# Faults done to real clusters, with another seed each time, until SOAK_MINUTES are over or something is found; then
# programs that are hard on a file system (half an hour), 100,000 random calls, and the rdma link (ten minutes).
soak: dev test-packages
	@deploy/debian-packages.sh soak
	@tests/soak.sh $(SOAK_MINUTES)

test-packages:
	@deploy/debian-packages.sh test

# One command from a fresh machine to a mounted cluster; a second one finds it running. MOUNT= (empty): no mount.
up:
	@PYTHON=$(PYTHON) deploy/debian-packages.sh run
	@$(MAKE) --no-print-directory venv
	@FFS_ROOT="$(FFS_ROOT)" deploy/up.sh "$(MOUNT)"

down: venv
	@$(BIN)/ffs --root "$(FFS_ROOT)" down

# Every benchmark, the comparison with MooseFS included; see bench/README.md. ONLY="link mount" runs some.
bench: dev
	@deploy/debian-packages.sh bench
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@bench/run.sh $(ONLY)

clean:
	rm -rf $(VENV) build dist src/*.egg-info
