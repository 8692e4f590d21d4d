#!/bin/bash
# Runs the fault scenarios again and again, longer than `make test` does and each time with another seed, for so many
# minutes: soak.sh [MINUTES]. Ends with the first violation, and says how to repeat it. FFS_FAULT_SEED: the first seed.
set -uo pipefail
cd "$(dirname "$0")/../.."
minutes=${1:-30}
seed=${FFS_FAULT_SEED:-$((RANDOM * 32768 + RANDOM))}
rounds=${FFS_FAULT_ROUNDS:-3}
end=$((SECONDS + minutes * 60))
runs=0
while [ $SECONDS -lt $end ]; do
  if ! FFS_FAULT_SEED=$seed FFS_FAULT_ROUNDS=$rounds .venv/bin/pytest -x -q -m e2e tests/fault; then
    echo "after $runs good runs, this one failed: FFS_FAULT_SEED=$seed FFS_FAULT_ROUNDS=$rounds make soak" >&2
    exit 1
  fi
  runs=$((runs + 1))
  seed=$((seed + 1))
done
echo "$runs runs in $((SECONDS / 60)) minutes, no violation"
