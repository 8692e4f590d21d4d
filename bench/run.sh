#!/bin/bash
# Runs the benchmarks, one after the other, all or those named: run.sh [link] [engine] [meta] [library] [writes]
# [failover] [recovery] [mount] [kvcache]
set -uo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
names=("$@")
[ ${#names[@]} -gt 0 ] || names=(link engine meta library writes failover recovery mount kvcache)
failed=()
for name in "${names[@]}"; do
  if [ ! -f "bench/$name.py" ]; then
    echo "there is no benchmark $name (bench/$name.py)" >&2
    failed+=("$name")
    continue
  fi
  printf '\n== %s ==\n' "$name"
  "$python" "bench/$name.py" || failed+=("$name")
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
