#!/bin/bash
# The link over real verbs: on this machine's own rdma device, or in a guest with a software one. `make test-rdma`.
# Its contract, its faults, random pieces for a while, and a cluster with a mount on which nothing but rdma is taken and
# one of three storage nodes dies and comes back.
# FFS_RDMA_CLUSTER=1: the replication tests over rdma too, one replica after the other killed and all at once.
# FFS_RDMA_TESTS: these alone. FFS_RDMA_SOAK_SECONDS: how long bytes go both ways and are compared (15).
# FFS_GUEST_KERNEL: where the guest's kernel is kept. FFS_GUEST_SECONDS: how long all of it may take.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -n "${FFS_IN_GUEST:-}" ] || deploy/pyverbs-link.sh .venv
pytest() { .venv/bin/python -m pytest -p no:cacheprovider --color no -q --timeout 280 "$@"; }
if .venv/bin/python -c 'import sys; from fireflyfs.common.net.rdma.library import device_names; sys.exit(not device_names())'
then
  # shellcheck disable=SC2086 # several words
  pytest ${FFS_RDMA_TESTS:-tests/rdma tests/conformance/test_link.py} -k rdma
  exit
fi
[ -z "${FFS_IN_GUEST:-}" ] || { echo "$0: the guest has no rdma device" >&2; exit 1; }
# Else the guest would compile.
.venv/bin/python -m compileall -q client common deploy fuse meta mgmtd proto storage tests/rdma tests/conformance
kernel=${FFS_GUEST_KERNEL:-${XDG_CACHE_HOME:-$HOME/.cache}/fireflyfs/guest-kernel}
tests/rdma/guest/kernel.sh "$kernel"
exec tests/rdma/guest/run.py --kernel "$kernel" --rw "$PWD" --timeout "${FFS_GUEST_SECONDS:-1200}" --env FFS_IN_GUEST=1 \
  --env "FFS_RDMA_CLUSTER=${FFS_RDMA_CLUSTER:-}" --env "FFS_RDMA_TESTS=${FFS_RDMA_TESTS:-}" \
  --env "FFS_RDMA_SOAK_SECONDS=${FFS_RDMA_SOAK_SECONDS:-15}" -- tests/rdma/run.sh
