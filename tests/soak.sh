#!/bin/bash
# Longer than `make test`: soak.sh [MINUTES] [PART...]. Parts, all by default, one after the other:
#   faults    the fault scenarios again and again, each time with another seed, for MINUTES (FFS_FAULT_SEED: the first)
#   programs  databases, compilers and stress tests on a mount
#   model     100,000 random calls on two mounts, compared with tmpfs
#   rdma      random sizes at random offsets over real verbs, every byte compared: ten minutes (FFS_RDMA_SOAK_SECONDS)
# Ends with the first violation, and says how to repeat it.
set -uo pipefail
cd "$(dirname "$0")/.."
minutes=${1:-30}
shift || true
parts=${*:-faults programs model rdma}

faults() {
  local seed=${FFS_FAULT_SEED:-$((RANDOM * 32768 + RANDOM))} rounds=${FFS_FAULT_ROUNDS:-3} runs=0
  local end=$((SECONDS + minutes * 60))
  while [ $SECONDS -lt $end ]; do
    if ! FFS_FAULT_SEED=$seed FFS_FAULT_ROUNDS=$rounds .venv/bin/pytest -x -q -m e2e tests/fault; then
      echo "after $runs good runs, this one failed: FFS_FAULT_SEED=$seed FFS_FAULT_ROUNDS=$rounds make soak" >&2
      return 1
    fi
    runs=$((runs + 1))
    seed=$((seed + 1))
  done
  echo "$runs runs in $((SECONDS / 60)) minutes, no violation"
}

programs() {
  .venv/bin/pytest -x -q -m soak tests/e2e
}

model() {
  FFS_MODEL_EXAMPLES=700 FFS_MODEL_STEPS=150 .venv/bin/pytest -q tests/e2e/test_mount_model.py
}

rdma() {
  FFS_RDMA_SOAK_SECONDS=${FFS_RDMA_SOAK_SECONDS:-600} FFS_RDMA_TESTS=tests/rdma/test_rdma_soak.py tests/rdma/run.sh
}

for part in $parts; do
  case $part in
    faults | programs | model | rdma) "$part" || exit 1 ;;
    *) echo "no part $part: faults, programs, model, rdma" >&2; exit 2 ;;
  esac
done
