#!/bin/bash
# The link over real verbs: on this machine's own rdma device, or in a guest with a software one. `make test-rdma`.
# FFS_RDMA_CLUSTER=1: then three storage nodes that replicate, are killed and catch up over it. A cluster wants more than
# a guest that translates instructions gives on a busy machine of two cores, so it is asked for.
# FFS_GUEST_KERNEL: where the guest's kernel is kept. FFS_GUEST_SECONDS: how long all of it may take.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -n "${FFS_IN_GUEST:-}" ] || deploy/pyverbs-link.sh .venv
pytest() { .venv/bin/python -m pytest -p no:cacheprovider --color no -q --timeout 280 "$@"; }
if .venv/bin/python -c 'import sys; from fireflyfs.common.net.rdma.verbs import device_names; sys.exit(not device_names())'
then
  pytest tests/rdma tests/conformance/test_link.py -k rdma
  [ -z "${FFS_RDMA_CLUSTER:-}" ] || FFS_LINK=rdma pytest tests/e2e/test_replication.py -k "killing_any or all_killed"
  exit
fi
[ -z "${FFS_IN_GUEST:-}" ] || { echo "$0: the guest has no rdma device" >&2; exit 1; }
kernel=${FFS_GUEST_KERNEL:-${XDG_CACHE_HOME:-$HOME/.cache}/fireflyfs/guest-kernel}
tests/rdma/guest/kernel.sh "$kernel"
exec tests/rdma/guest/run.py --kernel "$kernel" --rw "$PWD" --timeout "${FFS_GUEST_SECONDS:-1200}" --env FFS_IN_GUEST=1 \
  --env "FFS_RDMA_CLUSTER=${FFS_RDMA_CLUSTER:-}" -- tests/rdma/run.sh
